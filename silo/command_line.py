"""The parser of the commands' options, whose errors are one line."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """argparse's, without a page of usage before each error."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and a line that says what is wrong, and where all options are told."""
        self.exit(2, f"error: {message} ({self.prog} --help tells all options)\n")
