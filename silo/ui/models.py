"""The priors and operators that the page offers: listed, fetched, checked, kept while in use."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CacheNotFound, HfApi, ModelCard, constants, scan_cache_dir
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from operators.catalog import SD_PRIOR, SHELF, TASKS, shelf
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.latent import LatentOperator, architectures
from operators.pretrained import CONFIG_NAME, WEIGHTS_NAME
from silo import hub
from silo.operator_listing import ListedOperator, in_cache, on_shelf
from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_FOLDER, EMBEDDED_NAME, HUB_PRIORS
from silo.request import RestorationRequest
from silo.restorer import Restorer
from silo.ui.saved_settings import Weights

AUTOMATIC = ""  # the shelf's operator for the task
MAX_OPERATOR_BYTES = 500_000_000
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
    """An operator that a visitor named: its commit on the Hub, and what it is for."""

    name: str
    task: str


class Models:
    """Loads priors and operators when they are first used; the last prior beside the default.

    Attributes:
        default: the usual prior's name.
    """

    def __init__(self, load: Callable[[str], LatentPrior], default: str = EMBEDDED_NAME) -> None:
        """Use `load` to load a prior by its name."""
        self._load, self.default = load, default
        self._restorers: dict[str, dict[str, Restorer]] = {}
        self._added: dict[str, Added] = {}
        self._lock = threading.Lock()

    def restorer(self, prior: str | None = None, operator: str | None = None) -> Restorer:
        """Return a restorer with a prior and an operator by name, by default the usual ones.

        Raises:
            SiloError: the prior cannot be loaded.
        """
        name = prior or self.default
        with self._lock:
            if name not in self._restorers:
                loaded = Restorer(self._load(name))
                kept = self._restorers.get(self.default)
                self._restorers = {} if kept is None else {self.default: kept}
                self._restorers[name] = {AUTOMATIC: loaded}
            restorers = self._restorers[name]
            chosen = operator or AUTOMATIC
            if chosen not in restorers:
                restorers[chosen] = Restorer(restorers[AUTOMATIC].prior, operator=_place(chosen))
            return restorers[chosen]

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
            SiloError, OperatorError: there is no operator for the request at all.
        """
        names = {name for _, name in self.operators()}
        pinned = f"{made_with.name.partition('@')[0]}@{made_with.revision}"
        if pinned in names:
            return pinned
        for choice in (AUTOMATIC, made_with.name):
            if choice in names:
                used = self.restorer(prior, choice).parameters(request)["operator"]
                if Weights(**used) == made_with:
                    return choice
        return None

    def add(self, text: str) -> Added:
        """Fetch and check the operator at a Hub id, ID@REVISION or pasted link.

        Raises:
            OperatorError: it is no such text, no operator, too large, damaged or of no known task.
            HubUnavailable: the Hub is out of reach.
        """
        repo_id, revision = parse_link(text)
        _check_size(repo_id, revision)
        folder, commit = hub.snapshot(repo_id, revision, [CONFIG_NAME, WEIGHTS_NAME])
        task = LatentOperator.from_pretrained(folder).metadata.get("task")
        if not isinstance(task, str) or task not in TASKS:
            raise OperatorFileError(f"{repo_id} does not say which task it is for: ask its author.")
        name = f"{repo_id}@{commit}"
        self._added[name] = Added(name, task)
        return self._added[name]

    def tasks(self) -> set[str]:
        """Return the tasks that there is an operator for."""
        return {entry.task for entry in shelf()} | {added.task for added in self._added.values()}

    def operators(self, prior: str | None = None, task: str | None = None) -> list[Choice]:
        """Return the operators as labels with size and licence, and names.

        Args:
            prior: list only those for this prior's latent space; None for all.
            task: list only those for this task; None for all.
        """
        shelved = [(entry, f"{SHELF.name}/{entry.name}") for entry in on_shelf()]
        cached = [(entry, f"{entry.name}@{entry.commit}") for entry in in_cache()]
        return [("The one for the task", AUTOMATIC)] + [
            (_label(entry), name)
            for entry, name in (*shelved, *cached)
            if entry.task in TASKS and task in (None, entry.task) and _fits(entry, prior)
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


def parse_link(text: str) -> tuple[str, str]:
    """Return the repository and revision that a Hub id, ID@REVISION or link names.

    Raises:
        OperatorNotFound: it names none; folders of this machine are not for visitors.
    """
    wanted = text.strip()
    if "://" in wanted or wanted.startswith(_HOSTS):
        url = urlsplit(wanted if "://" in wanted else f"https://{wanted}")
        match = _LINK.fullmatch(url.path)
        own = urlsplit(constants.ENDPOINT).netloc
        if url.netloc not in (*_HOSTS, own) or match is None:
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


def _check_size(repo_id: str, revision: str) -> None:
    """Refuse a large download before it begins; without network the cache decides."""
    if not hub.reachable():
        return
    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    except HfHubHTTPError as error:
        raise OperatorNotFound(
            f"The Hub has no open model {repo_id} at {revision}: check the id on its page."
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if WEIGHTS_NAME not in sizes or CONFIG_NAME not in sizes:
        raise OperatorFileError(
            f"{repo_id} is no latent operator: it lacks {CONFIG_NAME} or {WEIGHTS_NAME}."
        )
    if sizes[WEIGHTS_NAME] > MAX_OPERATOR_BYTES:
        raise OperatorError(
            f"{repo_id} has {_size(sizes[WEIGHTS_NAME])}, and this page takes operators of at most "
            f"{_size(MAX_OPERATOR_BYTES)}: use the command line."
        )


def _cached_priors() -> dict[str, int]:
    """Return the named priors in the Hub's cache, and their bytes."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return {}
    sizes = {repository.repo_id: repository.size_on_disk for repository in repositories}
    return {name: sizes[p.repo_id] for name, p in HUB_PRIORS.items() if p.repo_id in sizes}


def _place(name: str) -> str | Path:
    """Return what a chosen operator's name stands for: a folder on the shelf, or a Hub id."""
    return name if "@" in name else SHELF.parent / name


def _fits(operator: ListedOperator, prior: str | None) -> bool:
    """Tell whether an operator is for a prior by name; of None, it is."""
    reads_latent_alone = not architectures()[operator.architecture].needs_features
    shared = operator.prior == SD_PRIOR and prior != EMBEDDED_NAME and reads_latent_alone
    return shared or prior in (None, operator.prior)


def _embedded_label() -> str:
    size = sum(file.stat().st_size for file in EMBEDDED_FOLDER.rglob("*.safetensors"))
    licence = ModelCard.load(EMBEDDED_FOLDER / "README.md").data.to_dict()["license"]
    return f"Small and embedded ({_size(size)} here, {licence})"


def _label(operator: ListedOperator) -> str:
    licence = operator.license or "licence unknown"
    return f"{operator.name}: {operator.task} ({_size(operator.size)} here, {licence})"


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.1f} MB"
