import json
import os
from pathlib import Path

import pytest
import torch

from operators.catalog import TASKS, own_task, shelf
from operators.convolutional import CompactCNN
from operators.degradation import Degradation
from operators.errors import OperatorError
from operators.pixel import measure
from silo.__main__ import main
from silo.errors import BadDegradation
from silo.images import load_image, save_png
from silo.measured import take_measurement
from silo.own_degradation import check_degradation, load_degradation
from silo.prior import LatentPrior
from silo.request import RestorationRequest

OLD_FILM = """
import torch


def old_film(images, generator):
    faded = 0.5 * images + 0.2
    grain = torch.randn(images.shape, generator=generator)
    return (faded + 0.1 * grain).clamp(-1, 1)
"""

# What a function does wrong, and what the error has to say.
FAULTS = {
    "return images[..., ::2, ::2]": "scaled back up",
    "return images.mean(1, keepdim=True)": "(3, 3, 32, 32)",
    "return images.numpy()": "ndarray",
    "return (255 * images).byte()": "torch.uint8",
    "return images / 0": "not finite",
    "return 127.5 * (images + 1)": "[-1, 1]",
    "return images + 0.1 * torch.randn_like(images)": "generator",
    "return images - images.mean()": "others of its batch",
    "return images + 0.01 * len(images)": "than alone",
    "return images.mul_(0.5)": "work on a copy",
    "return images @ images[..., :5, :]": "RuntimeError",
    "return undefined": "NameError",
    "raise SystemExit(3)": "SystemExit: 3",
}


def _write(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_function_is_described_by_its_name_and_the_hash_of_its_file(tmp_path: Path) -> None:
    file = _write(tmp_path, OLD_FILM)
    own = load_degradation(f"{file}:old_film")
    check_degradation(own.degradation, 32)
    assert (own.name, own.source) == ("old_film", OLD_FILM)
    again = Degradation.from_dict(json.loads(json.dumps(own.degradation.to_dict())))
    assert again == own.degradation and not again.needs_mask
    _write(tmp_path, OLD_FILM + "\n# another text\n")
    assert load_degradation(f"{file}:old_film").degradation != own.degradation


def test_what_runs_is_what_was_hashed_even_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import system knows what it compiled before by the time, in seconds, and the size."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    images = torch.ones(1, 3, 8, 8)
    for factor in (0.5, 0.75):
        file = _write(tmp_path, f"def fade(images):\n    return images * {factor:.2f}\n")
        os.utime(file, (1, 1))
        degradation = load_degradation(f"{file}:fade").degradation
        assert torch.equal(degradation.operator().forward(images), factor * images)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]  # and no __pycache__


def test_a_measurement_draws_from_its_generator_image_by_image(tmp_path: Path) -> None:
    degradation = load_degradation(f"{_write(tmp_path, OLD_FILM)}:old_film").degradation
    images = torch.zeros(2, 3, 16, 16)

    def draw(pictures: torch.Tensor, *seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return measure(pictures, degradation, generators)

    both = draw(images, 1, 2)
    assert torch.equal(both, draw(images, 1, 2))
    assert torch.equal(both[1:], draw(images[1:], 2))
    assert not torch.equal(both[0], both[1])
    assert both.mean().item() == pytest.approx(0.2, abs=0.02)


def test_describing_a_function_runs_nothing_and_using_it_needs_the_file() -> None:
    degradation = Degradation("function", {"name": "evil", "sha256": "0" * 64})
    with pytest.raises(OperatorError, match="--degradation FILE.py:evil"):
        degradation.operator().forward(torch.zeros(1, 3, 8, 8))
    for parameters in ({"name": "a.b", "sha256": "0" * 64}, {"name": "a", "sha256": "x"}):
        with pytest.raises(OperatorError, match="must be a text like"):
            Degradation("function", parameters)


def test_a_file_may_define_dataclasses_whose_annotations_are_texts(tmp_path: Path) -> None:
    text = """
from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Fading:
    rate: float

    def __call__(self, images):
        return images * self.rate


fade = Fading(0.5)
"""
    own = load_degradation(f"{_write(tmp_path, text)}:fade")
    check_degradation(own.degradation, 32)
    faded = own.degradation.operator().forward(torch.ones(1, 3, 8, 8))
    assert torch.equal(faded, torch.full((1, 3, 8, 8), 0.5))


def test_a_file_in_another_encoding_is_refused_though_python_could_run_it(tmp_path: Path) -> None:
    text = "# -*- coding: latin-1 -*-\n# gr\xfcn\ndef f(images):\n    return images\n"
    (tmp_path / "mine.py").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadDegradation, match="save it as UTF-8"):
        load_degradation(f"{tmp_path / 'mine.py'}:f")


