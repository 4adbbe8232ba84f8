"""The command line: `python -m silo COMMAND ...`; each command is a module with a `main(argv)`."""

import signal
import sys
from importlib import import_module

# Imported only when called for: `--help` should not wait for torch.
COMMANDS = {
    "restore": ("silo.commands.restore", "restore pictures, or degrade and restore clean ones"),
    "degrade": ("silo.commands.degrade", "degrade a clean picture"),
    "operators": ("silo.commands.operators", "list, publish, fetch, check and convert operators"),
    "sample": ("silo.commands.sample", "draw pictures from a prior alone"),
    "evaluate": ("silo.evaluate", "measure restorations over many pictures"),
    "bench": ("silo.bench", "time what a restoration is made of"),
    "train-operator": ("silo.train_operator", "train operators for tasks and a prior"),
    "train-prior": ("silo.train_prior", "train a small prior from random weights"),
    "train-scratches": ("silo.scratches.training", "train the network that finds scratches"),
    "deploy-space": ("silo.commands.deploy_space", "put the page on a Hugging Face Space"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 some of several failed, 2 an error.

    Ctrl-C ends with 130; training, which a signal stops at a safe point, with 143 for SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = (f"  {name:<16}{what}" for name, (_, what) in COMMANDS.items())
        print("usage: python -m silo COMMAND [--help] ...\n\n" + "\n".join(lines))
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"there is no command '{name}'; choose one of {', '.join(COMMANDS)}.")

    from operators.errors import OperatorError
    from silo.errors import SiloError, Stopped

    try:
        return import_module(COMMANDS[name][0]).main(rest)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (SiloError, OperatorError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("stopped; what was finished is kept.", file=sys.stderr)
        return 128 + signal.SIGINT


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
