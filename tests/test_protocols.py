from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from operators.degradation import Degradation
from silo.data import PhotoFile
from silo.evaluation.jobs import blank_request
from silo.evaluation.plan import Overrides, from_protocol, scaled_steps
from silo.evaluation.protocols import PAPER_TASKS, PROTOCOLS, Setting
from silo.evaluation.report import method_title, row_title


def test_the_main_table_is_the_papers() -> None:
    protocol = PROTOCOLS["ffhq"]
    settings = from_protocol(protocol, Overrides())
    assert protocol.pictures == 1000
    assert {s.seed for s in settings} == {1000} and {s.noise_sigma for s in settings} == {0.01}
    ours = [s for s in settings if s.sampler == "silo"]
    assert {(s.prior, s.operator, s.steps) for s in ours} == {
        ("rv51", "readout", 1000),
        ("sd15", "readout", 1000),
    }
    assert {(s.task, s.eta) for s in ours} == {
        (task, 1.0 if task == "inpainting_box" else 0.5) for task in PAPER_TASKS
    }
    assert {s.prompt for s in ours} == {"A high quality photo of a face"}
    assert not any(s.keep_known for s in settings)
    peers = {(s.task, s.sampler) for s in settings} - {(task, "silo") for task in PAPER_TASKS}
    assert len(peers) == 5 * 4 - 1 and ("jpeg_q10", "psld") not in peers
    assert {s.steps for s in settings if s.sampler == "resample"} == {500}


def test_the_other_protocols_change_what_their_tables_change() -> None:
    noise = from_protocol(PROTOCOLS["noise"], Overrides())
    assert {s.noise_sigma for s in noise} == {0.03}
    assert [s.sampler for s in noise] == ["silo", "silo", "psld"]
    coco = from_protocol(PROTOCOLS["coco"], Overrides())
    assert {(s.task, s.prompt) for s in coco} == {("inpainting_box", "A high quality photo")}
    prompts = from_protocol(PROTOCOLS["ablation-prompts"], Overrides())
    assert [(s.guidance_scale, s.prompt) for s in prompts] == [
        (4.0, None),
        (4.0, "A high quality photo of a face"),
        (1.0, "A high quality photo of a face"),
        (1.0, ""),
    ]
    operators = from_protocol(PROTOCOLS["ablation-operator"], Overrides())
    assert [method_title(s, operators) for s in operators] == ["SILO, readout", "SILO, paper_cnn"]
    encoder = from_protocol(PROTOCOLS["encoder"], Overrides(tasks=["jpeg_q10"]))
    titles = [row_title(s, encoder) for s in encoder]
    assert titles == ["jpeg_q10, noise 0.01", "jpeg_q10, noise 0"]


def test_a_mismatch_measures_with_one_strength_and_restores_for_another() -> None:
    settings = from_protocol(PROTOCOLS["mismatch"], Overrides())
    measured = {row_title(s, settings): s.measured for s in settings}
    x8 = measured["super_resolution_x4 on factor 8"]
    assert x8 == Degradation("super_resolution", {"factor": 8}, 0.01)
    assert measured["super_resolution_x8"] == x8
    assert measured["gaussian_blur"].parameters["std"] == 3.0
    on_blur = [title for title in measured if title.startswith("gaussian_blur on")]
    assert [measured[title].parameters["std"] for title in on_blur] == [2.0, 5.0]


def test_the_embedded_comparison_has_every_sampler_and_no_prompt() -> None:
    settings = from_protocol(PROTOCOLS["embedded"], Overrides(steps_scale=0.1))
    steps = {s.sampler: s.steps for s in settings if s.task == "gaussian_blur"}
    slow = {"silo": 100, "resample": 50, "psld": 100, "gml-dps": 100, "ldps": 100}
    assert steps == {"silo-fast": 16, **slow}
    assert len(settings) == 5 * 6 - 1  # PSLD on JPEG
    assert {(s.prior, s.prompt, s.noise_sigma, s.keep_known) for s in settings} == {
        ("tiny", "", 0.01, False)
    }
    scales = {(s.task, s.sampler, s.eta) for s in settings if s.eta is not None}
    assert scales == {
        (task, "silo", 1.0 if task == "inpainting_box" else 0.5) for task in PAPER_TASKS
    }
    both = from_protocol(PROTOCOLS["embedded"], Overrides(operators=["compact_cnn", "readout"]))
    pairs = {(s.sampler, s.operator) for s in both if s.sampler.startswith("silo")}
    # silo-fast reads no features of the denoiser.
    assert pairs == {("silo", "compact_cnn"), ("silo", "readout"), ("silo-fast", "compact_cnn")}


def test_a_prompt_takes_the_place_of_the_generic_one_alone() -> None:
    prompts = from_protocol(PROTOCOLS["ablation-prompts"], Overrides(prompt="a flower"))
    assert [s.prompt for s in prompts] == [None, "a flower", "a flower", ""]
    (coco, _) = from_protocol(PROTOCOLS["coco"], Overrides(prompt="a flower"))
    assert coco.prompt == "a flower"


def test_another_prior_takes_its_own_operators_and_etas_once() -> None:
    settings = from_protocol(PROTOCOLS["ffhq"], Overrides(prior="tiny", steps_scale=0.05))
    assert len(settings) == 5 * 5 - 1  # SILO once a task, not once for each of the paper's priors
    assert {(s.prior, s.operator, s.eta) for s in settings} == {("tiny", None, None)}
    assert {s.steps for s in settings if s.sampler == "resample"} == {25}
    assert {s.steps for s in settings if s.sampler != "resample"} == {50}


def test_fewer_steps_keep_the_consistency_scale_which_is_for_1000() -> None:
    (quick,) = from_protocol(
        PROTOCOLS["ablation-operator"], Overrides(steps_scale=0.05, operators=["mine"])
    )
    assert (quick.eta, quick.operator, quick.steps) == (0.5, "mine", 50)
    assert (scaled_steps("resample", 1.0), scaled_steps("silo-fast", 0.05)) == (500, 16)


def test_a_settings_key_says_what_it_is_and_not_what_it_is_called() -> None:
    setting = Setting("jpeg_q10", degradation=Degradation("jpeg", {"quality": 20}))
    assert replace(setting, note="searched").key == setting.key
    changes = {"eta": 1.0, "prompt": None, "seed": 1, "degradation": None, "prior": "sd15"}
    keys = {replace(setting, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {setting.key}) == len(changes) + 1
    # The same measurement, whatever restores it; another one for another noise level.
    assert replace(setting, sampler="ldps").measurement_key == setting.measurement_key
    assert replace(setting, noise_sigma=0.1).measurement_key != setting.measurement_key


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_setting_of_a_protocol_is_a_valid_request(name: str) -> None:
    for setting in from_protocol(PROTOCOLS[name], Overrides()):
        photo = cast("PhotoFile", SimpleNamespace(caption="a flower"))
        assert blank_request(setting, photo).effective_steps == setting.steps


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_runs_on_the_embedded_prior(name: str) -> None:
    settings = from_protocol(PROTOCOLS[name], Overrides(prior="tiny", steps_scale=0.05))
    places = {(row_title(s, settings), method_title(s, settings)) for s in settings}
    assert len(places) == len(settings)  # no two share a cell of the table
