"""`python -m silo operators`: what operators there are."""

import argparse
import json
from dataclasses import asdict

from operators.catalog import shelf


def main(argv: list[str]) -> int:
    """List the operators on the shelf; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m silo operators", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the trained operators on the shelf")
    listing.add_argument("--json", action="store_true", help="one JSON object an operator")
    arguments = parser.parse_args(argv)
    for entry in shelf():
        if arguments.json:
            print(json.dumps({**asdict(entry), "folder": entry.folder.name}))
        else:
            print(f"{entry.task:<22}{entry.prior:<10}{entry.architecture:<14}{entry.folder.name}")
    return 0
