"""The samplers guided in pixel space: closed forms in a linear-Gaussian world, and a real prior."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from operators.degradation import Degradation
from operators.pixel import measure
from silo.prior import LatentPrior
from silo.samplers import SAMPLERS, Problem
from silo.schedule import Schedule, spaced

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).double()
MU = np.array([0.8, -0.5, 0.2])
SIGMA = np.array([[1.0, 0.5, 0.1], [0.5, 0.8, -0.2], [0.1, -0.2, 0.5]])
DECODER = np.array([[0.9, 0.1, 0.0], [-0.3, 0.5, 0.2], [0.4, 0.0, 0.7]])
ENCODER = np.array([[1.0, 0.0, 0.2], [0.6, 1.5, -0.4], [-0.5, 0.1, 1.2]])
SIDE, FACTOR = 4, 2
PEERS = {
    "ldps": {"omega": 0.7},
    "gml-dps": {"omega": 0.7, "gamma": 0.3},
    "psld": {"omega": 0.7, "gamma": 0.3},
    "resample": {
        "zeta": 0.6,
        "gamma": 30.0,
        "interval": 2,
        "pixel_iterations": 6,
        "latent_iterations": 4,
    },
}
HALVE = Degradation("super_resolution", {"factor": FACTOR}, 0.01)


def over_channels(matrix: np.ndarray, z: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,bjhw->bihw", torch.from_numpy(matrix).to(z), z)


def gain(alpha_bar: float) -> np.ndarray:
    """J = d z0hat / d z_t of the exact denoiser of z_0 ~ N(MU, SIGMA); symmetric."""
    noisy = alpha_bar * SIGMA + (1 - alpha_bar) * np.eye(3)
    return alpha_bar**0.5 * SIGMA @ np.linalg.inv(noisy)


class GaussianPrior:
    """Every pixel's three channels are a draw of N(MU, SIGMA); D and E mix the channels."""

    prediction_type = "epsilon"

    def __init__(self, decoder: np.ndarray = DECODER, encoder: np.ndarray = ENCODER):
        self.decoder, self.encoder = decoder, encoder
        self.nfe = self.decodes = self.encodes = 0

    def predict(self, latents, t, prompt, *, features):
        assert not features  # they are for latent operators
        self.nfe += 1
        alpha_bar = float(ALPHAS_CUMPROD[t])
        mu = torch.from_numpy(MU).to(latents).view(1, 3, 1, 1)
        clean = mu + over_channels(gain(alpha_bar), latents - alpha_bar**0.5 * mu)
        output = (latents - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
        return SimpleNamespace(output=output, features=None, time_embedding=None)

    def decode(self, latents, *, clamp):
        assert not clamp
        self.decodes += 1
        return over_channels(self.decoder, latents)

    def encode(self, images):
        self.encodes += 1
        return over_channels(self.encoder, images)


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]


def problem(prior, y: torch.Tensor, like: torch.Tensor, degradation: Degradation = HALVE):
    return Problem(
        prior=cast(Any, prior),
        operator=None,
        degradation=degradation,
        measurement=y,
        measurement_latent=like,
        mask=None,
        noise_sigma=degradation.noise_sigma,
        prompt=prior.embed("") if isinstance(prior, LatentPrior) else cast(Any, None),
    )


def gaussian_problem(prior: GaussianPrior, batch: int = 1) -> Problem:
    small = SIDE // FACTOR
    y = torch.randn(batch, 3, small, small, generator=seeds(99)[0], dtype=torch.float64)
    return problem(prior, y, torch.zeros(batch, 3, SIDE, SIDE, dtype=torch.float64))


