import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from operators.convolutional import CompactCNN
from operators.degradation import Degradation
from operators.errors import OperatorError, OperatorNotFound
from operators.pixel import measure
from silo.errors import BadRequest
from silo.images import fit, from_pil
from silo.measured import take_measurement, working_size
from silo.metrics import MAX_PSNR, cpsnr, psnr, scores
from silo.photo.filling import keep_known
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Finishing, Progress, Restorer, Result
from silo.samplers import SAMPLERS, Problem, Step
from silo.schedule import Schedule

STEPS = 3


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One operator a task, with and without a mask, of random weights."""
    folders = {}
    tasks = ("super_resolution_x4", False), ("gaussian_blur", False), ("inpainting_free", True)
    for task, mask in tasks:
        torch.manual_seed(0)
        operator = CompactCNN(latent_channels=4, width=8, blocks=1, mask=mask, groups=4)
        torch.nn.init.normal_(operator.output.weight, std=0.05)
        operator.metadata = {"task": task, "prior": "test"}
        folders[task] = tmp_path_factory.mktemp(task)
        operator.save_pretrained(folders[task])
    return folders


def _picture(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _restore(restorer: Restorer, request: RestorationRequest) -> tuple[list[Progress], Result]:
    events = list(restorer.restore(request))
    *steps, result = events
    assert isinstance(result, Result)
    progress = [step for step in steps if isinstance(step, Progress)]
    finishing = [(each.sample, each.samples) for each in steps if isinstance(each, Finishing)]
    assert finishing == [(number + 1, request.samples) for number in range(request.samples)]
    assert len(progress) + len(finishing) == len(steps)
    return progress, result


def test_one_encoding_one_decoding_and_one_evaluation_a_step(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest("super_resolution_x4", _picture(), simulate=True, steps=STEPS)
    progress, result = _restore(restorer, request)
    assert (tiny_prior.encodes, tiny_prior.decodes, tiny_prior.nfe) == (1, 1, STEPS)
    assert result.nfe == STEPS
    assert [(p.step, p.total) for p in progress] == [(i + 1, STEPS) for i in range(STEPS)]
    assert progress[-1].seconds_left == 0 < progress[0].seconds_left
    assert progress[0].preview().size == (96, 64)
    assert result.images.shape == (1, 3, 64, 96)
    assert tiny_prior.decodes == 1  # previews are not the algorithm's


def test_a_small_picture_comes_back_larger_by_the_factor(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest("super_resolution_x4", _picture(15, 22), steps=STEPS)
    _, result = _restore(restorer, request)
    assert result.images.shape == (1, 3, 60, 88)
    assert result.measurement.shape == (1, 3, 60, 88)
    assert result.clean is None


def test_a_large_picture_is_scaled_down_said_so_and_returned_at_its_size(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest(
        "super_resolution_x4", _picture(300, 500), simulate=True, steps=1, working_size=256
    )
    _, result = _restore(restorer, request)
    assert result.images.shape == (1, 3, 300, 500)
    assert result.restored.shape[-2] * result.restored.shape[-1] <= 256**2
    assert any("worked on at" in notice for notice in result.notices)
    assert any("larger working size" in notice for notice in result.notices)


def test_a_picture_that_is_enlarged_is_worked_on_as_large_as_it_comes_back(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest("super_resolution_x4", _picture(80, 120), sampler="silo", steps=1)
    _, result = _restore(restorer, request)
    assert result.restored.shape == (1, 3, 320, 480)  # more than one window of the prior's
    assert torch.equal(result.images, result.restored)
    assert result.nfe == 1 and not any("worked on" in line for line in result.notices)


@pytest.mark.parametrize(("std", "limits"), [(3.0, False), (9.0, True)])
def test_a_larger_size_is_advised_only_where_it_makes_a_difference(
    tiny_prior: LatentPrior, operators: dict[str, Path], std: float, limits: bool
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["gaussian_blur"])
    request = RestorationRequest(
        "gaussian_blur", _picture(400, 400), steps=1, blur_std=std, working_size=256
    )
    notices = _restore(restorer, request)[1].notices
    assert any("worked on at" in line for line in notices)
    assert any("larger working size" in line for line in notices) != limits


def test_only_what_has_lost_detail_is_worked_on_in_windows_unless_a_size_is_chosen(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    picture, mask = _picture(300, 500), torch.ones(1, 1, 300, 500)
    mask[..., 100:180, 200:290] = 0
    of_holes = RestorationRequest("inpainting_free", picture, mask=mask)
    others = RestorationRequest("gaussian_blur", picture)
    noisy = RestorationRequest("denoising", picture, noise_sigma=0.05)
    for request in (of_holes, noisy):
        assert working_size(request, tiny_prior) == 2 * tiny_prior.native_size == 256
    assert working_size(others, tiny_prior) == 1024
    for request in (of_holes, others):
        request = replace(request, working_size=700)
        assert working_size(request, tiny_prior) == 700
        restorer = Restorer(tiny_prior, operator=operators[request.task])
        assert restorer.parameters(request)["working_size"] == 700


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
        (torch.float32, torch.bool),
        (torch.float32, torch.int64),
    ],
)
def test_known_pixels_of_any_type_are_kept(
    tiny_prior: LatentPrior, operators: dict[str, Path], picture: torch.dtype, mask: torch.dtype
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["inpainting_free"])
    known = torch.ones(1, 1, 64, 96, dtype=mask)
    known[..., 20:44, 40:70] = 0
    image = _picture().to(picture)
    request = RestorationRequest("inpainting_free", image, mask=known, steps=1)
    images = _restore(restorer, request)[1].images
    torch.testing.assert_close(images[..., :16], _picture()[..., :16], atol=2e-3, rtol=0)


def test_of_a_large_picture_what_is_known_comes_back_at_its_own_size(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["inpainting_free"])
    picture = _picture(300, 500)
    picture[..., ::2] *= -1  # detail that scaling loses
    mask = torch.ones(1, 1, 300, 500)
    mask[..., 100:180, 200:290] = 0
    (kept_progress, kept), (_, painted) = (
        _restore(
            restorer,
            RestorationRequest(
                "inpainting_free", picture, mask=mask, steps=1, samples=2, keep_known=keep
            ),
        )
        for keep in (True, False)
    )
    watched = from_pil(kept_progress[0].preview())
    assert watched.shape == picture.shape
    outside = mask.bool().expand_as(picture)
    torch.testing.assert_close(watched[outside], picture[outside], atol=0.01, rtol=0)
    assert kept.images.shape == (2, 3, 300, 500)
    known = mask.bool().expand_as(kept.images)
    both = picture.expand_as(kept.images)
    assert torch.equal(kept.images[known], both[known])
    assert (painted.images[known] - both[known]).abs().mean() > 0.1
    assert not torch.equal(kept.images[0], kept.images[1])
    assert any("own size" in notice for notice in kept.notices)
    assert not any("own size" in notice for notice in painted.notices)
    torch.testing.assert_close(kept.measurement, picture)  # what is in the hole can be compared


def test_a_hole_in_a_large_picture_is_filled_once(tiny_prior: LatentPrior) -> None:
    picture, mask = _picture(300, 500), torch.ones(1, 1, 300, 500)
    mask[..., 100:104, 40:450] = 0  # a scratch, whose detail counts by half
    request = RestorationRequest("inpainting_free", picture, mask=mask)
    measured = take_measurement(request, tiny_prior)
    height, width = measured.fit.working
    decoded = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) - 0.5
    image = measured.fit.undo(decoded)
    expected = keep_known(image, picture, mask, magnified=1 / measured.fit.scale)
    torch.testing.assert_close(measured.at_output_size(measured.finish(decoded)), expected)
    known = mask.bool().expand_as(picture)
    torch.testing.assert_close(measured.watch(decoded)[known], picture[known])


def test_a_large_picture_is_scored_at_the_size_that_it_was_restored_at(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest(
        "super_resolution_x4", _picture(300, 470), simulate=True, steps=1, working_size=256
    )
    _, result = _restore(restorer, request)
    height, width = result.measured.fit.scaled
    assert result.measured.clean is not None and height < 300
    assert (height, width) != result.measured.fit.padded
    own, clean = (each[..., :height, :width] for each in (result.restored, result.measured.clean))
    assert scores(result)[0].psnr == pytest.approx(psnr(own, clean).item())


def test_simulation_measures_the_picture_with_the_task_and_its_noise(
    tiny_prior: LatentPrior,
) -> None:
    request = RestorationRequest(
        "super_resolution_x4", _picture(), simulate=True, steps=1, noise_sigma=0.03, seed=5
    )
    measured = take_measurement(request, tiny_prior)
    assert measured.clean is not None
    noiseless = measure(measured.clean, measured.degradation.with_noise(0.0), torch.Generator())
    assert (measured.y - noiseless).std().item() == pytest.approx(0.06, rel=0.1)
    assert torch.equal(measured.y, take_measurement(request, tiny_prior).y)


def test_what_is_measured_is_kept_unless_it_is_asked_not_to(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest(
        "super_resolution_x4", _picture(), simulate=True, steps=STEPS, keep_known=False
    )
    _, decoded = _restore(restorer, request)
    _, kept = _restore(restorer, replace(request, keep_known=True))
    operator = decoded.measured.degradation.operator()
    expected = operator.explain(decoded.restored, decoded.measured.y, 0.01)
    torch.testing.assert_close(kept.restored, expected)
    off = [(operator.forward(each.restored) - each.measured.y).std() for each in (decoded, kept)]
    assert off[1] < 0.5 * off[0]


def test_what_explains_a_blur_is_painted_anew_before_it_is_kept(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["gaussian_blur"])
    request = RestorationRequest(
        "gaussian_blur", _picture(), simulate=True, steps=STEPS, samples=2, keep_known=False
    )
    _, decoded = _restore(restorer, request)
    _, kept = _restore(restorer, replace(request, keep_known=True))
    assert (decoded.encodes, decoded.decodes) == (1, 1)
    assert (kept.encodes, kept.decodes) == (1 + 2, 1 + 2)  # once more for each sample
    operator, y = decoded.measured.degradation.operator(), decoded.measured.y
    for sample, result in zip(decoded.restored.split(1), kept.restored.split(1), strict=True):
        draft = operator.draft(sample, y, 0.01)
        assert draft is not None
        painted = tiny_prior.decode(tiny_prior.encode(draft))
        assert not torch.equal(painted, sample)
        torch.testing.assert_close(result, operator.explain(painted, y, 0.01))


def test_a_photo_that_is_noisier_than_assumed_is_kept_less_of(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    smooth = torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32)
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    for picture, least, most in ((smooth, 0.0, 1e-6), (noisy, 0.005, 1.0)):
        request = RestorationRequest("super_resolution_x4", picture, noise_sigma=0.01)
        measured = take_measurement(request, tiny_prior)
        start = torch.zeros_like(measured.full_size)
        assumed = measured.degradation.operator().explain(start, measured.y, 0.01)
        assert least <= (measured.finish(start) - assumed).abs().mean() <= most


def test_what_lies_in_a_hole_makes_no_difference(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["inpainting_free"])
    mask = torch.ones(1, 1, 64, 96)
    mask[..., 20:30, 40:70] = 0
    images = []
    for value in (-1.0, 1.0):
        picture = torch.where(mask == 0, torch.tensor(value), _picture())
        request = RestorationRequest("inpainting_free", picture, mask=mask, steps=STEPS)
        images.append(_restore(restorer, request)[1].images)
    assert torch.equal(images[0], images[1])


def test_known_pixels_are_kept_unless_asked_otherwise_and_holes_are_filled(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["inpainting_free"])
    mask = torch.ones(1, 1, 64, 96)
    mask[..., 20:44, 40:70] = 0
    picture = _picture()
    kept, painted = (
        _restore(
            restorer,
            RestorationRequest("inpainting_free", picture, mask=mask, steps=STEPS, keep_known=keep),
        )[1].images
        for keep in (True, False)
    )
    known = (mask == 1).expand_as(picture)
    torch.testing.assert_close(kept[known], picture[known])
    assert (painted[known] - picture[known]).abs().mean() > 0.05
    torch.testing.assert_close(kept, keep_known(painted, picture, mask))


def test_samples_equal_runs_of_their_own_and_one_seed_gives_one_picture(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])

    def images(samples: int, seed: int) -> Tensor:
        request = RestorationRequest(
            "super_resolution_x4", _picture(16, 16), steps=STEPS, samples=samples, seed=seed
        )
        return _restore(restorer, request)[1].images

    batch = images(3, 7)
    for index in range(3):
        torch.testing.assert_close(
            batch[index : index + 1], images(1, 7 + index), atol=1e-4, rtol=0
        )
    assert torch.equal(images(1, 7), images(1, 7))
    assert (batch[0] - batch[1]).abs().max() > 1e-3


def _recorded(result: Result) -> RestorationRequest:
    """What the parameters of a result say that was asked for."""
    told = dict(result.parameters)
    for made_with in ("prior", "operator", "dtype", "version"):
        del told[made_with]
    if not told.pop("noise_told"):
        told["noise_sigma"] = None
    return RestorationRequest(image=_picture(16, 16), **told)


def test_the_parameters_repeat_the_restoration(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    first = RestorationRequest(
        "super_resolution_x4", _picture(16, 16), preset="quick", steps=STEPS, prompt="ab", seed=3
    )
    _, result = _restore(restorer, first)
    again = _recorded(result)
    assert torch.equal(_restore(restorer, again)[1].images, result.images)


def test_eta_is_the_operators_or_the_papers_and_adds_up_to_the_same_in_fewer_steps(
    tiny_prior: LatentPrior,
    operators: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knowing = CompactCNN.from_pretrained(operators["super_resolution_x4"])
    knowing.metadata["eta"] = 0.8
    knowing.save_pretrained(tmp_path)

    applied: list[float] = []

    def sample(
        problem: Problem, schedule: Schedule, *, eta: float, **others: Any
    ) -> Generator[Step, None, None]:
        applied.append(eta)
        return SAMPLERS["silo"].sample(problem, schedule, eta=eta, **others)

    watched = {name: replace(sampler, sample=sample) for name, sampler in SAMPLERS.items()}
    monkeypatch.setattr("silo.restorer.SAMPLERS", watched)

    def eta(operator: Path, steps: int, **changes: Any) -> tuple[float, float]:
        """The recorded scale and that of a step."""
        request = RestorationRequest(
            "super_resolution_x4", _picture(64, 64), steps=steps, **changes
        )
        restorer = Restorer(tiny_prior, operator=operator)
        next(restorer.restore(request))
        return restorer.parameters(request)["eta"], applied[-1]

    paper = operators["super_resolution_x4"]
    assert eta(paper, 1000) == (0.5, 0.5)
    assert eta(paper, 100) == (0.5, 5.0)
    assert eta(paper, 100, eta=3.0) == (3.0, 30.0)
    assert eta(tmp_path, 50) == (0.8, 16.0)
    assert eta(tmp_path, 50, sampler="silo-fast") == (0.7, 0.7)


@pytest.mark.parametrize("sampler", ["ldps", "gml-dps", "psld", "resample"])
def test_a_peer_needs_no_operator_records_what_it_ran_with_and_can_be_repeated(
    tiny_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setattr("operators.catalog.SHELF", tmp_path)  # there are none
    restorer = Restorer(tiny_prior)
    few = {"pixel_iterations": 4, "latent_iterations": 2} if sampler == "resample" else {}
    first = RestorationRequest(
        "super_resolution_x4", _picture(16, 16), sampler=sampler, steps=STEPS, hyperparameters=few
    )
    _, result = _restore(restorer, first)
    loop = {"ldps": (0, 3), "gml-dps": (3, 3), "psld": (3, 3), "resample": (0, 3 + 2)}
    encodes, decodes = loop[sampler]
    assert (result.nfe, result.encodes, result.decodes) == (STEPS, 1 + encodes, decodes + 1)
    assert result.parameters["operator"] is None and result.parameters["eta"] is None
    assert result.parameters["hyperparameters"] == first.effective_hyperparameters
    again = _recorded(result)
    assert torch.equal(_restore(restorer, again)[1].images, result.images)


@pytest.mark.parametrize("sampler", ["ldps", "gml-dps", "psld", "resample"])
def test_a_peer_keeps_known_pixels_when_asked_only(tiny_prior: LatentPrior, sampler: str) -> None:
    few = {"pixel_iterations": 4, "latent_iterations": 2} if sampler == "resample" else {}
    mask = torch.ones(1, 1, 64, 96)
    mask[..., 20:44, 40:70] = 0
    kept, painted = (
        _restore(
            Restorer(tiny_prior),
            RestorationRequest(
                "inpainting_free",
                _picture(),
                mask=mask,
                sampler=sampler,
                steps=STEPS,
                hyperparameters=few,
                keep_known=keep,
            ),
        )[1].images
        for keep in (True, False)
    )
    torch.testing.assert_close(kept, keep_known(painted, _picture(), mask))
    assert (painted[..., :16] - _picture()[..., :16]).abs().mean() > 0.05


def test_an_operator_for_another_task_or_latent_space_is_refused(
    tiny_prior: LatentPrior, operators: dict[str, Path], tmp_path: Path
) -> None:
    request = RestorationRequest("gaussian_blur", _picture(), steps=1)
    with pytest.raises(OperatorError, match="trained for super_resolution_x4"):
        next(Restorer(tiny_prior, operator=operators["super_resolution_x4"]).restore(request))
    wide = CompactCNN(latent_channels=6, width=8, blocks=1, groups=4)
    wide.save_pretrained(tmp_path)
    with pytest.raises(BadRequest, match="6 channels"):
        next(Restorer(tiny_prior, operator=tmp_path).restore(request))


def test_no_operator_on_the_shelf_says_how_to_get_one(tiny_prior: LatentPrior) -> None:
    request = RestorationRequest("motion_blur", _picture(), steps=1)
    with pytest.raises(OperatorNotFound, match="train-operator --task motion_blur"):
        next(Restorer(tiny_prior).restore(request))


def test_priors_with_four_latent_channels_share_stable_diffusions_operators(
    tiny_prior: LatentPrior,
) -> None:
    request = RestorationRequest("gaussian_blur", _picture(), preset="quick", steps=1)
    _, result = _restore(Restorer(tiny_prior), request)
    assert result.parameters["operator"]["name"] == "trained/gaussian_blur_sd15"


def test_what_guides_can_be_told_where_the_priors_device_is_not_at_hand(
    tiny_prior: LatentPrior, operators: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on ZeroGPU, whose handlers have no GPU until one is lent.
    monkeypatch.setattr(tiny_prior, "device", torch.device("cuda:99"))
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest("super_resolution_x4", _picture(16, 16), steps=1)
    told = restorer.parameters(request)["operator"]
    assert told == {"name": str(operators["super_resolution_x4"]), "revision": None}


def test_closing_stops_the_restoration(tiny_prior: LatentPrior, operators: dict[str, Path]) -> None:
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest("super_resolution_x4", _picture(16, 16), steps=50)
    run = restorer.restore(request)
    next(run)
    evaluations = tiny_prior.nfe
    run.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert tiny_prior.nfe == evaluations == 1
    assert next(run, None) is None


def test_psnr_and_consistency_follow_their_definitions(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 0.0]))
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest("super_resolution_x4", _picture(), simulate=True, steps=1)
    _, result = _restore(restorer, request)
    assert result.measured.clean is not None
    assert cpsnr(result.measured, result.measured.clean).item() == MAX_PSNR  # equal
    # A change that the downscaling does not see costs PSNR but hardly any consistency.
    checkers = torch.ones(1, 1, 64, 96)
    checkers[..., ::2, 1::2] = checkers[..., 1::2, ::2] = -1
    changed, _ = fit(_picture() + 0.1 * checkers, multiple=32, max_pixels=10**6)
    padded, _ = fit(_picture(), multiple=32, max_pixels=10**6)
    assert psnr(changed, padded).item() == pytest.approx(26.0, abs=0.5)
    assert cpsnr(result.measured, changed).item() > 40
    restoration, measurement = scores(result)
    assert restoration.lpips is None or restoration.lpips >= 0
    assert result.clean is not None
    assert measurement.psnr == pytest.approx(psnr(result.measurement, result.clean).item())


@pytest.mark.parametrize("factor", [3, 5])
def test_a_picture_is_scaled_down_by_a_factor_that_the_grid_is_no_multiple_of(
    tiny_prior: LatentPrior, operators: dict[str, Path], factor: int
) -> None:
    degradation = Degradation("super_resolution", {"factor": factor})
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest(
        "super_resolution_x4", _picture(50, 70), simulate=True, degradation=degradation, steps=1
    )
    _, result = _restore(restorer, request)
    assert result.images.shape == (1, 3, 50, 70)
    side = factor * tiny_prior.size_multiple
    assert all(length % side == 0 for length in result.restored.shape[-2:])


def test_a_restorer_keeps_the_operator_that_it_names_when_another_comes_onto_the_shelf(
    tiny_prior: LatentPrior, operators: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"folder": operators["super_resolution_x4"]}
    monkeypatch.setattr("silo.restorer.find_operator", lambda *asked: place["folder"])
    restorer = Restorer(tiny_prior)
    request = RestorationRequest("super_resolution_x4", _picture(), simulate=True, steps=1)
    before = restorer.parameters(request)["operator"], restorer.weights(request)
    place["folder"] = operators["gaussian_blur"]
    assert (restorer.parameters(request)["operator"], restorer.weights(request)) == before
    assert before[0]["name"] == str(operators["super_resolution_x4"])


def test_a_measurement_of_another_strength_is_restored_with_the_tasks_operator(
    tiny_prior: LatentPrior, operators: dict[str, Path]
) -> None:
    other = Degradation("super_resolution", {"factor": 8}, noise_sigma=0.02)
    restorer = Restorer(tiny_prior, operator=operators["super_resolution_x4"])
    request = RestorationRequest(
        "super_resolution_x4", _picture(), simulate=True, degradation=other, steps=1
    )
    _, result = _restore(restorer, request)
    height, width = result.restored.shape[-2:]
    assert result.measured.y.shape[-2:] == (height // 8, width // 8)
    assert result.measured.degradation.noise_sigma == 0.02
    assert result.parameters["degradation"]["parameters"] == {"factor": 8}
    with pytest.raises(BadRequest, match="can only be simulated"):
        RestorationRequest("super_resolution_x4", _picture(), degradation=other)


def test_an_operators_folder_may_have_an_at_sign_in_its_name(
    tiny_prior: LatentPrior, operators: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "me@laboratory"
    shutil.copytree(operators["super_resolution_x4"], folder)
    restorer = Restorer(tiny_prior, operator=folder)
    assert not restorer.reads_features("super_resolution_x4")
