"""A CLIP tokenizer for a small vocabulary, learned from the captions it will read."""

import json
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
VOCABULARY = 1024
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Learn byte-pair merges from `captions`; any other text still splits into bytes."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # Each distinct caption once, in a fixed order: the merges must not depend on the run.
    learner.train_from_iterator(sorted(set(captions)), trainer)
    merges: Any = [tuple(merge) for merge in _merges(learner)]
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    tokens += list(dict.fromkeys("".join(merge) for merge in merges)) + [START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (B, MAX_TOKENS), padded and truncated."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return torch.tensor(encoded["input_ids"])


def special_ids(tokenizer: CLIPTokenizer) -> tuple[int, int]:
    """The ids of the start and the end mark; the latter also pads."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary[START], vocabulary[END]


def _merges(learner: Tokenizer) -> list[list[str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
