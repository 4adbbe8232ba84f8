"""Fixtures that the tests share: a diffusers pipeline folder of random weights, and its prior."""

import string
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from silo.prior import LatentPrior

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
def tiny_prior(tiny_prior_folder: Path) -> LatentPrior:
    """The prior of `tiny_prior_folder`, fresh for each test, float32 on the CPU."""
    return LatentPrior.load(tiny_prior_folder)


def _tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters: each letter of a prompt is a token."""
    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    words += [f"{letter}</w>" for letter in string.ascii_lowercase]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
