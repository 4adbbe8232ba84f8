"""The command line: python -m silo COMMAND."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from operators.errors import OperatorError
from silo.errors import SiloError

# Commands whose module parses the rest of the line itself, in main(argv) -> exit code. Like the
# handlers of the others, they are imported when asked for only: torch takes seconds to load.
MODULES = {
    "evaluate": ("silo.evaluate", "measure restorations of many clean pictures"),
    "train-operator": ("silo.train_operator", "train the latent operators of tasks"),
    "train-prior": ("silo.train_prior", "train a small prior"),
}
INTERRUPTED = 130  # what shells report of a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words after the program's name; by default this process's.

    Returns:
        The exit code: 0 all is well; 1 some of several pictures failed; 2 an error, told in one
        line on stderr.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words and words[0] in MODULES:
            return import_module(MODULES[words[0]][0]).main(words[1:])
        arguments = _parser().parse_args(words)
        return import_module(arguments.handler).run(arguments)
    except (SiloError, OperatorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m silo",
        description="Restore pictures with a latent diffusion prior and learned latent operators.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_restore(commands.add_parser("restore", help="restore pictures"))
    _add_degrade(commands.add_parser("degrade", help="degrade a clean picture"))
    operators = commands.add_parser("operators", help="the trained operators that are here")
    actions = operators.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="tasks, and the priors they have an operator for")
    listing.set_defaults(handler="silo.cli_operators")
    for name, (_, purpose) in MODULES.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


def _add_restore(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS leaves out what was not given: RestorationRequest knows the defaults.
    unset = argparse.SUPPRESS
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="a picture, or a folder of pictures")
    add("--task", required=True, help="what degraded it; `operators list` names the tasks")
    add("--out", type=Path, help="the PNG of one picture, a folder for several")
    add("--simulate", action="store_true", help="INPUT is clean: degrade it first, and measure")
    add("--prior", default="tiny", help="tiny, sd15, rv51, a folder or a Hub id (tiny)")
    add("--operator", help="a folder or a Hub id; by default the one that is here")
    add("--sampler", default=unset, help="the sampling method (silo)")
    add("--preset", default=unset, help="quick, balanced or paper (balanced)")
    add("--steps", type=int, default=unset, help="denoising steps, instead of the preset's")
    add("--eta", type=float, default=unset, help="consistency scale, instead of the task's")
    add("--noise-sigma", type=float, default=unset, help="std of the noise, where white is 1")
    add("--mask", type=Path, help="a picture as large as INPUT; white is to be filled in")
    add("--prompt", default=unset, help="what the picture shows")
    add("--guidance-scale", type=float, default=unset, help="of the prompt; 1 is none (1)")
    add("--samples", type=int, default=unset, help="how many restorations of each picture (1)")
    add("--seed", type=int, default=unset, help="of all random numbers (0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)")
    add("--json", action="store_true", help="print one JSON object a picture")
    parser.set_defaults(handler="silo.cli_restore")


def _add_degrade(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT", help="a clean picture")
    add("--task", required=True, help="how to degrade it; `operators list` names the tasks")
    add("--out", type=Path, required=True, help="the PNG to write")
    add("--noise-sigma", type=float, help="std of the noise, where white is 1; else the task's")
    add("--mask", type=Path, help="a picture as large as INPUT; white is lost; else one is drawn")
    add("--seed", type=int, default=0, help="of the noise and of a drawn mask (0)")
    parser.set_defaults(handler="silo.cli_degrade")


if __name__ == "__main__":
    sys.exit(main())
