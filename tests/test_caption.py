from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from silo import caption, hub
from silo.caption import MAX_TOKENS, MODELS, Captioner
from silo.errors import CannotCaption
from silo.ui.describing import describer
from tests.page_fields import Page

MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL of random weights whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("qwen")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(letters + MARKS)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    size = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    wild = {"initializer_range": 0.5}  # else the picture does not sway what is said
    ends = {"bos_token_id": None, "eos_token_id": vocabulary["<|im_end|>"]}
    config = Qwen2VLConfig(
        text_config={
            **{**size, **ends, **wild, "num_hidden_layers": 1, "intermediate_size": 48},
            "vocab_size": len(vocabulary),
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10_000.0,
            },
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, **wild},
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "free_memory", lambda _: 64 * 2**30)


def test_a_photo_is_described_by_what_it_shows(folder: Path, monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    captioner = Captioner(str(folder))
    assert not captioner.is_loaded
    noise = Image.effect_noise((90, 60), 100).convert("RGB")
    said = captioner.describe(noise)
    assert 0 < len(said) <= MAX_TOKENS  # a token is a byte here
    assert captioner.is_loaded
    assert captioner.describe(noise) == said
    assert captioner.describe(Image.new("RGB", (90, 60), "red")) != said
    assert noise.size == (90, 60)


def test_it_is_unloaded_when_memory_is_short_and_loaded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    plenty(monkeypatch)
    captioner = Captioner(str(folder))
    photo = Image.new("RGB", (56, 56), "blue")
    said = captioner.describe(photo)
    captioner.release_under_pressure()
    assert captioner.is_loaded
    monkeypatch.setattr(caption, "free_memory", lambda _: caption.LOW_MEMORY - 1)
    captioner.release_under_pressure()
    assert not captioner.is_loaded
    plenty(monkeypatch)
    assert captioner.describe(photo) == said


def test_a_model_that_does_not_fit_is_not_fetched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("nothing may be downloaded"))
    monkeypatch.setattr(caption, "free_memory", lambda _: MODELS["7b"].size)
    with pytest.raises(CannotCaption, match=r"needs 17\.5 GB of memory and 15\.5 are free"):
        Captioner("7b").describe(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("words", ["CUDA out of memory.", "DefaultCPUAllocator: can't allocate"])
@pytest.mark.parametrize("place", ["to", "generate"])
def test_where_memory_runs_out_it_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str
):
    plenty(monkeypatch)

    def run_out(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    captioner = Captioner(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(Qwen2VLForConditionalGeneration, place, run_out)
        with pytest.raises(CannotCaption, match="ran out of memory"):
            captioner.describe(Image.new("RGB", (56, 56)))
    assert not captioner.is_loaded
    assert captioner.describe(Image.new("RGB", (56, 56)))


def test_nobody_waits_for_a_description_to_free_its_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    plenty(monkeypatch)
    captioner = Captioner(str(folder))
    captioner.describe(Image.new("RGB", (56, 56)))
    monkeypatch.setattr(caption, "free_memory", lambda _: 0)

    def describing(*_: object) -> str:
        captioner.release_under_pressure()  # as a restoration does; it would wait for ever
        assert captioner.is_loaded
        return "a red square"

    monkeypatch.setattr(caption, "_generate", describing)
    assert captioner.describe(Image.new("RGB", (56, 56))) == "a red square"
    assert not captioner.is_loaded


def test_the_gpu_is_asked_for_when_the_model_is_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plenty(monkeypatch)
    snapshots, on_gpu = [], []

    def snapshot(repo_id: str, *_: object) -> tuple[Path, str]:
        snapshots.append((repo_id, bool(on_gpu)))
        return folder, "c0ffee"

    def lent(duration: int):
        def wrap(function):
            def run(*arguments: object) -> str:
                assert snapshots, "the time on the GPU began before the download"
                on_gpu.append(duration)
                return function(*arguments)

            return run

        return wrap

    monkeypatch.setattr(hub, "snapshot", snapshot)
    monkeypatch.setattr("silo.ui.describing.spaces.GPU", lent)
    captioner = Captioner("lab/qwen")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 60), "red").save(photo)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    page = Page()
    describe = describer(page.settings, lambda: captioner)
    said = describe({page.settings.photo: str(photo)})
    assert said == captioner.describe(Image.new("RGB", (90, 60), "red"))
    assert (snapshots[0], len(on_gpu)) == (("lab/qwen", False), 1)
    photo.unlink()
    with pytest.raises(gr.Error, match="choose it again"):
        describe({page.settings.photo: str(photo)})


def test_a_gpu_that_is_not_lent_yet_is_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "snapshot", lambda *_: (Path("here"), "c0ffee"))
    monkeypatch.setattr(caption, "free_memory", lambda _: pytest.fail("there is no GPU"))
    assert Captioner("7b", device="cuda").fetch() == Path("here")


def test_without_network_the_reason_is_told(monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(CannotCaption, match="nobody/qwen.*not in the local cache") as caught:
        Captioner("nobody/qwen").describe(Image.new("RGB", (8, 8)))
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_no_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    with pytest.raises(CannotCaption, match="no Qwen2-VL"):
        Captioner(str(tmp_path)).describe(Image.new("RGB", (8, 8)))


def test_the_environment_names_the_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(caption.MODEL_VARIABLE, raising=False)
    assert Captioner().name == "2b"
    monkeypatch.setenv(caption.MODEL_VARIABLE, "7b")
    assert Captioner().name == "7b"
    assert all(len(model.revision) == 40 for model in MODELS.values())
