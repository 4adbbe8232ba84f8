"""What ships with the repository: the embedded prior and the operators on the shelf."""

from pathlib import Path

import pytest
import skimage.data
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from operators.catalog import SHELF, TASKS, find_operator, shelf
from operators.latent import LatentOperator, read_config
from silo.images import from_pil
from silo.metrics import cpsnr, psnr
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer

ROOT = Path(__file__).parent.parent
EMBEDDED = ROOT / "silo" / "embedded"


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    return LatentPrior.load("tiny")


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A photo that was not trained on, 256 x 256."""
    return from_pil(Image.fromarray(skimage.data.astronaut()).resize((256, 256)))


def test_the_weights_are_small_half_precision_and_safe() -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

    assert size(EMBEDDED) <= 32e6
    assert size(EMBEDDED) + size(SHELF) <= 45e6
    for path in [*EMBEDDED.rglob("*.safetensors"), *SHELF.rglob("*.safetensors")]:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}, path
    for folder in (EMBEDDED, SHELF):
        suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert suffixes <= {".json", ".safetensors", ".md", ".jpg"}


def test_every_task_has_an_operator_with_a_card(prior: LatentPrior) -> None:
    for task in TASKS:
        folder = find_operator(task, "tiny", prior.latent_channels)
        operator = LatentOperator.from_pretrained(folder)
        errors = operator.metadata["errors"]
        if task == "denoising":  # A is the identity, and no operator foretells the noise
            assert errors["l1"] <= 1.01 * errors["l1_identity"]
        else:
            assert errors["l1"] < errors["l1_identity"], task
        assert task in (folder / "README.md").read_text()
    kinds = {(entry.task, entry.prior, entry.architecture) for entry in shelf()}
    assert len(shelf()) == len(kinds)


def test_the_cards_tell_the_hub_what_was_measured_and_the_licence() -> None:
    for entry in shelf():
        card = (entry.folder / "README.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        (result,) = front["model-index"][0]["results"]
        told = {metric["type"]: metric["value"] for metric in result["metrics"]}
        metadata = read_config(entry.folder).metadata
        measured = {**metadata["errors"], **metadata.get("results", {})}
        kinds = ("l1", "rmse", "psnr", "lpips")
        assert told == {kind: measured[kind] for kind in kinds if kind in measured}, entry.folder
        assert front["license"] == "cc-by-sa-4.0"


def test_the_autoencoder_keeps_a_photo(prior: LatentPrior, photo: Tensor) -> None:
    assert psnr(prior.decode(prior.encode(photo)), photo).item() > 22


@pytest.mark.parametrize("task", TASKS)
def test_a_real_photo_is_restored(prior: LatentPrior, photo: Tensor, task: str) -> None:
    request = RestorationRequest(task, photo, simulate=True, preset="quick", seed=0)
    result = Restorer(prior).run(request)
    assert result.measured.clean is not None
    restored = psnr(result.restored, result.measured.clean).item()
    assert restored > psnr(result.measured.full_size, result.measured.clean).item() - 5
    # It explains the measurement: the closest one could come is the autoencoder's own fidelity.
    assert cpsnr(result.measured, result.restored).item() > 21
