"""The priors and operators that the page offers: listed, fetched, checked, kept while in use."""

import functools
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import CacheNotFound, HfApi, ModelCard, constants, scan_cache_dir
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

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
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.function import FUNCTION
from operators.latent import LatentOperator, architectures, read_config
from operators.pretrained import CONFIG_NAME, MAX_CONFIG_BYTES, WEIGHTS_NAME
from silo import hub
from silo.errors import BadRequest
from silo.hub_commit import retried
from silo.operator_listing import ListedOperator, in_cache, in_collection, on_shelf
from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_FOLDER, EMBEDDED_NAME, HUB_PRIORS, is_whole
from silo.request import RestorationRequest
from silo.restorer import Restorer
from silo.ui.saved_settings import Weights

AUTOMATIC = ""  # the shelf's operator for the task
MAX_OPERATOR_BYTES = 500_000_000
MAX_ADDED_BYTES = 5_000_000_000  # of all in the Hub's cache, lest visitors fill the disk
LONGEST_LICENCE = 40  # characters: a card may say anything, and every visitor would read it
COLLECTION_SECONDS = 600  # for which a collection is taken to stay as it is
MAX_KEPT = 3  # operators of visitors' choice that stay in memory
# What is said of a prior that is not here yet: its name, bytes as float32, and licence.
_HUB_NOTES = {
    "sd15": ("Stable Diffusion 1.5", 4_270_000_000, "creativeml-openrail-m"),
    "rv51": ("Realistic Vision 5.1", 4_270_000_000, "creativeml-openrail-m"),
}
_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
_LINK = re.compile(r"/([^/]+/[^/]+)(?:/(?:tree|blob|commit)/([^/]+).*)?/?")

Choice = tuple[str, str]


@dataclass(frozen=True)
class Added:
    """An operator of the Hub: its name with the commit, what it is for, and what it reads."""

    name: str
    task: str
    reads_features: bool


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
        self._fetching = 0  # bytes
        self._counting = threading.Lock()

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

    def add(self, text: str) -> Added:
        """Fetch and check the operator at a Hub id, ID@REVISION or pasted link.

        Its config.json is fetched first, so that nothing large is that is no operator.

        Raises:
            OperatorError: it is no such text, no operator, too large, damaged, or does not say
                its task and, of a task of its own, the degradation; or there are too many here.
            HubUnavailable: the Hub is out of reach, or failed again and again.
        """
        repo_id, revision = parse_link(text)
        with _hub_errors(repo_id, revision):
            commit, size = _looked_up(repo_id, revision)
            # Visitors must not come by what is open to this machine's token alone.
            folder, commit = hub.snapshot(repo_id, commit, [CONFIG_NAME], token=False)
            config = read_config(folder)
            task, described = config.metadata.get("task"), config.metadata.get("degradation")
            if task is None or (task not in TASKS and described is None):
                raise OperatorFileError(
                    f"{repo_id} does not say which task it is for: ask its author."
                )
            if task not in TASKS and described is not None:
                Degradation.from_dict(described)
            with self._room_for(repo_id, commit, size):
                hub.snapshot(repo_id, commit, [*hub.OPERATOR_FILES], token=False)
                LatentOperator.from_pretrained(folder)
        reads_features = architectures()[config.architecture].needs_features
        return Added(f"{repo_id}@{commit}", task, reads_features)

    @contextmanager
    def _room_for(self, repo_id: str, commit: str, size: int) -> Iterator[None]:
        """Reserve room for `size` bytes of an operator; it is deleted if the block refuses it.

        One that is here already needs no room, and stays.

        Raises:
            OperatorError: those here and those being fetched leave too little.
        """
        with self._counting:
            here = {(each.name, each.commit): each.size for each in in_cache()}
            if (repo_id, commit) in here:
                size = 0
            if size and sum(here.values()) + self._fetching + size > MAX_ADDED_BYTES:
                raise OperatorError(
                    f"{repo_id} has {_size(size)}, and the operators here take up nearly all of "
                    f"the {_size(MAX_ADDED_BYTES)} that this page keeps for them: choose one "
                    "of those, or use the command line."
                )
            self._fetching += size
        try:
            yield
        except OperatorError:
            if size:
                scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(commit).execute()
            raise
        finally:
            with self._counting:
                self._fetching -= size

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
                place = f"{_size(here[name])} here" if name in here else f"{_size(size)} download"
                choices.append((f"{title} ({place}, {licence})", name))
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


def parse_link(text: str) -> tuple[str, str]:
    """Return the repository and revision that a Hub id, ID@REVISION or link names.

    Raises:
        OperatorNotFound: it names none; folders of this machine are not for visitors.
    """
    wanted = text.strip()
    if "://" in wanted or wanted.startswith(_HOSTS):
        own = urlsplit(constants.ENDPOINT).netloc
        try:
            url = urlsplit(wanted if "://" in wanted else f"https://{wanted}")
            match = _LINK.fullmatch(url.path) if url.netloc in (*_HOSTS, own) else None
        except ValueError:  # brackets that hold no address
            match = None
        if match is None:
            raise OperatorNotFound("This is no link to a model on the Hub: paste its address.")
        repo_id, revision = match[1], match[2] or "main"
    else:
        repo_id, _, revision = wanted.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise OperatorNotFound("This is no Hub id: write it as owner/name.") from error
    if repo_id.count("/") != 1:
        raise OperatorNotFound("This is no Hub id: write it as owner/name.")
    return repo_id, revision or "main"


@contextmanager
def _hub_errors(repo_id: str, revision: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into those of `Models.add`."""
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise OperatorNotFound(
            f"The Hub has no open model {repo_id} at {revision}: check the id on its page."
        ) from error
    # Behind a failing server, a proxy answers with a page where JSON is expected.
    except (httpx2.HTTPError, json.JSONDecodeError) as error:
        raise hub.unavailable(repo_id, revision) from error


def _looked_up(repo_id: str, revision: str) -> tuple[str, int]:
    """Refuse a large download before it begins; return the commit that was looked at, and its size.

    Without network the cache decides: the revision is returned as it is, and 0 bytes to fetch.
    """
    if not hub.reachable():
        return revision, 0
    describe = HfApi(token=False).model_info
    info = retried(lambda: describe(repo_id, revision=revision, files_metadata=True))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if WEIGHTS_NAME not in sizes or CONFIG_NAME not in sizes:
        raise OperatorFileError(
            f"{repo_id} is no latent operator: it lacks {CONFIG_NAME} or {WEIGHTS_NAME}."
        )
    if sizes[CONFIG_NAME] > MAX_CONFIG_BYTES:
        raise OperatorFileError(
            f"{repo_id} is no latent operator: its {CONFIG_NAME} is larger than 1 MiB."
        )
    size = sum(sizes.get(name, 0) for name in hub.OPERATOR_FILES)
    if size > MAX_OPERATOR_BYTES:
        raise OperatorError(
            f"{repo_id} has {_size(size)}, and this page takes operators of at most "
            f"{_size(MAX_OPERATOR_BYTES)}: use the command line."
        )
    return str(info.sha), size


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
    return f"Small and embedded ({_size(size)} here, {licence})"


def _label(operator: ListedOperator, place: str) -> str:
    licence = operator.license or ""
    if not licence.isprintable() or not 0 < len(licence) <= LONGEST_LICENCE:
        licence = "licence unknown"
    return f"{operator.name}: {operator.task} ({_size(operator.size)} {place}, {licence})"


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.1f} MB"
