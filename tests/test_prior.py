import json
import re
import shutil
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from silo import hub, prior_files, windows
from silo.errors import HubUnavailable, NumericalError, PriorFileError, UnknownPrior
from silo.features import decoder_resnets, feature_channels
from silo.prior import (
    LatentPrior,
    alphas_cumprod,
    load_or_embedded,
)
from silo.prior_files import HUB_PRIORS, load_components


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latents():
    return noise(2, 4, 16, 16)


@pytest.fixture
def damaged(tiny_prior_folder, tmp_path):
    """A copy of the prior's folder, to be damaged."""
    return shutil.copytree(tiny_prior_folder, tmp_path / "prior")


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    return calls


def break_in_half_precision(module):
    def nan(module, args, output):
        return output * torch.nan if output.dtype != torch.float32 else output

    module.register_forward_hook(nan)


# What it says about itself


def test_sizes_and_channels(tiny_prior):
    assert (tiny_prior.latent_channels, tiny_prior.scale_factor) == (4, 8)
    assert (tiny_prior.native_size, tiny_prior.size_multiple) == (128, 32)
    assert tiny_prior.feature_channels == [32, 32, 16, 16, 16, 16]
    assert tiny_prior.embedding_dim == 64
    assert (tiny_prior.prediction_type, tiny_prior.revision) == ("v_prediction", None)
    assert (tiny_prior.dtype, tiny_prior.device.type) == (torch.float32, "cpu")


def test_features_of_stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # the defaults are SD 1.x's
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert feature_channels(unet) == [1280] * 6 + [640] * 3 + [320] * 3


def test_the_networks_are_frozen_and_in_evaluation_mode(tiny_prior_folder):
    components = load_components(tiny_prior_folder, torch.float32)
    components.unet.train()
    LatentPrior(components, name="x")
    for network in (components.unet, components.vae, components.text_encoder):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler"])
def test_schedule_of_stable_diffusion(scheduler):
    config = {
        "_class_name": scheduler,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
    }
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table = alphas_cumprod(config)
    assert table.dtype == torch.float64
    torch.testing.assert_close(table, (1 - betas).cumprod(0), rtol=1e-5, atol=0)