class Dense:
    """The Gaussian world as matrices on flattened latents (3 x SIDE x SIDE): its own algebra."""

    def __init__(self):
        pixels = np.eye(SIDE * SIDE)
        self.decode, self.encode = np.kron(DECODER, pixels), np.kron(ENCODER, pixels)
        self.mu = np.kron(MU, np.ones(SIDE * SIDE))
        basis = torch.eye(3 * SIDE * SIDE, dtype=torch.float64).view(-1, 3, SIDE, SIDE)
        self.degrade = HALVE.operator().forward(basis).flatten(1).T.numpy()
        nearest = np.kron(np.eye(SIDE // FACTOR), np.ones((FACTOR, 1)))
        self.back = np.kron(np.eye(3), np.kron(nearest, nearest))

    def gain(self, alpha_bar: float) -> np.ndarray:
        return np.kron(gain(alpha_bar), np.eye(SIDE * SIDE))

    def clean(self, z: np.ndarray, alpha_bar: float) -> np.ndarray:
        return self.mu + self.gain(alpha_bar) @ (z - alpha_bar**0.5 * self.mu)

    def ddim(self, z: np.ndarray, now: float, after: float) -> np.ndarray:
        clean = self.clean(z, now)
        epsilon = (z - now**0.5 * clean) / (1 - now) ** 0.5
        return after**0.5 * clean + (1 - after) ** 0.5 * epsilon

    def terms(self, name: str, y: np.ndarray, scales: dict[str, float]):
        """(weight, M, b) of each term weight ||M z0hat - b|| of a sampler's loss."""
        identity, forward = np.eye(len(self.mu)), self.degrade @ self.decode
        data = (scales["omega"], forward, y)
        if name == "ldps":
            return [data]
        if name == "gml-dps":
            return [data, (scales["gamma"], self.encode @ self.decode - identity, 0 * self.mu)]
        projector = identity - self.back @ self.degrade
        glue = self.encode @ projector @ self.decode - identity
        return [data, (scales["gamma"], glue, -self.encode @ self.back @ y)]

    def gradient(self, clean: np.ndarray, now: float, terms) -> tuple[float, np.ndarray]:
        loss, gradient = 0.0, np.zeros_like(clean)
        for weight, matrix, target in terms:
            error = matrix @ clean - target
            loss += weight * np.linalg.norm(error)
            gradient += weight * self.gain(now).T @ matrix.T @ error / np.linalg.norm(error)
        return loss, gradient

    @staticmethod
    def adamw(start, matrix, y, lr, iterations):
        """AdamW on the mean square of y - matrix @ v, by its definition (arXiv 1711.05101)."""
        v, first, second = start.copy(), 0 * start, 0 * start
        for k in range(1, iterations + 1):
            error = matrix @ v - y
            if np.mean(error**2) < 1e-6:
                break
            gradient = 2 / len(y) * matrix.T @ error
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            v = v * (1 - lr * 0.01)
            v -= lr * (first / (1 - 0.9**k)) / (np.sqrt(second / (1 - 0.999**k)) + 1e-8)
        return v


def levels(steps: int) -> list[tuple[float, float]]:
    timesteps = [round(1000 * k / steps) - 1 for k in range(steps, 0, -1)]
    bars = [float(ALPHAS_CUMPROD[t]) for t in timesteps] + [1.0]
    return list(zip(bars[:-1], bars[1:], strict=True))


def start(seed: int) -> np.ndarray:
    noise = torch.randn(3, SIDE, SIDE, generator=seeds(seed)[0], dtype=torch.float32)
    return noise.double().flatten().numpy()


@pytest.mark.parametrize("name", ["ldps", "gml-dps", "psld"])
def test_each_step_follows_the_analytic_gradient(name):
    world, prior, steps = Dense(), GaussianPrior(), 20
    task = gaussian_problem(prior, batch=2)
    y = task.measurement[1].flatten().numpy()
    run = SAMPLERS[name].sample(
        task, spaced(ALPHAS_CUMPROD, steps), generators=seeds(5, 6), **PEERS[name]
    )
    z = start(6)
    for index, ((now, after), step) in enumerate(zip(levels(steps), run, strict=True)):
        clean = world.clean(z, now)
        loss, gradient = world.gradient(clean, now, world.terms(name, y, PEERS[name]))
        z = world.ddim(z, now, after) - gradient
        assert (step.index, step.total) == (index, steps)
        np.testing.assert_allclose(step.clean_estimate[1].flatten().numpy(), clean, atol=1e-8)
        np.testing.assert_allclose(step.residual[1].item(), loss, atol=1e-8)
        np.testing.assert_allclose(step.latent[1].flatten().numpy(), z, atol=1e-8)
        for tensor in (step.latent, step.clean_estimate, step.residual):
            assert not tensor.requires_grad
    encodes = 0 if name == "ldps" else steps
    assert (prior.nfe, prior.decodes, prior.encodes) == (steps, steps, encodes)


@pytest.mark.parametrize("steps", [12, 13, 3])
def test_resample_is_its_algorithm_step_by_step(steps):
    world, own = Dense(), PEERS["resample"]
    task = gaussian_problem(GaussianPrior())
    y = task.measurement[0].flatten().numpy()
    run = SAMPLERS["resample"].sample(
        task, spaced(ALPHAS_CUMPROD, steps), generators=seeds(7), **own
    )
    generator = seeds(7)[0]
    z = torch.randn(3, SIDE, SIDE, generator=generator).double().flatten().numpy()
    forward, third = world.degrade @ world.decode, steps // 3
    visited, kinds = levels(steps), []
    for i, step in enumerate(run):
        now, after = visited[i]
        index = steps - 1 - i  # counts down, as in the paper's code
        terms = [(own["zeta"] * now, forward, y)]
        _, gradient = world.gradient(world.clean(z, now), now, terms)
        z = world.ddim(z, now, after) - gradient
        if 0 < index <= steps - third and index % 2 == 0:
            far = z
            for there, beyond in visited[i + 1 : i + 6]:
                clean, far = world.clean(far, there), world.ddim(far, there, beyond)
            if index >= third:
                image = world.adamw(world.decode @ clean, world.degrade, y, 1e-2, 6)
                consistent = world.encode @ image
            else:
                consistent = world.adamw(clean, forward, y, 5e-3, 4)
            kinds.append("pixel" if index >= third else "latent")
            sigma = 30 * (1 - after) / (1 - now) * (1 - now / after)
            mean = (sigma * after**0.5 * consistent + (1 - after) * z) / (sigma + 1 - after)
            noise = torch.randn(3, SIDE, SIDE, generator=generator).double().flatten().numpy()
            z = mean + (1 / (1 / sigma + 1 / (1 - after))) ** 0.5 * noise
        elif index == 0:
            z = world.adamw(z, forward, y, 5e-3, 4)
        np.testing.assert_allclose(step.latent[0].flatten().numpy(), z, atol=1e-8)
    if steps > 3:
        assert set(kinds) == {"pixel", "latent"}


def test_resample_travels_33_times_in_its_500_steps():
    prior = GaussianPrior()
    own = SAMPLERS["resample"].published("gaussian_blur", 500)
    assert own == {
        "zeta": 0.5,
        "gamma": 40.0,
        "interval": 10,
        "pixel_iterations": 2000,
        "latent_iterations": 500,
    }
    run = SAMPLERS["resample"].sample(
        gaussian_problem(prior),
        spaced(ALPHAS_CUMPROD, SAMPLERS["resample"].steps),
        generators=seeds(0),
        **{**own, "pixel_iterations": 2, "latent_iterations": 3},
    )
    assert len(list(run)) == 500
    assert prior.nfe == 500 + 33 * 5
    assert prior.encodes == 17  # the events while index >= 500 // 3, at index 170 to 330
    assert prior.decodes == 500 + 17 + (16 + 1) * 3


def test_consistency_stops_at_the_tolerance_for_each_sample_alone():
    calls = []

    class Counting(GaussianPrior):
        def decode(self, latents, *, clamp):
            calls.append(latents.detach().clone())
            return super().decode(latents, clamp=clamp)

    task = gaussian_problem(Counting(), batch=2)
    schedule = spaced(ALPHAS_CUMPROD, 1)
    own = {**PEERS["resample"], "zeta": 0.0, "latent_iterations": 400}
    world = Dense()
    # Both measurements are near what the only step arrives at; the second one is met exactly.
    near, clean = (world.clean(start(seed), levels(1)[0][0]) for seed in (1, 2))
    met = [world.degrade @ world.decode @ z for z in (near + 0.05, clean)]
    y = torch.from_numpy(np.stack(met)).view(2, 3, SIDE // FACTOR, SIDE // FACTOR)
    (step,) = SAMPLERS["resample"].sample(
        replace(task, measurement=y), schedule, generators=seeds(1, 2), **own
    )
    np.testing.assert_allclose(step.latent[1].flatten().numpy(), clean, atol=1e-12)
    error = y[0].flatten().numpy() - world.degrade @ world.decode @ step.latent[0].flatten().numpy()
    assert np.mean(error**2) < 1e-6
    assert 5 < len(calls) < 400


@pytest.mark.parametrize("name", PEERS)
def test_samples_gather_around_the_posterior_mean_and_agree_with_the_measurement(name):
    # With D = E = I, x | A x = y is Gaussian: its mean is MU + S A^T (A S A^T)^-1 (y - A MU).
    world, batch = Dense(), 64
    covariance = np.kron(SIGMA, np.eye(SIDE * SIDE))
    generator = seeds(3)[0]
    truth = (
        world.mu
        + np.linalg.cholesky(covariance) @ torch.randn(48, generator=generator).double().numpy()
    )
    y = world.degrade @ truth
    inverse = np.linalg.inv(world.degrade @ covariance @ world.degrade.T)
    mean = world.mu + covariance @ world.degrade.T @ inverse @ (y - world.degrade @ world.mu)
    task = problem(
        GaussianPrior(np.eye(3), np.eye(3)),
        torch.from_numpy(y).view(1, 3, 2, 2),
        torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64),
    )
    own = {"omega": 0.5, "gamma": 0.05} if name != "resample" else {"zeta": 0.5, "gamma": 40.0}
    own = {key: own.get(key, value) for key, value in PEERS[name].items()}
    if name == "resample":
        own |= {"interval": 10, "pixel_iterations": 40, "latent_iterations": 40}
    *_, last = SAMPLERS[name].sample(
        task, spaced(ALPHAS_CUMPROD, 100), generators=seeds(*range(batch)), **own
    )
    found = last.latent.flatten(1).numpy()
    assert np.linalg.norm(found.mean(0) - mean) < 0.3 * np.linalg.norm(world.mu - mean)
    misfit = np.linalg.norm(world.degrade @ found.T - y[:, None], axis=0).mean()
    assert misfit < 0.1 * np.linalg.norm(y - world.degrade @ world.mu)


# On a prior of real networks
TASKS = {
    "blur": Degradation("gaussian_blur", {"kernel_size": 9, "std": 1.5}),
    "scale": Degradation("super_resolution", {"factor": 4}),
    "jpeg": Degradation("jpeg"),
}


def real_problem(prior: LatentPrior, degradation: Degradation) -> Problem:
    x = torch.rand(1, 3, 32, 32, generator=seeds(0)[0]) * 2 - 1
    y = measure(x, degradation, seeds(1)[0])
    return problem(prior, y, torch.zeros(1, 4, 4, 4), degradation)


def transcribed(name: str, prior: LatentPrior, task: Problem, z: torch.Tensor, schedule: Schedule):
    """One step of a peer on diffusers' networks alone; the prior predicts v."""
    vae, unet = cast(Any, prior._vae), cast(Any, prior._unet)
    scale, tiny = vae.config.scaling_factor, not isinstance(vae, AutoencoderKL)
    ((t, now, after), *_) = schedule
    z = z.clone().requires_grad_()
    v = unet(z, torch.tensor([t]), encoder_hidden_states=task.prompt.cond).sample
    clean = now**0.5 * z - (1 - now) ** 0.5 * v
    epsilon = now**0.5 * v + (1 - now) ** 0.5 * z
    x = vae.decoder(clean / scale if tiny else vae.post_quant_conv(clean / scale))

    def encode(images):
        if tiny:
            return vae.encoder(images) * scale
        return vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)[0] * scale

    operator = task.degradation.operator()
    own, data = PEERS[name], (operator.forward(x) - task.measurement).pow(2).sum().sqrt()
    if name == "resample":
        loss = own["zeta"] * now * data
    elif name == "ldps":
        loss = own["omega"] * data
    else:
        target = x
        if name == "psld":
            # A^T: nearest up-sampling for super-resolution, the identity for a blur
            def back(image):
                return F.interpolate(image, size=(32, 32), mode="nearest")

            target = back(task.measurement) + x - back(operator.forward(x))
        glue = (encode(target) - clean).pow(2).sum().sqrt()
        loss = own["omega"] * data + own["gamma"] * glue
    loss.backward()
    assert z.grad is not None
    return (after**0.5 * clean + (1 - after) ** 0.5 * epsilon - z.grad).detach()


@pytest.mark.parametrize("kind", ["tiny_prior", "variational_prior"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in PEERS
        for damage, degradation in TASKS.items()
        if degradation.operator().linear or not SAMPLERS[name].linear_only
    ],
)
def test_a_step_on_real_networks_is_the_transcribed_equation(name, damage, kind, request):
    prior = request.getfixturevalue(kind)
    task = real_problem(prior, TASKS[damage])
    schedule = spaced(prior.alphas_cumprod, 3)
    own = PEERS[name] | ({"interval": 1000} if name == "resample" else {})  # no event at once
    step = next(SAMPLERS[name].sample(task, schedule, generators=seeds(4), **own))
    z = torch.randn(1, 4, 4, 4, generator=seeds(4)[0])
    expected = transcribed(name, prior, task, z, schedule)
    moved = (expected - z).abs().max().item()
    torch.testing.assert_close(step.latent, expected, atol=1e-5 * moved, rtol=1e-5)
    encodes = int(name in ("gml-dps", "psld"))
    assert (prior.nfe, prior.decodes, prior.encodes) == (1, 1, encodes)


@pytest.mark.parametrize("name", PEERS)
def test_a_batch_gives_what_its_members_give_alone_and_a_seed_one_picture(name, tiny_prior):
    task = real_problem(tiny_prior, TASKS["scale"])
    schedule = spaced(tiny_prior.alphas_cumprod, 6)

    def samples(*values: int) -> torch.Tensor:
        *_, last = SAMPLERS[name].sample(task, schedule, generators=seeds(*values), **PEERS[name])
        return last.latent

    together = samples(1, 2, 3)
    for i, seed in enumerate((1, 2, 3)):
        torch.testing.assert_close(together[i : i + 1], samples(seed), atol=2e-4, rtol=0)
    assert torch.equal(samples(2), samples(2))
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", PEERS)
def test_half_precision_follows_float32(name, tiny_prior_folder):
    latents = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        prior = LatentPrior.load(tiny_prior_folder, dtype=dtype)
        task = real_problem(prior, TASKS["scale"])
        schedule = spaced(prior.alphas_cumprod, 6)
        *_, last = SAMPLERS[name].sample(task, schedule, generators=seeds(1), **PEERS[name])
        assert last.latent.dtype == torch.float32 and not prior.notices
        latents.append(last.latent.flatten())
    for rough in latents[1:]:
        assert torch.cosine_similarity(rough, latents[0], dim=0) > 0.98


@pytest.mark.parametrize("name", PEERS)
def test_a_mask_is_part_of_the_degradation(name, tiny_prior):
    x = torch.rand(1, 3, 32, 32, generator=seeds(0)[0]) * 2 - 1
    mask = torch.ones(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 0
    degradation = Degradation("inpainting_free", noise_sigma=0.0)
    like = torch.zeros(1, 4, 4, 4)
    task = replace(problem(tiny_prior, x * mask, like, degradation), mask=mask)
    schedule = spaced(tiny_prior.alphas_cumprod, 6)
    own = PEERS[name] | ({"pixel_iterations": 50} if name == "resample" else {"omega": 0.01})
    run = SAMPLERS[name].sample(task, schedule, generators=seeds(1, 2), **own)
    for step in run:
        assert step.latent.isfinite().all()
        if name == "ldps":
            image = tiny_prior.decode(step.clean_estimate, clamp=False)
            error = ((image - x) * mask).flatten(1).norm(dim=1)
            torch.testing.assert_close(step.residual, 0.01 * error)
