"""The bench on a tiny prior: what it reports and how that follows from what was timed."""

import json
import re

import pytest
import torch

from silo import bench
from silo.prior import LatentPrior

PARTS = {
    "denoiser": 2.0,
    "encode": 0.5,
    "decode": 1.5,
    "encode_batch": 4.0,
    "silo/compact_cnn": 6.0,
    "silo-fast/compact_cnn": 2.5,
    "silo-fast/compact_cnn, first step": 4.5,
    "ldps": 7.0,
    "gml-dps": 8.0,
    "psld": 9.0,
    "resample": 7.5,
    "pixel_iteration": 0.01,
    "latent_iteration": 0.1,
    "operator_training_step": 0.25,
}


def test_everything_that_is_timed_runs_and_the_report_holds_it(tiny_prior: LatentPrior) -> None:
    cases = bench.cases(tiny_prior, 64)
    memory = bench.peaks(cases, tiny_prior.device)
    assert not memory or set(memory) == set(cases)
    rounds = bench.measure(cases, 1, tiny_prior.device)
    (seconds,) = rounds
    assert set(PARTS) < set(seconds)
    assert {"silo/paper_cnn", "silo/readout", "silo-fast/paper_cnn"} < set(seconds)
    assert all(value > 0 for value in seconds.values())
    report = {
        "prior": "test",
        "device": "cpu, 1 thread",
        "dtype": "float32",
        "size": 64,
        "repetitions": 1,
        "peak_memory_bytes": {"denoiser": 25 * 10**7},
        **bench.summarise(rounds),
    }
    assert json.loads(json.dumps(report)) == report
    table = bench.table(report)
    assert re.search(r"\| denoiser \| [\d.]+ \|  \| 250 \|", table)
    for name in (*seconds, "quick", "balanced", "paper", "resample"):
        assert f"| {name} |" in table
    uncached = report["operator_training_samples_a_second"]["latents_not_cached"]
    assert f"with cached latents, {uncached:.1f} without" in table


def test_figures_follow_from_the_parts() -> None:
    report = bench.summarise([PARTS])
    images = report["seconds_an_image"]
    # The first step evaluates the operator four times more, two of the last steps once.
    assert images["quick"] == pytest.approx(2 + 4.5 + 15 * 2.5 + 2 * 0.5)
    assert images["balanced"] == pytest.approx(2 + 100 * 6)
    assert images["paper"] == pytest.approx(2 + 1000 * 6)
    assert images["psld"] == pytest.approx(2 + 1000 * 9)
    travels, pixels, latents = 33 * 5 * 2, 17 * (2000 * 0.01 + 0.5), (16 + 1) * 500 * 0.1
    assert images["resample"] == pytest.approx(2 + 500 * 7.5 + travels + pixels + latents)
    assert report["step_over_denoiser"]["silo/compact_cnn"] == pytest.approx(3)
    bare = report["quick_over_its_denoiser_evaluations"]
    assert bare["sampling"] == pytest.approx(43 / 32)
    assert bare["with_encoding_and_decoding"] == pytest.approx(45 / 32)
    assert report["times_faster_than_psld"]["quick"] == pytest.approx(9002 / 45)
    assert report["operator_training_steps_a_second"] == pytest.approx(4)
    assert report["encoded_pictures_a_second"] == pytest.approx(2)
    samples = report["operator_training_samples_a_second"]
    assert samples["latents_cached"] == pytest.approx(8 / 0.25)
    assert samples["latents_not_cached"] == pytest.approx(8 / (0.25 + 16 / 2))


def test_cases_take_turns() -> None:
    turns: list[str] = []
    cases = {name: lambda name=name: turns.append(name) for name in ("a", "b")}
    rounds = bench.measure(cases, 2, torch.device("cpu"))
    assert [set(each) for each in rounds] == [{"a", "b"}] * 2
    assert turns == ["a", "b"] * 2


def test_ratios_are_taken_within_a_round_and_seconds_over_all() -> None:
    # A machine that grew slower between two cases of the second round, and then for good.
    slower = {name: 3 * value for name, value in PARTS.items()}
    torn = {**slower, "denoiser": PARTS["denoiser"]}
    report = bench.summarise([PARTS, torn, slower])
    assert report["milliseconds"]["silo/compact_cnn"] == pytest.approx(1000 * 3 * 6)
    assert report["step_over_denoiser"]["silo/compact_cnn"] == pytest.approx(3)
    assert report["times_faster_than_psld"]["quick"] == pytest.approx(9002 / 45)
