"""From rows to means, and from means to the tables of table.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from safetensors.torch import load_file

from operators.catalog import TASKS
from silo.evaluation.jobs import Store, clean_key
from silo.evaluation.protocols import Setting
from silo.evaluation.record import Row
from silo.metrics import frechet_distance, kernel_distance
from silo.samplers import SAMPLERS

PUBLISHED = Path(__file__).parent.parent.parent / "hub_cards" / "published_results.json"
TITLES = {
    "silo": "SILO",
    "silo-jacobian-free": "SILO, Jacobian-free",
    "ldps": "LDPS",
    "gml-dps": "GML-DPS",
    "psld": "PSLD",
    "resample": "ReSample",
}
MEASUREMENT = "measurement"
NOT_AVAILABLE = "not available"
# The metrics of the paper's tables: key, title, digits after the point.
COMPARED = (
    ("psnr", "PSNR", 2),
    ("cpsnr", "CPSNR", 2),
    ("lpips", "LPIPS-A", 3),
    ("lpips_vgg", "LPIPS-V", 3),
    ("fid", "FID", 2),
    ("kid", "KID", 2),
)
_WEIGHED = ("lpips", "lpips_vgg", "fid", "kid")  # need the weights of a network
_QUALITY = (*COMPARED[:2], ("ssim", "SSIM", 3), *COMPARED[2:])
_COST = (("seconds", "seconds", 1), ("nfe", "NFE", 0), ("encodes", "E", 0), ("decodes", "D", 0))


@dataclass(frozen=True)
class Cell:
    """The means of one method on one row of the table.

    Attributes:
        row: the task, with what else sets the row apart.
        method: the column.
        key: of the rows in the record.
        pictures: how many there are means of.
        failed: how many could not be restored, and `error` says why the first could not.
        devices: what the rows were computed on.
        notices: what the restorations told, such as that they ran in less memory.
        means: by metric; None where it is not available. FID is not scaled, KID times 1,000.
    """

    row: str
    method: str
    key: str
    pictures: int
    failed: int
    error: str | None
    devices: tuple[str, ...]
    notices: tuple[str, ...]
    means: dict[str, float | None]

    @property
    def shortfall(self) -> str:
        """What its means have to be shown with where some pictures failed: those are easier."""
        return f" ({self.failed} of {self.pictures + self.failed} failed)" if self.failed else ""


def row_title(setting: Setting, among: Sequence[Setting]) -> str:
    """The setting's row: its task, and its noise level where the task has several."""
    title = setting.task
    if setting.degradation is not None and setting.task in TASKS:
        changed = setting.degradation.parameters.items()
        title += f" on {', '.join(f'{name} {value:g}' for name, value in changed)}"
    levels = {each.measured.noise_sigma for each in among if each.task == setting.task}
    return f"{title}, noise {setting.measured.noise_sigma:g}" if len(levels) > 1 else title


def method_title(setting: Setting, among: Sequence[Setting]) -> str:
    """The setting's column: its sampler; prior and operator where there are several; its note."""
    parts = [TITLES.get(setting.sampler, setting.sampler)]
    if len({each.prior for each in among}) > 1:
        parts.append(setting.prior)
    operators = {each.operator for each in among if SAMPLERS[each.sampler].needs_operator}
    if len(operators) > 1 and SAMPLERS[setting.sampler].needs_operator:
        parts.append(setting.operator or "shelf")
    return ", ".join(parts + ([setting.note] if setting.note else []))


def summarize(
    row: str, method: str, key: str, rows: Sequence[Row], store: Store, size: int
) -> Cell:
    """The means over the rows of `key`, and the distances of its pictures to the clean ones.

    Args:
        row: the title of the row.
        method: the title of the column.
        key: what the rows are of.
        rows: from the record.
        store: where the features lie.
        size: side of the pictures, in pixels.
    """
    good = [each for each in rows if "error" not in each]
    failed = [each["error"] for each in rows if "error" in each]
    means: dict[str, float | None] = {}
    for name in good[0]["scores"] if good else ():
        values = [each["scores"][name] for each in good]
        means[name] = None if None in values else fmean(values)
    names = [each["picture"] for each in good]
    if good and "inception" in good[0].get("measures", ()):
        means |= _distances(store, key, names, size)
    else:
        means |= {"fid": None, "kid": None}
    restored = bool(good) and "seconds" in good[0]
    for name, _, _ in _COST:
        means[name] = median(each[name] for each in good) if restored else None
    memory = [each["peak_memory"] for each in good] if restored else []
    means["peak_memory"] = max(memory) if memory and None not in memory else None
    devices = tuple(sorted({each["device"] for each in good if "device" in each}))
    error = failed[0] if failed else None
    notices = tuple(sorted({notice for each in good for notice in each.get("notices", ())}))
    return Cell(row, method, key, len(good), len(failed), error, devices, notices, means)


