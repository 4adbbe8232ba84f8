"""Training operators from end to end, with a prior of random weights."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import skimage.data
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, WandBTracker
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from safetensors.torch import load_file

from operators.catalog import find_operator, shelf
from operators.convolutional import PaperCNN
from operators.latent import LatentOperator
from operators.readout import ReadoutOperator
from silo import train_operator
from silo.__main__ import main
from silo.data import Photo, center_crop, list_photos
from silo.errors import BadRequest
from silo.images import load_image
from silo.metric_weights import FILES, WEIGHTS_VARIABLE
from silo.model_card import NO_LICENSE, read_license
from silo.prior import LatentPrior
from silo.training.latent_cache import LatentPairs
from silo.training.log import TrainingLog
from silo.training.loop import warmup_cosine
from silo.training.operator_prediction import draw_noising, predict
from silo.training.operator_presets import PRESETS, build_operator
from silo.training.options import pick_training_dtype
from silo.training.processes import Processes
from tests.hub_server import File, Hub
from tests.narrow_lpips import write_weights

ROOT = Path(__file__).parent.parent
PAPER_CNN = ["--preset", "paper-cnn", "--resolution", "128"]
# Random weights make latents that hardly differ: too little to learn from.
EMBEDDED = ["--pretrained_model_name_or_path", "tiny"]


@pytest.fixture
def options(photo_folder: Path, tiny_prior_folder: Path, tmp_path: Path) -> list[str]:
    """A short run of super-resolution; later options win."""
    return [
        *("--task", "super_resolution_x4", "--train_data_dir", str(photo_folder)),
        *("--pretrained_model_name_or_path", str(tiny_prior_folder)),
        *("--output_dir", str(tmp_path / "out"), "--latent_cache_dir", str(tmp_path / "latents")),
        *("--resolution", "64", "--pictures", "12", "--max_train_steps", "3"),
        *("--train_batch_size", "4", "--num_validation_images", "0", "--mixed_precision", "no"),
    ]


def _train(*options: str) -> int:
    return main(["train-operator", *options])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_every_option_is_explained() -> None:
    assert not [option.dest for option in train_operator._parser()._actions if not option.help]


def test_an_operator_learns_and_says_how_well(options: list[str], tmp_path: Path, capsys) -> None:
    more = [*EMBEDDED, "--task", "inpainting_box", "--pictures", "40"]
    more += ["--max_train_steps", "60", "--validation_steps", "30", "--lr_scheduler", "constant"]
    assert _train(*options, *more) == 0
    output = capsys.readouterr().out
    assert "pictures/s encoded" in output and "samples/s" in output
    operator = LatentOperator.from_pretrained(tmp_path / "out" / "inpainting_box")
    errors = operator.metadata["errors"]
    assert errors["l1"] < 0.9 * errors["l1_identity"]
    assert json.loads(output.splitlines()[-1])["l1"] == errors["l1"]
    path = tmp_path / "out/.training/inpainting_box/validation.jsonl"
    log = TrainingLog(path).read()
    assert len(path.read_text().splitlines()) == 2  # the last step is validated once
    assert [line["step"] for line in log] == [30, 60]
    assert log[1]["l1"] < log[0]["l1"] and log[0]["l1_identity"] == log[1]["l1_identity"]


def test_a_few_pictures_are_restored_and_shown(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    write_weights("alex", tmp_path / FILES["lpips_alex"])
    more = ["--max_train_steps", "1", "--num_validation_images", "1"]
    assert _train(*options, *more) == 0
    folder = tmp_path / "out" / "super_resolution_x4"
    results = LatentOperator.from_pretrained(folder).metadata["results"]
    assert results["pictures"] == 1 and results["psnr"] > 5
    assert results["lpips"] > 0 < results["lpips_measurement"]
    assert (results["sampler"], results["steps"]) == ("silo-fast", 16)
    grid = load_image(tmp_path / "out" / "super_resolution_x4.step_000001.png").pixels
    assert grid.shape == (1, 3, 128, 3 * 128)
    card = (folder / "README.md").read_text()
    assert "LPIPS-Alex" in card and f"value: {results['lpips']}" in card
    assert "](example.png)" in card and "100 denoiser evaluations" in card
    example = load_image(folder / "example.png").pixels
    astronaut = center_crop(Photo("", "", skimage.data.astronaut()), 128)
    assert example.shape == (1, 3, 128, 3 * 128)
    torch.testing.assert_close(example[0, :, :, :128], astronaut, atol=0.01, rtol=0)
    assert "$" not in card and "--max_train_steps 1 " in card and "1 held-out pictures" in card
    assert "--mixed_precision no\n" in card and "2 measurements of each" in card


def test_the_pictures_may_come_from_the_hub(
    options: list[str], photo_folder: Path, tmp_path: Path, local_hub: Hub
) -> None:
    pictures = {path.name: File(path.read_bytes(), False) for path in photo_folder.iterdir()}
    commit = local_hub.create("datasets/lab/photos").commit("photos", pictures)
    assert _train(*options, "--max_train_steps", "1") == 0
    folder = tmp_path / "out" / "super_resolution_x4"
    expected = _weights(folder)
    where = options.index("--train_data_dir")
    options[where : where + 2] = ["--dataset_name", "lab/photos"]
    assert _train(*options, "--max_train_steps", "1", "--output_dir", str(tmp_path / "b")) == 0
    folder = tmp_path / "b" / "super_resolution_x4"
    for name, weight in _weights(folder).items():
        assert torch.equal(weight, expected[name])
    training = LatentOperator.from_pretrained(folder).metadata["training"]
    assert (training["dataset_name"], training["dataset_revision"]) == ("lab/photos", commit)
    card = (folder / "README.md").read_text()
    assert "datasets:\n- lab/photos\n" in card and f"--dataset_name lab/photos@{commit} " in card
    for both in (["--train_data_dir", str(photo_folder)], []):
        call = [*options, *both] if both else options[:where] + options[where + 2 :]
        with pytest.raises(SystemExit, match="2"):
            _train(*call)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
def test_a_trained_operator_is_pushed_and_arrives_elsewhere(
    options: list[str], tiny_prior_folder: Path, tmp_path: Path, local_hub: Hub, capfd
) -> None:
    push = ["--push_to_hub", "--hub_model_id", "lab/x", "--max_train_steps", "1"]
    assert _train(*options, *push) == 0
    said = capfd.readouterr()
    repository = local_hub.repositories["models/lab/x"]
    assert said.out.splitlines()[-1] == f"{local_hub.url}/lab/x/commit/{repository.head}"
    assert said.err.splitlines()[-1] == NO_LICENSE
    more = ["--license", "mit", "--num_validation_images", "1"]
    assert _train(*options, *push, *more) == 0  # nothing is trained again
    assert NO_LICENSE not in capfd.readouterr().err
    trained = tmp_path / "out" / "super_resolution_x4"
    arrived = tmp_path / "shelf" / "x"
    hf = Path(sys.executable).with_name("hf")
    subprocess.run([hf, "download", "lab/x", "--local-dir", arrived], check=True)
    for name in ("config.json", "model.safetensors", "example.png"):
        assert (arrived / name).read_bytes() == (trained / name).read_bytes()
    assert main(["operators", "verify", str(arrived)]) == 0
    assert "(super_resolution_x4, 5 files as on the Hub)" in capfd.readouterr().out
    assert read_license(arrived / "README.md") == "mit"
    # The prior is named by its folder, and nobody learns where that lies.
    for file in repository.files.values():
        assert str(tiny_prior_folder.parent).encode() not in file.content
    assert shelf(arrived.parent)[0].prior == tiny_prior_folder.name
    found = find_operator("super_resolution_x4", f"{tiny_prior_folder}/", 4, arrived.parent)
    assert found == arrived


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_reader", "lab/there", "you may not write to lab/there"),
        ("hf_reader", "lab/new", "the token is for reading only"),
        ("hf_stranger", "lab/new", "eve may write to eve"),
        ("hf_forged", "lab/new", "hf auth login"),
        (None, "lab/new", "hf auth login"),
        ("hf_writer", "lab/a b", "no name of a repository"),
        ("offline", "lab/new", "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_push_that_will_be_refused_is_known_before_the_training(
    options: list[str],
    tmp_path: Path,
    local_hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capfd,
    token: str | None,
    repo_id: str,
    message: str,
) -> None:
    local_hub.create("models/lab/there")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    elif token == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert _train(*options, "--push_to_hub", "--hub_model_id", repo_id) == 2
    assert message in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists() and not (tmp_path / "latents").exists()
    assert local_hub.repositories.keys() == {"models/lab/there"}


class Notebook(WandBTracker):
    """Keeps what it is told, without a package."""

    name = "notebook"
    requires_logging_directory = True
    pages: ClassVar[list[Any]] = []

    def __init__(self, run: str, folder: Path) -> None:
        self.pages.append((run, folder.name))

    def start(self) -> None:
        """Reach no server."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.pages.append(values)

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.pages.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.pages.append((step, {name: each.shape for name, (each,) in values.items()}))

    def finish(self) -> None:
        self.pages.append("finished")


