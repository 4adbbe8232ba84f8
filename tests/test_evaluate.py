import json
from pathlib import Path

import pytest
import torch

from operators.convolutional import CompactCNN
from silo.__main__ import main
from silo.images import load_image, save_png
from silo.lpips import WEIGHTS_VARIABLE


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        generator = torch.Generator().manual_seed(index)
        save_png(folder / f"p{index}.png", torch.rand(3, 40, 56, generator=generator) * 2 - 1)
    return folder


def test_an_evaluation_records_every_picture_resumes_and_shows_them(
    photos: Path, tiny_prior_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    CompactCNN(latent_channels=4, width=8, blocks=1, groups=4).save_pretrained(tmp_path / "op")
    out = tmp_path / "out"
    call = ["evaluate", "--data", str(photos), "--split", "all", "--limit", "3", "--out", str(out)]
    call += ["--prior", str(tiny_prior_folder), "--operator", str(tmp_path / "op"), "--steps", "1"]
    call += ["--tasks", "gaussian_blur,super_resolution_x4"]
    assert main(call) == 0
    rows = json.loads((out / "metrics.json").read_text())
    pictures = [(row["task"], row["picture"]) for row in rows]
    tasks = ("gaussian_blur", "super_resolution_x4")
    assert pictures == [(task, f"p{index}") for task in tasks for index in (0, 2, 4)]
    assert rows[0]["nfe"] == 1 and rows[0]["parameters"]["steps"] == 1
    assert rows[0]["restoration"]["lpips"] is None
    table = (out / "table.md").read_text()
    assert "| gaussian_blur | 3 |" in table and "not available" in table
    mean = sum(row["measurement"]["psnr"] for row in rows[:3]) / 3
    assert f"/ {mean:.2f} |" in table
    side = 128  # the prior's native size; three pictures in two columns of strips
    sheet = load_image(out / "gaussian_blur.jpg").pixels
    assert sheet.shape == (1, 3, 2 * side // 2, 2 * 3 * side // 2)
    (out / "metrics.json").write_text(json.dumps(rows[:-1]))
    before = (out / "gaussian_blur.p0.png").stat().st_mtime_ns
    assert main(call) == 0
    again = json.loads((out / "metrics.json").read_text())
    assert [row["restoration"] for row in again] == [row["restoration"] for row in rows]
    assert (out / "gaussian_blur.p0.png").stat().st_mtime_ns == before
    assert "super_resolution_x4" in capsys.readouterr().out
