import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from operators.degradation import Degradation
from operators.function import FUNCTION, register
from operators.pixel import measure
from silo.data import END, list_photos
from silo.errors import Stopped
from silo.prior import LatentPrior
from silo.training.latent_cache import SHARD, LatentCache
from silo.training.pictures import Augmentation, TrainingPictures
from silo.training.processes import Processes

COUNT = SHARD + 6  # two shards
ONE = Processes(cpu=True)
X4 = Degradation("super_resolution", {"factor": 4})


@pytest.fixture
def pictures(photo_folder: Path) -> TrainingPictures:
    files = tuple(list_photos([photo_folder], "train"))
    return TrainingPictures(files, COUNT, 32, Augmentation(blurred_rate=0.5), seed=0)


def _open(
    folder: Path,
    prior: LatentPrior,
    pictures: TrainingPictures,
    degradation: Degradation = X4,
    noise_range: tuple[float, float] = (0.0, 0.0),
    draws: int = 1,
    processes: Processes = ONE,
) -> LatentCache:
    cache = LatentCache(
        folder,
        prior,
        pictures,
        degradation,
        name="test",
        noise_range=noise_range,
        draws=draws,
        processes=processes,
    )
    cache.encode()
    return cache


def test_pairs_are_the_encoded_picture_and_the_encoded_measurement(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures
) -> None:
    cache = _open(tmp_path, tiny_prior, pictures)
    assert len(cache) == COUNT
    picks = torch.tensor([COUNT - 1, 3, SHARD])
    pairs = cache.pairs(picks)
    images = torch.stack([pictures.crop(index) for index in picks.tolist()])
    operator = X4.operator()
    y = measure(images, X4.with_noise(0.0), torch.Generator())
    expected = tiny_prior.encode(images), tiny_prior.encode(operator.to_full_size(y))
    # Kept in half precision; this prior's latents are about 0.01.
    for found, wanted in zip((pairs.clean, pairs.measured), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)
    assert pairs.noise_sigma.tolist() == [0, 0, 0] and pairs.mask is None


def test_a_warm_cache_encodes_nothing_and_reads_no_picture(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures, monkeypatch
) -> None:
    first = _open(tmp_path, tiny_prior, pictures)
    assert first.encoded == 2 * COUNT and first.seconds > 0
    calls = tiny_prior.encodes
    monkeypatch.setattr("silo.data.PhotoFile.load", None)
    again = _open(tmp_path, tiny_prior, pictures)
    assert (again.encoded, tiny_prior.encodes) == (0, calls)
    assert torch.equal(again.pairs(torch.arange(5)).measured, first.pairs(torch.arange(5)).measured)
    monkeypatch.undo()
    # The clean latents serve every degradation.
    assert _open(tmp_path, tiny_prior, pictures, Degradation("jpeg")).encoded == COUNT


def test_each_draw_has_a_noise_level_noise_and_a_mask_of_its_own(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures
) -> None:
    free = Degradation("inpainting_free")
    few = replace(pictures, count=20)
    cache = _open(tmp_path, tiny_prior, few, free, (0.01, 0.05), draws=3)
    assert len(cache) == 60
    pairs = cache.pairs(torch.arange(60))
    assert pairs.mask is not None and pairs.mask.shape == (60, 1, 32, 32)
    assert set(pairs.mask.unique().tolist()) == {0.0, 1.0}
    assert len({mask.numpy().tobytes() for mask in pairs.mask}) > 55
    assert 0.01 <= pairs.noise_sigma.min() < 0.02 and 0.04 < pairs.noise_sigma.max() <= 0.05
    assert len(set(pairs.noise_sigma.tolist())) == 60
    assert torch.equal(pairs.clean[0], pairs.clean[2])
    assert not torch.equal(pairs.clean[2], pairs.clean[3])
    assert not torch.equal(pairs.measured[0], pairs.measured[1])


def test_an_interrupted_cache_goes_on_and_ends_up_the_same(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures, monkeypatch
) -> None:
    whole = _open(tmp_path / "whole", tiny_prior, pictures)
    crop, calls = TrainingPictures.crop, []

    def fail(self: TrainingPictures, index: int) -> torch.Tensor:
        calls.append(index)
        if len(calls) > SHARD + 2:
            raise KeyboardInterrupt
        return crop(self, index)

    monkeypatch.setattr(TrainingPictures, "crop", fail)
    with pytest.raises(KeyboardInterrupt):
        _open(tmp_path / "broken", tiny_prior, pictures)
    monkeypatch.undo()
    resumed = _open(tmp_path / "broken", tiny_prior, pictures)
    assert resumed.encoded == 2 * COUNT - SHARD
    every = torch.arange(COUNT)
    assert torch.equal(resumed.pairs(every).measured, whole.pairs(every).measured)
    assert torch.equal(resumed.pairs(every).clean, whole.pairs(every).clean)
    assert not list((tmp_path / "broken").rglob("*.partial"))


def test_pictures_are_prepared_by_several_threads_and_kept_in_order(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures, monkeypatch
) -> None:
    free, few = Degradation("inpainting_free"), replace(pictures, count=40)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = _open(tmp_path / "alone", tiny_prior, few, free, (0.0, 0.05), draws=2)
    crop, together = TrainingPictures.crop, threading.Barrier(3)

    def met(self: TrainingPictures, index: int) -> torch.Tensor:
        if index in (0, 8, 16):  # the first of three batches: they wait for each other
            together.wait(timeout=60)
        return crop(self, index)

    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(TrainingPictures, "crop", met)
    shared = _open(tmp_path / "shared", tiny_prior, few, free, (0.0, 0.05), draws=2)
    every = torch.arange(80)
    one, two = alone.pairs(every), shared.pairs(every)
    assert torch.equal(one.clean, two.clean) and torch.equal(one.measured, two.measured)
    assert one.mask is not None and two.mask is not None and torch.equal(one.mask, two.mask)


