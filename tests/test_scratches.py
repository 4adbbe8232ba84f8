"""Scratches: those drawn to learn from, the network, and what it finds on photos new to it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.pretrained import read_weights
from silo.__main__ import main
from silo.data import list_photos
from silo.errors import Unrestorable
from silo.images import load_image, save_png
from silo.metrics import psnr
from silo.scratches.detector import _views, find_scratches
from silo.scratches.drawing import LEAST_CHANGE, draw_marks
from silo.scratches.network import ScratchNet
from silo.scratches.training import ScratchTraining, train_scratches
from silo.training.log import TrainingLog
from tests.photos import NAMES, photo, scratched

GREY = np.full((96, 128, 3), 0.5)


def test_marks_are_drawn_where_they_are_said_to_be() -> None:
    shares = []
    for seed in range(60):
        marked, seen = draw_marks(GREY, np.random.default_rng(seed))
        again, same = draw_marks(GREY, np.random.default_rng(seed))
        assert np.array_equal(marked, again) and np.array_equal(seen, same)
        assert marked.shape == GREY.shape and marked.min() >= 0 and marked.max() <= 1
        if seen.any() and not seen.all():
            # Whatever age does to all of it, marks stand out from what is around them.
            outside = marked[~seen].mean(axis=0)
            assert np.abs(marked[seen] - outside).max() > LEAST_CHANGE / 2
        shares.append(seen.mean())
    assert 0.1 < np.mean(np.array(shares) == 0) < 0.4  # some have none
    assert 0.005 < np.mean(shares) < 0.2


def test_a_part_of_a_photo_is_judged_as_it_is_in_the_photo() -> None:
    torch.manual_seed(0)
    network, reach = ScratchNet(widths=(4, 4)), 48
    pictures = torch.rand(2, 3, 192, 224) * 2 - 1
    log_odds = network(pictures)
    assert log_odds.shape == (2, 1, 192, 224)
    part = network(pictures[..., :160, 32:])
    torch.testing.assert_close(
        log_odds[..., reach : 160 - reach, 32 + reach : -reach],
        part[..., reach:-reach, reach:-reach],
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(256, 256), (400, 601)])
def test_scratches_are_found_on_photos(name: str, size: tuple[int, int]) -> None:
    clean = torch.nn.functional.interpolate(photo(name, 512), size, mode="area")
    picture, where = scratched(clean, max(size) // 120)
    mask = find_scratches(picture)
    assert mask.shape == where.shape and set(mask.unique().tolist()) == {0, 1}
    assert ((1 - mask) * where).sum() / where.sum() > 0.8
    assert (1 - mask).mean() < 3 * where.mean() + 0.02


@pytest.mark.parametrize(
    ("side", "seen"),
    [(639, [639]), (640, [640, 384]), (1279, [1279, 384]), (1280, [1280, 768, 384])]
    + [(4000, [1536, 768, 384])],
)
def test_large_photos_are_looked_at_smaller_too(side: int, seen: list[int]) -> None:
    views = list(_views(torch.zeros(1, 3, 1, side)))
    assert [view.shape[-1] for view in views] == seen
    assert all(view.shape[-2] == 1 for view in views)


@pytest.mark.parametrize("width", [9, 25])
def test_scratches_of_a_large_photo_are_marked_at_its_own_size(width: int) -> None:
    picture, where = scratched(photo("coffee", 2000), width)
    mask = find_scratches(picture)
    assert mask.shape == where.shape
    assert ((1 - mask) * where).sum() / where.sum() > 0.8
    assert (1 - mask).mean() < 2 * where.mean() + 0.04  # lights on the cup, too


def test_a_photo_without_scratches_has_none() -> None:
    with pytest.raises(Unrestorable, match="No scratches"):
        find_scratches(torch.zeros(1, 3, 33, 70))


def test_without_a_mask_the_command_fills_in_what_it_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = photo("coffee")
    picture, _ = scratched(clean)
    (tmp_path / "old").mkdir()
    save_png(tmp_path / "old" / "a.png", picture)
    save_png(tmp_path / "old" / "b.png", torch.zeros(3, 64, 64))
    call = ["restore", str(tmp_path / "old"), "--task", "inpainting_free", "--preset", "quick"]
    assert main([*call, "--steps", "4"]) == 1
    told = capsys.readouterr().err
    assert "of the photo was found to be scratched" in told
    assert "1 of 2 pictures failed" in told and "b.png: No scratches" in told
    restored = load_image(tmp_path / "old_restored" / "a_restored.png").pixels
    assert float(psnr(restored, clean)) > float(psnr(picture, clean)) + 6
    assert main([*call, "--steps", "4"]) == 1
    assert "up to date" in capsys.readouterr().err


@dataclass(frozen=True)
class Small(ScratchTraining):
    """Training that takes no time."""

    batch: int = 2
    crop: int = 48


def test_training_resumes_and_its_result_is_what_is_loaded(
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("silo.scratches.training.ScratchTraining", Small)
    call = ["train-scratches", "--train_data_dir", str(photo_folder), "--checkpointing_steps", "2"]
    for name, runs in (("whole", ["4"]), ("resumed", ["2", "4"])):
        for steps in runs:
            assert main([*call, "--output_dir", str(tmp_path / name), "--steps", steps]) == 0
    assert "in all:" in capsys.readouterr().out  # what it will take
    expected = ScratchNet().state_dict()
    one, other = (
        read_weights(tmp_path / name / "scratches" / "model.safetensors", expected)
        for name in ("whole", "resumed")
    )
    assert one.keys() == other.keys()
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name])
    config = json.loads((tmp_path / "whole" / "scratches" / "config.json").read_text())
    assert config["training"]["steps"] == 4
    assert config["held_out"].keys() == {"recall", "precision", "clean_share"}


def test_training_lowers_the_loss(photo_folder: Path, tmp_path: Path) -> None:
    settings = ScratchTraining(steps=150, batch=2, crop=64, learning_rate=3e-3)
    photos, cpu = list_photos([photo_folder], "train"), torch.device("cpu")
    train_scratches(photos, settings, tmp_path, device=cpu, checkpointing_steps=150)
    first, *_, last = (sum(losses(line)) for line in TrainingLog(tmp_path / "log.jsonl").read())
    assert last < 0.8 * first


def losses(line: dict[str, float]) -> list[float]:
    return [line["cross_entropy"], line["overlap"]]
