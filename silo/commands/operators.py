"""`python -m silo operators`: list, publish, fetch, check and convert trained operators."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from huggingface_hub import HfApi

from operators.catalog import SHELF, TASKS, shelf
from operators.download_record import read_records
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.latent import LatentOperator, architectures
from operators.pretrained import download_errors
from silo import hub
from silo.command_line import CommandParser
from silo.errors import BadRequest
from silo.model_card import NO_LICENSE, read_license, with_license
from silo.official import import_official
from silo.operator_listing import ListedOperator, in_cache, in_collection, on_shelf


def main(argv: list[str]) -> int:
    """Run one action; returns 0, or 1 when some of several operators failed to verify."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _list(arguments: argparse.Namespace) -> int:
    rows: list[Iterable[ListedOperator]] = [on_shelf(), in_cache()]
    if arguments.collection is not None:
        if hub.reachable():
            rows.append(in_collection(arguments.collection, _left_out))
        else:
            print("The Hub is out of reach: its collection is left out.", file=sys.stderr)
    for row in chain.from_iterable(rows):
        if arguments.json:
            print(json.dumps(asdict(row)))
        else:
            name = row.name if row.commit is None else f"{row.name}@{row.commit[:12]}"
            print(
                f"{row.task or '-':<22}{row.prior or '-':<10}{row.architecture:<17}"
                f"{row.size / 1e6:>7.1f} MB  {row.license or '-':<14}{row.source:<7}{name}"
            )
    return 0


def _left_out(error: OperatorError) -> None:
    print(f"Left out of the collection: {error}.", file=sys.stderr)


def _push(arguments: argparse.Namespace) -> int:
    folder = _find_folder(arguments.operator, arguments.prior)
    path, license = folder / hub.CARD_NAME, arguments.license
    card = None if license is None else with_license(path, license)
    print(hub.push_operator(folder, arguments.repo_id, private=arguments.private, card=card))
    if license is None and read_license(path) is None:
        print(NO_LICENSE, file=sys.stderr)
    return 0


def _find_folder(name: str, prior: str | None) -> Path:
    """The folder that was named, or the one on the shelf for the task, and prior, that was.

    Beside an operator that reads the latent alone, those that read features go by their folders.
    """
    if Path(name).is_dir() or name not in TASKS:
        if prior is not None:
            raise BadRequest(f"--prior goes with a task of the shelf, and {name} is none: drop it.")
        return Path(name)
    entries = [entry for entry in shelf() if entry.task == name]
    found = [entry for entry in entries if prior in (None, entry.prior)]
    reading_latents = [e for e in found if not architectures()[e.architecture].needs_features]
    for candidates in (found, reading_latents):
        if len(candidates) == 1:
            return candidates[0].folder
    wanted = name if prior is None else f"{name} on {prior}"
    choices = ", ".join(f"{entry.folder} for --prior {entry.prior}" for entry in entries)
    raise BadRequest(
        f"The shelf has {len(found)} operators for {wanted} ({choices or 'none for any prior'}): "
        "choose one with --prior NAME, or name its folder."
    )


def _pull(arguments: argparse.Namespace) -> int:
    folder = arguments.local_dir or SHELF / arguments.repo_id.rpartition("/")[2]
    commit = hub.pull_operator(arguments.repo_id, folder, revision=arguments.revision)
    print(f"{folder} {commit}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.operator is not None:
        print(_verify_one(arguments.operator))
        return 0
    failed = False
    for folder in sorted(path.parent for path in SHELF.glob("*/config.json")):
        try:
            print(_verify_one(str(folder)))
        except OperatorError as error:
            failed = True
            print(f"FAILED {error}", file=sys.stderr)
    return int(failed)


def _verify_one(name: str) -> str:
    if not Path(name).is_dir() and name.count("/") == 1:
        return _verify_cached(name)
    operator = hub.verify_operator(Path(name))
    records = read_records(Path(name))
    origin = f"{len(records)} files as on the Hub" if records else "not from the Hub"
    return f"ok {name} ({operator.metadata['task']}, {origin})"


def _verify_cached(repo_id: str) -> str:
    """Compare the Hub's cache with the Hub, file by file, and load the operator from there."""
    hub.require_online(f"compare {repo_id} with the Hub")
    with download_errors(repo_id, None):
        try:
            found = HfApi().verify_repo_checksums(repo_id)
        except ValueError as error:
            raise OperatorNotFound(
                f"{repo_id!r} is neither a folder here nor in the Hub's cache: pull it first"
            ) from error
    if found.mismatches:
        names = ", ".join(mismatch["path"] for mismatch in found.mismatches)
        raise OperatorFileError(
            f"{names} of {repo_id!r} in the Hub's cache is not what the Hub holds: run "
            f"`hf download {repo_id} --force-download`"
        )
    LatentOperator.from_pretrained(repo_id, revision=found.revision, local_files_only=True)
    return f"ok {repo_id}@{found.revision} ({found.checked_count} files as on the Hub)"


def _import_official(arguments: argparse.Namespace) -> int:
    for conversion in import_official(arguments.archive, arguments.out):
        print(conversion)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo operators", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)

    listing = actions.add_parser("list", help="on the shelf, in the cache, in a collection")
    listing.add_argument("--collection", metavar="SLUG", help="of the Hub, such as ORG/NAME-ID")
    listing.add_argument("--json", action="store_true", help="one JSON object an operator")
    listing.set_defaults(run=_list)

    push = actions.add_parser("push", help="publish an operator in one commit")
    push.add_argument("operator", metavar="FOLDER_OR_TASK")
    push.add_argument("--repo_id", required=True, metavar="ORG/NAME")
    push.add_argument("--prior", metavar="NAME", help="whose operator for the task of the shelf")
    push.add_argument("--license", metavar="ID", help="for the pushed card, such as cc-by-4.0")
    push.add_argument("--private", action="store_true", help="create the repository private")
    push.set_defaults(run=_push)

    pull = actions.add_parser("pull", help="download an operator to the shelf, and check it")
    pull.add_argument("repo_id", metavar="ORG/NAME")
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("--local_dir", type=Path, help="in place of operators/trained/NAME")
    pull.set_defaults(run=_pull)

    verify = actions.add_parser("verify", help="load strictly and compare with the Hub's checksums")
    verify.add_argument(
        "operator", nargs="?", metavar="FOLDER|ORG/NAME", help="all of the shelf by default"
    )
    verify.set_defaults(run=_verify)

    official = actions.add_parser("import-official", help="convert the paper authors' checkpoints")
    official.add_argument("archive", type=Path, metavar="trained_ckpt.zip")
    official.add_argument("--out", type=Path, default=Path("official_operators"))
    official.set_defaults(run=_import_official)
    return parser
