import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from silo.__main__ import main
from silo.images import read_parameters
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


def test_distances_to_photos_are_those_of_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network:  # in place of Inception, whose weights are not here
        def __init__(self, path: Path) -> None:
            pass

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    monkeypatch.setattr("silo.commands.sample.find_inception", lambda: tmp_path)
    monkeypatch.setattr("silo.commands.sample.Inception", Network)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        Image.new("RGB", (256, 256), (80 * index, 40, 200)).save(photos / f"{index}.png")
    arguments = ["--steps", "1", "--number", "2", "--data", str(photos), "--split", "all"]
    assert main(["sample", *arguments, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["photos"]) == (2, 3)
    assert found["fid"] > 0
