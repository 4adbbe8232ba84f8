"""Named errors of the package `operators`, each one line that says what to do next."""


class OperatorError(ValueError):
    """A degradation or an operator was asked for the impossible; base of the errors below."""


class OperatorNotFound(OperatorError):
    """No trained operator lives at the given folder or Hub repository."""


class OperatorFileError(OperatorError):
    """The files of a trained operator are damaged, unsafe, or do not fit each other."""


def reason(error: BaseException) -> str:
    """The first line of an error of another library, or its name when it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
