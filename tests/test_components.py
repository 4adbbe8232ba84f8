import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from torch import nn

from operators.convolutional import CompactCNN
from silo import components
from silo.errors import BadRequest, PriorFileError
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer


@pytest.fixture
def pipeline(tiny_prior_folder):
    return StableDiffusionPipeline.from_pretrained(tiny_prior_folder)


def test_a_pipeline_predicts_as_its_folder_does(pipeline, tiny_prior, tiny_prior_folder):
    prior = LatentPrior.from_pipe(pipeline)
    assert (prior.name, prior.revision) == (str(tiny_prior_folder), None)
    assert prior.feature_channels == tiny_prior.feature_channels
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = [
        each.predict(latents, 500, each.embed("a photo", guidance_scale=2.0)).output
        for each in (prior, tiny_prior)
    ]
    assert torch.equal(*outputs)
    assert torch.equal(prior.decode(latents), tiny_prior.decode(latents))


def test_what_is_loaded_into_a_pipeline_counts(pipeline, tiny_prior):
    with torch.no_grad():
        pipeline.unet.conv_out.bias += 1.0
    prior = LatentPrior.from_pipe(pipeline, name="with a LoRA")
    assert prior.name == "with a LoRA"
    latents = torch.zeros(1, 4, 16, 16)
    request = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 128, 128), sampler="ldps")
    prints = [Restorer(each).weights(request)["prior"] for each in (prior, tiny_prior)]
    assert None not in prints and prints[0] != prints[1]
    changed, plain = (each.predict(latents, 500, each.embed("")) for each in (prior, tiny_prior))
    torch.testing.assert_close(changed.output, plain.output + 1)


def test_the_channels_of_features_are_known_where_layers_are_wrapped(pipeline, tiny_prior):
    class Wrapped(nn.Module):  # as peft does for LoRAs: it has no `out_channels`
        def __init__(self, layer: nn.Conv2d) -> None:
            super().__init__()
            self.layer = layer

        @property
        def weight(self) -> torch.Tensor:
            return self.layer.weight

        def forward(self, seen: torch.Tensor) -> torch.Tensor:
            return self.layer(seen)

    block = pipeline.unet.up_blocks[0].resnets[0]
    block.conv2 = Wrapped(block.conv2)
    assert LatentPrior.from_pipe(pipeline).feature_channels == tiny_prior.feature_channels


def test_a_restoration_with_a_pipeline_of_another_model_of_the_family(pipeline, tmp_path):
    CompactCNN(4, width=8, blocks=1, groups=4).save_pretrained(tmp_path)
    restorer = Restorer(LatentPrior.from_pipe(pipeline, name="mine"), operator=tmp_path)
    request = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 128, 128), steps=2)
    result = restorer.run(request)
    assert result.parameters["prior"] == {"name": "mine", "revision": None}
    assert result.nfe == 2
    # The pipeline goes on drawing.
    drawn = pipeline("a", height=128, width=128, num_inference_steps=1, output_type="pt").images
    assert drawn.shape == (1, 3, 128, 128)


def test_what_is_offloaded_is_refused(pipeline):
    pipeline.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(BadRequest, match="make the pipeline without"):
        LatentPrior.from_pipe(pipeline)


def test_what_accelerate_moves_is_refused(pipeline):
    add_hook_to_module(pipeline.unet.mid_block, ModelHook())
    with pytest.raises(BadRequest, match="hooks change its unet"):
        LatentPrior.from_pipe(pipeline)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own use
def test_of_a_compiled_network_what_it_was_is_taken(pipeline):
    plain, pipeline.unet = pipeline.unet, torch.compile(pipeline.unet)
    assert components.of_pipeline(pipeline, "x").unet is plain


def test_other_pipelines_are_refused(pipeline):
    pipeline.unet.register_to_config(in_channels=9)  # as of one that inpaints
    parts = {**pipeline.components, "safety_checker": None, "requires_safety_checker": False}
    inpainting = StableDiffusionInpaintPipeline(**parts)
    with pytest.raises(PriorFileError, match="the denoiser's channels are not the autoencoder's 4"):
        LatentPrior.from_pipe(inpainting)
    pipeline.unet.register_to_config(in_channels=4, encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(PriorFileError, match="wants more than a text"):
        LatentPrior.from_pipe(pipeline)
    pipeline.unet = torch.nn.Identity()
    with pytest.raises(PriorFileError, match="unet is Identity, not UNet2DConditionModel"):
        LatentPrior.from_pipe(pipeline)
    pipeline.tokenizer = None
    with pytest.raises(PriorFileError, match="lacks tokenizer"):
        LatentPrior.from_pipe(pipeline)
