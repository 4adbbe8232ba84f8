from pathlib import Path

import torch
from transformers import CLIPTokenizer

from silo.captions import MAX_TOKENS, build_tokenizer, token_ids

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
    assert ids[0, 0] == tokenizer.bos_token_id
    assert set(ids[0, 1:].tolist()) == {tokenizer.eos_token_id}
    assert ids[1, -1] == tokenizer.eos_token_id
    assert torch.equal(ids, token_ids(build_tokenizer(CAPTIONS[::-1]), ["", "photo " * 50]))
