"""The named errors of `silo`: each message is one line and says what to do next."""


class SiloError(Exception):
    """Base of every error a user can act on."""


class BadImage(SiloError):
    """A picture that cannot be read."""


class CannotSave(SiloError):
    """A result that cannot be written where it was asked for."""


class NumericalError(SiloError):
    """Values that are not finite numbers, where a picture was expected."""


class BadMask(SiloError):
    """A mask that is missing, unreadable or of another size than its picture."""


class BadRequest(SiloError):
    """A setting that is out of range or does not fit the others."""


class Unrestorable(SiloError):
    """A photo whose damage is not found, or cannot be undone by what is at hand."""


class UnknownPrior(SiloError):
    """A prior that is neither a known name, nor a folder, nor a Hub id."""


class PriorFileError(SiloError):
    """A prior whose files are missing, damaged or not in diffusers' Stable Diffusion format."""


class OutOfMemory(SiloError):
    """A restoration that does not fit the device's memory."""


class HubUnavailable(SiloError):
    """The Hub cannot be reached and the local cache does not hold what is needed."""


class PushRefused(SiloError):
    """A push that the Hub does not accept, or that must not leave this machine."""


class CannotCaption(SiloError):
    """A photo that cannot be described here: no model, no memory, or no network to fetch it."""


class BadDegradation(SiloError):
    """A degradation of one's own that cannot be loaded, or is not what an operator can imitate."""


class BadCheckpoint(SiloError):
    """Checkpoints that belong to another run than the one asked for."""


class Stopped(SiloError):
    """Work that a signal ended at a safe point; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Keep what the shell should be told."""
        super().__init__(message)
        self.exit_code = 128 + signal_number
