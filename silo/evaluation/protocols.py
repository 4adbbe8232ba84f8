"""The paper's comparisons and the questions its readers ask, as data for `evaluate --protocol`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from operators.catalog import TASKS
from operators.degradation import Degradation

PAPER_TASKS = (
    "super_resolution_x8",
    "inpainting_box",
    "gaussian_blur",
    "super_resolution_x4",
    "jpeg_q10",
)
PAPER_STEPS, PAPER_SEED, PAPER_NOISE = 1000, 1000, 0.01
FACE_PROMPT, PROMPT = "A high quality photo of a face", "A high quality photo"
FFHQ = "FFHQ at 512 pixels, in order: the paper tests on the first 1,000"
COCO = "COCO at 512 pixels: which 1,000 the paper took is not known here, so the first 1,000"
PHOTOS = "the pictures that the embedded prior was trained on, with those held out of its training"
TIMESTEPS = (50, 200, 400, 600, 800, 950)  # of z0hat_t in `operator-accuracy`


@dataclass(frozen=True)
class Setting:
    """All that a restoration in an evaluation depends on, but for the picture.

    Attributes:
        task: a key of `operators.catalog.TASKS`, or any name with `degradation`.
        sampler: a key of `silo.samplers.SAMPLERS`.
        prior: as in `LatentPrior.load`.
        operator: an architecture on the shelf, a folder or a Hub id; None for the shelf's first.
        degradation: what damages the pictures, in place of the task's.
        noise_sigma: in [0, 1] units, in place of the task's.
        prompt: for every picture; None for each picture's caption.
        guidance_scale: of the prompt; 1 for none.
        steps: denoising steps; None for the sampler's published number.
        eta: consistency scale, as of `RestorationRequest`; None for the operator's own.
        hyperparameters: (name, value) of samplers that have no eta, in place of the published.
        clamp: bound on each element of the guidance gradient.
        keep_known: as of `RestorationRequest`.
        samples: restorations of each picture.
        seed: of every picture.
        note: what sets it apart from the others in a table; no part of what it is.
    """

    task: str
    sampler: str = "silo"
    prior: str = "tiny"
    operator: str | None = None
    degradation: Degradation | None = None
    noise_sigma: float | None = None
    prompt: str | None = ""
    guidance_scale: float = 1.0
    steps: int | None = None
    eta: float | None = None
    hyperparameters: tuple[tuple[str, float | int], ...] = ()
    clamp: float | None = None
    keep_known: bool = False
    samples: int = 1
    seed: int = 0
    note: str = ""

    @property
    def key(self) -> str:
        """A name for folders, the same for equal settings whatever their notes."""
        return f"{self.task}-{self.sampler}-{_digest(replace(self, note='').to_dict())}"

    @property
    def measured(self) -> Degradation:
        """How the pictures are damaged, noise level included."""
        own = self.degradation or TASKS[self.task].degradation
        return own if self.noise_sigma is None else own.with_noise(self.noise_sigma)

    @property
    def measurement_key(self) -> str:
        """As `key`, of the measurement: shared by the settings that start from the same one."""
        return f"{self.task}-measurement-{_digest([self.measured.to_dict(), self.seed])}"

    def to_dict(self) -> dict[str, Any]:
        """The values, JSON-able."""
        plain = asdict(replace(self, degradation=None))
        degradation = None if self.degradation is None else self.degradation.to_dict()
        hyperparameters = dict(self.hyperparameters)
        return {**plain, "degradation": degradation, "hyperparameters": hyperparameters}


@dataclass(frozen=True)
class Protocol:
    """One comparison.

    Attributes:
        title: what it reproduces or answers.
        settings: the restorations; with `study`, one of each prior and task.
        study: None, or what is measured instead of restorations: "autoencoder" or
            "operator-accuracy".
        data: what `--data` has to hold.
        pictures: how many of its pictures are used.
        split: the part of the data over which they are evenly spaced; None for its first pictures.
        published: the key of its published table in hub_cards/published_results.json.
        zoom: whether the contact sheet shows a magnified detail of each picture, too.
    """

    title: str
    settings: tuple[Setting, ...]
    study: str | None = None
    data: str = FFHQ
    pictures: int = 1000
    split: str | None = None
    published: str | None = None
    zoom: bool = False


def _silo(task: str, prior: str = "rv51", **changes: Any) -> Setting:
    """The paper's SILO: readout operator, its eta, the generic prompt without guidance."""
    setting = Setting(
        task,
        prior=prior,
        operator="readout",
        noise_sigma=PAPER_NOISE,
        prompt=FACE_PROMPT,
        eta=TASKS[task].eta,
        seed=PAPER_SEED,
    )
    return replace(setting, **changes)


