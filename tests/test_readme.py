"""The commands, paths and front matter of the README and what it leads to are true."""

import importlib
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from silo.__main__ import COMMANDS, main
from silo.prior import LatentPrior
from silo.prior_files import HUB_PRIORS
from silo.request import RestorationRequest
from silo.restorer import Restorer
from silo.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CARD = "operator.md"  # is a template
PAGES = {
    page: page.read_text()
    for page in [ROOT / "README.md", *(ROOT / "hub_cards").glob("*.md")]
    if page.name != CARD
}
CALLS = {
    " ".join(call.replace("\\\n", " ").split())
    for text in PAGES.values()
    for call in re.findall(r"^ *python -m silo ((?:.*\\\n)*.*)$", text, re.MULTILINE)
}
# Of a version whose options are gone, as the page tells.
OLDER = {call for call in CALLS if call.startswith("train-prior") and "FIRST" in call}


@pytest.mark.parametrize("call", sorted(CALLS - OLDER))
def test_every_command_is_accepted_by_its_parser(call: str) -> None:
    name, *arguments = shlex.split(call, comments=True)
    module = importlib.import_module(COMMANDS[name][0])
    module._parser().parse_args(arguments)


def test_the_peer_that_it_adds_is_a_sampler(tiny_prior: LatentPrior) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (source,) = (block for block in blocks if "MINE = " in block)
    assert len([line for line in source.splitlines() if line]) <= 10
    written: dict[str, Any] = {}
    exec(source, written)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scales = dict(written["MINE"].published("super_resolution_x4", 4))
    latents = []
    for sampler in (written["MINE"], SAMPLERS["ldps"]):  # which is what the example writes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("silo.restorer.SAMPLERS", {"ldps": sampler})
            request = RestorationRequest(
                "super_resolution_x4", picture, sampler="ldps", steps=4, hyperparameters=scales
            )
            result = Restorer(tiny_prior).run(request)
        latents.append(result.restored)
    assert torch.equal(*latents)


def test_your_own_operator_works_as_written(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The section's file and commands, but for what makes them short: few steps, small pictures."""
    section = README.split("## Your own operator")[1].split("\n## ")[0]
    (source,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    commands = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert commands is not None
    shorter = {
        "degrade": [],
        "restore": ["--steps", "1"],
        "train-operator": [
            *(
                "--resolution",
                "64",
                "--pictures",
                "8",
                "--max_train_steps",
                "1",
                "--num_validation_images",
                "0",
            )
        ],
        "evaluate": [*("--limit", "1", "--search", "1", "--steps", "1", "--split", "all")],
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "photos").symlink_to(photo_folder)
    shutil.copyfile(photo_folder / "p0.png", "photo.jpg")
    run = []
    for call in re.findall(
        r"^python -m silo (.*mine.py:.*|.*trained/old_film.*)$", commands[1], re.M
    ):
        name, *arguments = shlex.split(call)
        assert main([name, *arguments, *shorter[name]]) == 0, call
        run.append(name)
    assert run == ["degrade", "train-operator", "restore", "restore", "evaluate"]
    assert {"faded.png", "faded_restored.png", "photo_restored.png"} <= set(os.listdir())
    assert "old_film" in Path("measured/table.md").read_text()
    assert "faded = 0.6 * images + 0.2" in Path("trained/old_film/README.md").read_text()


def test_there_is_one_command_to_start_and_one_to_test() -> None:
    installs = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert installs == [
        "pip install -r requirements.txt && python app.py",
        "pip install -r tests/requirements.txt && python -m pytest -n 2 --dist loadfile",
    ]


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_and_sections_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file.read_text()), target


def test_the_space_runs_what_the_requirements_ask_for() -> None:
    front = yaml.safe_load(README.split("---\n")[1])
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    major, minor, _ = front["sdk_version"].split(".")
    assert f"gradio>={major}.{minor}" in (ROOT / "requirements.txt").read_text()
    assert len(front["short_description"]) <= 60
    assert front["models"] == [prior.repo_id for prior in HUB_PRIORS.values()]
    assert "preload_from_hub" not in front  # deploy-space --prior adds it; else the prior is tiny
