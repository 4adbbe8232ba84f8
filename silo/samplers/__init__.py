"""The posterior samplers by name, each turning a `Problem` into a stream of `Step`s."""

from collections.abc import Mapping
from types import MappingProxyType

from silo.samplers.fast import SILO_FAST
from silo.samplers.gml_dps import GML_DPS
from silo.samplers.ldps import LDPS
from silo.samplers.problem import Problem, Sampler, Step
from silo.samplers.psld import PSLD
from silo.samplers.resample import RESAMPLE
from silo.samplers.silo import SILO, SILO_JACOBIAN_FREE

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "silo": SILO,
        "silo-jacobian-free": SILO_JACOBIAN_FREE,
        "silo-fast": SILO_FAST,
        "ldps": LDPS,
        "gml-dps": GML_DPS,
        "psld": PSLD,
        "resample": RESAMPLE,
    }
)

__all__ = ["SAMPLERS", "Problem", "Sampler", "Step"]
