"""Renders the model card of a trained operator from hub_cards/operator.md."""

from pathlib import Path
from string import Template

from huggingface_hub import EvalResult, ModelCardData

from operators.latent import LatentOperator
from silo.prior_files import HUB_PRIORS

LICENSE = "cc-by-sa-4.0"  # of operators trained on the openly licensed pictures of the prior
TAGS = ["silo", "image-restoration", "inverse-problems"]
MEASURES = {"l1": "L1 on held-out latents", "rmse": "RMSE on held-out latents"}
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
        front_matter=card_data(operator).to_yaml(),
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


def card_data(operator: LatentOperator) -> ModelCardData:
    """What the Hub reads of an operator's card: what it is for, and every measured error.

    An error named NAME_identity, of the trivial H = identity, is told in the name of NAME.
    """
    metadata, errors = operator.metadata, operator.metadata["errors"]
    dataset = metadata["training"].get("dataset_name")
    base_model = base_model_of(metadata["prior"])
    results = []
    for name, value in errors.items():
        if name.endswith("_identity"):
            continue
        title, trivial = MEASURES.get(name, name), errors.get(f"{name}_identity")
        results.append(
            EvalResult(
                task_type="image-to-image",
                task_name=metadata["task"],
                dataset_type=dataset or "photos",
                dataset_name=f"{dataset or 'photos'}, held out of training",
                metric_type=name,
                metric_name=title if trivial is None else f"{title} (H = identity: {trivial})",
                metric_value=value,
            )
        )
    return ModelCardData(
        library_name="silo",
        pipeline_tag="image-to-image",
        license=metadata.get("license", LICENSE),
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter",
        datasets=None if dataset is None else [dataset],
        metrics=[result.metric_type for result in results],
        tags=TAGS,
        model_name=f"silo-{metadata['task']}-{metadata['prior'].replace('/', '-')}",
        eval_results=results,
    )


def base_model_of(prior: str) -> str | None:
    """The Hub id of a prior by the name it was loaded by; None for the embedded one and folders."""
    name = prior.partition("@")[0]
    if name in HUB_PRIORS:
        return HUB_PRIORS[name].repo_id
    is_hub_id = name.count("/") == 1 and name[0] not in "/.~" and not Path(name).exists()
    return name if is_hub_id else None
