"""Describes a photo with Qwen2-VL, for use as a prompt, as the paper does (arXiv 2501.11746)."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL.Image import Image
from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from silo import hub
from silo.errors import CannotCaption, HubUnavailable
from silo.memory import is_out_of_memory

MODEL_VARIABLE = "SILO_CAPTION_MODEL"
QUESTION = "Describe this photo in one short sentence: what it shows, and the style."
MAX_TOKENS = 40  # a CLIP text encoder reads 77
LARGEST_SIDE = 448  # px; 256 visual tokens
LOW_MEMORY = 2 * 2**30  # bytes; with less left, restoring comes first
_FILES = ["*.json", "*.safetensors", "merges.txt"]
_DIALOGUE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class CaptionModel:
    """Where a Qwen2-VL lives on the Hub.

    Attributes:
        repo_id: "owner/name".
        revision: branch, tag or commit hash.
        size: bytes of its weights, in bfloat16.
    """

    repo_id: str
    revision: str
    size: int


MODELS = {
    "2b": CaptionModel(
        "Qwen/Qwen2-VL-2B-Instruct", "895c3a49bc3fa70a340399125c650a463535e71c", 4_420_000_000
    ),
    "7b": CaptionModel(
        "Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac", 16_600_000_000
    ),
}


class Captioner:
    """Qwen2-VL, loaded on first use.

    Attributes:
        name: "2b", "7b", a folder, or a Hub id, perhaps with @REVISION.
        device: where it runs.
    """

    def __init__(self, name: str | None = None, device: torch.device | str = "cpu") -> None:
        """Use the model `name`, by default what SILO_CAPTION_MODEL names, or else "2b"."""
        self.name = name or os.environ.get(MODEL_VARIABLE, "2b")
        self.device = torch.device(device)
        self._loaded: tuple[Qwen2VLForConditionalGeneration, _Processor] | None = None
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether it occupies memory."""
        return self._loaded is not None

    def describe(self, photo: Image) -> str:
        """Describe an RGB photo in a sentence of at most `MAX_TOKENS` tokens.

        Raises:
            CannotCaption: the model is not here and cannot be fetched, or does not fit.
        """
        with self._lock:
            try:
                if self._loaded is None:
                    self._loaded = self._load()
                caption = _generate(*self._loaded, photo)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._loaded = None
                raise CannotCaption(
                    f"{self.device} ran out of memory while describing: write the prompt yourself."
                ) from error
        self.release_under_pressure()
        return caption

    def release_under_pressure(self) -> None:
        """Unload the model where less than `LOW_MEMORY` is left beside it.

        One that is describing a photo does so itself when it is done: nobody waits for that.
        """
        if not self.is_loaded or free_memory(self.device) >= LOW_MEMORY:
            return
        if self._lock.acquire(blocking=False):
            self._loaded = None
            self._lock.release()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def fetch(self) -> Path:
        """Return the folder with the model's files, downloaded first where they are not here.

        Raises:
            CannotCaption: they cannot be, or the model would not fit.
        """
        # On ZeroGPU there is no GPU to look at yet: `describe` is what it is lent for.
        if self.device.type != "cuda" or torch.cuda.is_initialized():
            self._check_download()
        return _find(self.name, self._known)

    def _load(self) -> tuple[Qwen2VLForConditionalGeneration, _Processor]:
        self._check_download()
        folder = _find(self.name, self._known)
        self._check_memory(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
        try:
            model = Qwen2VLForConditionalGeneration.from_pretrained(
                folder, dtype=torch.bfloat16, use_safetensors=True, local_files_only=True
            )
            tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
            pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
            processor = _Processor(image_processor=pictures, tokenizer=tokenizer)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            raise CannotCaption(
                f"{folder.name} is damaged or no Qwen2-VL: fetch it again, or set {MODEL_VARIABLE}."
            ) from error
        return model.to(self.device).eval(), processor  # pyright: ignore[reportArgumentType]

    @property
    def _known(self) -> CaptionModel | None:
        return MODELS.get(self.name.lower())

    def _check_download(self) -> None:
        """Refuse to download what would not fit."""
        if self._known is not None:
            self._check_memory(self._known.size)

    def _check_memory(self, size: int) -> None:
        free = free_memory(self.device)
        if size + LOW_MEMORY > free:
            raise CannotCaption(
                f"Describing needs {(size + LOW_MEMORY) / 2**30:.1f} GB of memory and "
                f"{free / 2**30:.1f} are free: write the prompt yourself."
            )


class _Processor(Qwen2VLProcessor):
    """Pictures and text alone: transformers' own also wants videos, and torchvision for them."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free where `device` keeps its tensors."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _find(name: str, known: CaptionModel | None) -> Path:
    """Return the folder with the model's files, fetched first where they are not here."""
    if known is None and Path(name).is_dir():
        return Path(name)
    repo_id, _, revision = name.partition("@")
    if known is not None:
        repo_id, revision = known.repo_id, known.revision
    try:
        return hub.snapshot(repo_id, revision or "main", _FILES)[0]
    except HubUnavailable as error:
        raise CannotCaption(str(error)) from error
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CannotCaption(
            f"The Hub has no model {name!r}: set {MODEL_VARIABLE} to 2b, 7b, a folder or a Hub id."
        ) from error


@torch.inference_mode()
def _generate(model: Qwen2VLForConditionalGeneration, processor: _Processor, photo: Image) -> str:
    photo = photo.convert("RGB")
    photo.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    # transformers annotates neither for these classes.
    read: Any = processor
    generator: Any = model
    inputs = read(
        text=[_DIALOGUE.format(question=QUESTION)], images=[photo], return_tensors="pt"
    ).to(model.device)
    tokens = generator.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    written = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(written, skip_special_tokens=True)[0].strip()