@pytest.mark.parametrize(("body", "message"), FAULTS.items())
def test_a_faulty_function_is_refused_with_what_to_change(
    tmp_path: Path, body: str, message: str
) -> None:
    file = _write(tmp_path, f"import torch\n\ndef degrade(images):\n    {body}\n")
    with pytest.raises((BadDegradation, OperatorError)) as caught:
        check_degradation(load_degradation(f"{file}:degrade").degradation, 32)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("def f(x): return x", "{file}:g", "no function g"),
        ("def f(): return 1", "{file}:f", r"of \(images\)"),
        ("def f(a, b, c): return a", "{file}:f", r"of \(images\)"),
        ("1 / 0", "{file}:f", "cannot be run: ZeroDivisionError"),
        ("def f(x: unknown): return x", "{file}:f", "cannot be run: NameError"),
        ("def f(x) return x", "{file}:f", "cannot be run: SyntaxError"),
        ("import sys; sys.exit('no')", "{file}:f", "cannot be run: SystemExit: no"),
        ("", "nowhere.py:f", "no Python file nowhere.py"),
        ("", "nowhere.json", "no file nowhere.json"),
    ],
)
def test_a_file_that_is_no_degradation_is_named(
    tmp_path: Path, text: str, place: str, message: str
) -> None:
    file = _write(tmp_path, text)
    with pytest.raises(BadDegradation, match=message):
        load_degradation(place.format(file=file))


def test_json_describes_a_kind_of_the_catalog(tmp_path: Path) -> None:
    text = json.dumps({"kind": "gaussian_blur", "parameters": {"std": 5}, "noise_sigma": 0.02})
    own = load_degradation(str(_write(tmp_path, text, "soft.json")))
    assert own.name == "soft" and own.source is None
    assert own.degradation == Degradation("gaussian_blur", {"std": 5.0}, 0.02)
    check_degradation(own.degradation, 32)
    wrong = '{"kind": "jpeg", "parameters": {"quality": 500}}'
    for bad in ("[1]", "{", "[" * 100_000, '{"kind": "rain"}', wrong):
        with pytest.raises(BadDegradation, match="describes no degradation"):
            load_degradation(str(_write(tmp_path, bad, "bad.json")))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_catalog_passes_the_check(task: str) -> None:
    check_degradation(TASKS[task].degradation, 32)  # raises what it finds


def test_a_task_of_ones_own_may_not_take_a_name_of_the_catalog() -> None:
    with pytest.raises(OperatorError, match="another name"):
        own_task("jpeg_q10", Degradation("jpeg", {"quality": 11}))


@pytest.mark.parametrize(
    "name", ["", "..", "../outside", "/outside", "my lens", "-x", "lens\n", "é"]
)
def test_a_task_of_ones_own_may_not_be_called_what_is_no_file_name(name: str) -> None:
    assert own_task("old_lens-2", Degradation("denoising")).name == "old_lens-2"
    with pytest.raises(OperatorError, match="no name for a task"):
        own_task(name, Degradation("denoising"))


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    """An operator of random weights for the function old_film."""
    own = load_degradation(f"{_write(tmp_path, OLD_FILM, 'author.py')}:old_film")
    network = CompactCNN(latent_channels=4, width=8, blocks=1, groups=4)
    network.metadata = {
        "task": "film",
        "prior": "test",
        "degradation": own.degradation.to_dict(),
        "source": OLD_FILM.replace("import torch", "raise SystemExit(9)"),
    }
    network.save_pretrained(tmp_path / "operator")
    return tmp_path / "operator"


