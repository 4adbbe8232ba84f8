"""`python -m silo deploy-space ORG/NAME`: put the page on a Hugging Face Space, in one commit.

The Space gets this folder's page, library, operators and README, whose front matter configures it.
A Space that exists is updated: files that are gone here go there too.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, RepoCard, SpaceHardware
from huggingface_hub.errors import HfHubHTTPError

from operators.catalog import shelf
from operators.download_record import read_records
from operators.latent import read_config
from operators.pretrained import download_errors
from silo.command_line import CommandParser
from silo.errors import PushRefused
from silo.hub import EXAMPLE_NAME, OPERATOR_FILES, require_online
from silo.hub_commit import commit_files, explained, retried
from silo.prior_files import EMBEDDED_NAME, HUB_PRIORS, needed_files

ROOT = Path(__file__).parents[2]
FILES = ("README.md", "app.py", "requirements.txt")
FOLDERS = ("operators", "silo", "hub_cards")
SHELF = Path("operators", "trained")
PUBLISHED = (*OPERATOR_FILES, EXAMPLE_NAME)  # of an operator
PRIOR_VARIABLE = "SILO_PRIOR"  # which app.py reads
SPACE_TORCH = "torch>=2.8,<2.12"  # what ZeroGPU offers, up to 2.11


def main(argv: list[str]) -> int:
    """Create or update a Space; returns the exit code."""
    arguments = _parser().parse_args(argv)
    files = space_files(ROOT)
    for name in _downloaded(ROOT):
        print(f"{name} stays here: it was downloaded, and may not be public.", file=sys.stderr)
    require_online(f"deploy to {arguments.repo_id}")
    prior, hardware = _present(arguments.repo_id)
    prior, hardware = arguments.prior or prior, arguments.hardware or hardware
    with TemporaryDirectory() as folder:
        files |= _adapted(files, prior, hardware, Path(folder))
        url = commit_files(
            arguments.repo_id,
            files,
            "Deploy SILO",
            private=arguments.private,
            space=True,
            hardware=arguments.hardware,
            folders=FOLDERS,
        )
    print(url)
    if arguments.prior is not None:
        with _refused(arguments.repo_id, f"the variable {PRIOR_VARIABLE}={arguments.prior}"):
            HfApi().add_space_variable(arguments.repo_id, PRIOR_VARIABLE, arguments.prior)
    if arguments.hardware is not None:
        with _refused(arguments.repo_id, f"the hardware {arguments.hardware}"):
            HfApi().request_space_hardware(arguments.repo_id, SpaceHardware(arguments.hardware))
    return 0


def space_files(root: Path) -> dict[str, Path]:
    """What the Space needs of the repository in `root`, by path; no tests, no hidden files.

    Of operators, those that came with the repository or were trained here, without what else lies
    in their folders.

    Raises:
        PushRefused: the README's front matter is no Gradio Space's, or an operator on the shelf may
            not be published.
    """
    files = {name: root / name for name in FILES}
    trained, downloaded = SHELF.parts, _downloaded(root)
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if parts[: len(trained)] == trained and len(parts) > len(trained):
                name, *within = parts[len(trained) :]
                hidden |= name in downloaded or "/".join(within) not in PUBLISHED
            if path.is_file() and not hidden:
                files["/".join(parts)] = path
    front = RepoCard.load(root / "README.md", ignore_metadata_errors=True).data.to_dict()
    if front.get("sdk") != "gradio" or front.get("app_file") not in files:
        raise PushRefused(
            f"the front matter of {root / 'README.md'} must name sdk: gradio and an app_file that "
            "is deployed: restore it"
        )
    for entry in shelf(root / SHELF):
        if "imported_from" in read_config(entry.folder).metadata:
            raise PushRefused(
                f"{entry.folder} holds the paper authors' weights, which have no licence: move it "
                "off the shelf before deploying"
            )
    return files


def _downloaded(root: Path) -> set[str]:
    """The folders of the shelf that hold what was downloaded."""
    return {folder.name for folder in (root / SHELF).glob("*") if read_records(folder)}


def _present(repo_id: str) -> tuple[str | None, str | None]:
    """The usual prior and the hardware of a Space as it is; None for what it has not, or hides.

    Raises:
        PushRefused: the Space's name is invalid.
        HubUnavailable: the Hub failed again and again.
    """
    with explained(repo_id):
        try:
            variables = retried(lambda: HfApi().get_space_variables(repo_id))
            runtime = retried(lambda: HfApi().get_space_runtime(repo_id))
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403, 404):
                raise
            return None, None  # there is none yet, or it is not ours: the push will tell
    prior = variables.get(PRIOR_VARIABLE)
    hardware = runtime.requested_hardware or runtime.hardware
    return None if prior is None else prior.value, hardware


def _adapted(
    files: dict[str, Path], prior: str | None, hardware: str | None, folder: Path
) -> dict[str, Path]:
    """What a Space needs otherwise than this machine, written to `folder`, by path.

    Its torch is one that ZeroGPU runs, and a prior of the Hub is fetched when the Space is built.
    """
    requirements = files["requirements.txt"].read_text(encoding="utf-8")
    requirements = re.sub(r"^torch>=\S+", SPACE_TORCH, requirements, flags=re.MULTILINE)
    adapted = {"requirements.txt": folder / "requirements.txt"}
    adapted["requirements.txt"].write_text(requirements, encoding="utf-8")
    if prior in HUB_PRIORS:
        source = HUB_PRIORS[prior]
        with download_errors(source.repo_id, source.revision):
            listed = HfApi().list_repo_files(source.repo_id, revision=source.revision)
        on_gpu = hardware is not None and not hardware.startswith("cpu")
        names = needed_files(listed, torch.bfloat16 if on_gpu else torch.float32)
        card = RepoCard.load(files["README.md"], ignore_metadata_errors=True)
        card.data["preload_from_hub"] = [f"{source.repo_id} {','.join(names)} {source.revision}"]
        adapted["README.md"] = folder / "README.md"
        card.save(adapted["README.md"])
    return adapted


@contextmanager
def _refused(repo_id: str, what: str) -> Iterator[None]:
    """Say what the Hub refuses once the files are there."""
    try:
        yield
    except HfHubHTTPError as error:
        raise PushRefused(
            f"the files are on {repo_id}, but the Hub refuses {what} "
            f"({error.server_message or error.response.status_code}): choose it in its settings"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo deploy-space", description=__doc__)
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the Space")
    parser.add_argument("--private", action="store_true", help="create the Space private")
    parser.add_argument(
        "--prior",
        choices=[EMBEDDED_NAME, *HUB_PRIORS],
        help="the page's usual prior; left as it is by default, at first the embedded one",
    )
    parser.add_argument(
        "--hardware",
        choices=[hardware.value for hardware in SpaceHardware],
        metavar="HARDWARE",
        help="such as zero-a10g (ZeroGPU); left as it is by default",
    )
    return parser
