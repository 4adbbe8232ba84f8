"""`python -m silo restore`: pictures or a folder of them in, restored PNG files out."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from operators.catalog import FREE_FORM, TASKS
from operators.degradation import Degradation
from operators.errors import OperatorError
from silo.allocation import keep_freed_memory
from silo.caption import Captioner
from silo.command_line import CommandParser
from silo.commands.picture_files import find_pictures, plan_outputs
from silo.devices import DTYPES, dtype_name, peak_memory, pick_device, pick_dtype
from silo.errors import (
    BadImage,
    BadMask,
    BadRequest,
    CannotSave,
    NumericalError,
    OutOfMemory,
    Unrestorable,
)
from silo.folders import make_folder, require_place
from silo.images import load_image, read_parameters, save_png, to_pil
from silo.lpips import find_weights
from silo.masks import load_mask
from silo.measured import WORKING_SIZE
from silo.metrics import scores
from silo.own_degradation import load_degradation
from silo.photo.diagnosis import require_task
from silo.prior import load_or_embedded
from silo.request import (
    MAX_SAMPLES,
    MAX_WORKING_SIZE,
    MIN_WORKING_SIZE,
    PRESETS,
    RestorationRequest,
    check_task,
)
from silo.restorer import Finishing, Progress, Restorer, Result
from silo.samplers import SAMPLERS
from silo.scratches.detector import describe, find_scratches

# What can be wrong with one picture of many; anything else is wrong with the call. An operator may
# not fit a picture's size; whether there is one at all is known before the first picture.
PICTURE_ERRORS = (
    BadImage,
    BadMask,
    CannotSave,
    NumericalError,
    OperatorError,
    OutOfMemory,
    Unrestorable,
)
# What is for damage that is named.
FOR_A_TASK = ("simulate", "degradation", "operator", "mask", "blur_std")


@dataclass(frozen=True)
class _Shared:
    """What all pictures of a call are restored with, loaded once.

    Attributes:
        restorer: with the operator that was named.
        degradation: of a task of one's own.
        mask: (1, 1, H, W), 1 = known.
        mask_sha256: of the mask's file.
        captioner: what writes the prompts, if it is to.
    """

    restorer: Restorer
    degradation: Degradation | None
    mask: Tensor | None
    mask_sha256: str | None
    captioner: Captioner | None


def main(argv: list[str]) -> int:
    """Restore; returns 0, or 1 when some of several pictures failed."""
    arguments = _parser().parse_args(argv)
    arguments.sampler = arguments.sampler or PRESETS[arguments.preset].sampler
    _check_options(arguments)
    pictures = find_pictures(arguments.inputs)
    outputs = plan_outputs(
        arguments.inputs, pictures, arguments.out, samples=arguments.samples, mask=arguments.mask
    )
    for folder in {paths[0].parent for paths in outputs}:
        require_place(folder)
    keep_freed_memory()
    shared = _load(arguments)
    failures = []
    for index, (picture, paths) in enumerate(zip(pictures, outputs, strict=True)):
        title = picture.name if len(pictures) == 1 else f"{index + 1}/{len(pictures)}"
        try:
            _restore_one(arguments, shared, picture, paths, title)
        except PICTURE_ERRORS as error:
            if len(pictures) == 1:
                raise
            failures.append(f"{picture}: {error}")
    if failures:
        _say(f"{len(failures)} of {len(pictures)} pictures failed:")
        for failure in failures:
            _say(f"  {failure}")
    return 1 if failures else 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Tell what is wrong with a call before anything is loaded for it."""
    sampler = arguments.sampler
    if arguments.task == "":
        _check_unnamed(arguments)
    elif arguments.task in TASKS:  # one of the user's own is known once its operator is loaded
        check_task(arguments.task, sampler)
    if arguments.operator is not None and not SAMPLERS[sampler].needs_operator:
        raise BadRequest(f"{sampler} uses no latent operator: leave --operator out.")
    if arguments.simulate:
        find_weights("alex")  # a folder without any is told now, not after a restoration


def _check_unnamed(arguments: argparse.Namespace) -> None:
    for name in FOR_A_TASK:
        value = getattr(arguments, name)
        if value is not None and value is not False:
            option = "--" + name.replace("_", "-")
            raise BadRequest(f"{option} is for damage that is named: add --task.")


def _load(arguments: argparse.Namespace) -> _Shared:
    device = pick_device(arguments.device)
    prior, notice = load_or_embedded(
        arguments.prior, device=device, dtype=pick_dtype(device, arguments.dtype)
    )
    if notice is not None:
        _say(notice)
    restorer = Restorer(prior, operator=arguments.operator)
    degradation = _own_degradation(arguments, restorer)
    if arguments.task and SAMPLERS[arguments.sampler].needs_operator:
        restorer.reads_features(arguments.task)  # which loads its operator
    mask = mask_sha256 = None
    if arguments.mask is not None:
        mask, mask_sha256 = load_mask(arguments.mask), _sha256(arguments.mask)
    captioner = Captioner(device=device) if arguments.caption else None
    return _Shared(restorer, degradation, mask, mask_sha256, captioner)