def test_a_tracker_is_told_settings_losses_validations_and_pictures(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(Notebook, "pages", [])
    more = ["--max_train_steps", "50", "--num_validation_images", "1", "--report_to", "notebook"]
    assert _train(*options, *more) == 0
    run, settings, losses, pictures, validation, finished = Notebook.pages
    assert run == ("silo-super_resolution_x4", "logs") and finished == "finished"
    assert settings["steps"] == 50 and settings["noise_range"] == "[0.0, 0.05]"
    log = TrainingLog(tmp_path / "out/.training/super_resolution_x4/log.jsonl").read()
    assert losses[0] == 50 and losses[1]["train/l1"] == pytest.approx(log[0]["l1"], abs=1e-5)
    assert 0 < losses[1]["train/learning_rate"] <= PRESETS["fast"].learning_rate
    assert pictures == (50, {"validation/pictures": (128, 3 * 128, 3)})
    errors = LatentOperator.from_pretrained(tmp_path / "out/super_resolution_x4").metadata["errors"]
    assert validation[0] == 50
    assert validation[1]["validation/l1"] == pytest.approx(errors["l1"], abs=1e-4)
    assert validation[1]["validation/psnr"] > 5
    assert not {"validation/steps", "validation/pictures"} & validation[1].keys()  # constants


def test_accelerates_single_process_for_cpus_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """With the environment that its launcher makes for `--num_processes 2 --cpu`."""
    call = ["--num_processes", "2", "--cpu", "-m", "silo.train_operator"]
    launch, *_ = _validate_launch_command(launch_command_parser().parse_args(call))
    command, environment = prepare_simple_launcher_cmd_env(launch)
    assert command == [sys.executable, "-m", "silo.train_operator"]  # and nothing starts another
    for name in ("ACCELERATE_USE_CPU", "MASTER_PORT"):
        monkeypatch.setenv(name, environment[name])
    capsys.readouterr()
    assert Processes(cpu=True).count == 1
    assert "--multi_gpu in the place of --cpu" in capsys.readouterr().err


def test_another_autoencoder_of_the_same_latent_space_is_named_as_such(
    options: list[str], tiny_prior_folder: Path, tmp_path: Path
) -> None:
    more = ["--max_train_steps", "1", "--latent_space", "sd15", "--num_validation_images", "1"]
    assert _train(*options, *more) == 0
    folder = tmp_path / "out" / "super_resolution_x4"
    metadata = LatentOperator.from_pretrained(folder).metadata
    assert (metadata["prior"], metadata["trained_through"]) == ("sd15", tiny_prior_folder.name)
    card = (folder / "README.md").read_text()
    assert "--latent_space sd15" in card and "measured on `sd15` itself" in card
    assert "example.png" not in card and not (folder / "example.png").exists()


@pytest.mark.parametrize(
    ("preset", "kind"), [("paper-cnn", PaperCNN), ("paper-readout", ReadoutOperator)]
)
def test_the_papers_operators_are_trained(
    options: list[str], tmp_path: Path, preset: str, kind: type[LatentOperator]
) -> None:
    more = ["--preset", preset, "--noise_draws", "1", "--max_train_steps", "2"]
    assert _train(*options, *more, "--resolution", "128") == 0
    first = LatentOperator.from_pretrained(tmp_path / "out" / "super_resolution_x4")
    assert isinstance(first, kind)
    training = first.metadata["training"]
    assert training["learning_rate"] == PRESETS[preset].learning_rate
    assert (training["schedule"], training["noise_draws"]) == ("constant", 1)
    assert _train(*options, *more, "--resolution", "128", "--max_train_steps", "4") == 0
    second = LatentOperator.from_pretrained(tmp_path / "out" / "super_resolution_x4")
    changed = [
        name
        for name, weight in second.state_dict().items()
        if not torch.equal(weight, first.state_dict()[name])
    ]
    assert len(changed) > 0.9 * len(second.state_dict())


def test_presets_are_the_papers() -> None:
    readout, cnn = PRESETS["paper-readout"], PRESETS["paper-cnn"]
    assert (readout.learning_rate, readout.steps, readout.batch) == (2e-4, 75_000, 16)
    assert (cnn.learning_rate, cnn.steps, cnn.batch) == (1e-3, 100_000, 16)
    # Published for pictures in [-1, 1]: up to 0.1 and 0.04.
    assert (readout.noise_range, cnn.noise_range) == ((0.0, 0.05), (0.0, 0.02))


@torch.no_grad()
def test_an_operator_is_trained_on_what_it_is_given_in_sampling() -> None:
    """Of a clean latent alone, or of the clean estimate that its features belong to."""
    prior = LatentPrior.load("tiny")
    clean = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = LatentPairs(clean, clean, torch.zeros(2), None)
    for preset in ("fast", "fast-readout"):
        operator = build_operator(PRESETS[preset], prior, 256, mask=False)  # still the identity
        generator = torch.Generator().manual_seed(1)
        noising = draw_noising(operator, prior, 2, 256, generator, power=1.0)
        given, found = predict(operator, prior, prior.embed(""), pairs, noising, slice(None))
        assert torch.equal(given, found)
        if noising is None:
            assert preset == "fast" and torch.equal(found, clean)
            continue
        alpha_bar = prior.alphas_cumprod[noising.timesteps].float().view(-1, 1, 1, 1)
        noisy = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noising.noise
        v = prior.predict(noisy, noising.timesteps, prior.embed("")).output
        expected = alpha_bar**0.5 * noisy - (1 - alpha_bar) ** 0.5 * v
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert float((found - clean).abs().mean()) > 0.1


def test_fast_readout_operators_see_little_noise_more_often() -> None:
    prior = LatentPrior.load("tiny")
    operator = build_operator(PRESETS["fast-readout"], prior, 256, mask=False)
    shares = {}
    for preset in ("paper-readout", "fast-readout"):
        power, generator = PRESETS[preset].timestep_power, torch.Generator().manual_seed(0)
        noising = draw_noising(operator, prior, 4000, 8, generator, power=power)
        assert noising is not None and 1 <= noising.timesteps.min() < 20
        assert 980 < noising.timesteps.max() <= 999
        shares[preset] = float((noising.timesteps < 250).float().mean())
    assert shares == pytest.approx({"paper-readout": 0.25, "fast-readout": 0.5}, abs=0.03)


def test_the_fast_readout_operator_is_small(options: list[str], tmp_path: Path) -> None:
    sizes = []
    for preset in ("fast-readout", "paper-readout"):
        more = ["--preset", preset, "--resolution", "128", "--max_train_steps", "1"]
        assert _train(*options, *more, "--output_dir", str(tmp_path / preset)) == 0
        operator = LatentOperator.from_pretrained(tmp_path / preset / "super_resolution_x4")
        assert isinstance(operator, ReadoutOperator)
        sizes.append(sum(weight.numel() for weight in operator.parameters()))
    assert sizes[0] < sizes[1] / 4


def test_a_masked_readout_operator_reads_its_mask_and_the_papers_cnn_refuses(
    options: list[str], tmp_path: Path, capsys
) -> None:
    free = ["--task", "inpainting_free", "--noise_draws", "1", "--resolution", "128"]
    assert _train(*options, *free, "--preset", "paper-readout", "--max_train_steps", "1") == 0
    assert LatentOperator.from_pretrained(tmp_path / "out" / "inpainting_free").uses_mask
    assert _train(*options, *free, "--preset", "paper-cnn", "--output_dir", str(tmp_path)) == 2
    assert "reads no mask" in capsys.readouterr().err


def test_a_function_of_ones_own_is_trained_and_shown_in_the_card(
    options: list[str], tmp_path: Path, capsys
) -> None:
    source = "def haze(images):\n    return 0.6 * images + 0.4  # `$` stays\n"
    (tmp_path / "mine.py").write_text(source)
    own = ["--degradation", f"{tmp_path / 'mine.py'}:haze", "--task", "fog"]
    assert _train(*options, *own, "--num_validation_images", "1") == 0
    metadata = LatentOperator.from_pretrained(tmp_path / "out" / "fog").metadata
    assert metadata["task"] == "fog" and metadata["degradation"]["parameters"]["name"] == "haze"
    card = (tmp_path / "out" / "fog" / "README.md").read_text()
    assert "    def haze(images):\n        return 0.6 * images + 0.4  # `$` stays\n" in card
    assert "--degradation FILE.py:haze" in card
    assert _train(*options, *own[:2], "--task", "jpeg_q10") == 2
    assert "another name" in capsys.readouterr().err
    (tmp_path / "mine.py").write_text("def haze(images):\n    return images * 100\n")
    assert _train(*options, *own) == 2
    assert "return images in [-1, 1]" in capsys.readouterr().err


def test_a_finished_run_goes_on_and_another_one_does_not_touch_it(
    options: list[str], tmp_path: Path, capsys
) -> None:
    assert _train(*options) == 0
    weights = _weights(tmp_path / "out" / "super_resolution_x4")
    assert _train(*options) == 0  # nothing left to do
    for name, weight in _weights(tmp_path / "out" / "super_resolution_x4").items():
        assert torch.equal(weight, weights[name])
    assert _train(*options, "--max_train_steps", "2") == 0  # it has done 3
    folder = tmp_path / "out" / "super_resolution_x4"
    assert LatentOperator.from_pretrained(folder).metadata["training"]["steps"] == 3
    assert "--max_train_steps 3 " in (folder / "README.md").read_text()
    encoded = set((tmp_path / "latents").iterdir())
    assert _train(*options, "--learning_rate", "0.5") == 2
    assert "learning_rate" in capsys.readouterr().err
    assert _train(*options, "--pictures", "13") == 2
    assert "other pictures" in capsys.readouterr().err
    assert set((tmp_path / "latents").iterdir()) == encoded
    more = ["--learning_rate", "0.5", "--resume_from_checkpoint", "none"]
    assert _train(*options, *more) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--push_to_hub"], "--hub_model_id"),
        (["--report_to", "wandb"], "pip install wandb"),
        (["--report_to", "paper"], "tensorboard, wandb"),
        (["--resolution", "50"], "multiple of 32"),
        (["--pictures", "0"], "--pictures must be above 0"),
        (["--learning_rate", "nan"], "--learning_rate must be above 0"),
        (["--eta", "0"], "--eta must be above 0, not 0.0"),
        (["--eta", "nan"], "--eta must be above 0"),
        (["--checkpointing_steps", "0"], "--checkpointing_steps must be above 0"),
        (["--checkpoints_total_limit", "0"], "--checkpoints_total_limit must be above 0"),
        (["--validation_steps", "0"], "--validation_steps must be above 0"),
        (["--num_validation_images", "-1"], "0 or more"),
        (["--task", "super_resolution_x4", "inpainting_free", *PAPER_CNN], "reads no mask"),
        ([*PAPER_CNN, "--resolution", "64", "--num_validation_images", "1"], "at 128 pixels"),
        (["--output_dir", __file__], "is no folder that can be written to"),
        (["--train_data_dir", "nowhere"], "nowhere"),
        (["--degradation", "nowhere.py:f"], "nowhere.py"),
        (["--task", "blur"], "gaussian_blur"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    options: list[str], tmp_path: Path, capsys, wrong: list[str], message: str
) -> None:
    assert _train(*options, *wrong) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "latents").exists()


