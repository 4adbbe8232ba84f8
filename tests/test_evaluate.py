import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from operators.convolutional import CompactCNN
from silo import __version__, evaluate, inception
from silo.__main__ import main
from silo.data import PhotoFile, center_crop, iterate_photos, list_photos
from silo.devices import describe_device
from silo.evaluation.jobs import Store
from silo.evaluation.plot import spread
from silo.evaluation.protocols import Setting
from silo.evaluation.record import Record
from silo.evaluation.report import PUBLISHED
from silo.evaluation.runner import Runner
from silo.evaluation.search import around_best
from silo.images import load_image, save_png
from silo.metric_weights import FILES, WEIGHTS_VARIABLE
from silo.metrics import frechet_distance, psnr
from silo.prior import LatentPrior
from silo.restorer import Restorer
from tests.hub_server import File, Hub

ROOT = Path(__file__).parent.parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        generator = torch.Generator().manual_seed(index)
        save_png(folder / f"p{index}.png", torch.rand(3, 40, 56, generator=generator) * 2 - 1)
    return folder


@pytest.fixture
def arguments(
    photos: Path, tiny_prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Of a run over three pictures, to which tasks and the like are added."""
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    operator = CompactCNN(latent_channels=4, width=8, blocks=1, groups=4)
    operator.save_pretrained(tmp_path / "op")
    call = ["evaluate", "--data", str(photos), "--split", "all", "--limit", "3", "--steps", "1"]
    call += ["--prior", str(tiny_prior_folder), "--operator", str(tmp_path / "op")]
    return [*call, "--out", str(tmp_path / "out")]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def _metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def test_every_option_is_explained() -> None:
    assert not [option.dest for option in evaluate._parser()._actions if not option.help]


def test_an_evaluation_measures_every_picture_and_shows_them(
    arguments: list[str], out: Path, capsys
) -> None:
    assert main([*arguments, "--tasks", "gaussian_blur,super_resolution_x4"]) == 0
    metrics = _metrics(out)
    assert metrics["pictures"] == ["p0", "p2", "p4"] and metrics["metric_weights"] == {}
    restored = [row for row in metrics["rows"] if "nfe" in row]
    assert [(row["parameters"]["task"], row["picture"]) for row in restored] == [
        (task, f"p{index}")
        for task in ("gaussian_blur", "super_resolution_x4")
        for index in (0, 2, 4)
    ]
    first = restored[0]
    assert first["nfe"] == first["encodes"] == first["decodes"] == 1
    assert first["parameters"]["seed"] == 0 and first["scores"]["lpips"] is None
    table = (out / "table.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    measured = [row for row in metrics["rows"] if "gaussian_blur-measurement" in row["key"]]
    mean = sum(row["scores"]["psnr"] for row in measured) / 3
    assert len(measured) == 3 and f"| gaussian_blur | measurement | 3 | {mean:.2f} |" in table
    blur = next(line for line in table.splitlines() if line.startswith("| gaussian_blur | SILO |"))
    assert blur.count("not available") == 4  # LPIPS-A, LPIPS-V, FID, KID
    assert "LPIPS-A, LPIPS-V, FID, KID: not available" in table
    # What the scores are of is what is kept: the saved pictures have the recorded PSNR.
    clean = load_image(out / "pictures" / "clean-128" / "p2.png").pixels
    restoration = load_image(out / "pictures" / first["key"] / "p2.png").pixels
    assert psnr(restoration, clean).item() == pytest.approx(restored[1]["scores"]["psnr"], abs=0.1)
    with Image.open(out / "gaussian_blur.jpg") as sheet:
        assert sheet.width == 3 * 224 + 4 * 6  # clean, measurement, SILO
        assert sheet.height == 26 + 3 * (224 + 6)
    plot = ElementTree.parse(out / "quality-time.svg").getroot()
    assert len(plot.findall(".//{*}circle")) == 2  # a mark for each task's restoration
    texts = {element.text for element in plot.findall(".//{*}text")}
    assert {"gaussian_blur", "super_resolution_x4", "SILO", "PSNR, dB"} <= texts


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur"]
    restore, started = Restorer.run, []

    def stopping(*details):
        started.append(details)
        if len(started) == 2:
            raise KeyboardInterrupt
        return restore(*details)

    monkeypatch.setattr(Restorer, "run", stopping)
    assert main(call) == 130
    assert not (out / "metrics.json").exists()
    rows = out / "rows-0.jsonl"
    rows.write_text(rows.read_text() + '{"key": "cut sho')  # and then the power failed
    assert main(call) == 0
    assert len(started) == 4  # one finished, one stopped, and the two that were left
    before = _metrics(out)
    assert main(call) == 0
    assert len(started) == 4 and _metrics(out) == before
    assert main([*call, "--eta", "0.25"]) == 0  # another setting is another measurement
    assert len(started) == 7
    assert {row["parameters"]["eta"] for row in _metrics(out)["rows"] if "nfe" in row} == {0.25}


def test_every_combination_of_samplers_noise_and_prompts_is_a_method_or_a_row(
    arguments: list[str], out: Path
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur,jpeg_q10", "--limit", "1"]
    call += ["--samplers", "silo,psld", "--noise-sigma", "0", "0.1", "--guidance-scale", "1", "2"]
    assert main(call) == 0
    means = _metrics(out)["means"]
    methods = ["measurement", "SILO, CFG 1", "SILO, CFG 2", "PSLD, CFG 1", "PSLD, CFG 2"]
    places = {(cell["row"], cell["method"]) for cell in means}
    blurred = {(f"gaussian_blur, noise {noise}", m) for noise in ("0", "0.1") for m in methods}
    # PSLD needs a linear degradation, which JPEG is not.
    jpeg = {(f"jpeg_q10, noise {noise}", m) for noise in ("0", "0.1") for m in methods[:3]}
    assert places == blurred | jpeg
    by_place = {(cell["row"], cell["method"]): cell["means"] for cell in means}
    quiet, noisy = (by_place[f"gaussian_blur, noise {n}", "measurement"] for n in ("0", "0.1"))
    assert quiet["cpsnr"] > noisy["cpsnr"] and quiet["psnr"] > noisy["psnr"]
    psld = by_place["gaussian_blur, noise 0", "PSLD, CFG 1"]
    assert (psld["encodes"], psld["decodes"]) == (2, 2)  # one step and, as all, start and end
    assert re.search(r"\| jpeg_q10, noise 0 \|.*\| – \| – \|", (out / "table.md").read_text())


def test_other_pictures_of_the_same_names_are_measured_and_shown_themselves(
    arguments: list[str], out: Path, photos: Path, tmp_path: Path
) -> None:
    def run(data: Path, task: str, out: Path) -> tuple[list[float], torch.Tensor]:
        """The PSNR of measurement and restoration, and the clean picture that was kept."""
        place = arguments.index(str(photos))
        call = [*arguments[:place], str(data), *arguments[place + 1 :], "--limit", "1"]
        assert main([*call, "--tasks", task, "--out", str(out)]) == 0
        scores = [row["scores"]["psnr"] for row in _metrics(out)["rows"]]
        return scores, load_image(out / "pictures" / "clean-128" / "p0.png").pixels

    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "p1.png", other / "p0.png")
    expected, clean = run(other, "gaussian_blur", tmp_path / "alone")
    first, first_clean = run(photos, "gaussian_blur", out)
    assert first != pytest.approx(expected, abs=1e-3) and not torch.equal(first_clean, clean)
    for task in (
        "gaussian_blur",
        "jpeg_q10",
    ):  # the latter leaves the rows of the former as they are
        run(photos, task, out)
        scores, kept = run(other, "gaussian_blur", out)
        assert scores == pytest.approx(expected) and torch.equal(kept, clean)


def test_a_failure_is_a_row_that_is_tried_again(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur"]
    with monkeypatch.context() as patch:
        patch.setattr(LatentPrior, "decode", lambda self, z: _diverge())
        assert main(call) == 1
    assert "gaussian_blur, SILO: 3 failed: it diverged" in (out / "table.md").read_text()
    assert "nan" not in (out / "table.md").read_text()
    assert main(call) == 0
    assert "failed" not in (out / "table.md").read_text()


def test_the_table_tells_what_restorations_told_and_whether_times_compare(
    arguments: list[str], out: Path
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur", "--prompt", "word " * 100]
    assert main(call) == 0
    table = (out / "table.md").read_text()
    assert "- gaussian_blur, SILO: The prompt is longer than the prior reads" in table
    assert "do not compare them" not in table
    rows = _rows(out)
    rows[-1]["device"] = "a GPU"
    (out / "rows-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(call) == 0
    told = re.findall(r"do not compare them: (.*)\.\n", (out / "table.md").read_text())
    assert told == [f"a GPU; {describe_device(torch.device('cpu'))}"]


def test_a_damaged_picture_is_a_failure_of_its_own(
    arguments: list[str], out: Path, photos: Path
) -> None:
    whole = (photos / "p2.png").read_bytes()
    (photos / "p2.png").write_bytes(whole[:500])
    call = [*arguments, "--tasks", "gaussian_blur"]
    assert main(call) == 1
    table = (out / "table.md").read_text()
    assert "SILO: 1 failed: 'p2' in" in table
    assert re.search(r"\| gaussian_blur \|.* \(1 of 3 failed\) \|", table)
    assert "SILO (1 of 3 failed)" in (out / "quality-time.svg").read_text()
    assert len([row for row in _rows(out) if "nfe" in row]) == 2
    (photos / "p2.png").write_bytes(whole)
    assert main(call) == 0
    assert len([row for row in _rows(out) if "nfe" in row]) == 3


def test_a_picture_that_can_no_longer_be_read_is_a_failure_of_its_own(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur"]
    assert main(call) == 0

    def remove_one(folders: list[Path], split: str) -> list[PhotoFile]:
        found = list_photos(folders, split)
        (folders[0] / "p2.png").unlink()
        return found

    monkeypatch.setattr("silo.evaluate.list_photos", remove_one)
    assert main(call) == 1
    assert "SILO: 1 failed: 'p2' in" in (out / "table.md").read_text()
    assert "cannot be read (No such file" in (out / "table.md").read_text()


# Of a white picture, the first is false as it is measured, the other as its noise is scored.
@pytest.mark.parametrize("expected", ["images.mean() < 0.9", "not 0.8 < images.mean() < 1"])
def test_a_picture_that_a_function_of_ones_own_fails_on_is_a_failure_of_its_own(
    arguments: list[str], photos: Path, tmp_path: Path, out: Path, expected: str
) -> None:
    save_png(photos / "p2.png", torch.ones(3, 40, 56))
    source = f"def fog(images):\n    assert {expected}, 'too bright'\n    return images\n"
    (tmp_path / "mine.py").write_text(source)
    own = ["--degradation", f"{tmp_path / 'mine.py'}:fog", "--tasks", "fog"]
    assert main([*arguments, *own, "--noise-sigma", "0.1", "--eta", "0.5"]) == 1
    table = (out / "table.md").read_text()
    assert re.search(r"SILO: 1 failed: The degradation fog fails on images .* too bright", table)
    assert "| fog | SILO | 2 |" in table


def _diverge() -> None:
    from silo.errors import BadRequest

    raise BadRequest("it diverged")


class _Quadrants:
    """Stands in for the Inception network: the mean brightness of each quadrant."""

    def __init__(self, path: Path) -> None:
        assert path.name == FILES["inception"]

    def features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(1), 2).flatten(1)


def _provide_inception(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file in `folder` be the network, and `_Quadrants` what it computes."""
    (folder / FILES["inception"]).write_bytes(b"a network")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(folder))
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"a network").hexdigest())
    monkeypatch.setattr("silo.evaluate.Inception", _Quadrants)