def _own_degradation(arguments: argparse.Namespace, restorer: Restorer) -> Degradation | None:
    """What --degradation names, or what the operator for a task of one's own was trained for."""
    if arguments.degradation is not None:
        degradation = load_degradation(arguments.degradation).degradation
        trained_for = restorer.task(arguments.task).degradation
        if dict(degradation.parameters) != dict(trained_for.parameters):
            _say(f"{arguments.degradation} is not what the operator was trained for.")
        return degradation
    if arguments.task not in ("", *TASKS):
        return restorer.task(arguments.task).degradation
    return None


def _restore_one(
    arguments: argparse.Namespace, shared: _Shared, picture: Path, paths: list[Path], title: str
) -> None:
    """Restore a picture into `paths`, unless the same restoration lies there already."""
    loaded, restorer = load_image(picture), shared.restorer
    mask, mask_sha256, notices = shared.mask, shared.mask_sha256, []
    if _finds_mask(arguments):
        mask = find_scratches(loaded.pixels)
        mask_sha256 = hashlib.sha256(mask.numpy().tobytes()).hexdigest()
        notices = [describe(mask)]
    request = _request(arguments, shared, picture, loaded.pixels, mask)
    record = {
        **restorer.parameters(request),
        "input": {"name": picture.name, "sha256": _sha256(picture)},
        "mask": mask_sha256,
        "weights": restorer.weights(request),
    }
    if all(_is_done(path, record) for path in paths):
        _say(f"{', '.join(map(str, paths))}: up to date, skipped.")
        result = None
    else:
        result = _run(restorer, request, title)
        make_folder(paths[0].parent)
        for path, image in zip(paths, result.image_by_image(), strict=True):
            save_png(path, image, record)
        notices += result.notices
        for line in notices:
            _say(line if title == picture.name else f"{picture.name}: {line}")
    if arguments.json:
        report = _report(record, paths, result, notices, restorer.prior.device)
        print(json.dumps(report), flush=True)
    elif result is not None:
        print(*paths, sep="\n", flush=True)
    for line in loaded.notices:
        _say(line)


def _request(
    arguments: argparse.Namespace,
    shared: _Shared,
    picture: Path,
    pixels: Tensor,
    mask: Tensor | None,
) -> RestorationRequest:
    task = arguments.task or _found(shared.restorer, arguments.sampler, picture, pixels)
    captioner = shared.captioner
    return RestorationRequest(
        task=task,
        image=pixels,
        simulate=arguments.simulate,
        degradation=shared.degradation,
        mask=mask,
        prompt=arguments.prompt if captioner is None else captioner.describe(to_pil(pixels)),
        negative_prompt=arguments.negative_prompt,
        guidance_scale=arguments.guidance_scale,
        sampler=arguments.sampler,
        preset=arguments.preset,
        steps=arguments.steps,
        eta=arguments.eta,
        noise_sigma=arguments.noise_sigma,
        blur_std=arguments.blur_std,
        keep_known=arguments.keep_known,
        working_size=arguments.working_size,
        clamp=arguments.clamp,
        hyperparameters=dict(arguments.hyperparameters),
        samples=arguments.samples,
        seed=arguments.seed,
    )


def _finds_mask(arguments: argparse.Namespace) -> bool:
    """Whether each photo's scratches are looked for, since no mask marks them."""
    is_named = arguments.mask is not None or arguments.simulate
    return arguments.task == FREE_FORM and not is_named


