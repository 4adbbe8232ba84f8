import torch

from silo.devices import generators
from silo.measured import measurement_generator
from silo.streams import stream


def _draw(generator: torch.Generator) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=generator).tolist())


def test_a_measurements_noise_is_not_that_of_its_samples():
    seeds = (0, 7, 2**32 - 1)
    draws = {_draw(measurement_generator(seed)) for seed in seeds}
    draws |= {_draw(each) for seed in seeds for each in generators(seed, 3)}
    # Sample 1 of the last seed is sample 0 of seed 0, and so on: torch reads 32 bits.
    assert len(draws) == 3 + 3 * 3 - 2


def test_a_stream_repeats_and_differs_by_purpose_and_by_each_number():
    assert _draw(stream("a", 1, 2)) == _draw(stream("a", 1, 2))
    others = [("b", 1, 2), ("a", 1), ("a", 12), ("a", 2, 1), ("a", 1 + 2**32, 2)]
    assert len({_draw(stream(*each)) for each in [("a", 1, 2), *others]}) == 6