def test_other_schedules():
    linear = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(alphas_cumprod(linear), (1 - betas).cumprod(0), rtol=1e-5, atol=0)
    cosine = alphas_cumprod({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100})
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    expected = ((t + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    expected = expected / torch.tensor(0.008 / 1.008 * torch.pi / 2).cos() ** 2
    torch.testing.assert_close(cosine[:-1], expected[:-1], rtol=1e-4, atol=0)
    with pytest.raises(PriorFileError, match="no noise schedule"):
        alphas_cumprod({"beta_schedule": "staircase"})


# The autoencoder


def test_encode_and_decode_scale_latents(tiny_prior, tiny_prior_folder):
    vae = AutoencoderTiny.from_pretrained(tiny_prior_folder / "vae", use_safetensors=True)
    assert isinstance(vae, AutoencoderTiny)
    images, z = noise(2, 3, 64, 96).clamp(-1, 1), noise(2, 4, 8, 12)
    with torch.no_grad():
        expected_z, expected_images = vae.encoder(images) * 0.5, vae.decoder(z / 0.5)
    torch.testing.assert_close(tiny_prior.encode(images), expected_z)
    torch.testing.assert_close(tiny_prior.decode(z), expected_images.clamp(-1, 1))
    assert (tiny_prior.encodes, tiny_prior.decodes, tiny_prior.nfe) == (1, 1, 0)


def test_windows_of_a_large_picture_are_encoded_and_decoded_as_the_whole(tiny_prior):
    vae = tiny_prior._vae
    images = interpolate(noise(1, 3, 8, 12), scale_factor=64, mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        expected = vae.encoder(images) * 0.5
        expected_images = vae.decoder(expected / 0.5)
    calls = count_calls(vae.encoder), count_calls(vae.decoder)
    z = tiny_prior.encode(images)
    decoded = tiny_prior.decode(expected, clamp=False)
    assert [sum(each) for each in calls] == [6, 6]
    assert (z - expected).abs().mean() < 0.01 * expected.std()
    assert (decoded - expected_images).abs().mean() < 0.01 * expected_images.std()


def test_decode_clamps_and_both_ways_carry_gradients(tiny_prior):
    z = noise(1, 4, 4, 4).mul(10).requires_grad_()
    images = tiny_prior.decode(z)
    assert images.abs().max() <= 1
    tiny_prior.encode(images).sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_a_variational_autoencoder_gives_its_mode(variational_prior):
    vae: Any = variational_prior._vae
    images = noise(1, 3, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(images))
        torch.testing.assert_close(variational_prior.encode(images), moments[:, :4] * 0.18215)
    assert variational_prior.scale_factor == 8
    assert variational_prior.decode(variational_prior.encode(images)).shape == images.shape


def test_no_black_pictures_in_half_precision(tiny_prior_folder):
    prior = LatentPrior.load(tiny_prior_folder, dtype=torch.float16)
    sound = LatentPrior.load(tiny_prior_folder)
    z = noise(1, 4, 4, 4)
    break_in_half_precision(prior._vae.decoder)
    for _ in range(2):
        images = prior.decode(z)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, sound.decode(z), atol=0.05, rtol=0)
    assert prior._vae.dtype == torch.float32
    assert len(prior.notices) == 1 and "the decoder overflowed" in prior.notices[0]
    assert prior.decodes == 2


def test_encoder_denoiser_and_text_recover_too(tiny_prior_folder, latents):
    prior = LatentPrior.load(tiny_prior_folder, dtype=torch.float16)
    sound = LatentPrior.load(tiny_prior_folder)
    images = noise(1, 3, 32, 32).clamp(-1, 1)
    for part in (prior._vae.encoder, prior._unet.conv_out, prior._text_encoder.final_layer_norm):
        break_in_half_precision(part)
    torch.testing.assert_close(prior.encode(images), sound.encode(images), atol=0.05, rtol=0.05)
    prompt, sound_prompt = prior.embed("abc"), sound.embed("abc")
    torch.testing.assert_close(prompt.cond, sound_prompt.cond, atol=0.05, rtol=0.05)
    prediction = prior.predict(latents, 10, prompt, features=True)
    expected = sound.predict(latents, 10, sound_prompt, features=True)
    torch.testing.assert_close(prediction.output, expected.output, atol=0.05, rtol=0.05)
    assert prediction.features is not None and len(prediction.features) == 6
    assert len(prior.notices) == 3 and prior.nfe == 1


def test_an_encoder_that_overflows_leaves_the_gradient_of_an_earlier_decoding(tiny_prior_folder):
    def gradient(prior):
        z = noise(1, 4, 4, 4).requires_grad_()
        returned = prior.encode(prior.decode(z, clamp=False))
        return torch.autograd.grad(returned.square().sum(), z)[0]

    prior = LatentPrior.load(tiny_prior_folder, dtype=torch.float16)
    break_in_half_precision(prior._vae.encoder)
    expected = gradient(LatentPrior.load(tiny_prior_folder))
    for _ in range(2):
        found = gradient(prior)
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9
    assert "the encoder overflowed" in prior.notices[0]


def test_only_an_unclamped_decoding_has_a_gradient_beyond_the_range(tiny_prior):
    z = (20 * noise(1, 4, 4, 4)).requires_grad_()
    images = tiny_prior.decode(z, clamp=False)
    torch.testing.assert_close(tiny_prior.decode(z), images.clamp(-1, 1))
    beyond = images.detach().abs() > 1
    assert beyond.any()
    (gradient,) = torch.autograd.grad(images[beyond].sum(), z)
    assert gradient.abs().max() > 0


def test_latents_that_are_not_finite_are_refused_and_change_nothing(tiny_prior_folder):
    prior = LatentPrior.load(tiny_prior_folder, dtype=torch.float16)
    with pytest.raises(NumericalError, match="diverged"):
        prior.decode(torch.full((1, 4, 4, 4), torch.nan))
    assert prior._vae.dtype == torch.float16 and not prior.notices


# Text


def test_a_prompt_is_padded_to_the_encoders_length(tiny_prior):
    tokens = torch.tensor([[0, 2, 29] + [1] * 13])  # start, "a", "b" ending a word, end
    expected = tiny_prior._text_encoder(tokens).last_hidden_state
    embedding = tiny_prior.embed("ab", negative_prompt="c")
    torch.testing.assert_close(embedding.cond, expected)
    assert (embedding.uncond, embedding.guidance_scale, embedding.truncated) == (None, 1.0, False)


def test_a_prompt_that_is_cut_says_so(tiny_prior):
    letters = "abcdefghijklmnop"
    assert not tiny_prior.embed(letters[:14]).truncated
    cut = tiny_prior.embed(letters)
    assert cut.truncated
    torch.testing.assert_close(cut.cond, tiny_prior.embed(letters + "q").cond)
    assert tiny_prior.embed("a", letters, 4.0).truncated


# The denoiser


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_networks_output_is_returned_as_it_is(damaged, latents, prediction_type):
    edit_json(damaged / "scheduler" / "scheduler_config.json", prediction_type=prediction_type)
    prior = LatentPrior.load(damaged)
    prompt = prior.embed("abc")
    expected = prior._unet(latents, 321, encoder_hidden_states=prompt.cond.expand(2, -1, -1))
    assert prior.prediction_type == prediction_type
    calls = count_calls(prior._unet.conv_in)
    prediction = prior.predict(latents, 321, prompt)
    torch.testing.assert_close(prediction.output, expected.sample)
    assert prediction.features is None
    assert calls == [2] and prior.nfe == 1


def test_guidance_is_one_call_that_equals_two(tiny_prior, latents):
    positive = tiny_prior.predict(latents, 50, tiny_prior.embed("abc"), features=True)
    negative = tiny_prior.predict(latents, 50, tiny_prior.embed("xyz"))
    calls = count_calls(tiny_prior._unet.conv_in)
    guided = tiny_prior.predict(latents, 50, tiny_prior.embed("abc", "xyz", 3.5), features=True)
    assert calls == [4]
    expected = negative.output + 3.5 * (positive.output - negative.output)
    torch.testing.assert_close(guided.output, expected, atol=1e-5, rtol=1e-4)
    for feature, of_the_text in zip(guided.features, positive.features, strict=True):
        torch.testing.assert_close(feature, of_the_text, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guided.time_embedding, positive.time_embedding)


def test_features_are_what_the_residual_blocks_add(tiny_prior, latents):
    passed = []
    for resnet in decoder_resnets(tiny_prior._unet):
        resnet.register_forward_hook(lambda r, args, output: passed.append((r, args[0], output)))
    features = tiny_prior.predict(latents, 7, tiny_prior.embed("a"), features=True).features
    assert features is not None
    assert [f.shape[1] for f in features] == tiny_prior.feature_channels
    assert [f.shape[-1] for f in features] == [4, 4, 8, 8, 16, 16]
    for feature, (resnet, inputs, output) in zip(features, passed, strict=True):
        shortcut = resnet.conv_shortcut(inputs) if resnet.conv_shortcut else inputs
        torch.testing.assert_close(
            feature, output * resnet.output_scale_factor - shortcut, atol=1e-5, rtol=1e-4
        )


def test_the_latents_of_a_large_picture_are_denoised_in_windows(tiny_prior):
    latents, prompt = noise(2, 4, 64, 64), tiny_prior.embed("abc", "xyz", 3.0)
    seen = []
    tiny_prior._unet.conv_in.register_forward_hook(lambda c, args, _: seen.append(args[0].shape))
    predicted = tiny_prior.predict(latents, 50, prompt, features=True)
    assert seen == [(4, 4, 36, 36)] * 4 and tiny_prior.nfe == 1
    assert [f.shape[-1] for f in predicted.features] == [16, 16, 32, 32, 64, 64]
    corner = tiny_prior.predict(latents[..., :36, 28:], 50, prompt, features=True)
    tensors = [predicted.output, *predicted.features], [corner.output, *corner.features]
    for whole, window in zip(*tensors, strict=True):
        alone = whole.shape[-1] * 28 // 64  # that far no other window reaches
        torch.testing.assert_close(whole[..., :alone, -alone:], window[..., :alone, -alone:])
    torch.testing.assert_close(predicted.time_embedding, corner.time_embedding)


def test_gradients_of_many_windows_are_those_of_kept_ones(tiny_prior, monkeypatch):
    latents, prompt = noise(1, 4, 100, 64), tiny_prior.embed("abc", "xyz", 3.0)
    gradients = []
    for kept in (0, 100):
        monkeypatch.setattr(windows, "KEPT", kept)
        z = latents.clone().requires_grad_()
        predicted = tiny_prior.predict(z, 50, prompt, features=True)
        losses = [each.square().mean() for each in (predicted.output, *predicted.features)]
        gradients += torch.autograd.grad(losses, z)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().amax(dim=(1, 2, 3)) > 0


def test_hooks_are_gone_after_the_call_even_a_failed_one(tiny_prior, latents):
    prompt = tiny_prior.embed("a")
    tiny_prior.predict(latents, 7, prompt, features=True)
    with pytest.raises(RuntimeError):
        tiny_prior.predict(latents[:, :3], 7, prompt, features=True)
    resnets: list[Any] = decoder_resnets(tiny_prior._unet)
    assert not any(resnet.conv2._forward_hooks for resnet in resnets)


def test_gradients_reach_the_latents_through_output_and_features(tiny_prior, latents):
    latents.requires_grad_()
    prediction = tiny_prior.predict(latents, 7, tiny_prior.embed("a", "b", 2.0), features=True)
    for tensor in (prediction.output, *prediction.features):
        (gradient,) = torch.autograd.grad(tensor[1].square().sum(), latents, retain_graph=True)
        assert gradient[1].abs().sum() > 0
        assert not gradient[0].any()  # samples do not mix


def test_embeddings_of_time_and_noise(tiny_prior, latents):
    prediction = tiny_prior.predict(latents, 999, tiny_prior.embed("a"))
    assert prediction.time_embedding.shape == (2, 64)
    sigma = tiny_prior.sigma_embedding(torch.tensor([0.05, 0.0, 0.025]))
    torch.testing.assert_close(sigma[:1], prediction.time_embedding[:1])
    torch.testing.assert_close(sigma[1:], tiny_prior.time_embedding(torch.tensor([0.0, 499.5])))


def test_half_precision_exchanges_float32(tiny_prior_folder, latents):
    prior = LatentPrior.load(tiny_prior_folder, dtype=torch.bfloat16)
    prediction = prior.predict(latents, 7, prior.embed("a", "b", 2.0), features=True)
    assert prior.dtype == torch.bfloat16 and prediction.features is not None
    for tensor in (prediction.output, prediction.time_embedding, *prediction.features):
        assert tensor.dtype == torch.float32
    assert prior.encode(noise(1, 3, 32, 32)).dtype == torch.float32


def test_a_prior_moves_to_another_device_as_a_whole(tiny_prior_folder):
    prior = LatentPrior.load(tiny_prior_folder)
    assert prior.to(torch.device("meta")) is prior and prior.device.type == "meta"
    networks = prior._unet, prior._vae, prior._text_encoder
    assert {each.device.type for network in networks for each in network.parameters()} == {"meta"}


# Files


def remove(*parts):
    def damage(folder):
        path = folder.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def only_a_pickle(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def truncate(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def spoil_a_weight(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, file, {"format": "pt"})


def drop_a_weight(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, {"format": "pt"})


def change(part, **changes):
    return lambda folder: edit_json(folder / part / "config.json", **changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("unet"), "lacks unet"),
        (remove("unet", "diffusion_pytorch_model.safetensors"), "no safetensors weights"),
        (remove("tokenizer", "tokenizer.json"), "lacks tokenizer.json"),
        (remove("vae", "config.json"), "config.json is missing"),
        (only_a_pickle, "a pickle, which is never loaded"),
        (truncate, "is damaged"),
        (spoil_a_weight, "not finite in conv_in.weight"),
        (drop_a_weight, "lacks 1 weights, among them conv_in.weight"),
        (change("unet", block_out_channels=[16, 16, 16]), "not for its config.json"),
        (change("unet", _class_name="FluxTransformer2DModel"), "unet is FluxTransformer2DModel"),
        (change("text_encoder", architectures=["T5EncoderModel"]), "text_encoder is T5Enc"),
        (change("unet", in_channels=9), "channels"),
        (change("unet", addition_embed_type="text_time"), "wants more than a text"),
        (change("unet", cross_attention_dim=32), "does not read the text encoder's 24"),
        (change("unet", sample_size=None), "no sample_size"),
        (
            lambda folder: edit_json(
                folder / "scheduler" / "scheduler_config.json", prediction_type="sample"
            ),
            "predicts 'sample'",
        ),
        (lambda folder: (folder / "unet" / "config.json").write_text("{"), "no JSON"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(damaged, damage, message):
    damage(damaged)
    with pytest.raises(PriorFileError, match=message) as error:
        LatentPrior.load(damaged)
    assert "\n" not in str(error.value)


def test_half_precision_takes_the_fp16_files(damaged):
    for part, stem in prior_files.WEIGHTS.items():
        plain = damaged / part / f"{stem}.safetensors"
        half = {name: weight.half() for name, weight in load_file(plain).items()}
        save_file(half, damaged / part / f"{stem}.fp16.safetensors", {"format": "pt"})
        if part == "unet":
            plain.unlink()
        else:
            plain.write_bytes(b"not read")
    assert LatentPrior.load(damaged, dtype=torch.float16).dtype == torch.float16
    with pytest.raises(PriorFileError):
        LatentPrior.load(damaged)


# Names


@pytest.mark.parametrize("name", ["sd16", "no such/thing", "a/b/c", "/no/folder/here", "tiny@v1"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(UnknownPrior, match="tiny, sd15, rv51"):
        LatentPrior.load(name)


def test_a_file_is_no_prior_and_a_folder_has_no_revision(tiny_prior_folder):
    with pytest.raises(UnknownPrior, match="is a file"):
        LatentPrior.load(tiny_prior_folder / "model_index.json")
    with pytest.raises(UnknownPrior, match="no revisions"):
        LatentPrior.load(tiny_prior_folder, revision="main")
    with pytest.raises(UnknownPrior, match="name one"):
        LatentPrior.load("sd15@abc", revision="main")


@pytest.mark.parametrize(
    ("name", "revision", "asked"),
    [
        (
            "sd15",
            None,
            ("stable-diffusion-v1-5/stable-diffusion-v1-5", HUB_PRIORS["sd15"].revision),
        ),
        ("rv51@abc", None, ("stablediffusionapi/realistic-vision-v51", "abc")),
        ("owner/name", "v2", ("owner/name", "v2")),
    ],
)
def test_a_hub_prior_records_its_commit(monkeypatch, tiny_prior_folder, name, revision, asked):
    requests = []

    def snapshot(repo_id, revision, patterns):
        requests.append((repo_id, revision, patterns))
        return tiny_prior_folder, "c0ffee"

    monkeypatch.setattr(hub, "snapshot", snapshot)
    prior = LatentPrior.load(name, revision=revision)
    assert (prior.name, prior.revision) == (name, "c0ffee")
    ((repo_id, revision, patterns),) = requests
    assert (repo_id, revision) == asked
    assert "unet/diffusion_pytorch_model.safetensors" in patterns
    assert not any("safety_checker" in p or p.endswith(".bin") for p in patterns)


def test_the_priors_with_names_of_their_own_are_pinned_to_commits():
    for prior in HUB_PRIORS.values():
        assert re.fullmatch("[0-9a-f]{40}", prior.revision)


def test_a_repository_without_fp16_files_gives_its_plain_ones(monkeypatch, tiny_prior_folder):
    requests = []

    def snapshot(repo_id, revision, patterns):
        requests.append((revision, [p for p in patterns if p.startswith("vae/diff")]))
        plain = not any(".fp16." in p for p in patterns)
        return (tiny_prior_folder if plain else tiny_prior_folder / "vae"), "c0ffee"

    monkeypatch.setattr(hub, "snapshot", snapshot)
    assert LatentPrior.load("owner/name", dtype=torch.float16).revision == "c0ffee"
    assert requests == [
        ("main", ["vae/diffusion_pytorch_model.fp16.safetensors"]),
        ("c0ffee", ["vae/diffusion_pytorch_model.safetensors"]),
    ]


def test_offline_the_cached_precision_will_do(monkeypatch, tiny_prior_folder):
    def snapshot(repo_id, revision, patterns):
        if any(".fp16." in p for p in patterns):
            raise HubUnavailable("not cached")
        return tiny_prior_folder, "c0ffee"

    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub, "snapshot", snapshot)
    assert LatentPrior.load("sd15", dtype=torch.float16).revision == "c0ffee"


def test_only_an_unavailable_hub_leads_to_the_embedded_prior(
    monkeypatch, tmp_path, tiny_prior_folder
):
    monkeypatch.setattr(prior_files, "EMBEDDED_FOLDER", tiny_prior_folder)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubUnavailable):
        LatentPrior.load("sd15")
    prior, notice = load_or_embedded("sd15", dtype=torch.bfloat16)
    assert (prior.name, prior.dtype) == ("tiny", torch.bfloat16)
    assert notice is not None and "instead of sd15" in notice and "\n" not in notice
    assert load_or_embedded("tiny")[1] is None
    with pytest.raises(UnknownPrior):
        load_or_embedded("sd16")


def test_a_cache_that_holds_only_a_part_is_unavailable(monkeypatch, tmp_path):
    (tmp_path / "unet").mkdir()
    monkeypatch.setattr(hub, "snapshot", lambda *args: (tmp_path, "c0ffee"))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(HubUnavailable):
        LatentPrior.load("sd15")
    monkeypatch.setattr(hub, "reachable", lambda: True)
    with pytest.raises(PriorFileError, match="lacks vae"):
        LatentPrior.load("sd15")


def test_a_repository_that_does_not_exist_is_unknown(monkeypatch):
    def snapshot(*args):
        request = hub.httpx2.Request("GET", "https://huggingface.co")
        raise RepositoryNotFoundError("", response=hub.httpx2.Response(404, request=request))

    monkeypatch.setattr(hub, "snapshot", snapshot)
    with pytest.raises(UnknownPrior, match="no model owner/name"):
        LatentPrior.load("owner/name")
