"""The priors and operators that the page offers: listed, loaded, kept while in use."""

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CacheNotFound, ModelCard, constants, scan_cache_dir

from operators.catalog import (
    SD_LATENT_CHANNELS,
    SD_PRIOR,
    SHELF,
    TASKS,
    ShelfEntry,
    Task,
    fits,
    shelf,
)
from operators.degradation import Degradation
from operators.errors import OperatorError
from operators.function import FUNCTION
from operators.latent import architectures
from silo import hub
from silo.errors import BadRequest
from silo.operator_listing import ListedOperator, in_cache, in_collection, on_shelf
from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_FOLDER, EMBEDDED_NAME, HUB_PRIORS, is_whole
from silo.request import RestorationRequest
from silo.restorer import Restorer
from silo.ui.adding import Added
from silo.ui.saved_settings import Weights
from silo.ui.wording import size_in_words

AUTOMATIC = ""  # the shelf's operator for the task
LONGEST_LICENCE = 40  # characters: a card may say anything, and every visitor would read it
COLLECTION_SECONDS = 600  # for which a collection is taken to stay as it is
MAX_KEPT = 3  # operators of visitors' choice that stay in memory
# What is said of a prior that is not here yet: its name, bytes as float32, and licence.
_HUB_NOTES = {
    "sd15": ("Stable Diffusion 1.5", 4_270_000_000, "creativeml-openrail-m"),
    "rv51": ("Realistic Vision 5.1", 4_270_000_000, "creativeml-openrail-m"),
}

Choice = tuple[str, str]


