import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from operators.catalog import find_operator
from operators.convolutional import CompactCNN, PaperCNN
from operators.errors import OperatorNotFound
from silo.__main__ import main
from silo.images import load_image, read_parameters, save_png
from silo.masks import load_mask
from silo.measured import take_measurement
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from tests.photos import as_jpeg, blurred, photo

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = CompactCNN(latent_channels=4, width=8, blocks=1, groups=4)
    network.metadata = {"task": "super_resolution_x4", "prior": "test"}
    folder = tmp_path_factory.mktemp("operator")
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        generator = torch.Generator().manual_seed(index)
        save_png(folder / f"p{index}.png", torch.rand(3, 32, 48, generator=generator) * 2 - 1)
    return folder


@pytest.fixture
def restore(tiny_prior_folder: Path, operator: Path):
    """Calls `restore` with the prior of random weights and few steps."""

    def call(*arguments: object) -> int:
        fixed = ["--prior", tiny_prior_folder, "--operator", operator, "--steps", 2]
        fixed += ["--task", "super_resolution_x4"]
        return main(["restore", *map(str, arguments), *map(str, fixed)])

    return call


def test_a_picture_is_restored_beside_it_with_its_parameters(restore, photos: Path, capsys) -> None:
    assert restore(photos / "p0.png", "--seed", 7) == 0
    output = photos / "p0_restored.png"
    assert capsys.readouterr().out.split() == [str(output)]
    assert load_image(output).pixels.shape == (1, 3, 128, 192)  # super-resolution enlarges
    parameters = read_parameters(output)
    assert parameters is not None
    assert (parameters["seed"], parameters["steps"]) == (7, 2)
    assert parameters["input"]["name"] == "p0.png"


def test_json_reports_a_simulated_restoration(
    restore, photos: Path, tmp_path: Path, capsys
) -> None:
    assert restore(photos / "p0.png", "--simulate", "--json", "--out", tmp_path / "out.png") == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["output"] == str(tmp_path / "out.png")
    expected = {"task": "super_resolution_x4", "sampler": "silo", "steps": 2, "nfe": 2, "seed": 0}
    assert expected.items() <= report.items()
    assert report["restoration"].keys() == {"psnr", "cpsnr", "ssim", "lpips", "lpips_vgg"}
    assert report["measurement"]["cpsnr"] > 20
    assert report["memory"] > 10**7
    assert load_image(tmp_path / "out.png").pixels.shape == (1, 3, 32, 48)