def _distances(store: Store, key: str, names: list[str], size: int) -> dict[str, float | None]:
    if len(names) < 2:
        return {"fid": None, "kid": None}
    ours, clean = (
        torch.cat([load_file(store.features(k, name))["features"] for name in names])
        for k in (key, clean_key(size))
    )
    return {"fid": frechet_distance(ours, clean), "kid": 1000 * kernel_distance(ours, clean)}


def comparison(cells: Sequence[Cell]) -> str:
    """The paper's layout: a row a task, a column a method, the metrics of a cell side by side."""
    shown = [
        (name, title, digits)
        for name, title, digits in COMPARED
        if any(cell.means.get(name) is not None for cell in cells)
    ]
    hidden = [each[1] for each in COMPARED if each not in shown and each[0] in _WEIGHED]
    methods = list(dict.fromkeys(cell.method for cell in cells))
    by_place = {(cell.row, cell.method): cell for cell in cells}
    lines = [_line(["task", *methods]), _line(["---"] * (len(methods) + 1))]
    for row in dict.fromkeys(cell.row for cell in cells):
        values = []
        for method in methods:
            cell = by_place.get((row, method))
            if cell is None or cell.pictures == 0:
                values.append("–")
            else:
                numbers = [_number(cell.means[name], digits) for name, _, digits in shown]
                values.append(" / ".join(numbers) + cell.shortfall)
        lines.append(_line([row, *values]))
    text = "\n".join(lines) + f"\n\nEach cell: {' / '.join(title for _, title, _ in shown)}.\n"
    if hidden:
        text += f"{', '.join(hidden)}: {NOT_AVAILABLE} (no weights, or fewer than two pictures).\n"
    return text


def figures(cells: Sequence[Cell]) -> str:
    """A line for each row and method, a column for each figure."""
    columns = [*_QUALITY]
    if any(cell.means.get("diversity") is not None for cell in cells):
        columns.append(("diversity", "diversity", 3))
    titles = [title for _, title, _ in [*columns, *_COST]]
    lines = [_line(["task", "method", "pictures", *titles, "memory (MB)"])]
    lines.append(_line(["---"] * (len(titles) + 4)))
    for cell in cells:
        values = [_number(cell.means.get(name), digits) for name, _, digits in columns]
        if cell.means["seconds"] is None:  # nothing was restored
            costs = ["–"] * (len(_COST) + 1)
        else:
            costs = [_number(cell.means[name], digits) for name, _, digits in _COST]
            memory = cell.means["peak_memory"]
            costs.append(_number(None if memory is None else memory / 1e6, 0))
        lines.append(_line([cell.row, cell.method, str(cell.pictures), *values, *costs]))
    notes = [
        f"- {cell.row}, {cell.method}: {cell.failed} failed: {cell.error}\n"
        for cell in cells
        if cell.error is not None
    ]
    notes += [f"- {cell.row}, {cell.method}: {told}\n" for cell in cells for told in cell.notices]
    devices = sorted({device for cell in cells for device in cell.devices})
    if len(devices) > 1:
        computed = "; ".join(devices)
        notes.append(f"- Not all seconds are of one device, so do not compare them: {computed}.\n")
    return "\n".join(lines) + "\n\n" + "".join(notes)


def accuracies(cells: Sequence[Cell]) -> str:
    """The distances of `OperatorAccuracy`: of the operator and, after the stroke, the identity."""
    names = [name for name in cells[0].means if f"H({name})" in cells[0].means]
    lines = [_line(["task", "pictures", *names]), _line(["---"] * (len(names) + 2))]
    for cell in cells:
        values = [
            f"{_number(cell.means[f'H({name})'], 3)} / {_number(cell.means[name], 3)}"
            for name in names
        ]
        lines.append(_line([f"{cell.row}, {cell.method}", str(cell.pictures), *values]))
    return "\n".join(lines) + (
        "\n\nMean absolute difference to E(A(x)) per latent element: of H(column) / of the column "
        "itself. The paper trains towards 0.1.\n"
    )


def published(table: str) -> str:
    """A published table, marked as such, in the layout of `comparison`."""
    content: dict[str, Any] = json.loads(PUBLISHED.read_text())
    entry = content["tables"][table]
    digits = [digits for _, _, digits in COMPARED]
    methods = list(dict.fromkeys(method for row in entry["rows"].values() for method in row))
    lines = [_line(["task", *methods]), _line(["---"] * (len(methods) + 1))]
    for task, row in entry["rows"].items():
        values = [
            " / ".join(
                "–" if value is None else f"{value:.{places}f}"
                for value, places in zip(row.get(method, ()), digits, strict=method in row)
            )
            for method in methods
        ]
        lines.append(_line([task, *(value or "–" for value in values)]))
    times = content["seconds"]
    seconds = ", ".join(f"{name} {value}" for name, value in times["values"].items())
    return (
        "\n".join(lines)
        + f"\n\nEach cell: {' / '.join(content['metrics'])}. {entry['title']}.\n"
        + f"Times ({times['title']}): {seconds}.\nSource: {content['source']}.\n"
    )


def _number(value: float | None, digits: int) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
