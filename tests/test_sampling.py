import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from silo.__main__ import main
from silo.commands import sample
from silo.images import load_image, read_parameters
from silo.metrics import frechet_distance
from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_FOLDER
from silo.sampling import draw


def test_drawing_is_diffusers_ddim() -> None:
    prior = LatentPrior.load("tiny")
    prompt = prior.embed("a flower")
    config = json.loads((EMBEDDED_FOLDER / "scheduler" / "scheduler_config.json").read_text())
    config |= {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    scheduler: Any = DDIMScheduler.from_config(config)  # which is annotated as a tuple, too
    scheduler.set_timesteps(4)
    side = prior.native_size // prior.scale_factor
    shape = (1, prior.latent_channels, side, side)
    z = torch.randn(shape[1:], generator=torch.Generator().manual_seed(3))[None]
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = prior.predict(z, int(t), prompt).output
            z = scheduler.step(output, int(t), z).prev_sample
        expected = prior.decode(z)
    drawn = draw(prior, prompt, 4, [torch.Generator().manual_seed(3)])
    torch.testing.assert_close(drawn, expected, atol=1e-3, rtol=0)


def test_every_option_is_explained() -> None:
    assert not [option.dest for option in sample._parser()._actions if not option.help]


def test_a_picture_is_the_same_among_others(tmp_path: Path) -> None:
    common = ["--steps", "2", "--prompt", "", "a dress", "--guidance-scale", "3"]
    assert main(["sample", *common, "--number", "3", "--out", str(tmp_path / "three")]) == 0
    alone = ["--steps", "2", "--seed", "1", "--prompt", "a dress", "--guidance-scale", "3"]
    assert main(["sample", *alone, "--number", "1", "--out", str(tmp_path / "one")]) == 0
    with (
        Image.open(tmp_path / "three" / "0001.png") as a,
        Image.open(tmp_path / "one" / "0000.png") as b,
    ):
        pairs = zip(a.tobytes(), b.tobytes(), strict=True)
        assert max(abs(x - y) for x, y in pairs) <= 1
    parameters = read_parameters(tmp_path / "three" / "0001.png")
    assert parameters is not None and (parameters["seed"], parameters["prompt"]) == (1, "a dress")
    with Image.open(tmp_path / "three" / "grid.jpg") as grid:
        assert grid.size == (780, 780)


def test_without_weights_no_distance_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SILO_METRIC_WEIGHTS", raising=False)
    out = str(tmp_path / "out")
    assert main(["sample", "--out", out, "--data", str(tmp_path), "--number", "2"]) == 2
    assert "SILO_METRIC_WEIGHTS" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Network:
    """In place of Inception, whose weights are not here; notes how many pictures a tensor holds."""

    batches: ClassVar[list[int]] = []

    def __init__(self, path: Path) -> None:
        pass

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(images.untyped_storage().nbytes() // images[0].nbytes)
        return images.mean((2, 3))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photos to compare with, by a network."""
    monkeypatch.setattr("silo.commands.sample.find_inception", lambda: tmp_path)
    monkeypatch.setattr("silo.commands.sample.Inception", Network)
    monkeypatch.setattr(Network, "batches", [])
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (256, 256), (80 * index, 40, 200)).save(folder / f"{index}.png")
    return folder


def test_distances_to_photos_are_those_of_the_metrics(
    tmp_path: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("silo.commands.sample.BATCH", 2)
    arguments = ["--steps", "1", "--number", "3", "--data", str(photos), "--split", "all"]
    assert main(["sample", *arguments, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["photos"]) == (3, 3)
    colours = torch.tensor([[80.0 * index, 40, 200] for index in range(3)]) / 127.5 - 1
    drawn = [load_image(tmp_path / "out" / f"000{index}.png").pixels for index in range(3)]
    expected = frechet_distance(torch.cat(drawn).mean((2, 3)), colours)
    assert found["fid"] == pytest.approx(expected, abs=0.02)
    assert Network.batches == [2, 1, 2, 1]  # not all of them at once


@pytest.mark.parametrize(
    ("kept", "damaged", "message"),
    [
        (["0"], [], "at least two photos, and '0' is the only one of the split 'all'"),
        ([], [], "No pictures of the split 'all'"),
        (["0", "1", "2"], ["2"], "'2' in"),
    ],
)
def test_photos_that_cannot_be_compared_with_are_named_before_anything_is_drawn(
    tmp_path: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kept: list[str],
    damaged: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("silo.commands.sample.draw", None)
    for path in photos.iterdir():
        if path.stem not in kept:
            path.unlink()
        elif path.stem in damaged:
            path.write_bytes(b"no picture")
    arguments = ["--data", str(photos), "--split", "all", "--out", str(tmp_path / "out")]
    assert main(["sample", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_steps_that_are_not_possible_are_named_before_photos_are_read(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(photos), "--split", "all", "--out", str(tmp_path / "out")]
    assert main(["sample", *arguments, "--steps", "0"]) == 2
    assert "0 steps are not possible" in capsys.readouterr().err
    assert Network.batches == []