def test_a_peer_runs_without_an_operator_and_takes_its_own_hyperparameters(
    tiny_prior_folder: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    arguments = ["restore", photos / "p0.png", "--prior", tiny_prior_folder, "--steps", 2]
    arguments += ["--task", "super_resolution_x4", "--simulate", "--json", "--sampler", "psld"]
    arguments += ["--set", "omega=0.25", "--out", tmp_path / "out.png"]
    assert main([str(argument) for argument in arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["hyperparameters"] == {"omega": 0.25, "gamma": 50.0}
    assert (report["nfe"], report["encodes"], report["decodes"]) == (2, 3, 3)
    assert report["operator"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "jpeg_q10", "--sampler", "psld"], "linear"),
        (["--task", "gaussian_blur", "--sampler", "ldps", "--operator", "x"], "--operator"),
    ],
)
def test_what_a_peer_cannot_do_is_said_before_any_work(
    arguments: list[str], message: str, photos: Path, capsys
) -> None:
    # The prior does not exist either, but that is not looked at yet.
    assert main(["restore", str(photos / "p0.png"), "--prior", "no/prior/here", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_a_folder_run_resumes_and_names_what_it_could_not_read(
    restore, photos: Path, tmp_path: Path, capsys
) -> None:
    (photos / "broken.png").write_bytes((photos / "p0.png").read_bytes()[:200])
    out = tmp_path / "out"
    assert restore(photos, "--out", out) == 1
    errors = capsys.readouterr().err
    assert "1 of 4 pictures failed" in errors and "broken.png" in errors
    assert sorted(p.name for p in out.iterdir()) == [f"p{i}_restored.png" for i in range(3)]
    stamps = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "p1_restored.png").unlink()
    (photos / "p2.png").write_bytes((photos / "p0.png").read_bytes())  # another picture now
    (photos / "broken.png").unlink()
    assert restore(photos, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.err.count("up to date") == 1
    assert len(captured.out.split()) == 2
    assert (out / "p0_restored.png").stat().st_mtime_ns == stamps["p0_restored.png"]
    assert restore(photos, "--out", out, "--seed", 1) == 0
    assert capsys.readouterr().err.count("up to date") == 0


def test_what_another_version_made_is_not_taken_for_done(
    restore, photos: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for version in ("1.2.3", "1.2.3", "1.2.4"):
        monkeypatch.setattr("silo.restorer.__version__", version)
        assert restore(photos / "p0.png", "--out", tmp_path / "p0.png") == 0
        told.append("up to date" in capsys.readouterr().err)
        recorded = read_parameters(tmp_path / "p0.png")
        assert recorded is not None and recorded["version"] == version
    assert told == [False, True, False]


def test_another_mask_or_other_weights_of_the_same_name_are_restored_with_anew(
    photos: Path, tmp_path: Path, tiny_prior_folder: Path, operator: Path, capsys
) -> None:
    prior, own = tmp_path / "prior", tmp_path / "operator"
    shutil.copytree(tiny_prior_folder, prior)
    shutil.copytree(operator, own)
    out, masks = tmp_path / "out.png", [tmp_path / "a.png", tmp_path / "b.png"]
    for index, path in enumerate(masks):
        hole = -torch.ones(3, 32, 48)
        hole[..., 16 * index : 16 * index + 16] = 1
        save_png(path, hole)

    def is_done(*arguments: object) -> bool:
        fixed = ["restore", photos / "p0.png", "--prior", prior, "--steps", 1, "--out", out]
        assert main([str(argument) for argument in (*fixed, *arguments)]) == 0
        return "up to date" in capsys.readouterr().err

    def train_again(weights: Path) -> None:
        save_file({key: 0.9 * value for key, value in load_file(weights).items()}, weights)

    fill = ["--task", "inpainting_free", "--sampler", "ldps", "--mask"]
    assert not is_done(*fill, masks[0]) and is_done(*fill, masks[0])
    first = load_image(out).pixels
    assert not is_done(*fill, masks[1])
    assert not torch.equal(load_image(out).pixels, first)
    enlarge = ["--task", "super_resolution_x4", "--operator", own]
    assert not is_done(*enlarge) and is_done(*enlarge)
    assert not is_done(*enlarge, "--working-size", 256) and not is_done(*enlarge)
    for weights in (own / "model.safetensors", *(prior / "unet").glob("*.safetensors")):
        train_again(weights)
        assert not is_done(*enlarge) and is_done(*enlarge)


def test_samples_go_to_files_of_their_own(restore, photos: Path, tmp_path: Path, capsys) -> None:
    several = ("--samples", 2, "--out", tmp_path / "s.png", "--json")
    assert restore(photos / "p0.png", *several) == 0
    first, second = (load_image(tmp_path / f"s_{i}.png").pixels for i in (1, 2))
    assert not torch.equal(first, second)
    report = json.loads(capsys.readouterr().out)
    assert restore(photos / "p0.png", *several) == 0
    again = json.loads(capsys.readouterr().out)  # an object for what is up to date, too
    assert (report["skipped"], again["skipped"]) == (False, True)
    assert again["output"] == [str(tmp_path / f"s_{i}.png") for i in (1, 2)]
    assert {**again, "skipped": False}.items() <= report.items()


@pytest.mark.parametrize(
    "arguments",
    [
        ["r_1.png", "--out", "r.png", "--samples", "2"],
        ["a.png", "a_restored_1.png", "--samples", "2", "--seed", "1"],
        ["a.png", "--task", "inpainting_free", "--mask", "m.png", "--out", "m.png"],
    ],
)
def test_no_restoration_replaces_what_it_is_made_from(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("r_1.png", "a.png", "a_restored_1.png", "m.png"):
        save_png(name, torch.zeros(3, 8, 8))
    # The prior does not exist either, but that is not looked at yet.
    assert main(["restore", "--task", "denoising", "--prior", "no/prior/here", *arguments]) == 2
    assert "is one of the inputs" in capsys.readouterr().err


def test_a_picture_that_does_not_fit_or_diverges_ends_no_folder(
    photos: Path, tmp_path: Path, tiny_prior_folder: Path, capsys
) -> None:
    small, wild = (
        PaperCNN(latent_size=16, embedding_dim=64),
        CompactCNN(width=8, blocks=1, groups=4),
    )
    torch.nn.init.constant_(wild.output.weight, 3e38)
    for name, operator in (("small", small), ("wild", wild)):
        operator.metadata = {"task": "super_resolution_x4", "prior": "test"}
        operator.save_pretrained(tmp_path / name)
    (photos / "p2.png").unlink()
    save_png(photos / "p1.png", load_image(photos / "p1.png").pixels[..., :32])
    given = ["restore", str(photos), "--prior", str(tiny_prior_folder), "--steps", "1"]
    given += ["--task", "super_resolution_x4", "--operator"]
    assert main([*given, str(tmp_path / "small")]) == 1
    told = capsys.readouterr()
    assert "1 of 2 pictures failed" in told.err and "p0.png: this operator works on" in told.err
    assert [Path(line).name for line in told.out.split()] == ["p1_restored.png"]
    assert main([*given, str(tmp_path / "wild")]) == 1
    told = capsys.readouterr()
    assert "2 of 2 pictures failed" in told.err and told.err.count("the sampler diverged") == 2
    # What is wrong with every picture ends it before the first.
    assert main([*given, str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "blur"], "gaussian_blur"),
        (["--steps", "0"], "steps"),
        (["--eta", "nan"], "eta"),
        (["--prior", "no/such-prior-folder/here"], "prior"),
        (["--operator", "{missing}"], "missing"),
        (["--task", "inpainting_random", "--operator", "{holes}"], "needs a mask"),
        (["--mask", "{photos}/p1.png"], "takes no mask"),
        (
            ["--task", "inpainting_random", "--operator", "{holes}", "--mask", "{small}"],
            "8 x 8",
        ),
        (["--operator", "{pickle}"], "safetensors"),
        (["--operator", "{truncated}"], "truncated"),
        (["--operator", "{nan}"], "nan"),
        (["--device", "tpu"], "device"),
        (["--out", "{photos}/p0.png"], "one of the inputs"),
    ],
)
def test_a_wrong_call_is_one_line_exit_code_2_and_nothing_written(
    photos: Path,
    tmp_path: Path,
    operator: Path,
    tiny_prior_folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {name: tmp_path / name for name in ("missing", "pickle", "truncated", "holes", "nan")}
    places["pickle"].mkdir()
    (places["pickle"] / "config.json").write_text((operator / "config.json").read_text())
    torch.save({}, places["pickle"] / "model.pt")
    shutil.copytree(operator, places["truncated"])
    weights = places["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    network = CompactCNN.from_pretrained(operator)
    network.metadata = {"task": "inpainting_random", "prior": "test"}
    network.save_pretrained(places["holes"])
    network.metadata = {}
    places["nan"].mkdir()
    torch.nn.init.constant_(network.input.weight, 1.0)
    network.save_pretrained(places["nan"])
    data = bytearray((places["nan"] / "model.safetensors").read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # a float32 NaN
    (places["nan"] / "model.safetensors").write_bytes(bytes(data))
    save_png(tmp_path / "small.png", torch.ones(3, 8, 8))
    places |= {"photos": photos, "small": tmp_path / "small.png"}
    before = {p: p.stat().st_mtime_ns for p in photos.iterdir()}
    # Later options win over earlier ones, so that each case is wrong in one thing.
    right = ["--prior", str(tiny_prior_folder), "--operator", str(operator), "--steps", "2"]
    right += ["--task", "super_resolution_x4"]
    wrong = [argument.format(**places) for argument in arguments]
    assert main(["restore", str(photos / "p0.png"), *right, *wrong]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == ""
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert message.lower() in lines[0].lower()
    assert {p: p.stat().st_mtime_ns for p in photos.iterdir()} == before


def test_damaged_and_missing_pictures_are_errors_of_one_line(restore, photos: Path, capsys) -> None:
    bad = photos / "bad.jpg"
    bad.write_text("not a picture")
    for path in (bad, photos / "none.png", photos.parent / "empty"):
        if path.name == "empty":
            path.mkdir()
        assert restore(path) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert path.name in line


def test_degrade_writes_the_measurement_that_restore_simulates(
    photos: Path, tmp_path: Path, tiny_prior: LatentPrior, operator: Path, capsys
) -> None:
    small, fitting = tmp_path / "small.png", tmp_path / "fitting.png"
    save_png(fitting, load_image(photos / "p0.png").pixels[..., :32])
    arguments = ["--task", "super_resolution_x4", "--out", str(small), "--seed", "3"]
    assert main(["degrade", str(fitting), *arguments]) == 0
    picture = load_image(fitting).pixels
    request = RestorationRequest("super_resolution_x4", picture, simulate=True, seed=3)
    measured = take_measurement(request, tiny_prior)
    expected = measured.y.clamp(-1, 1)
    torch.testing.assert_close(load_image(small).pixels, expected, atol=1 / 127, rtol=0)
    assert main(["degrade", str(photos / "p0.png"), "--task", "none", "--out", str(small)]) == 2
    assert "none" in capsys.readouterr().err


def test_degrade_writes_the_mask_it_drew(photos: Path, tmp_path: Path) -> None:
    arguments = ["--task", "inpainting_random", "--out", str(tmp_path / "lost.png")]
    assert main(["degrade", str(photos / "p0.png"), *arguments, "--noise-sigma", "0"]) == 0
    mask = load_mask(tmp_path / "lost_mask.png")
    assert 0.2 < mask.mean() < 0.4
    kept = mask * load_image(photos / "p0.png").pixels
    measured = load_image(tmp_path / "lost.png").pixels
    torch.testing.assert_close(measured, kept, atol=1 / 127, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["x.png", "--out", "x.png"],
        ["x_mask.png", "--out", "x.png"],  # where the mask would go
        ["x.png", "--mask", "x_mask.png", "--out", "x_mask.png"],
    ],
)
def test_degrade_replaces_no_input(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "x_mask.png"):
        save_png(name, (torch.arange(64.0) - 32).reshape(8, 8).expand(3, -1, -1).clamp(-1, 1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["degrade", *arguments, "--task", "inpainting_random"]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_degrade_tells_what_it_did_not_take_over(tmp_path: Path, capsys) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    arguments = ["--task", "denoising", "--out", str(tmp_path / "noisy.png")]
    assert main(["degrade", str(tmp_path / "clear.png"), *arguments]) == 0
    assert "clear.png: its transparent areas" in capsys.readouterr().err


def test_an_interrupted_command_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("silo.commands.degrade.main", interrupted)
    assert main(["degrade"]) == 130
    assert capsys.readouterr().err == "stopped; what was finished is kept.\n"


def test_help_is_quick_to_import_and_unknown_commands_are_named() -> None:
    script = (
        "import sys; from silo.__main__ import main; code = main(['--help'])\n"
        "print('torch' in sys.modules, code)"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "train-operator" in done.stdout
    assert done.stdout.splitlines()[-1] == "False 0"
    wrong = subprocess.run(
        [sys.executable, "-m", "silo", "restor"], capture_output=True, text=True, cwd=ROOT
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: there is no command 'restor'")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["restore", "a.png", "--task", "gaussian_blur", "--stepz", "4"], "--stepz"),
        (["restore", "a.png", "--task", "gaussian_blur", "--steps", "abc"], "--steps.*'abc'"),
        (
            ["restore", "a.png", "--task", "gaussian_blur", "--sampler", "no"],
            "--sampler.*silo-fast",
        ),
        *(
            (["restore", "a.png", "--set", text], f"'{text}' is not NAME=NUMBER")
            for text in ("omega=abc", "omega")
        ),
        (["restore", "a.png", "--samples", "1000000000"], "--samples"),
        (["operators", "pull"], "required: ORG/NAME"),
    ],
)
def test_wrong_options_are_told_in_one_line(arguments: list[str], told: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and re.search(told, line) and "--help" in line


def test_what_is_wrong_is_found_unless_it_is_said(tmp_path: Path, capsys) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    clean = photo("coffee")
    for name, picture in (("blurry", blurred(clean, 2)), ("old", as_jpeg(clean, 10))):
        save_png(folder / f"{name}.png", picture)
    save_png(folder / "sharp.png", clean)
    given = ["restore", str(folder), "--preset", "quick", "--steps", "1", "--out", str(out)]
    assert main(given) == 1
    told = capsys.readouterr().err
    for name, task in (("blurry", "gaussian_blur"), ("old", "jpeg_q10")):
        parameters = read_parameters(out / f"{name}_restored.png")
        assert parameters is not None and parameters["task"] == task
        assert f"{name}.png shows {task}." in told
    assert "1 of 3 pictures failed" in told and "name the task" in told
    for option in (["--simulate"], ["--mask", "m.png"], ["--operator", "x"], ["--blur-std", "0"]):
        assert main(["restore", str(folder), *option]) == 2
        assert f"{option[0]} is for damage that is named" in capsys.readouterr().err


def test_a_photo_whose_damage_cannot_be_undone_ends_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder, found = tmp_path / "photos", iter(["jpeg_q10", "gaussian_blur", "motion_blur"])
    folder.mkdir()
    for name in ("a", "b", "c"):
        save_png(folder / f"{name}.png", photo("coffee", 64))
    monkeypatch.setattr("silo.photo.diagnosis.diagnose", lambda _: next(found))
    assert main(["restore", str(folder), "--sampler", "psld", "--steps", "1"]) == 1
    told = capsys.readouterr()
    assert "a.png: It shows jpeg_q10: psld restores linear degradations only" in told.err
    assert [Path(line).name for line in told.out.split()] == ["b_restored.png", "c_restored.png"]

    found = iter(["denoising", "gaussian_blur", "gaussian_blur"])
    monkeypatch.setattr("silo.restorer.find_operator", none_for_denoising)
    assert main(["restore", str(folder), "--preset", "quick", "--steps", "1"]) == 1
    told = capsys.readouterr()
    assert "a.png: It shows denoising: " in told.err and len(told.out.split()) == 2


def none_for_denoising(task: str, prior: str, channels: int) -> Path:
    if task == "denoising":
        raise OperatorNotFound("there is none")
    return find_operator(task, prior, channels)


def test_a_place_that_is_none_is_told_before_anything_is_loaded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("silo.prior.LatentPrior.load", lambda *_, **__: pytest.fail("too early"))
    file = tmp_path / "file"
    file.touch()
    restoring = ["restore", str(photos / "p0.png"), "--task", "denoising"]
    for call in (
        [*restoring, "--out", str(file)],
        [*restoring, "--out", str(file / "below" / "a.png")],
        ["sample", "--out", str(file)],
        ["evaluate", "--data", str(photos), "--split", "all", "--out", str(file)],
        ["train-prior", "--train_data_dir", str(photos), "--output_dir", str(file)],
    ):
        assert main(call) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file} is no folder that can be written to" in line


def test_results_are_png_files(photos: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(photos / "p0.png"), "--task", "denoising", "--out", str(tmp_path / "x.jpg")]
    for command in ("restore", "degrade"):
        assert main([command, *arguments]) == 2
        assert "x.png" in capsys.readouterr().err and not (tmp_path / "x.jpg").exists()


def test_where_no_picture_is_held_out_it_is_said_how_to_take_them_all(
    photos: Path, tmp_path: Path, capsys
) -> None:
    assert main(["evaluate", "--data", str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "--split all" in capsys.readouterr().err