def test_without_a_picture_to_hold_out_nothing_is_encoded(
    options: list[str], photo_folder: Path, tmp_path: Path, capsys
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for photo in list_photos([photo_folder], "train")[:30]:
        shutil.copy(photo.path, few)
    assert _train(*options, "--train_data_dir", str(few)) == 2
    assert "1 in 40" in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("side", "images", "fails_at"), [(64, 0, None), (128, 0, 64), (64, 1, 128)]
)
def test_a_function_is_tried_at_every_size_that_it_will_meet(
    options: list[str], tmp_path: Path, capsys, side: int, images: int, fails_at: int | None
) -> None:
    """It is trained at 64 pixels; validations restore at the prior's 128."""
    lines = ["import torch", "def fog(images):", f"    return images * torch.ones({side}, {side})"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    more = ["--degradation", f"{tmp_path / 'mine.py'}:fog", "--task", "fog"]
    code = _train(*options, *more, "--num_validation_images", str(images))
    assert code == (0 if fails_at is None else 2)
    assert (tmp_path / "latents").exists() == (fails_at is None)
    if fails_at is not None:
        assert f"fails on images (3, 3, {fails_at}, {fails_at})" in capsys.readouterr().err


def test_the_number_format_is_the_devices_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has
        )
        assert pick_training_dtype(cuda, None) == expected
        assert pick_training_dtype(cuda, "no") == torch.float32
    assert pick_training_dtype(cpu, None) == pick_training_dtype(mps, None) == torch.float32
    assert pick_training_dtype(cpu, "bf16") == torch.bfloat16
    for device in (cuda, mps):
        with pytest.raises(BadRequest, match="bfloat16"):
            pick_training_dtype(device, "bf16")


