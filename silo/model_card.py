"""Renders the model card of a trained operator from hub_cards/operator.md; its licence."""

import json
import shutil
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

import yaml  # what huggingface_hub reads cards with
from huggingface_hub import EvalResult, ModelCardData, metadata_load, metadata_save
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from operators.catalog import TASKS
from operators.function import FUNCTION
from operators.latent import LatentOperator
from silo.errors import BadRequest
from silo.hub import EXAMPLE_NAME, NO_REPOSITORY
from silo.prior_files import HUB_PRIORS

MAX_FRONT_MATTER_BYTES = 1 << 16
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where PyYAML was built with it
YAML_STRING = "tag:yaml.org,2002:str"
TAGS = ["silo", "image-restoration", "inverse-problems"]
MEASURES = {"l1": "L1 on held-out latents", "rmse": "RMSE on held-out latents"}
RESTORATION_MEASURES = {"psnr": "PSNR", "lpips": "LPIPS-Alex"}
NO_LICENSE = (
    "Its card names no licence, so nobody else may use it: push again with --license ID, such as "
    "cc-by-4.0, if they may."
)
_TEMPLATE = Path(__file__).parent.parent / "hub_cards" / "operator.md"


def render_operator_card(operator: LatentOperator, example: str | None = None) -> str:
    """The README.md of an operator's repository, from its metadata.

    Args:
        operator: trained, with the metadata of `silo.train_operator`.
        example: what the picture `silo.hub.EXAMPLE_NAME` beside the card shows, if there is one.
    """
    metadata, errors = operator.metadata, operator.metadata["errors"]
    training, degradation = metadata["training"], metadata["degradation"]
    parameters = sum(parameter.numel() for parameter in operator.parameters())
    low, high = metadata["noise_range"]
    return Template(_TEMPLATE.read_text()).substitute(
        front_matter=card_data(operator).to_yaml(),
        task=metadata["task"],
        prior=metadata["prior"],
        place=NO_REPOSITORY,
        architecture=operator.architecture,
        parameters=f"{parameters:,}",
        degradation=_degradation(degradation),
        noise_low=low,
        noise_high=high,
        pictures=f"{training['photos']:,}",
        dataset=_dataset(training),
        crops=f"{training['pictures']:,}",
        measurements=_counted(training["noise_draws"], "measurement"),
        recipe=_recipe(training),
        own=_own_degradation(metadata),
        stand_in=_stand_in(metadata),
        example=""
        if example is None
        else f"\n![{metadata['task']}: an example]({EXAMPLE_NAME})\n\n{example}\n",
        command=_command(metadata),
        restoration=_restoration(metadata["results"]),
        eta=metadata["eta"],
        resolution=training["resolution"],
        steps=f"{training['steps']:,}",
        batch=training["batch"],
        learning_rate=training["learning_rate"],
        schedule=training["schedule"],
        seed=training["seed"],
        l1=errors["l1"],
        l1_identity=errors["l1_identity"],
        rmse=errors["rmse"],
    )


def card_data(operator: LatentOperator) -> ModelCardData:
    """What the Hub reads of an operator's card: what it is for, and everything measured.

    An error named NAME_identity, of the trivial H = identity, is told in the name of NAME; what
    the measurement itself scores, in the name of what its restoration does.
    """
    metadata, errors, results = operator.metadata, operator.metadata["errors"], []
    dataset = metadata["training"].get("dataset_name")
    base_model = base_model_of(metadata["prior"])
    for name, value in errors.items():
        if not name.endswith("_identity"):
            title, trivial = MEASURES.get(name, name), errors.get(f"{name}_identity")
            beside = "" if trivial is None else f" (H = identity: {trivial})"
            results.append((name, f"{title}{beside}", value))
    restored = metadata["results"]
    for name, title in RESTORATION_MEASURES.items():
        if name in restored:
            of = f"{restored['pictures']} pictures restored {_by(restored)}"
            beside = f"(the measurement: {restored[f'{name}_measurement']})"
            results.append((name, f"{title} of {of} {beside}", restored[name]))
    return ModelCardData(
        library_name="silo",
        pipeline_tag="image-to-image",
        license=metadata.get("license"),
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter",
        datasets=None if dataset is None else [dataset],
        metrics=[name for name, _, _ in results],
        tags=TAGS,
        model_name=f"silo-{metadata['task']}-{metadata['prior'].replace('/', '-')}",
        eval_results=[
            EvalResult(
                task_type="image-to-image",
                task_name=metadata["task"],
                dataset_type=dataset or "photos",
                dataset_name=f"{dataset or 'photos'}, held out of training",
                metric_type=name,
                metric_name=title,
                metric_value=value,
            )
            for name, title, value in results
        ],
    )


def read_license(card: Path) -> str | None:
    """The licence in a card's front matter; a card is text by anybody, and may have none.

    The front matter has to end within `MAX_FRONT_MATTER_BYTES`, and is not made into objects: a few
    lines of YAML whose keys are merged again and again would fill the memory.
    """
    if not card.is_file():
        return None
    with card.open("rb") as file:
        head = file.read(MAX_FRONT_MATTER_BYTES).decode("utf-8-sig", errors="replace")
    front_matter = REGEX_YAML_BLOCK.search(head)
    if front_matter is None:
        return None
    try:
        root = yaml.compose(front_matter[2], YAML_LOADER)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return None
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode) and key.value == "license":
            is_text = isinstance(value, yaml.ScalarNode) and value.tag == YAML_STRING
            return value.value if is_text else None
    return None


