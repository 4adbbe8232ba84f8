import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from operators.latent import LatentOperator
from silo.data import Photo
from silo.errors import BadRequest, NumericalError
from silo.prior import LatentPrior
from silo.train_operator import main as train_operator
from silo.train_prior import PriorTraining, StartingPrior, load_start
from silo.train_prior import main as train_prior
from silo.training import checkpoints
from silo.training import cost as training_cost
from silo.training.autoencoder import (
    AutoencoderTraining,
    measure_autoencoder,
    train_autoencoder,
)
from silo.training.captions import token_ids
from silo.training.denoiser import DenoiserTraining
from silo.training.log import TrainingLog
from silo.training.loop import TrainingLoop, warmup_cosine

ROOT = Path(__file__).parent.parent
AUTOENCODER = AutoencoderTraining(
    latent_channels=4,
    width=8,
    encoder_blocks=(0, 0, 0, 1),
    decoder_blocks=(1, 0, 0, 0),
    steps=6,
    batch=2,
    crop=32,
)


def _photos(count: int = 6, side: int = 48) -> list[Photo]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [
        Photo(f"p{i}", "a photo", np.asarray(Image.fromarray(c).resize((side, side))))
        for i, c in enumerate(coarse)
    ]


def _run(output: Path, settings: AutoencoderTraining = AUTOENCODER, start=None):
    return train_autoencoder(
        _photos(),
        _photos(1, 256),
        settings,
        output,
        start=start,
        lpips=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        checkpointing_steps=3,
    )


def test_a_resumed_autoencoder_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, _ = _run(tmp_path / "unbroken")

    class Killed(Exception):
        pass

    def kill(step: int, steps: int) -> float:
        if step == 4:
            raise Killed
        return warmup_cosine(step, steps)

    monkeypatch.setattr("silo.training.loop.warmup_cosine", kill)
    with pytest.raises(Killed):
        _run(tmp_path / "broken")
    monkeypatch.undo()
    resumed, _ = _run(tmp_path / "broken")
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_training_the_decoder_further_leaves_the_latents_alone(tmp_path: Path) -> None:
    first, record = _run(tmp_path / "first")
    assert record["held_out_psnr"] > 0
    alone = replace(AUTOENCODER, seed=1, decoder_alone=True)
    second, _ = _run(tmp_path / "second", alone, start=first)
    for name, value in first.state_dict().items():
        same = torch.equal(value, second.state_dict()[name])
        assert same == name.startswith("encoder"), name


def test_an_autoencoder_learns(tmp_path: Path) -> None:
    settings = replace(AUTOENCODER, steps=150, batch=8)
    untrained, _ = _run(tmp_path / "untrained", replace(settings, steps=1))
    trained, _ = _run(tmp_path / "trained", settings)
    before, after = (
        measure_autoencoder(model, _photos(3, 256), None, torch.device("cpu"))["held_out_psnr"]
        for model in (untrained, trained)
    )
    assert after > before + 3


def test_the_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    factors = [warmup_cosine(step, 1000) for step in range(1000)]
    assert factors[0] == 0.01 and max(factors) == factors[99] == 1
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert factors[-1] == pytest.approx(0.02, abs=1e-3)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state_kept(tmp_path: Path) -> None:
    def run(steps: int, poison: bool) -> TrainingLoop[torch.nn.Linear]:
        torch.manual_seed(0)
        loop = TrainingLoop(
            torch.nn.Linear(2, 1),
            tmp_path,
            steps=steps,
            learning_rate=0.1,
            decay=0.9,
            seed=0,
            checkpointing_steps=2,
        )
        for generator in loop:
            loss = loop.model(torch.randn(3, 2, generator=generator)).square().mean()
            loop.update({"loss": loss * float("nan") if poison else loss})
        return loop

    good = run(2, poison=False).model.weight.clone()
    with pytest.raises(NumericalError, match="step 3"):
        run(4, poison=True)
    assert torch.equal(run(2, poison=False).model.weight, good)