def _process(options: list[str], *launcher: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *launcher, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_train_to_what_one_does(options: list[str], tmp_path: Path) -> None:
    more = [*EMBEDDED, "--task", "inpainting_free", "--max_train_steps", "20"]
    more += ["--lr_scheduler", "constant"]
    assert _train(*options, *more) == 0
    alone = tmp_path / "out" / "inpainting_free"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    both = ["--output_dir", str(tmp_path / "both"), "--latent_cache_dir", str(tmp_path / "others")]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", port, "-m", "silo.train_operator"]
    with _process([*options, *more, *both, "--device", "cpu"], *launcher) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("24 pairs") == 1  # only one of them speaks
    together = tmp_path / "both" / "inpainting_free"
    expected = _weights(alone)
    for name, weight in _weights(together).items():  # 20 steps change it by up to 0.04
        torch.testing.assert_close(weight.float(), expected[name].float(), atol=5e-4, rtol=1e-3)
    one, two = (
        LatentOperator.from_pretrained(folder).metadata["errors"] for folder in (alone, together)
    )
    assert two["l1"] == pytest.approx(one["l1"], abs=1e-3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_the_end_of_a_step_and_the_run_goes_on(
    options: list[str], tmp_path: Path, monkeypatch, capsys, number: int, code: int
) -> None:
    more = ["--max_train_steps", "60", "--checkpointing_steps", "1000"]
    assert _train(*options, *more, "--output_dir", str(tmp_path / "unbroken")) == 0

    def signalled(step: int, steps: int) -> float:
        if step == 30:
            os.kill(os.getpid(), number)
        return warmup_cosine(step, steps)

    monkeypatch.setattr("silo.training.loop.warmup_cosine", signalled)
    assert _train(*options, *more) == code
    monkeypatch.undo()
    assert "goes on from there" in capsys.readouterr().err.splitlines()[-1]
    working = tmp_path / "out" / ".training" / "super_resolution_x4"
    (checkpoint,) = working.glob("step_*")
    assert checkpoint.name == "step_00000032"  # the signal came within the 31st step
    assert _train(*options, *more) == 0
    expected = _weights(tmp_path / "unbroken" / "super_resolution_x4")
    for name, weight in _weights(tmp_path / "out" / "super_resolution_x4").items():
        assert torch.equal(weight, expected[name])
    reference = tmp_path / "unbroken" / ".training" / "super_resolution_x4" / "log.jsonl"
    logs = [TrainingLog(path).read() for path in (working / "log.jsonl", reference)]
    assert [[(line["step"], line["l1"]) for line in log] for log in logs] == [
        [(50, logs[1][0]["l1"])]
    ] * 2