def with_license(card: Path, license: str) -> bytes:
    """A card's content with a licence, by its identifier on the Hub, in its front matter.

    The card itself stays as it is.

    Raises:
        BadRequest: there is no card, or its front matter is not YAML.
    """
    try:
        metadata = metadata_load(card)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise BadRequest(
            f"{card} cannot take the licence {license}: let it begin with YAML metadata between "
            "two lines of ---"
        ) from error
    with TemporaryDirectory() as folder:  # it writes to files alone
        copy = Path(folder) / card.name
        shutil.copyfile(card, copy)
        metadata_save(copy, {**(metadata or {}), "license": license})
        return copy.read_bytes()


def base_model_of(prior: str) -> str | None:
    """The Hub id of a prior by the name it was loaded by; None for the embedded one and folders."""
    name = prior.partition("@")[0]
    if name in HUB_PRIORS:
        return HUB_PRIORS[name].repo_id
    is_hub_id = name.count("/") == 1 and name[0] not in "/.~" and not Path(name).exists()
    return name if is_hub_id else None


def _dataset(training: dict[str, Any]) -> str:
    """Where on the Hub the pictures are, as the continuation of a sentence."""
    if "dataset_name" not in training:
        return ""
    name, revision = training["dataset_name"], training["dataset_revision"]
    link = f"[{name}](https://huggingface.co/datasets/{name})"
    return f" of the dataset {link}\nat commit `{revision}`"


def _recipe(training: dict[str, Any]) -> str:
    """What the preset adds to a plain run, as the end of a sentence."""
    parts = []
    if training["augmentation"]["blurred_rate"]:
        share = f"{training['augmentation']['blurred_rate']:.0%}"
        parts.append(f"{share} of them blurred, as a clean estimate at a high noise level is")
    if training["augmentation"]["upside_down"]:
        parts.append("flipped both ways, colours varied a little")
    if training["average_decay"]:
        parts.append(f"weights averaged with decay {training['average_decay']}")
    return "; ".join(parts)


def _own_degradation(metadata: dict[str, Any]) -> str:
    """What degrades, where that is no task of the catalog, as an indented block."""
    degradation = metadata["degradation"]
    if degradation["kind"] == FUNCTION:
        lead = (
            "What degrades; nothing runs it unless you save it and add\n"
            f"`--simulate --degradation FILE.py:{degradation['parameters']['name']}`:"
        )
        text = metadata["source"].strip()
    elif metadata["task"] not in TASKS:
        lead, text = "What degrades, FILE.json below:", json.dumps(degradation)
    else:
        return ""
    return f"\n{lead}\n\n{indent(text, '    ')}\n"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _degradation(degradation: dict[str, Any]) -> str:
    """What degrades, as a part of a sentence."""
    kind, parameters = degradation["kind"], degradation["parameters"]
    if kind == FUNCTION:
        return f"function `{parameters['name']}` (below)"
    listed = ", ".join(f"{name} {value}" for name, value in parameters.items())
    return f"degradation *{kind}*" + (f" ({listed})" if listed else "")


def _stand_in(metadata: dict[str, Any]) -> str:
    """What must be known of an operator that never met the prior it is for."""
    if "trained_through" not in metadata:
        return ""
    return (
        f"\nThe latents came from `{metadata['trained_through']}`, an autoencoder that shares the "
        f"latent space of\n`{metadata['prior']}`. Neither the operator nor a restoration with it "
        f"has been measured on `{metadata['prior']}` itself.\n"
    )


def _command(metadata: dict[str, Any]) -> str:
    """The options that repeat the training, but for folders."""
    training, degradation = metadata["training"], metadata["degradation"]
    pictures = "--train_data_dir PHOTOS"
    if "dataset_name" in training:
        pictures = f"--dataset_name {training['dataset_name']}@{training['dataset_revision']}"
    options = [pictures]
    if degradation["kind"] == FUNCTION:
        options.append(f"--degradation FILE.py:{degradation['parameters']['name']}")
    elif metadata["task"] not in TASKS:
        options.append("--degradation FILE.json")
    options += [
        f"--task {metadata['task']}",
        f"--pretrained_model_name_or_path {metadata.get('trained_through', metadata['prior'])}",
        *([f"--latent_space {metadata['prior']}"] if "trained_through" in metadata else []),
        f"--preset {training['preset']}",
        f"--resolution {training['resolution']}",
        f"--pictures {training['pictures']}",
        f"--noise_draws {training['noise_draws']}",
        f"--max_train_steps {training['steps']}",
        f"--train_batch_size {training['batch']}",
        f"--learning_rate {training['learning_rate']}",
        f"--lr_scheduler {training['schedule']}",
        f"--eta {metadata['eta']} --seed {training['seed']}",
    ]
    if "mixed_precision" in training:  # not recorded before it depended on the device
        options.append(f"--mixed_precision {training['mixed_precision']}")
    return " \\\n        ".join(options)


def _by(results: dict[str, float | int | str]) -> str:
    """Which sampler restored, and in how many steps."""
    return f"by {results['sampler']} in {results['steps']} steps"


def _restoration(results: dict[str, float | int | str]) -> str:
    """The row of the table that says how well pictures are restored; none if none were."""
    if not results:
        return ""
    title = f"{results['pictures']} held-out pictures, restored {_by(results)}"
    cells = [
        f"{name} {results[key]} (measurement: {results[key + '_measurement']})"
        for key, name in RESTORATION_MEASURES.items()
        if key in results
    ]
    return f"\n| {title} | {', '.join(cells)} |"
