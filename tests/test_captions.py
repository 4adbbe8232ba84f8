from pathlib import Path

import torch
from transformers import CLIPTokenizer

from silo.training.captions import MAX_TOKENS, build_tokenizer, special_ids, token_ids

CAPTIONS = ["a photo of a dandelion", "a portrait photo of a man", "a photo of a T-shirt"] * 5


def test_known_words_are_single_tokens_and_any_text_survives(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CAPTIONS)
    assert tokenizer.tokenize("A photo of a Dandelion") == [
        word + "</w>" for word in "a photo of a dandelion".split()
    ]
    unknown = "zebras & café"
    ids = tokenizer(unknown)["input_ids"]
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == unknown
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded(unknown)["input_ids"] == ids
    assert loaded.model_max_length == MAX_TOKENS


def test_ids_are_padded_truncated_and_independent_of_the_order_of_captions() -> None:
    tokenizer = build_tokenizer(CAPTIONS)
    ids = token_ids(tokenizer, ["", "photo " * 50])
    assert ids.shape == (2, MAX_TOKENS)
    start, end = special_ids(tokenizer)
    assert ids[0].tolist() == [start] + [end] * (MAX_TOKENS - 1)
    assert ids[1, -1] == end
    assert torch.equal(ids, token_ids(build_tokenizer(CAPTIONS[::-1]), ["", "photo " * 50]))
