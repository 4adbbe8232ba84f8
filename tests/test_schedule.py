"""The schedule against Gaussian conditioning, diffusers' scheduler, and its own invariants."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, DDPMSchedulerOutput

from silo.errors import BadRequest, PriorFileError
from silo.schedule import ddim, posterior_mean, posterior_variance, spaced, to_clean, to_epsilon

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, 0)


def diffusers_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        variance_type="fixed_small",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def test_every_number_of_steps_descends_from_the_noisiest_level_to_the_clean_one():
    for steps in range(1, 1001):
        schedule = spaced(ALPHAS_CUMPROD, steps)
        assert len(schedule) == len(schedule.alpha_bar) == len(schedule.alpha_bar_prev) == steps
        assert schedule.timesteps[0] == 999 and schedule.timesteps[-1] >= 0
        gaps = -schedule.timesteps.diff()
        if steps > 1:
            assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1  # evenly spread
        assert torch.equal(schedule.alpha_bar, ALPHAS_CUMPROD[schedule.timesteps])
        assert torch.equal(schedule.alpha_bar_prev[:-1], schedule.alpha_bar[1:])
        assert schedule.alpha_bar_prev[-1] == 1


def test_known_spacings():
    assert spaced(ALPHAS_CUMPROD, 1).timesteps.tolist() == [999]
    assert spaced(ALPHAS_CUMPROD, 4).timesteps.tolist() == [999, 749, 499, 249]
    assert spaced(ALPHAS_CUMPROD, 7).timesteps.tolist() == [999, 856, 713, 570, 428, 285, 142]
    assert spaced(ALPHAS_CUMPROD, 999).timesteps.unique().numel() == 999
    assert spaced(ALPHAS_CUMPROD, 1000).timesteps.tolist() == list(range(999, -1, -1))


def test_iterating_gives_the_rows():
    schedule = spaced(ALPHAS_CUMPROD, 3)
    rows = list(schedule)
    assert [t for t, _, _ in rows] == schedule.timesteps.tolist()
    assert [level for _, level, _ in rows] == schedule.alpha_bar.tolist()
    assert [level for _, _, level in rows] == schedule.alpha_bar_prev.tolist()


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_named(steps):
    with pytest.raises(BadRequest, match=f"{steps} steps.*between 1 and 1000"):
        spaced(ALPHAS_CUMPROD, steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("alpha_bar", [0.0047, 0.5, 0.999])
def test_predictions_convert_to_the_clean_latent_and_the_noise(prediction_type, alpha_bar):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    z_t = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise
    velocity = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * clean
    prediction = noise if prediction_type == "epsilon" else velocity
    torch.testing.assert_close(to_clean(z_t, prediction, alpha_bar, prediction_type), clean)
    torch.testing.assert_close(to_epsilon(z_t, prediction, alpha_bar, prediction_type), noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_any_prediction_and_its_conversions_describe_the_same_noisy_latent(prediction_type):
    generator = torch.Generator().manual_seed(1)
    z_t, prediction = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    alpha_bar = torch.tensor([0.01, 0.4, 0.99], dtype=torch.float64).view(3, 1, 1, 1)
    clean = to_clean(z_t, prediction, alpha_bar, prediction_type)
    noise = to_epsilon(z_t, prediction, alpha_bar, prediction_type)
    torch.testing.assert_close(alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise, z_t)


@pytest.mark.parametrize("convert", [to_clean, to_epsilon])
def test_other_prediction_types_are_refused(convert):
    with pytest.raises(PriorFileError, match="'sample'"):
        convert(torch.zeros(1), torch.zeros(1), 0.5, "sample")


def gaussian_conditional(alpha_bar: float, alpha_bar_prev: float, z_t: float, z_0: float):
    """Mean and variance of z_s given (z_t, z_0), from the joint covariance for z_0 ~ N(0, 2)."""
    alpha = alpha_bar / alpha_bar_prev
    to_z_s = np.array([alpha_bar_prev**0.5, (1 - alpha_bar_prev) ** 0.5, 0.0])
    to_z_t = alpha**0.5 * to_z_s + np.array([0.0, 0.0, (1 - alpha) ** 0.5])
    maps = np.stack([to_z_s, to_z_t, [1.0, 0.0, 0.0]])  # of (z_0, noise up to s, noise from s to t)
    joint = maps @ np.diag([2.0, 1.0, 1.0]) @ maps.T
    gain = np.linalg.solve(joint[1:, 1:], joint[1:, 0])
    return gain @ [z_t, z_0], joint[0, 0] - gain @ joint[1:, 0]


@pytest.mark.parametrize("steps", [1000, 50, 7, 1])
def test_posterior_is_the_gaussian_conditional_also_where_steps_are_skipped(steps):
    z_t, z_0 = 1.7, -0.6
    for _, alpha_bar, alpha_bar_prev in spaced(ALPHAS_CUMPROD, steps):
        mean, variance = gaussian_conditional(alpha_bar, alpha_bar_prev, z_t, z_0)
        ours = posterior_mean(torch.tensor(z_t), torch.tensor(z_0), alpha_bar, alpha_bar_prev)
        assert float(ours) == pytest.approx(mean, abs=1e-6)
        assert posterior_variance(alpha_bar, alpha_bar_prev) == pytest.approx(variance, abs=1e-12)


def test_last_step_is_the_clean_estimate_without_noise():
    z_t, clean = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    _, alpha_bar, alpha_bar_prev = list(spaced(ALPHAS_CUMPROD, 50))[-1]
    torch.testing.assert_close(posterior_mean(z_t, clean, alpha_bar, alpha_bar_prev), clean)
    assert posterior_variance(alpha_bar, alpha_bar_prev) == 0


def test_zero_terminal_snr_forgets_the_pure_noise():
    z_t, clean = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(posterior_mean(z_t, clean, 0.0, 0.25), 0.5 * clean)
    assert posterior_variance(0.0, 0.25) == 0.75
    torch.testing.assert_close(to_clean(z_t, -clean, 0.0, "v_prediction"), clean)


@pytest.mark.parametrize("steps", [1000, 50])
def test_unguided_step_equals_diffusers(steps):
    scheduler = diffusers_scheduler()
    scheduler.set_timesteps(steps)
    schedule = spaced(scheduler.alphas_cumprod, steps)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
    z_t, epsilon = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(4))
    for t, alpha_bar, alpha_bar_prev in schedule:
        theirs = scheduler.step(epsilon, t, z_t, generator=torch.Generator().manual_seed(t))
        assert isinstance(theirs, DDPMSchedulerOutput)
        clean = to_clean(z_t, epsilon, alpha_bar, "epsilon")
        noise = torch.randn(z_t.shape, generator=torch.Generator().manual_seed(t))
        std = posterior_variance(alpha_bar, alpha_bar_prev) ** 0.5
        ours = posterior_mean(z_t, clean, alpha_bar, alpha_bar_prev) + std * noise
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-4, atol=1e-4)


def test_ddim_keeps_the_noise_of_a_latent_and_ends_clean():
    clean, epsilon = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64).unbind()
    for alpha_bar, alpha_bar_prev in ((0.3, 0.7), (0.7, 1.0)):
        z_t = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * epsilon
        found = to_clean(z_t, epsilon, alpha_bar, "epsilon")
        z_s = alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev) ** 0.5 * epsilon
        torch.testing.assert_close(ddim(found, epsilon, alpha_bar_prev), z_s)