def _found(restorer: Restorer, sampler: str, picture: Path, photo: Tensor) -> str:
    """The task for a photo by what it shows, which is told; it can be done, too.

    Raises:
        Unrestorable: there is none, or no operator or sampler for it.
    """
    task = require_task(photo)
    _say(f"{picture.name} shows {task}.")
    try:
        check_task(task, sampler)
        if SAMPLERS[sampler].needs_operator:
            restorer.reads_features(task)  # which loads its operator
    except (BadRequest, OperatorError) as error:
        raise Unrestorable(f"It shows {task}: {error}") from error
    return task


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_done(path: Path, record: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    try:
        return read_parameters(path) == json.loads(json.dumps(record))
    except BadImage:  # a file of that name that is no picture is not a finished one
        return False


def _run(restorer: Restorer, request: RestorationRequest, title: str) -> Result:
    with tqdm(total=request.effective_steps, desc=title, unit="step", leave=False) as bar:
        for event in restorer.restore(request):
            if isinstance(event, Progress):
                bar.update(event.step - bar.n)  # back, when memory ran out and it begins anew
            elif isinstance(event, Finishing):
                bar.set_postfix_str(f"finishing {event.sample} of {event.samples}")
            else:
                return event
    raise BadRequest("the sampler ended without a result.")


def _report(
    record: dict[str, Any],
    paths: list[Path],
    result: Result | None,
    notices: list[str],
    device: torch.device,
) -> dict[str, Any]:
    """What --json tells of a picture; of one that was up to date, without a `result`, less."""
    names = [str(path) for path in paths]
    told = ("task", "sampler", "steps", "eta", "hyperparameters", "seed", "prior", "operator")
    report = {
        "output": names[0] if len(names) == 1 else names,
        "skipped": result is None,
        **{key: record[key] for key in told},
    }
    if result is None:
        return report
    report |= {
        "nfe": result.nfe,
        "encodes": result.encodes,
        "decodes": result.decodes,
        "seconds": round(result.seconds, 2),
        "size": list(result.restored.shape[-2:]),
        "memory": peak_memory(device),
        "notices": notices,
    }
    if record["simulate"]:
        restoration, measurement = scores(result)
        report |= {"restoration": asdict(restoration), "measurement": asdict(measurement)}
    return report


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _assignment(text: str) -> tuple[str, float | int]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.isdigit() else float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=NUMBER, such as omega=0.5"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo restore", description=__doc__)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="pictures or folders")
    parser.add_argument(
        "--task",
        default="",
        help=f"{', '.join(TASKS)}, or what --operator was trained for; without: blur, shake, JPEG "
        "compression, noise or a small size, whichever INPUT shows",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a .png file for one picture, else a folder; beside INPUT, or in FOLDER_restored, by "
        "default",
    )
    parser.add_argument(
        "--simulate", action="store_true", help="INPUT is clean: degrade, restore, compare"
    )
    parser.add_argument(
        "--degradation",
        metavar="FILE.py:FUNCTION",
        help="the function of a task of one's own, which --simulate runs",
    )
    parser.add_argument(
        "--prior", default="tiny", help="tiny (the default), sd15, rv51, a folder or a Hub id"
    )
    parser.add_argument("--operator", help="folder or Hub id, in place of the shelf's")
    parser.add_argument(
        "--preset",
        default="balanced",
        choices=tuple(PRESETS),
        help="; ".join(f"{name}: {p.sampler}, {p.steps} steps" for name, p in PRESETS.items())
        + "; balanced by default",
    )
    parser.add_argument(
        "--sampler",
        choices=tuple(SAMPLERS),
        help="in place of the preset's; in its published steps",
    )
    parser.add_argument("--steps", type=int, help="in place of the preset's")
    parser.add_argument(
        "--eta",
        type=float,
        help="consistency scale, for 1,000 steps, in place of the operator's: higher keeps closer "
        "to INPUT",
    )
    parser.add_argument("--clamp", type=float, help="bound on the guidance gradient's elements")
    parser.add_argument(
        "--set",
        dest="hyperparameters",
        metavar="NAME=NUMBER",
        type=_assignment,
        action="append",
        default=[],
        help="a hyper-parameter of the other samplers, in place of the published one",
    )
    parser.add_argument(
        "--noise-sigma",
        type=float,
        help="standard deviation of the noise, where white is 1, in place of the task's: what "
        "--simulate adds, or what INPUT has at least",
    )
    parser.add_argument(
        "--blur-std",
        type=float,
        metavar="PIXELS",
        help="how blurred INPUT is, with a Gaussian blur, in place of what is estimated",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        help=f"picture of INPUT's size; white = fill in; without, {FREE_FORM} fills in the "
        "scratches, dust and creases that it finds",
    )
    parser.add_argument(
        "--keep-known",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what is measured (the default): known pixels, and what other damage has left",
    )
    parser.add_argument(
        "--working-size",
        type=int,
        metavar="PIXELS",
        help="pictures of more pixels than this squared are worked on scaled down, which is faster "
        f"and coarser; {MIN_WORKING_SIZE} to {MAX_WORKING_SIZE}; by default {WORKING_SIZE} for "
        "blur, shakes and small photos, else twice the prior's side",
    )
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--prompt", default="", help="what the picture shows")
    texts.add_argument("--caption", action="store_true", help="let Qwen2-VL write the prompt")
    parser.add_argument("--negative-prompt", default="", help="what it does not show")
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0, help="of the prompt; 1, the default, is none"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        choices=range(1, MAX_SAMPLES + 1),
        metavar="N",
        help=f"restorations of each picture, 1 (the default) to {MAX_SAMPLES}",
    )
    parser.add_argument("--seed", type=int, default=0, help="one seed, one picture; 0 by default")
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, mps or cpu")
    names = {dtype_name(dtype) for dtypes in DTYPES.values() for dtype in dtypes}
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *sorted(names)),
        help="what the networks compute in; auto, the default, is bfloat16 on cuda, float16 on "
        "GPUs without it, and float32 on mps and cpu",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a picture on stdout")
    return parser
