"""Renders the model card of a trained operator from hub_cards/operator.md."""

from pathlib import Path
from string import Template

from operators.latent import LatentOperator

_TEMPLATE = Path(__file__).parent.parent / "hub_cards" / "operator.md"


def render_operator_card(operator: LatentOperator, pictures: int) -> str:
    """The README.md of an operator's repository, from its metadata.

    Args:
        operator: trained, with the metadata of `silo.train_operator`.
        pictures: how many pictures it was trained on.
    """
    metadata, errors = operator.metadata, operator.metadata["errors"]
    training, degradation = metadata["training"], metadata["degradation"]
    parameters = sum(parameter.numel() for parameter in operator.parameters())
    low, high = metadata["noise_range"]
    return Template(_TEMPLATE.read_text()).substitute(
        task=metadata["task"],
        prior=metadata["prior"],
        architecture=operator.architecture,
        parameters=f"{parameters:,}",
        kind=degradation["kind"],
        degradation_parameters=", ".join(f"{k} {v}" for k, v in degradation["parameters"].items()),
        noise_low=low,
        noise_high=high,
        pictures=f"{pictures:,}",
        crops=f"{training['pictures']:,}",
        pictures_encoded=training["pictures"],
        steps_plain=training["steps"],
        eta=metadata["eta"],
        resolution=training["resolution"],
        steps=f"{training['steps']:,}",
        batch=training["batch"],
        learning_rate=training["learning_rate"],
        seed=training["seed"],
        l1=errors["l1"],
        l1_identity=errors["l1_identity"],
        rmse=errors["rmse"],
    )