def test_the_time_of_steps_ends_with_the_update(tmp_path: Path, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr("silo.training.loop.time", SimpleNamespace(monotonic=lambda: now))
    model = torch.nn.Linear(2, 1)
    loop = TrainingLoop(
        model, tmp_path, steps=3, learning_rate=0.1, decay=0.9, seed=0, checkpointing_steps=9
    )
    for _ in loop:
        now += 2  # latents are read
        loop.update({"loss": model(torch.ones(1, 2)).square().mean()})
        now += 100  # a validation
    assert loop.seconds == 6


@pytest.mark.parametrize("gradient_norm", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    tmp_path: Path, gradient_norm: float | None
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    loop = TrainingLoop(
        model,
        tmp_path,
        steps=2,
        learning_rate=0.1,
        decay=0.9,
        seed=0,
        checkpointing_steps=1,
        gradient_norm=gradient_norm,
    )
    good = None
    with pytest.raises(NumericalError, match="gradient is not finite at step 2"):
        for _ in loop:
            if good is None:
                loop.update({"loss": model(torch.ones(1, 2)).square().mean()})
                good = model.weight.clone()
            else:  # 0, whose square root has no slope
                loop.update({"loss": (0 * model(torch.ones(1, 2))).square().mean().sqrt()})
    assert good is not None and torch.equal(model.weight, good)
    step, kept = checkpoints.latest(tmp_path) or (0, {})
    assert step == 1 and torch.equal(kept["model.weight"], good)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "photos"
    data.mkdir()
    generator = np.random.default_rng(0)
    for index in range(60):
        pixels = generator.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 64)).save(data / f"p{index}.png")
        (data / f"p{index}.txt").write_text("a photo of a flower")
    return data


@dataclass(frozen=True)
class _SmallAutoencoder(AutoencoderTraining):
    width: int = 8
    encoder_blocks: tuple[int, ...] = (0, 0, 0, 1)
    decoder_blocks: tuple[int, ...] = (1, 0, 0, 0)
    batch: int = 2
    crop: int = 64


@dataclass(frozen=True)
class _SmallDenoiser(DenoiserTraining):
    widths: tuple[int, ...] = (32, 64)
    head_width: int = 32
    text_width: int = 32
    batch: int = 2


