"""How operators are trained: as in the paper, and small and fast, with and without features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from operators.convolutional import CompactCNN, PaperCNN
from operators.errors import OperatorError
from operators.latent import LatentOperator, architectures
from operators.readout import ReadoutOperator, ResidualReadoutOperator
from silo.prior import LatentPrior
from silo.training.pictures import PAPER_AUGMENTATION, Augmentation


@dataclass(frozen=True)
class OperatorTraining:
    """What decides an operator, but for the pictures, the degradation and the prior.

    Attributes:
        architecture: `LatentOperator.architecture` of what is trained.
        readout_channels: inner and outer width of the bottlenecks of a readout operator.
        timestep_power: p of the timesteps T u^p, u uniform, whose features it reads in training;
            above 1, the less noisy ones, which tell more of the measurement, come more often.
        resolution: side of the crops in pixels; None for the prior's native size.
        pictures: how many crops are encoded.
        noise_draws: measurements of each crop, each with its own noise level, noise and mask.
        noise_range: (low, high) of the noise levels, in [0, 1] units.
        augmentation: how the crops vary.
        steps: of AdamW, which without weight decay is Adam; the loss is L1.
        batch: pairs a step.
        learning_rate: the highest.
        schedule: of the learning rate, "cosine" or "constant".
        average_decay: of the weights' moving average, which is what is kept; 0 for the last ones.
        gradient_norm: longer gradients are shortened to it; None for never.
        seed: of everything that is drawn.
    """

    architecture: str = CompactCNN.architecture
    readout_channels: tuple[int, int] = (96, 384)
    timestep_power: float = 1.0
    resolution: int | None = None
    pictures: int = 2000
    noise_draws: int = 2
    noise_range: tuple[float, float] = (0.0, 0.05)
    augmentation: Augmentation = Augmentation(blurred_rate=0.3)
    steps: int = 1200
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    average_decay: float = 0.995
    gradient_norm: float | None = 1.0
    seed: int = 0


# Section 4 of arXiv 2501.11746 and the authors' code, but for two things: they encode afresh in
# every step what is drawn here from a cache, and draw one t and one noise level a batch, not a
# sample. Their noise levels are for pictures in [-1, 1]: twice these.
PRESETS: Mapping[str, OperatorTraining] = MappingProxyType(
    {
        "fast": OperatorTraining(),
        "fast-readout": OperatorTraining(
            architecture=ResidualReadoutOperator.architecture,
            readout_channels=(32, 128),
            timestep_power=2.0,
            noise_draws=1,
        ),
        "paper-cnn": OperatorTraining(
            architecture=PaperCNN.architecture,
            pictures=60_000,
            noise_draws=4,
            noise_range=(0.0, 0.02),
            augmentation=PAPER_AUGMENTATION,
            steps=100_000,
            batch=16,
            learning_rate=1e-3,
            schedule="constant",
            average_decay=0.0,
            gradient_norm=None,
        ),
        "paper-readout": OperatorTraining(
            architecture=ReadoutOperator.architecture,
            pictures=60_000,
            noise_draws=4,
            augmentation=PAPER_AUGMENTATION,
            steps=75_000,
            batch=16,
            learning_rate=2e-4,
            schedule="constant",
            average_decay=0.0,
            gradient_norm=None,
        ),
    }
)


def build_operator(
    settings: OperatorTraining, prior: LatentPrior, resolution: int, *, mask: bool
) -> LatentOperator:
    """An untrained operator that fits a prior and, where its size is fixed, the resolution.

    Raises:
        OperatorError: it cannot read a mask, and the degradation has one that varies.
    """
    channels = prior.latent_channels
    if settings.architecture == CompactCNN.architecture:
        return CompactCNN(channels, mask=mask, scale=prior.scale_factor)
    size = resolution // prior.scale_factor
    network = architectures()[settings.architecture]
    if issubclass(network, ReadoutOperator):
        inner, outer = settings.readout_channels
        return network(
            prior.feature_channels,
            channels,
            embedding_dim=prior.embedding_dim,
            sigma_map_size=size,
            mid_channels=inner,
            out_channels=outer,
            mask=mask,
        )
    if mask:
        raise OperatorError("The paper's CNN reads no mask: choose --preset fast or a readout.")
    return PaperCNN(channels, size, prior.embedding_dim)