class Models:
    """Loads priors and operators when they are first used; the last ones stay in memory.

    Of the priors that is the last beside the default. While one is being loaded, the others work.

    Attributes:
        default: the usual prior's name.
        collection: of operators on the Hub, by its slug, such as "owner/title-id"; None for none.
    """

    def __init__(
        self,
        load: Callable[[str], LatentPrior],
        default: str = EMBEDDED_NAME,
        collection: str | None = None,
    ) -> None:
        """Use `load` to load a prior by its name."""
        self._load, self.default, self.collection = load, default, collection
        self._usual: dict[str, Future[Restorer]] = {}  # by the prior's name
        self._chosen: dict[tuple[str, str], Restorer] = {}  # with operators; the last used is last
        self._lock = threading.Lock()

    def restorer(self, prior: str | None = None, operator: str | None = None) -> Restorer:
        """Return a restorer with a prior and an operator by name, by default the usual ones.

        Raises:
            SiloError: the prior cannot be loaded.
        """
        name = prior or self.default
        usual = self._with_usual_operators(name)
        if not operator:
            return usual
        with self._lock:
            kept = self._chosen.pop((name, operator), None)
            restorer = Restorer(usual.prior, operator=_place(operator)) if kept is None else kept
            self._chosen[name, operator] = restorer
            for longest_unused in list(self._chosen)[:-MAX_KEPT]:
                del self._chosen[longest_unused]
        return restorer

    def _with_usual_operators(self, name: str) -> Restorer:
        """Return the restorer of a prior, once it is loaded, by this thread or by another."""
        with self._lock:
            future = self._usual.get(name)
            if future is not None and future.done():
                return future.result()
            is_ours = future is None
            if future is None:
                future = self._usual[name] = Future()
        if not is_ours:
            return future.result()
        try:
            future.set_result(Restorer(self._load(name)))
        except BaseException as error:
            with self._lock:
                del self._usual[name]
            future.set_exception(error)
            raise
        with self._lock:
            done = {each for each, one in self._usual.items() if one.done()}
            for unused in done - {name, self.default}:
                del self._usual[unused]
            for pair in [each for each in self._chosen if each[0] not in self._usual]:
                del self._chosen[pair]
        return future.result()

    def same_prior(self, made_with: Weights) -> str | None:
        """Return the choice that is the prior of a result; None where it is not on this machine.

        Raises:
            SiloError: it is, and cannot be loaded.
        """
        if made_with.name not in (EMBEDDED_NAME, self.default, *_cached_priors()):
            return None
        prior = self.restorer(made_with.name).prior
        return made_with.name if Weights(prior.name, prior.revision) == made_with else None

    def same_operator(
        self, made_with: Weights, prior: str, request: RestorationRequest
    ) -> str | None:
        """Return the choice that is the operator of a result; None where it is not here.

        Raises:
            SiloError: the prior cannot be loaded.
        """
        names = {name for _, name in self.operators()}
        pinned = f"{made_with.name.partition('@')[0]}@{made_with.revision}"
        if pinned in names:
            return pinned
        if not self.has_usual(request.task, prior):
            names.discard(AUTOMATIC)
        for choice in (AUTOMATIC, made_with.name):
            if choice in names:
                used = self.restorer(prior, choice).parameters(request)["operator"]
                if Weights(**used) == made_with:
                    return choice
        return None

    def added(self, name: str) -> Added | None:
        """Return what an operator of `operators` is for; None for that of the task, and others."""
        for entry, listed in _listed():
            if listed == name and entry.task is not None:
                return Added(name, entry.task, architectures()[entry.architecture].needs_features)
        return None

    def tasks(self, prior: str | None = None) -> set[str]:
        """Return the tasks that there is an operator for in a prior's latent space."""
        fitting = (each for each in (*shelf(), *in_cache()) if self._fits(each, prior))
        return {each.task for each in fitting if each.task is not None}

    def has_usual(self, task: str, prior: str | None = None) -> bool:
        """Return whether a task needs no operator to be chosen: the shelf has one."""
        return any(each.task == task and self._fits(each, prior) for each in shelf())

    def task(self, name: str, prior: str | None, operator: str | None) -> Task:
        """Return the catalog's task, or else that of the operator that was trained for it.

        Raises:
            SiloError, OperatorError: it is neither.
        """
        if name in TASKS:
            return TASKS[name]
        self.check(name, prior, operator)
        return self.restorer(prior, operator).task(name)

    def check(self, task: str, prior: str | None, operator: str | None) -> None:
        """Raise BadRequest where no operator is chosen and the shelf has none for the task."""
        if not operator and not self.has_usual(task, prior):
            raise BadRequest(
                f"The usual operators lack one for {task.replace('_', ' ')} with this image model: "
                "choose or add its operator under Advanced, or choose another task."
            )

    def _fits(self, operator: ShelfEntry | ListedOperator, prior: str | None) -> bool:
        """Tell whether an operator works with a prior, without loading this."""
        name = prior or self.default
        channels = SD_LATENT_CHANNELS if name in HUB_PRIORS else None
        loaded = self._usual.get(name)
        if loaded is not None and loaded.done():
            name, channels = (
                loaded.result().prior.name,
                loaded.result().prior.latent_channels,
            )
        return fits(name, channels, operator.prior, operator.architecture)

    def operators(self, prior: str | None = None, task: str | None = None) -> list[Choice]:
        """Return the operators as labels with size and licence, and names.

        Args:
            prior: list only those for this prior's latent space; None for all.
            task: list only those for this task; None for all.
        """
        return [("The one for the task", AUTOMATIC)] + [
            (_label(entry, "here"), name)
            for entry, name in _listed()
            if entry.task is not None
            and task in (None, entry.task)
            and (prior is None or self._fits(entry, prior))
        ]

    def offered(self) -> list[Choice]:
        """Return the collection's operators that are not here, as labels and ID@COMMIT.

        Raises:
            OperatorNotFound: there is no such collection, or the Hub failed.
        """
        if self.collection is None or not hub.reachable():
            return []
        here = {(entry.name, entry.commit) for entry in (*on_shelf(), *in_cache())}
        period = int(time.monotonic() // COLLECTION_SECONDS)
        return [
            (_label(entry, "download"), f"{entry.name}@{entry.commit}")
            for entry in _in_collection(self.collection, period)
            if entry.task is not None and (entry.name, entry.commit) not in here
        ]

    def priors(self) -> list[Choice]:
        """Return the priors that an operator is here for, as labels and names."""
        here = _cached_priors()
        for_priors = {entry.prior for entry in (*on_shelf(), *in_cache())}
        choices = [(_embedded_label(), EMBEDDED_NAME)]
        for name, (title, size, licence) in _HUB_NOTES.items():
            if name in for_priors or SD_PRIOR in for_priors:
                bytes_of_it, place = (here[name], "here") if name in here else (size, "download")
                label = f"{title} ({size_in_words(bytes_of_it)} {place}, {licence})"
                choices.append((label, name))
        if self.default not in (name for _, name in choices):
            choices.insert(0, (self.default, self.default))
        return choices


def own_degradation(task: Task) -> Degradation | None:
    """Return what a request says of the degradation: nothing where the catalog has the task."""
    return None if task.name in TASKS else task.degradation


def check_simulated(task: Task) -> None:
    """Raise BadRequest where the page cannot degrade a photo itself: it runs nobody's code."""
    if task.degradation.kind == FUNCTION:
        raise BadRequest(
            "This damage is its author's code, which the page does not run: choose that the photo "
            "is already damaged."
        )


def _cached_priors() -> dict[str, int]:
    """Return the named priors that are whole in the Hub's cache, and their bytes."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return {}
    sizes = {
        (repository.repo_id, revision.commit_hash): revision.size_on_disk
        for repository in repositories
        for revision in repository.revisions
        if is_whole(revision.snapshot_path)
    }
    pinned = {name: (each.repo_id, each.revision) for name, each in HUB_PRIORS.items()}
    return {name: sizes[commit] for name, commit in pinned.items() if commit in sizes}


def _listed() -> Iterator[tuple[ListedOperator, str]]:
    """The operators of the shelf and of the Hub's cache, with the names they are chosen by."""
    for entry in on_shelf():
        yield entry, f"{SHELF.name}/{entry.name}"
    for entry in in_cache():
        yield entry, f"{entry.name}@{entry.commit}"


@functools.lru_cache(maxsize=1)
def _in_collection(slug: str, _period: int) -> list[ListedOperator]:
    """The operators of a collection, read once in each period of `COLLECTION_SECONDS`."""

    def report(error: OperatorError) -> None:
        print(f"Left out of the collection {slug}: {error}.", file=sys.stderr)

    return list(in_collection(slug, report))


def _place(name: str) -> str | Path:
    """Return what a chosen operator's name stands for: a folder on the shelf, or a Hub id."""
    return name if "@" in name else SHELF.parent / name


def _embedded_label() -> str:
    size = sum(file.stat().st_size for file in EMBEDDED_FOLDER.rglob("*.safetensors"))
    licence = ModelCard.load(EMBEDDED_FOLDER / "README.md").data.to_dict()["license"]
    return f"Small and embedded ({size_in_words(size)} here, {licence})"


def _label(operator: ListedOperator, place: str) -> str:
    licence = operator.license or ""
    if not licence.isprintable() or not 0 < len(licence) <= LONGEST_LICENCE:
        licence = "licence unknown"
    return f"{operator.name}: {operator.task} ({size_in_words(operator.size)} {place}, {licence})"