@pytest.fixture
def small_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior of small networks, and its time told after two steps for six."""
    monkeypatch.setattr(training_cost, "FEW", 1)
    monkeypatch.setattr(training_cost, "MORE", 2)
    monkeypatch.setattr("silo.train_prior.AutoencoderTraining", _SmallAutoencoder)
    monkeypatch.setattr("silo.train_prior.DenoiserTraining", _SmallDenoiser)


def test_train_prior_makes_a_prior_and_train_operator_an_operator_for_it(
    folder: Path, tmp_path: Path, small_training: None
) -> None:
    output = tmp_path / "prior"
    steps = ["--autoencoder_steps", "2", "--denoiser_steps", "2", "--decoder_steps", "2"]
    assert train_prior(["--train_data_dir", str(folder), "--output_dir", str(output), *steps]) == 0
    prior = LatentPrior.load(output / "pipeline")
    assert (prior.native_size, prior.latent_channels) == (256, 8)
    assert prior.prediction_type == "v_prediction"
    assert torch.isfinite(prior.decode(prior.encode(torch.zeros(1, 3, 64, 64)))).all()
    record = json.loads((output / "training.json").read_text())
    assert record["denoiser"]["settings"]["steps"] == 2
    arguments = ["--task", "super_resolution_x4", "inpainting_free"]
    arguments += ["--pretrained_model_name_or_path", str(output / "pipeline")]
    arguments += ["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "operators")]
    arguments += ["--resolution", "64", "--pictures", "6", "--max_train_steps", "3"]
    arguments += ["--num_validation_images", "0"]
    assert train_operator(arguments) == 0
    for task, mask in (("super_resolution_x4", False), ("inpainting_free", True)):
        operator = LatentOperator.from_pretrained(tmp_path / "operators" / task)
        assert operator.uses_mask == mask
        assert operator.metadata["task"] == task
        assert operator.metadata["errors"]["l1"] > 0
        card = (tmp_path / "operators" / task / "README.md").read_text()
        assert task in card and "$" not in card


def test_a_prior_can_begin_with_another_one() -> None:
    start, prior = load_start("tiny", DenoiserTraining()), LatentPrior.load("tiny")
    tokens = token_ids(start.tokenizer, ["a red dress"])
    latents = torch.randn(1, prior.latent_channels, 32, 32)
    with torch.no_grad():
        output = start.denoiser(latents, torch.tensor([400]), tokens)
        expected = prior.predict(latents, 400, prior.embed("a red dress")).output
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_a_prior_keeps_what_is_trained_for_no_steps_from_the_one_it_begins_with(
    folder: Path, tmp_path: Path, small_training: None
) -> None:
    def train(output: str, *options: str) -> Path:
        arguments = ["--train_data_dir", str(folder), "--output_dir", str(tmp_path / output)]
        assert train_prior([*arguments, "--denoiser_steps", "1", *options]) == 0
        return tmp_path / output / "pipeline"

    first = train("first", "--autoencoder_steps", "1", "--decoder_steps", "1")
    begun = ["--pretrained_model_name_or_path", str(first)]
    kept = ["--autoencoder_steps", "0", "--decoder_steps", "0"]
    second = train("second", *begun, *kept)
    old, new = (load_start(str(place), _SmallDenoiser()) for place in (first, second))
    weights = old.autoencoder.state_dict()
    for name, weight in new.autoencoder.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    before, after = old.denoiser.state_dict(), new.denoiser.state_dict()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(BadRequest, match="--autoencoder_steps above 0"):
        train("wider", *begun, *kept, "--latent_channels", "12")


@pytest.fixture
def prior_training(tmp_path: Path) -> PriorTraining:
    """A training of seconds, on pictures of 48 pixels."""
    (tmp_path / "prior").mkdir()
    return PriorTraining(
        photos=_photos(),
        held_out=_photos(1, 256),
        joint=replace(AUTOENCODER, steps=1, learning_rate=1.0),  # which half precision shows
        denoising=DenoiserTraining((32, 64), 32, 32, latent_size=4, steps=1, batch=2),
        alone=replace(AUTOENCODER, steps=1, decoder_alone=True),
        lpips=None,
        start=None,
        output=tmp_path / "prior",
        device=torch.device("cpu"),
        dtype=torch.float32,
        checkpointing_steps=1,
    )


def test_a_denoiser_is_trained_on_with_the_latents_it_began_with_alone(
    prior_training: PriorTraining,
) -> None:
    training, output = prior_training, prior_training.output
    one, two, *rest = training.photos
    swapped = replace(training, photos=[two, one, *rest])
    finer = replace(training, joint=replace(training.joint, steps=2))

    def latents() -> dict[str, torch.Tensor]:
        return load(cache.read_bytes())

    cache = output / "latents.safetensors"
    training.check()
    training.run()
    first, written = latents(), cache.stat().st_mtime_ns
    longer = replace(training, denoising=replace(training.denoising, steps=2))
    longer.check()
    assert [stage.units for stage in longer.stages()] == [0, 0, 1, 0]
    assert longer.run()[3]["denoiser"]["settings"]["steps"] == 2
    assert cache.stat().st_mtime_ns == written
    for other in (swapped, finer):
        with pytest.raises(BadRequest, match="--autoencoder_steps 1, or choose another --output"):
            other.check()
    # As long as nothing was trained on them, latents are made anew.
    for other in (swapped, finer):
        for part in ("denoiser", "decoder"):
            shutil.rmtree(output / part)
        other.check()
        assert other.stages()[1].units == len(training.photos)
        other.run()
        if other is swapped:
            assert torch.equal(latents()["000000.0"], first["000001.0"])
    assert not torch.equal(latents()["000000.0"], first["000000.0"])


def test_a_prior_is_not_trained_on_as_if_it_had_begun_with_another(
    prior_training: PriorTraining,
) -> None:
    autoencoder, denoiser, tokenizer, _ = prior_training.run()
    start = StartingPrior(autoencoder, denoiser, tokenizer)
    with pytest.raises(BadRequest, match="began with another prior"):
        replace(prior_training, start=start).check()
    for changed in ({"seed": 1}, {"latent_channels": 8}):
        joint = replace(prior_training.joint, **changed)
        with pytest.raises(BadRequest, match="another prior, seed or number of latent channels"):
            replace(prior_training, joint=joint).check()
    prior_training.check()
    (prior_training.output / "other").mkdir()
    other = replace(prior_training, start=start, output=prior_training.output / "other")
    other.check()
    other.run()
    other.check()
    with pytest.raises(BadRequest, match="began with another prior"):
        replace(other, start=None).check()


def test_a_prior_cannot_begin_with_one_of_more_channels(folder: Path, tmp_path: Path) -> None:
    arguments = ["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "prior")]
    arguments += ["--pretrained_model_name_or_path", "tiny", "--latent_channels", "4"]
    with pytest.raises(BadRequest, match="or more latent ones"):
        train_prior(arguments)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--denoiser_steps", "-1"), ("--denoiser_steps", "0"), ("--checkpointing_steps", "-1")],
)
def test_a_prior_is_not_trained_for_no_steps(
    folder: Path, tmp_path: Path, option: str, value: str
) -> None:
    arguments = ["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "prior")]
    with pytest.raises(BadRequest, match=f"{option} must be above 0, not {value}"):
        train_prior([*arguments, option, value])
    assert not (tmp_path / "prior").exists()


LOOP = """
import sys, torch
from pathlib import Path
from silo.training.log import TrainingLog
from silo.training.loop import TrainingLoop
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.SiLU(), torch.nn.Linear(512, 64))
loop = TrainingLoop(model, Path(sys.argv[1]), steps=int(sys.argv[2]), learning_rate=0.01,
                    decay=0.9, seed=0, checkpointing_steps=1)