def test_an_operator_of_ones_own_restores_under_its_name(
    tmp_path: Path, tiny_prior_folder: Path, operator: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("operators.function._REGISTERED", {})  # as in a new process
    photo = tmp_path / "photo.png"
    save_png(photo, torch.rand(3, 32, 32) * 2 - 1)
    fixed = ["--prior", str(tiny_prior_folder), "--operator", str(operator), "--steps", "2"]
    call = ["restore", str(photo), "--task", "film", *fixed]
    out = ["--out", str(tmp_path / "out.png")]
    assert main([*call, *out]) == 0  # without the author's file
    assert load_image(tmp_path / "out.png").pixels.shape == (1, 3, 32, 32)
    assert main([*call, *out, "--simulate"]) == 2
    assert "--degradation FILE.py:old_film" in capsys.readouterr().err
    own = ["--degradation", f"{tmp_path / 'author.py'}:old_film"]
    assert main([*call, *out, "--simulate", "--json", *own]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["measurement"]["psnr"] > 5
    other = _write(tmp_path, OLD_FILM.replace("0.2", "0.3"), "other.py")
    assert main([*call, *out, "--simulate", "--degradation", f"{other}:old_film"]) == 0
    assert "not what the operator was trained for" in capsys.readouterr().err
    small = OLD_FILM.replace("return ", "assert len(images[0, 0]) < 32, 'too large'\n    return ")
    own = ["--degradation", f"{_write(tmp_path, small, 'small.py')}:old_film"]
    assert main([*call, *out, "--simulate", *own]) == 2
    assert "fails on images (1, 3, 32, 32): AssertionError: too large" in capsys.readouterr().err
    assert main(["restore", str(photo), "--task", "films", *fixed]) == 2
    assert "trained for film" in capsys.readouterr().err
    monkeypatch.setattr("silo.restorer.shelf", lambda: shelf(operator.parent))
    assert main(["restore", str(photo), "--task", "films", *fixed[:2]]) == 2
    error = capsys.readouterr().err
    assert "jpeg_q10" in error and ", film, or name the operator" in error


def test_a_degradation_of_ones_own_is_shown_as_restore_simulates_it(
    tmp_path: Path, operator: Path, tiny_prior: LatentPrior, capsys
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "faded.png"
    save_png(photo, torch.rand(3, 32, 32) * 2 - 1)
    place = f"{tmp_path / 'author.py'}:old_film"
    assert main(["degrade", str(photo), "--degradation", place, "--out", str(out)]) == 0
    degradation = load_degradation(place).degradation
    request = RestorationRequest(
        "film", load_image(photo).pixels, simulate=True, degradation=degradation
    )
    measured = take_measurement(request, tiny_prior)
    shown = load_image(out).pixels
    torch.testing.assert_close(shown, measured.y.clamp(-1, 1), atol=1 / 127, rtol=0)
    with pytest.raises(SystemExit):
        main(["degrade", str(photo), "--degradation", place, "--task", "jpeg_q10", "--out", "x"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_task_of_ones_own_is_evaluated(
    tmp_path: Path, tiny_prior_folder: Path, operator: Path, capsys
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("a", "b"):
        save_png(photos / f"{name}.png", torch.rand(3, 40, 40) * 2 - 1)
    call = ["evaluate", "--data", str(photos), "--split", "all", "--out", str(out), "--steps", "1"]
    call += ["--prior", str(tiny_prior_folder), "--operator", str(operator), "--tasks", "film"]
    assert main(call) == 2
    assert "describe your own with --degradation" in capsys.readouterr().err
    assert main([*call, "--degradation", f"{tmp_path / 'author.py'}:old_film"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    rows = [row for row in metrics["rows"] if "nfe" in row]
    assert [row["picture"] for row in rows] == ["a", "b"]
    assert all(row["parameters"]["degradation"]["kind"] == "function" for row in rows)
    # Its measurements are the function's: half the contrast, and grain.
    measured, clean = (
        load_image(next((out / "pictures").glob(pattern))).pixels
        for pattern in ("film-measurement-*/a.png", "clean-*/a.png")
    )
    grain = (measured - (0.5 * clean + 0.2)).std().item()
    assert grain == pytest.approx(0.1, rel=0.2)
    protocol = ["--protocol", "ffhq", "--degradation", f"{tmp_path / 'author.py'}:old_film"]
    assert main([*call, *protocol]) == 2
