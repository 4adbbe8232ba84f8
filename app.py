"""The page, served: load the prior, then answer visitors. Spaces run this too."""

import spaces  # noqa: F401  # ahead of torch: on ZeroGPU it must be there before CUDA is touched

# isort: split

import functools
import importlib.util
import os
import sys

from spaces.config import Config

from silo.caption import Captioner
from silo.decoding import MAX_FILE_BYTES
from silo.devices import pick_device, pick_dtype
from silo.errors import SiloError
from silo.lpips import find_weights
from silo.prior import LatentPrior, load_or_embedded
from silo.prior_files import EMBEDDED_NAME
from silo.ui import paste
from silo.ui.models import Models
from silo.ui.page import build
from silo.ui.style import CSS, theme
from silo.ui.timing import Timing

USUAL_PRIOR = os.environ.get("SILO_PRIOR", EMBEDDED_NAME)
COLLECTION = os.environ.get("SILO_COLLECTION")  # whose operators the page offers to fetch
MAX_WAITING = 20  # visitors; one more is told that the queue is full


def load_prior(name: str) -> LatentPrior:
    """Load a prior on the fastest device; where the Hub lacks the usual one, the embedded one."""
    device = pick_device()
    dtype = pick_dtype(device)
    if name != USUAL_PRIOR:  # a visitor's choice, not to be replaced by another
        # On ZeroGPU only what is loaded at the start may be put on a GPU that is not lent yet.
        place = "cpu" if Config.zero_gpu else device
        return LatentPrior.load(name, device=place, dtype=dtype)
    prior, notice = load_or_embedded(name, device=device, dtype=dtype)
    if notice is not None:
        prior.notices.append(notice)  # every result tells it
    return prior


def load_captioner() -> Captioner:
    """Make the captioner, which loads its model when it is first asked to describe a photo."""
    return Captioner(device=pick_device())


def main() -> None:
    """Load the model, then serve the page."""
    captioner = functools.cache(load_captioner)

    def load(name: str) -> LatentPrior:
        captioner().release_under_pressure()
        return load_prior(name)

    models, timing = Models(load, USUAL_PRIOR, COLLECTION), Timing()
    try:
        find_weights("alex")  # a folder without any is told now, not in place of a result
        restorer = models.restorer()
        if restorer.prior.name == EMBEDDED_NAME and restorer.prior.device.type == "cpu":
            timing.measure(USUAL_PRIOR, restorer)  # others would keep visitors waiting
    except SiloError as error:
        sys.exit(str(error))
    page = build(models, captioner, timing)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=4, api_open=False)
    page.launch(
        theme=theme(),
        css=CSS,
        head=paste.HEAD,
        max_file_size=MAX_FILE_BYTES,
        run_history=False,
        ssr_mode=False,
        footer_links=["settings"],
        mcp_server=importlib.util.find_spec("mcp") is not None,  # there with gradio[mcp]
    )


if __name__ == "__main__":
    main()
