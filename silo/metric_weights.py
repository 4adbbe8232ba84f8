"""Where the weights that metrics need lie: a folder that the user names; they are not ours."""

from __future__ import annotations

import os
from pathlib import Path

from silo.errors import BadRequest

WEIGHTS_VARIABLE = "SILO_METRIC_WEIGHTS"
FILES = {
    "lpips_alex": "lpips_alexnet_fp32.safetensors",
    "lpips_vgg": "lpips_vgg16_fp16.safetensors",
    "inception": "inception-2015-12-05_fp16.pt",
}


def find_metric_weights(name: str, folder: Path | None = None) -> Path | None:
    """The file of FILES[`name`] in `folder` or in $SILO_METRIC_WEIGHTS; None where there is none.

    Raises:
        BadRequest: a folder is named, by argument or variable, but holds none of `FILES`.
    """
    named = str(folder) if folder else os.environ.get(WEIGHTS_VARIABLE, "")
    if not named:
        return None
    found = {key: path for key, file in FILES.items() if (path := Path(named) / file).is_file()}
    if not found:
        raise BadRequest(
            f"No weights of metrics ({', '.join(FILES.values())}) in {named}; unset "
            f"{WEIGHTS_VARIABLE} to go without."
        )
    return found.get(name)
