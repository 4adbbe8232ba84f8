"""Finds the files of a prior by its name, checks them, and loads the components."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer
from transformers.utils import logging as transformers_logging

from silo import hub
from silo.components import USE_STABLE_DIFFUSION, Components, check_fit, class_of
from silo.errors import HubUnavailable, PriorFileError, UnknownPrior


@dataclass(frozen=True)
class HubPrior:
    """Where a named prior lives on the Hub, pinned to a commit."""

    repo_id: str
    revision: str


HUB_PRIORS = {
    "sd15": HubPrior(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    ),
    "rv51": HubPrior(
        "stablediffusionapi/realistic-vision-v51", "19e3643d7d963c156d01537188ec08f0b79a514a"
    ),
}
EMBEDDED_NAME = "tiny"
EMBEDDED_FOLDER = Path(__file__).with_name("embedded")

# The stem of each network's weights file, by its folder. Safety checker and the like are not read.
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def locate(name: str, revision: str | None, dtype: torch.dtype) -> tuple[Path, str | None]:
    """The folder that a prior's name stands for, and its Hub commit, None where it has none.

    Args:
        name: "tiny", "sd15", "rv51", a folder or a Hub id; the Hub's may end in "@" and a revision.
        revision: the same revision as an argument.
        dtype: half precision takes the fp16 files where the repository has them, half the download.

    Raises:
        UnknownPrior: the name is none of these, or the Hub does not have it.
        HubUnavailable: the Hub cannot be reached and the local cache does not hold the prior.
    """
    if name == EMBEDDED_NAME or (name not in HUB_PRIORS and Path(name).is_dir()):
        if revision:
            raise UnknownPrior(f"prior {name!r} is a folder and has no revisions: leave it out.")
        return (EMBEDDED_FOLDER if name == EMBEDDED_NAME else Path(name)), None
    base, _, pinned = name.partition("@")
    if pinned and revision:
        raise UnknownPrior(f"prior {name!r} is asked for at revision {revision!r} too: name one.")
    source = HUB_PRIORS.get(base)
    if source is None:
        _check_hub_id(name, base)
        source = HubPrior(base, "main")
    return _download(source.repo_id, pinned or revision or source.revision, dtype)


def load_components(folder: Path, dtype: torch.dtype) -> Components:
    """Loads every part of a prior from a folder in diffusers' StableDiffusionPipeline layout.

    Only safetensors are read. Nothing is downloaded.

    Raises:
        PriorFileError: a part is missing, damaged, not finite, or not Stable Diffusion's.
    """
    missing = [
        part for part in (*WEIGHTS, "tokenizer", "scheduler") if not (folder / part).is_dir()
    ]
    if missing:
        raise PriorFileError(
            f"{folder} lacks {', '.join(missing)}: a prior is a folder in diffusers' layout, as by "
            "StableDiffusionPipeline.from_single_file(CHECKPOINT).save_pretrained(FOLDER)."
        )
    configs = {part: _read_json(folder / part / "config.json") for part in WEIGHTS}
    scheduler_config = _read_json(folder / "scheduler" / "scheduler_config.json")
    classes = {part: class_of(folder, part, _declared(config)) for part, config in configs.items()}
    check_fit(folder, configs, scheduler_config)
    networks = {part: _load_network(folder, part, classes[part], dtype) for part in WEIGHTS}
    tokenizer = _load_tokenizer(folder / "tokenizer")
    if len(tokenizer) > networks["text_encoder"].config.vocab_size:
        raise PriorFileError(
            f"{folder}: the tokenizer has more tokens than the text encoder: use one model's."
        )
    return Components(**networks, tokenizer=tokenizer, scheduler_config=scheduler_config)


def _check_hub_id(name: str, repo_id: str) -> None:
    known = ", ".join([EMBEDDED_NAME, *HUB_PRIORS])
    advice = (
        f"give one of {known}, a folder in diffusers' layout, or a Hub id owner/name[@revision]."
    )
    if Path(name).exists():
        raise UnknownPrior(f"prior {name!r} is a file: {advice}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UnknownPrior(f"no prior {name!r}: {advice}") from error
    if "/" not in repo_id:
        raise UnknownPrior(f"no prior {name!r}: {advice}")


def _download(repo_id: str, revision: str, dtype: torch.dtype) -> tuple[Path, str]:
    """The snapshot of the files a prior needs, in the preferred precision if there, and commit."""
    found = None
    for variant in _variants(dtype):
        try:
            found = hub.snapshot(repo_id, revision, _patterns(variant))
        except HubUnavailable:
            if hub.reachable():
                raise
            continue  # the cache may hold the other precision
        except GatedRepoError as error:
            raise UnknownPrior(
                f"{repo_id} asks for consent: give it on its page, then run `hf auth login`."
            ) from error
        except RepositoryNotFoundError as error:
            raise UnknownPrior(
                f"the Hub has no model {repo_id}: check the id; if private, run `hf auth login`."
            ) from error
        except RevisionNotFoundError as error:
            raise UnknownPrior(
                f"{repo_id} has no revision {revision!r}: give a branch, a tag or a commit."
            ) from error
        folder, revision = found  # the same commit for the other precision
        if all(_variant(folder, part, dtype) is not None for part in WEIGHTS):
            return found
    if found is None or not hub.reachable():
        raise hub.unavailable(repo_id, revision)
    return found  # `load_components` says what the repository lacks


def is_whole(folder: Path) -> bool:
    """Whether a folder of the Hub's cache holds the weights of every network, in any precision."""
    return all(_variant(folder, part, torch.float32) is not None for part in WEIGHTS)