def _peer(task: str, sampler: str, **changes: Any) -> Setting:
    """A peer with its published hyper-parameters; on SD 1.5 and without prompt, as published."""
    setting = Setting(
        task, sampler, prior="sd15", noise_sigma=PAPER_NOISE, prompt="", seed=PAPER_SEED
    )
    return replace(setting, **changes)


def _columns(task: str, noise_sigma: float, *peers: str) -> list[Setting]:
    """SILO on both priors, then its peers."""
    own = [_silo(task, prior, noise_sigma=noise_sigma) for prior in ("rv51", "sd15")]
    return own + [_peer(task, peer, noise_sigma=noise_sigma) for peer in peers]


_LINEAR_PEERS, _PEERS = ("resample", "psld", "gml-dps", "ldps"), ("resample", "gml-dps", "ldps")


def _peers(task: str) -> tuple[str, ...]:
    """The peers that can do a task: PSLD is for linear degradations, which JPEG is not."""
    return _PEERS if task == "jpeg_q10" else _LINEAR_PEERS


def _embedded(task: str) -> list[Setting]:
    """SILO and its peers on the embedded prior, each with its published scale."""
    own = [Setting(task, "silo-fast"), Setting(task, "silo", eta=TASKS[task].eta)]
    peers = [Setting(task, peer) for peer in _peers(task)]
    return [replace(setting, noise_sigma=PAPER_NOISE) for setting in own + peers]


_SR8, _SR4, _BLUR = "super_resolution_x8", "super_resolution_x4", "gaussian_blur"
_STRENGTHS = (
    (_SR4, None),
    (_SR4, Degradation("super_resolution", {"factor": 8})),
    (_SR8, None),
    (_BLUR, None),
    (_BLUR, Degradation("gaussian_blur", {"std": 2.0})),
    (_BLUR, Degradation("gaussian_blur", {"std": 5.0})),
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "ffhq": Protocol(
            "the main table: five tasks, SILO and its peers",
            tuple(
                setting
                for task in PAPER_TASKS
                for setting in _columns(task, PAPER_NOISE, *_peers(task))
            ),
            published="ffhq",
        ),
        "embedded": Protocol(
            "SILO and its peers on the embedded prior, none of them with a prompt",
            tuple(setting for task in PAPER_TASKS for setting in _embedded(task)),
            data=PHOTOS,
            pictures=64,
            split="held_out",
            published="ffhq",
        ),
        "noise": Protocol(
            "super-resolution x8 at three times the noise",
            tuple(_columns(_SR8, 0.03, "psld")),
            published="noise",
        ),
        "coco": Protocol(
            "box inpainting of photos of anything",
            tuple(_silo("inpainting_box", prior, prompt=PROMPT) for prior in ("rv51", "sd15")),
            data=COCO,
            published="coco",
        ),
        "ablation-operator": Protocol(
            "the readout operator against the convolutional one",
            tuple(_silo(_SR8, operator=operator) for operator in ("readout", "paper_cnn")),
            published="ablation-operator",
        ),
        "ablation-prompts": Protocol(
            "prompts with and without guidance; the captions (HQ) lie beside the pictures",
            (
                _silo(_SR8, prompt=None, guidance_scale=4.0, note="CFG 4, HQ"),
                _silo(_SR8, guidance_scale=4.0, note="CFG 4, generic"),
                _silo(_SR8, note="CFG 1, generic"),
                _silo(_SR8, prompt="", note="CFG 1, null"),
            ),
            published="ablation-prompts",
        ),
        "autoencoder": Protocol(
            "what encoding and decoding loses",
            tuple(Setting(_SR8, prior=prior) for prior in ("rv51", "sd15")),
            study="autoencoder",
        ),
        "decoder-gradient": Protocol(
            "the artefacts of guidance through the decoder",
            tuple(_columns(_SR8, PAPER_NOISE, *_LINEAR_PEERS)),
            pictures=8,
            zoom=True,
        ),
        "diversity": Protocol(
            "several restorations of one measurement",
            tuple(_silo(task, samples=5) for task in (_SR8, "inpainting_box")),
            pictures=8,
        ),
        "operator-accuracy": Protocol(
            "how far H(E(x)) and H(z0hat_t) are from E(A(x)), in L1, and how far the identity is",
            tuple(_silo(task) for task in PAPER_TASKS),
            study="operator-accuracy",
            pictures=64,
        ),
        "mismatch": Protocol(
            "operators on measurements of another strength than their own",
            tuple(_silo(task, degradation=other) for task, other in _STRENGTHS),
            pictures=64,
        ),
        "encoder": Protocol(
            "guidance towards E(y), the encoded noisy measurement, and towards E(A(x))",
            tuple(
                _silo(task, noise_sigma=noise_sigma)
                for task in PAPER_TASKS
                for noise_sigma in (PAPER_NOISE, 0.0)
            ),
            pictures=64,
        ),
    }
)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