for generator in loop:
    inputs = torch.randn(8, 64, generator=generator)
    loop.update({"loss": (model(inputs) - inputs.flip(1)).square().mean()})
    print(loop.step, flush=True)
"""


def test_killed_while_saving_again_and_again_it_trains_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 60

    def run(folder: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["", str(folder), str(steps)])
        exec(LOOP, {})

    def kill(folder: Path, kill_after: int) -> None:
        command = [sys.executable, "-c", LOOP, str(folder), str(steps)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for count, _ in enumerate(process.stdout):
                if count == kill_after:  # it is saving most of the time
                    process.send_signal(signal.SIGKILL)
                    break

    run(tmp_path / "unbroken")
    for kill_after in (0, 11, 17):
        kill(tmp_path / "broken", kill_after)
    run(tmp_path / "broken")
    (step, expected), (_, found) = (
        checkpoints.latest(tmp_path / name) or (0, {}) for name in ("unbroken", "broken")
    )
    assert step == steps and expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    logs = [TrainingLog(tmp_path / name / "log.jsonl").read() for name in ("unbroken", "broken")]
    assert len(logs[0]) == 1
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert not list(tmp_path.rglob("*.partial"))


def test_half_a_line_at_the_end_of_a_log_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    TrainingLog(path).write(50, {"loss": 1.0})
    path.write_text(path.read_text() + '{"step": 100, "lo')
    log = TrainingLog(path)
    log.write(100, {"loss": 0.5})
    assert [line["loss"] for line in log.read()] == [1.0, 0.5]