def test_a_function_of_ones_own_never_runs_twice_at_once(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures, monkeypatch
) -> None:
    running, threads = threading.Lock(), set()

    def alone(images: torch.Tensor) -> torch.Tensor:
        assert running.acquire(blocking=False)
        threads.add(threading.get_ident())
        running.release()
        return images

    monkeypatch.setattr("operators.function._REGISTERED", {})
    operator = register(alone, "alone", "0" * 64)
    parameters = {"name": operator.name, "sha256": operator.sha256}
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    _open(tmp_path, tiny_prior, replace(pictures, count=40), Degradation(FUNCTION, parameters))
    assert len(threads) == 1


def test_a_signal_stops_encoding_with_one_line(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures, monkeypatch
) -> None:
    crop = TrainingPictures.crop

    def signalled(self: TrainingPictures, index: int) -> torch.Tensor:
        if index == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return crop(self, index)

    monkeypatch.setattr(TrainingPictures, "crop", signalled)
    before = set(threading.enumerate())
    with pytest.raises(Stopped, match="goes on from there") as caught:
        _open(tmp_path, tiny_prior, pictures)
    assert caught.value.exit_code == 143
    # `caught` keeps the frames of the run alive: what stopped its threads was not their end.
    assert set(threading.enumerate()) <= before


def test_a_damaged_shard_is_made_again(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures
) -> None:
    whole = _open(tmp_path, tiny_prior, pictures).pairs(torch.arange(COUNT)).clean
    shard = next(tmp_path.glob("clean-*/00001.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-30])
    again = _open(tmp_path, tiny_prior, pictures)
    assert again.encoded == COUNT - SHARD
    assert torch.equal(again.pairs(torch.arange(COUNT)).clean, whole)


def test_the_key_names_everything_the_latents_depend_on(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures
) -> None:
    few = replace(pictures, count=1)

    def key(pictures: TrainingPictures = few, **changes) -> str:
        return _open(tmp_path, tiny_prior, pictures, **changes).key

    renamed = replace(few.files[0], name="another")
    keys = [
        key(),
        key(replace(few, files=(renamed,))),
        key(replace(few, count=2)),
        key(replace(few, resolution=64)),
        key(replace(few, augmentation=Augmentation())),
        key(replace(few, seed=1)),
        key(degradation=Degradation("super_resolution", {"factor": 8})),
        key(noise_range=(0.0, 0.01)),
        key(draws=2),
    ]
    next(iter(tiny_prior._vae.parameters())).data += 0.01
    assert len({*keys, key()}) == len(keys) + 1
    # The noise level of a description is for restoring, and copies of a folder are the same.
    content = few.files[0].read(0, few.files[0].size)
    (tmp_path / "shard.tar").write_bytes(b"before" + content + b"after")
    moved = replace(few.files[0], path=tmp_path / "shard.tar", offset=len(b"before"))
    same = [key(degradation=X4.with_noise(0.3)), key(replace(few, files=(moved, *few.files[1:])))]
    assert set(same) == {key()}


@pytest.mark.parametrize("row", [0, 399])
def test_a_picture_that_was_repainted_in_place_is_another_one(tmp_path: Path, row: int) -> None:
    path = tmp_path / "photos" / "p.bmp"
    path.parent.mkdir()
    picture = Image.new("RGB", (400, 400), "red")
    picture.save(path)
    size = path.stat().st_size

    def describe() -> dict[str, Any]:
        return TrainingPictures(
            tuple(list_photos([path.parent], "all")), 1, 32, Augmentation(), seed=0
        ).describe()

    before = describe()
    assert describe() == before
    picture.putpixel((200, row), (0, 0, 255))
    picture.save(path)
    assert path.stat().st_size == size > 2 * END and describe() != before


def test_runs_that_share_a_folder_write_the_same_shard_without_harm(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures, monkeypatch
) -> None:
    """The second one encodes and writes a shard while the first is about to write it."""
    few, renamed = replace(pictures, count=4), os.replace

    def overtaken(source: Path, target: Path) -> None:
        monkeypatch.setattr("os.replace", renamed)
        other = _open(tmp_path, tiny_prior, few)
        assert other.encoded == 8
        renamed(source, target)

    monkeypatch.setattr("os.replace", overtaken)
    cache = _open(tmp_path, tiny_prior, few)
    assert cache.encoded == 4  # of the measurements, it uses the other's
    assert cache.pairs(torch.arange(4)).clean.isfinite().all()
    assert not list(tmp_path.rglob("*.partial"))


def test_what_killed_runs_have_left_is_removed_and_what_others_write_is_not(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures
) -> None:
    few = replace(pictures, count=4)
    _open(tmp_path, tiny_prior, few)
    (folder,) = tmp_path.glob("clean-*")
    old, young = folder / ".a.partial", folder / ".b.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    _open(tmp_path, tiny_prior, few)
    assert young.exists() and not old.exists()


def test_processes_share_the_shards(
    tmp_path: Path, tiny_prior: LatentPrior, pictures: TrainingPictures
) -> None:
    class Second(Processes):
        def __init__(self) -> None:
            super().__init__(cpu=True)
            self.count, self.rank, self.is_main = 2, 1, False

    share = _open(tmp_path, tiny_prior, pictures, processes=Second())
    assert share.encoded == 2 * (COUNT - SHARD)
    assert _open(tmp_path, tiny_prior, pictures).encoded == 2 * SHARD