def test_distances_between_sets_use_the_features_of_all_pictures(
    arguments: list[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur"]
    assert main(call) == 0
    # With the network at hand later, the same command measures what was not available.
    _provide_inception(tmp_path, monkeypatch)
    assert main(call) == 0
    metrics = _metrics(out)
    assert metrics["metric_weights"] == {"inception": inception.SHA256}
    cell = next(cell for cell in metrics["means"] if cell["method"] == "SILO")
    pictures = [
        torch.cat(
            [
                load_image(out / "pictures" / key / f"{name}.png").pixels
                for name in "p0 p2 p4".split()
            ]
        )
        for key in (cell["key"], "clean-128")
    ]
    features = [_Quadrants(tmp_path / FILES["inception"]).features(images) for images in pictures]
    assert cell["means"]["fid"] == pytest.approx(frechet_distance(*features), rel=0.05)
    assert cell["means"]["kid"] is not None
    saved = load_file(out / "features" / cell["key"] / "p0.safetensors")["features"]
    torch.testing.assert_close(saved, features[0][:1], atol=5e-3, rtol=0)


def test_a_search_tries_multiples_on_other_pictures_and_reports_them(
    arguments: list[str], out: Path
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur", "--limit", "2", "--search", "1"]
    call += ["--samplers", "silo,ldps", "--steps", "4"]
    assert main(call) == 0
    metrics = _metrics(out)
    silo, ldps = metrics["search"]
    tried = {result["factor"]: result["psnr"] for result in silo["tried"]}
    assert tried.keys() >= {0.25, 1.0, 4.0} and list(tried) == sorted(tried)
    assert silo["chosen"] == max(tried, key=lambda factor: tried[factor])
    etas = {each["factor"]: each["setting"]["eta"] for each in silo["tried"]}
    omegas = {
        each["factor"]: each["setting"]["hyperparameters"].get("omega") for each in ldps["tried"]
    }
    assert (etas.pop(1.0), omegas.pop(1.0)) == (None, None)  # the published
    assert etas == {factor: 0.5 * factor for factor in etas}
    assert omegas == {factor: 250 * factor for factor in omegas}
    searched_on = {row["picture"] for row in _rows(out)} - set(metrics["pictures"])
    assert len(searched_on) == 1 and silo["pictures"] == list(searched_on)
    methods = [cell["method"] for cell in metrics["means"]]
    assert methods == ["measurement", "SILO", "SILO, searched", "LDPS", "LDPS, searched"]


@pytest.mark.parametrize(
    ("best", "asked"),
    [
        (1.0, [1, 1 / 4, 4, 1 / 2, 2]),
        (0.045, [1, 1 / 4, 4, 1 / 16, 1 / 64, 1 / 32, 1 / 8]),
        (0.5, [1, 1 / 4, 4, 1 / 2, 2]),
        (5.0, [1, 1 / 4, 4, 16, 2, 8]),
        (99.0, [1, 1 / 4, 4, 16, 8]),
        (1e-9, [1, 1 / 4, 4, 1 / 16, 1 / 64, 1 / 256, 1 / 128]),
    ],
)
def test_the_search_goes_on_until_the_best_has_neighbours(best: float, asked: list[float]) -> None:
    found: dict[float, float] = {}

    def badness(factor: float) -> float:
        found[factor] = abs(math.log(factor / best))
        return found[factor]

    chosen = around_best(badness)
    assert list(found) == asked
    assert chosen == min(found, key=lambda factor: found[factor])


def test_a_search_where_everything_diverged_keeps_the_published_scale() -> None:
    assert around_best(lambda _: math.inf) == 1


def _rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows-0.jsonl").read_text().splitlines()]


def test_the_main_table_is_run_on_another_prior_beside_what_is_published(
    arguments: list[str], out: Path
) -> None:
    call = [*arguments, "--protocol", "ffhq", "--tasks", "jpeg_q10", "--limit", "1"]
    assert main([*call, "--samplers", "silo,gml-dps"]) == 0
    table = (out / "table.md").read_text()
    assert "## Published, not measured here" in table
    assert "| jpeg_q10 | 25.52 / 25.73 / 0.203 / 0.326 / 25.48 / 4.21 |" in table
    restored = [row["parameters"] for row in _metrics(out)["rows"] if "nfe" in row]
    assert [row["sampler"] for row in restored] == ["silo", "gml-dps"]
    assert restored[0]["seed"] == 1000 and restored[0]["noise_sigma"] == 0.01
    assert restored[0]["prompt"] == "A high quality photo of a face" and restored[1]["prompt"] == ""


def test_the_embedded_comparison_spaces_its_pictures_over_the_held_out_ones(
    arguments: list[str], out: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silo.data.HELD_OUT_ONE_IN", 8)
    held_out = [photo.name for photo in list_photos([photo_folder], "held_out")]
    assert 4 < len(held_out) < 60
    without_split = [part for part in arguments if part not in ("--split", "all")]
    without_split[without_split.index("--data") + 1] = str(photo_folder)
    call = [*without_split, "--protocol", "embedded", "--tasks", "jpeg_q10", "--limit", "2"]
    assert main([*call, "--samplers", "silo-fast,ldps"]) == 0
    assert _metrics(out)["pictures"] == [held_out[0], held_out[len(held_out) // 2]]
    assert _metrics(out)["split"] == "held_out"
    table = (out / "table.md").read_text()
    assert "| task | measurement | silo-fast | LDPS |" in table
    assert "## Published, not measured here" in table


def test_the_pictures_may_come_from_the_hub(
    arguments: list[str], photos: Path, out: Path, local_hub: Hub
) -> None:
    pictures = {f"test/{path.name}": File(path.read_bytes(), True) for path in photos.iterdir()}
    commit = local_hub.create("datasets/lab/photos").commit("photos", pictures)
    where = arguments.index("--data")
    arguments[where : where + 2] = ["--dataset_name", f"lab/photos@{commit}"]
    assert main([*arguments, "--tasks", "jpeg_q10", "--limit", "6"]) == 0
    assert _metrics(out)["data"] == [f"lab/photos@{commit}"]
    assert _metrics(out)["pictures"] == sorted(path.stem for path in photos.iterdir())
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--data", str(photos)])


def test_the_autoencoder_protocol_scores_encoding_and_decoding(
    arguments: list[str], out: Path, tiny_prior: LatentPrior, photos: Path
) -> None:
    assert main([*arguments, "--protocol", "autoencoder", "--limit", "1"]) == 0
    (row,) = _metrics(out)["rows"]
    clean = center_crop(next(iter(iterate_photos([photos], "all"))), 128)[None]
    with torch.no_grad():
        expected = psnr(tiny_prior.decode(tiny_prior.encode(clean)), clean).item()
    assert row["scores"]["psnr"] == pytest.approx(expected, rel=1e-4)
    missing = "LPIPS-A, LPIPS-V, FID, KID: not available"
    assert f"\n{missing}" in (out / "table.md").read_text()  # and nothing of CPSNR


def test_operator_accuracy_compares_with_the_encoded_noiseless_measurement(
    arguments: list[str],
    out: Path,
    tiny_prior: LatentPrior,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It makes no pictures, so that an Inception network at hand has nothing to do.
    _provide_inception(tmp_path, monkeypatch)
    call = [*arguments, "--protocol", "operator-accuracy", "--tasks", "gaussian_blur"]
    assert main([*call, "--limit", "1"]) == 0
    (row,) = _metrics(out)["rows"]
    from operators.catalog import get_task

    clean = center_crop(next(iter(iterate_photos([photos], "all"))), 128)[None]
    blurred = get_task("gaussian_blur").degradation.operator().forward(clean)
    with torch.no_grad():
        identity = (tiny_prior.encode(clean) - tiny_prior.encode(blurred)).abs().mean().item()
    assert row["scores"]["E(x)"] == pytest.approx(identity, rel=1e-4)
    # An untrained operator's last layer is zero: it is the identity.
    assert row["scores"]["H(E(x))"] == pytest.approx(identity, rel=1e-4)
    assert row["scores"]["z0hat_950"] != row["scores"]["z0hat_50"]
    assert "| gaussian_blur, SILO | 1 |" in (out / "table.md").read_text()


@pytest.mark.parametrize("protocol", ["autoencoder", "operator-accuracy"])
def test_a_prior_that_was_trained_again_in_its_folder_is_measured_again(
    arguments: list[str], out: Path, tiny_prior_folder: Path, tmp_path: Path, protocol: str
) -> None:
    prior = tmp_path / "prior"
    shutil.copytree(tiny_prior_folder, prior)
    arguments[arguments.index("--prior") + 1] = str(prior)
    call = [*arguments, "--protocol", protocol, "--tasks", "super_resolution_x8", "--limit", "1"]
    assert main(call) == 0
    assert main(call) == 0
    assert len(_rows(out)) == 1
    (weights,) = (prior / "vae").glob("*.safetensors")
    save_file({key: 0.9 * value for key, value in load_file(weights).items()}, weights)
    assert main(call) == 0
    before, after = _rows(out)
    assert before["weights"]["prior"] != after["weights"]["prior"]
    assert before["scores"] != after["scores"]
    assert _metrics(out)["rows"] == [after]


@pytest.mark.parametrize("protocol", [None, "operator-accuracy"])
def test_what_another_version_measured_is_measured_again(
    arguments: list[str], out: Path, protocol: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*arguments, "--tasks", "super_resolution_x8", "--limit", "1"]
    call += ["--protocol", protocol] if protocol else []
    for version, times in (("1.2.3", 1), ("1.2.3", 1), ("1.2.4", 2)):
        for module in ("silo.restorer", "silo.evaluation.runner", "silo.evaluation.jobs"):
            monkeypatch.setattr(f"{module}.__version__", version)
        assert main(call) == 0
        keys = len({row["key"] for row in _rows(out)})
        assert [row["version"] for row in _rows(out)][-keys:] == [version] * keys
        assert len(_rows(out)) == times * keys


def test_the_number_format_may_be_chosen_and_is_another_measurement(
    arguments: list[str], out: Path
) -> None:
    call = [*arguments, "--tasks", "gaussian_blur", "--limit", "1", "--device", "cpu"]
    assert main(call) == 0
    assert main([*call, "--dtype", "bfloat16"]) == 0
    single, half = (row for row in _rows(out) if "nfe" in row)
    assert _metrics(out)["dtype"] == half["parameters"]["dtype"] == "bfloat16"
    assert single["scores"]["psnr"] == pytest.approx(half["scores"]["psnr"], rel=0.05)
    assert single["scores"]["psnr"] != half["scores"]["psnr"]


def test_several_samples_have_a_diversity_and_columns_of_their_own(
    arguments: list[str], out: Path
) -> None:
    call = [*arguments, "--protocol", "diversity", "--tasks", "super_resolution_x8"]
    assert main([*call, "--limit", "1"]) == 0
    row = next(row for row in _metrics(out)["rows"] if "nfe" in row)
    samples = [
        load_image(out / "pictures" / row["key"] / f"p0{suffix}.png").pixels
        for suffix in ("", ".2", ".3", ".4", ".5")
    ]
    spread = torch.cat(samples).std(0).mean().item() / 2
    assert row["scores"]["diversity"] == pytest.approx(spread, abs=2e-3)
    with Image.open(out / "super_resolution_x8.jpg") as sheet:
        assert sheet.width == 7 * 224 + 8 * 6


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--protocol", "ffhq", "--noise-sigma", "0.1"], "--noise-sigma is the protocol's"),
        (["--protocol", "noise", "--tasks", "jpeg_q10"], "its tasks are super_resolution_x8"),
        (["--protocol", "autoencoder", "--search", "1"], "nothing to search"),
        (["--protocol", "ffhq", "--prompt", "a", "b"], "takes one --prompt"),
        (["--samplers", "psld", "--tasks", "jpeg_q10"], "samplers with a latent operator: leave"),
        (["--samplers", "silo-fast", "--operator", "readout"], "none of these samplers can do"),
        (["--steps-scale", "0"], "--steps-scale 0: set more than 0"),
        (["--steps", "0"], "--steps 0: set 1 to 1000"),
        (["--samplers", "magic"], "there is no sampler 'magic'"),
        (["--search", "4"], "needs as many pictures beside"),
        (["--limit", "0"], "leaves nothing to evaluate"),
        (["--search", "-1"], "--search -1: set the number of pictures"),
        (["--captions"], "p0 has no caption"),
        (["--captions", "--prompt", "a cat"], "takes the place of --prompt"),
        (["--samplers", "ldps", "--eta", "2"], "samplers with a latent operator: leave them out"),
    ],
)
def test_what_does_not_go_together_is_named_before_anything_is_written(
    arguments: list[str], out: Path, extra: list[str], message: str, capsys
) -> None:
    assert main([*arguments, *extra]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_two_pictures_of_one_name_are_refused(
    arguments: list[str], photos: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "p1.png").write_bytes((photos / "p1.png").read_bytes())
    call = [str(photos), str(tmp_path / "more")]
    place = arguments.index(str(photos))
    assert main([*arguments[:place], *call, *arguments[place + 1 :]]) == 2
    assert "several pictures are called 'p1'" in capsys.readouterr().err


def test_rows_of_an_earlier_run_do_not_end_a_shared_one(photos: Path, tmp_path: Path) -> None:
    pictures, setting = list_photos([photos], "all")[:2], Setting("gaussian_blur")
    record = Record(tmp_path)
    runs = Runner(Store(tmp_path, None), record, None, "cpu", "auto", show_progress=False)

    def finish(index: int, prior: str, version: str = __version__) -> bool:
        row = {"version": version, "weights": {"prior": prior}, "measures": {}}
        record.add(setting.key, pictures[index], row)
        return runs.is_done([setting], pictures)

    assert not finish(0, "a", "0.0.1")
    assert not finish(1, "a", "0.0.1")  # both are there, but of another version
    assert not finish(0, "b")
    assert not finish(1, "a")  # as it was before the weights were trained on
    assert finish(1, "b")


def test_two_processes_share_the_pictures_and_one_writes_the_tables(
    arguments: list[str], out: Path, tmp_path: Path
) -> None:
    # Without a GPU, too, this is what starts several processes.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "silo.evaluate"]
    call = [*arguments[1:], "--tasks", "gaussian_blur", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    subprocess.run([*launch, *call], check=True, cwd=ROOT, env=environment, capture_output=True)
    shares = [
        {json.loads(line)["picture"] for line in rows.read_text().splitlines()}
        for rows in (out / "rows-0.jsonl", out / "rows-1.jsonl")
    ]
    assert shares == [{"p0", "p4"}, {"p2"}]
    together = _metrics(out)
    alone = [*arguments[:-1], str(tmp_path / "alone"), "--tasks", "gaussian_blur"]
    assert main(alone) == 0
    for shared, single in zip(together["rows"], _metrics(tmp_path / "alone")["rows"], strict=True):
        # Threads add up in another order.
        assert list(shared["scores"].values()) == [
            value if value is None else pytest.approx(value, rel=1e-4)
            for value in single["scores"].values()
        ]


def test_the_record_keeps_whole_rows_and_prefers_the_newer(tmp_path: Path) -> None:
    for shade, name in enumerate("xyz"):
        save_png(tmp_path / f"{name}.png", torch.full((3, 8, 8), shade / 2))
    x, y, z = photos = list_photos([tmp_path], "all")
    first, second = Record(tmp_path, 0), Record(tmp_path, 1)
    first.add("a", x, {"value": 1})
    second.add("a", y, {"value": 2})
    with (tmp_path / "rows-1.jsonl").open("a") as file:
        file.write('{"key": "a", "picture": "z", "va')  # still being written
    first.refresh()
    assert [row["value"] for row in first.rows("a", [y, x, z])] == [2, 1]
    first.add("a", x, {"value": 3})
    again = Record(tmp_path, 1)  # which has nothing newer of x
    assert [row["value"] for row in again.rows("a", [x])] == [3]
    again.add("a", z, {"value": 4})
    assert [row["value"] for row in Record(tmp_path, 0).rows("a", photos)] == [3, 2, 4]
    shutil.copy(y.path, x.path)
    other = list_photos([tmp_path], "all")[0]
    assert other.name == x.name and Record(tmp_path, 0).get("a", other) is None


def test_published_tables_are_complete_and_name_their_source() -> None:
    content = json.loads(PUBLISHED.read_text())
    assert "arXiv 2501.11746" in content["source"]
    for table in content["tables"].values():
        for row in table["rows"].values():
            assert all(len(values) == len(content["metrics"]) for values in row.values())
    main_table = content["tables"]["ffhq"]["rows"]
    best = {task: min(row, key=lambda m: row[m][2]) for task, row in main_table.items()}
    assert set(best.values()) == {"SILO (RV)"}  # the paper's claim, by LPIPS-Alex


def test_labels_that_would_overlap_move_apart_and_keep_their_order() -> None:
    assert spread([], 10) == []
    assert spread([50, 0, 20], 10) == [50, 0, 20]
    assert spread([31, 30, 90], 10) == [35.5, 25.5, 90]
    # A pair that moves apart may reach a third.
    moved = spread([30, 31, 36], 10)
    assert moved == pytest.approx([22.33, 32.33, 42.33], abs=0.01)