def needed_files(listed: Iterable[str], dtype: torch.dtype) -> list[str]:
    """Which of the files that a repository lists `locate` downloads.

    Raises:
        PriorFileError: not all networks have safetensors weights there.
    """
    names = sorted(listed)
    for variant in _variants(dtype):
        needed = [n for n in names if any(fnmatch(n, pattern) for pattern in _patterns(variant))]
        if all(f"{part}/{stem}{variant}.safetensors" in needed for part, stem in WEIGHTS.items()):
            return needed
    raise PriorFileError(f"its repository lacks safetensors weights: {USE_STABLE_DIFFUSION}")


def weights_files(folder: Path, dtype: torch.dtype) -> list[Path]:
    """The files that `load_components` reads the networks from."""
    variants = {part: _variant(folder, part, dtype) for part in WEIGHTS}
    return [folder / p / f"{WEIGHTS[p]}{variant}.safetensors" for p, variant in variants.items()]


def _patterns(variant: str) -> list[str]:
    """The files of a repository that a prior needs, in one precision, as shell patterns."""
    patterns = ["scheduler/scheduler_config.json", "tokenizer/*.json", "tokenizer/*.txt"]
    for part, stem in WEIGHTS.items():
        patterns += [f"{part}/config.json", f"{part}/{stem}{variant}.safetensors"]
    return patterns


def _variants(dtype: torch.dtype) -> tuple[str, str]:
    """The endings of weights files, the preferred first."""
    return ("", ".fp16") if dtype == torch.float32 else (".fp16", "")


def _variant(folder: Path, part: str, dtype: torch.dtype) -> str | None:
    """The ending of the weights file to load, or None where there is none."""
    for variant in _variants(dtype):
        if (folder / part / f"{WEIGHTS[part]}{variant}.safetensors").is_file():
            return variant
    return None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PriorFileError(
            f"{file} is missing or no JSON: fetch or save the prior again."
        ) from error
    if not isinstance(content, dict):
        raise PriorFileError(f"{file} holds no settings: fetch or save the prior again.")
    return content


def _declared(config: dict[str, Any]) -> str | None:
    """A part's class, `_class_name` in diffusers' configs and `architectures` in transformers'."""
    return config.get("_class_name") or (config.get("architectures") or [None])[0]


def _load_network(folder: Path, part: str, network: Any, dtype: torch.dtype) -> Any:
    """One network from safetensors, strictly: every weight is there, in shape and finite."""
    variant = _variant(folder, part, dtype)
    if variant is None:
        pickles = sorted(f.name for f in (folder / part).iterdir() if f.suffix in PICKLES)
        found = f" only {pickles[0]}, a pickle, which is never loaded" if pickles else " none"
        raise PriorFileError(
            f"{folder / part} holds no safetensors weights,{found}: save the model again with "
            "diffusers' save_pretrained(FOLDER, safe_serialization=True)."
        )
    weights = folder / part / f"{WEIGHTS[part]}{variant}.safetensors"
    try:
        with safe_open(weights, framework="pt"):
            pass  # opening checks the header against the file's length
        with _quiet():
            module, report = network.from_pretrained(
                folder / part,
                variant=variant.removeprefix(".") or None,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise PriorFileError(
            f"{weights} is damaged or not for its config.json ({cause}): fetch it again."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise PriorFileError(
            f"{weights} lacks {len(missing)} weights, among them {missing[0]}: fetch it again."
        )
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise PriorFileError(
                f"{weights} is not finite in {name}, as {dtype}: use float32, or another file."
            )
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the libraries' bars and warnings while they load: what matters is raised."""
    level, bars = diffusers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer; checked first, for without files transformers makes one of three tokens."""
    slow = ("vocab.json", "merges.txt")
    if not (folder / "tokenizer.json").is_file() and not all((folder / f).is_file() for f in slow):
        raise PriorFileError(
            f"{folder} lacks tokenizer.json, or {' and '.join(slow)}: fetch the prior again."
        )
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PriorFileError(f"{folder} holds no CLIP tokenizer: fetch the prior again.") from error
