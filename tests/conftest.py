"""Fixtures that the tests share: a prior of random weights, pictures, a Hub, the app."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads would wait for threads
    os.environ["OMP_NUM_THREADS"] = "1"  # ahead of torch, which reads it when it is loaded

# isort: split

import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from silo.hub import reachable_during
from silo.prior import LatentPrior
from silo.prior_files import load_components
from tests.hub_server import Hub
from tests.served_app import App, served_app

# A thread of tqdm's looks after all bars of a process, and warns where one comes as it looks.
tqdm.monitor_interval = 0
TOKENS = 16  # the longest prompt, its two end marks included


@pytest.fixture(scope="session")
def tiny_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v-predicting Stable Diffusion of random weights: latents 4 x 16 x 16, pictures of 128."""
    folder = tmp_path_factory.mktemp("prior")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderTiny(  # pyright: ignore[reportArgumentType]
                encoder_block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                num_encoder_blocks=(1, 1, 1, 1),
                num_decoder_blocks=(1, 1, 1, 1),
                scaling_factor=0.5,
            ),
            unet=UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(16, 16, 32),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                norm_num_groups=8,
                attention_head_dim=8,
                cross_attention_dim=24,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=64,
                    hidden_size=24,
                    intermediate_size=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=TOKENS,
                    bos_token_id=0,
                    eos_token_id=1,
                )
            ),
            tokenizer=_tokenizer(),
            scheduler=DDIMScheduler(  # pyright: ignore[reportArgumentType]
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                prediction_type="v_prediction",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def variational_prior(tiny_prior_folder: Path) -> LatentPrior:
    """The same with an AutoencoderKL of random weights in place of its autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae: Any = AutoencoderKL.from_config(
            {
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "block_out_channels": [8, 8, 8, 8],
                "norm_num_groups": 4,
                "scaling_factor": 0.18215,
            }
        )
    components = load_components(tiny_prior_folder, torch.float32)
    return LatentPrior(replace(components, vae=vae), name="x")


@pytest.fixture
def tiny_prior(tiny_prior_folder: Path) -> LatentPrior:
    """The prior of `tiny_prior_folder`, fresh for each test, float32 on the CPU."""
    return LatentPrior.load(tiny_prior_folder)


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process and those it starts take for the real one; "ada" is logged in."""
    cache, constants = tmp_path / "hf_home" / "hub", huggingface_hub.constants
    monkeypatch.setattr("silo.hub.PROBE_SECONDS", 60)  # which only a Hub that is not there takes
    with Hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cache.parent),
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN": "hf_writer",
            "HF_HUB_DISABLE_XET": "1",  # which the server does not speak
            "NO_PROXY": "127.0.0.1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        # huggingface_hub read the environment when it was imported.
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(cache.parent / "assets"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        reachable_during.cache_clear()
        yield hub
        huggingface_hub.close_session()
        reachable_during.cache_clear()


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of smooth colours, 80 x 64, one or more of them held out of training."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(60):
        pixels = generator.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 64)).save(folder / f"p{index}.png")
    return folder


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app, served with the embedded prior and without the Hub."""
    with served_app(tmp_path_factory.mktemp("app")) as app:
        yield app


def _tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters: each letter of a prompt is a token."""
    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    words += [f"{letter}</w>" for letter in string.ascii_lowercase]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
