"""The README's commands, paths and front matter are true."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from silo.__main__ import COMMANDS
from silo.prior_files import HUB_PRIORS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CALLS = re.findall(r"^python -m silo (.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("call", CALLS)
def test_every_command_is_accepted_by_its_parser(call: str) -> None:
    name, *arguments = shlex.split(call, comments=True)
    module = importlib.import_module(COMMANDS[name][0])
    module._parser().parse_args(arguments)


def test_there_is_one_command_to_start_and_one_to_test() -> None:
    installs = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert installs == [
        "pip install -r requirements.txt && python app.py",
        "pip install -r tests/requirements.txt && python -m pytest",
    ]


def test_linked_files_and_sections_exist() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {"#" + heading.lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert target in anchors or (ROOT / target).exists(), target


def test_the_space_runs_what_the_requirements_ask_for() -> None:
    front = yaml.safe_load(README.split("---\n")[1])
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    major, minor, _ = front["sdk_version"].split(".")
    assert f"gradio>={major}.{minor}" in (ROOT / "requirements.txt").read_text()
    assert len(front["short_description"]) <= 60
    assert front["models"] == [prior.repo_id for prior in HUB_PRIORS.values()]
    assert "preload_from_hub" not in front  # deploy-space --prior adds it; else the prior is tiny
