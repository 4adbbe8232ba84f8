"""The tasks: what damages a picture, what that is called, how strongly to guide, and with what."""

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from operators.degradation import Degradation
from operators.download_record import read_records
from operators.errors import OperatorError, OperatorNotFound
from operators.latent import architectures, is_task_name, read_config
from operators.pretrained import shorten

SHELF = Path(__file__).parent / "trained"

# Every model in Stable Diffusion 1.x's format shares its latent space, and with it the operators
# that read the latent alone; such operators name this prior.
SD_LATENT_CHANNELS, SD_PRIOR = 4, "sd15"


@dataclass(frozen=True)
class Task:
    """One kind of damage.

    Attributes:
        name: the task's name, on the command line and on the Hub.
        title: what somebody with a damaged photo would call it.
        degradation: A and the noise level of the paper.
        eta: the paper's consistency scale at its 1,000 steps; an operator may know a better one.
    """

    name: str
    title: str
    degradation: Degradation
    eta: float


FREE_FORM = "inpainting_free"  # holes of any form: somebody has to mark them, or look for them
_SMALL, _TINY = ({"factor": factor} for factor in (4, 8))
_TASKS = (
    Task("gaussian_blur", "My photo is blurry", Degradation("gaussian_blur"), 0.5),
    Task("super_resolution_x4", "My photo is small", Degradation("super_resolution", _SMALL), 0.5),
    Task("super_resolution_x8", "My photo is tiny", Degradation("super_resolution", _TINY), 0.5),
    Task("inpainting_box", "The middle of my photo is lost", Degradation("inpainting_box"), 1.0),
    Task(FREE_FORM, "My photo has a hole or scratches", Degradation("inpainting_free"), 1.0),
    Task("jpeg_q10", "My photo has JPEG blocks", Degradation("jpeg", {"quality": 10}), 0.5),
    Task("denoising", "My photo is noisy", Degradation("denoising", noise_sigma=0.05), 0.5),
    Task("motion_blur", "My photo has camera shake", Degradation("motion_blur"), 0.5),
    Task("inpainting_random", "Most pixels are lost", Degradation("inpainting_random"), 1.0),
    Task("destriping", "My photo has stripes", Degradation("destriping"), 1.0),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        OperatorError: there is none; the message lists those there are.
    """
    if name not in TASKS:
        raise OperatorError(
            f"There is no task '{name}'; choose one of {', '.join(TASKS)}, or describe your own "
            "with --degradation."
        )
    return TASKS[name]


def own_task(name: str, degradation: Degradation) -> Task:
    """A task of one's own, with the paper's consistency scale for such a degradation.

    Raises:
        OperatorError: no task may be called so, or the catalog has one of that name.
    """
    if not is_task_name(name):
        raise OperatorError(
            f"{shorten(name)} is no name for a task: use up to 100 letters, digits, _ and -, of "
            "which the first is a letter or digit."
        )
    if name in TASKS:
        raise OperatorError(f"{name} is a task of the catalog: give your degradation another name.")
    return Task(name, name, degradation, 1.0 if degradation.needs_mask else 0.5)


@dataclass(frozen=True)
class ShelfEntry:
    """A trained operator that ships with the repository or was downloaded beside those."""

    folder: Path
    task: str
    prior: str
    architecture: str


def shelf(folder: Path = SHELF) -> list[ShelfEntry]:
    """The operators in `folder`, from their config.json alone; what is none is logged and left out.

    One wrong folder must not cost the others: `python -m silo operators verify` names it, too.
    """
    entries = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            config = read_config(path.parent)
        except OperatorError as error:
            _warn_once(f"Left out of the operators on the shelf: {error}.")
            continue
        task, prior = config.metadata.get("task"), config.metadata.get("prior")
        if task is None or prior is None:
            _warn_once(
                f"Left out of the operators on the shelf: {str(path)!r} does not say its task and "
                "prior; train it again, or remove it."
            )
            continue
        entries.append(ShelfEntry(path.parent, task, prior, config.architecture))
    return entries


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, on stderr by default; once, since the shelf is looked at again and again."""
    logging.getLogger(__name__).warning(message)


def published_prior_name(prior: str) -> str:
    """What operators call the prior that is loaded by the name `prior`.

    The same, but for a folder its own name: its path is nobody else's business. What `train-prior`
    writes, OUT/pipeline, is called OUT.
    """
    folder = Path(os.path.abspath(prior))
    if not folder.is_dir():
        return prior
    if folder.name == "pipeline" and folder.parent.name:
        return folder.parent.name
    return folder.name


def fits(prior: str, latent_channels: int | None, made_for: str | None, architecture: str) -> bool:
    """Whether an operator that names the prior `made_for` works in the latent space of `prior`.

    Args:
        prior: the name that the prior is loaded by.
        latent_channels: of its latents; None where they are not known.
        made_for: the prior in the operator's metadata.
        architecture: the operator's.
    """
    reads_latent_alone = not architectures()[architecture].needs_features
    shared = latent_channels == SD_LATENT_CHANNELS and reads_latent_alone
    known_as = published_prior_name(prior)
    return made_for in ({known_as, SD_PRIOR} if shared else {known_as})


def _rank(entry: ShelfEntry, prior: str) -> tuple[bool, bool, bool]:
    """The lower, the rather `entry` is taken for a prior of that name."""
    came_with_repository = not read_records(entry.folder)
    needs_features = architectures()[entry.architecture].needs_features
    return entry.prior != prior, came_with_repository, needs_features


def find_operator(
    task: str,
    prior: str,
    latent_channels: int,
    folder: Path = SHELF,
    architecture: str | None = None,
) -> Path:
    """The operator on the shelf for `task` in the latent space of `prior`, of any architecture.

    A prior in a folder is known by the folder's name alone, as `published_prior_name` says.

    Of several, one for this very prior goes before a shared one, one that the user downloaded
    before one that came with the repository, and one that reads the latent alone, which every
    sampler can use, before one that reads features.

    Raises:
        OperatorNotFound: there is none; the message says how to get one.
    """
    fitting, known_as = [], published_prior_name(prior)
    for entry in shelf(folder):
        if architecture not in (None, entry.architecture):
            continue
        if entry.task == task and fits(prior, latent_channels, entry.prior, entry.architecture):
            fitting.append(entry)
    if fitting:
        return min(fitting, key=lambda each: _rank(each, known_as)).folder
    kind = "" if architecture is None else f" {architecture}"
    raise OperatorNotFound(
        f"No trained{kind} operator for {task} on the prior '{prior}' is on the shelf; "
        f"name one with --operator, or train it: python -m silo train-operator --task {task} ..."
    )
