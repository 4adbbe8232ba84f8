"""Pictures of a dataset repository arrive through the unmodified client, pinned, and whole."""

import io
import tarfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from silo import hub
from silo.data import iterate_photos
from silo.errors import BadImage, BadRequest, HubUnavailable
from silo.hub_dataset import fetch_dataset
from tests.hub_server import File, Hub, fail

NAME = "lab/photos"
LARGE = pyarrow.large_binary()


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _push(local_hub: Hub, files: dict[str, bytes], name: str = NAME) -> str:
    key = f"datasets/{name}"
    repository = local_hub.repositories.get(key) or local_hub.create(key)
    return repository.commit("data", {path: File(data, False) for path, data in files.items()})


def _reds(folders: list[Path]) -> dict[str, int]:
    return {photo.name: photo.pixels[0, 0, 0] for photo in iterate_photos(folders, "all")}


def test_pictures_tars_and_captions_of_a_commit_arrive_and_nothing_else(local_hub: Hub) -> None:
    first = _push(local_hub, {"train/cats/a.png": _png(1)})
    second = _push(
        local_hub,
        {
            "README.md": b"---\nlicense: mit\n---\n",
            "train/cats/a.png": _png(10),
            "train/cats/a.txt": b"a cat\n",
            "train/dogs/b.PNG": _png(20),
            "train/metadata.parquet": b"names",
            "shards/s0.tar": _tar(c__png=_png(30), c__txt=b"a cow"),
            "weights.bin": b"a pickle",
        },
    )
    dataset = fetch_dataset(NAME)
    assert (dataset.repo_id, dataset.commit) == (NAME, second)
    assert _reds(dataset.folders) == {"a": 10, "b": 20, "c": 30}
    captions = {photo.caption for photo in iterate_photos(dataset.folders, "all")}
    assert captions == {"a cat", "", "a cow"}
    fetched = {path.rpartition("/")[2] for path in local_hub.requests if "/resolve/" in path}
    assert fetched == {"a.png", "a.txt", "b.PNG", "s0.tar"}
    assert _reds(fetch_dataset(f"{NAME}@{first}").folders) == {"a": 1}


def test_offline_the_cache_is_read(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = _push(local_hub, {"a.png": _png(1)})
    fetch_dataset(NAME)
    asked = len(local_hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.reachable_during.cache_clear()
    assert fetch_dataset(NAME) == fetch_dataset(f"{NAME}@{commit}")
    with pytest.raises(HubUnavailable, match="hf download lab/other --repo-type dataset"):
        fetch_dataset("lab/other")
    assert len(local_hub.requests) == asked


def _parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, row_group_size=99)
    return buffer.getvalue()


def _assets() -> Path:
    return Path(huggingface_hub.constants.HF_ASSETS_CACHE)


def _image(value: int, path: str | None) -> dict[str, Any]:
    return {"bytes": _png(value), "path": path}


def test_tables_are_unpacked_once_with_their_captions(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["a.png", None, "../b.tif", "..", "", "c.exe"]
    images = [_image(10 + index, path) for index, path in enumerate(paths)]
    captions = ["one", None, "three", "", "five", "six"]
    tables = {
        "cats/train-0.parquet": _parquet(key=[b"k"] * 6, image=images, caption=captions),
        "dogs/train-0.parquet": _parquet(photo=pyarrow.array([_png(40), None, _png(50)], LARGE)),
        "names/train-0.parquet": _parquet(file_name=["preview.png"], number=[3]),
        "empty/train-0.parquet": _parquet(image=[{"bytes": None, "path": "a.png"}]),
        "metadata.parquet": _parquet(file_name=["preview.png"]),
    }
    commit = _push(local_hub, {"preview.png": _png(1), **tables})
    dataset = fetch_dataset(NAME)
    assert dataset.commit == commit and len(dataset.folders) == 2
    photos = {photo.name: photo for photo in iterate_photos(dataset.folders, "all")}
    assert {name: int(photo.pixels[0, 0, 0]) for name, photo in photos.items()} == {
        **{f"cats_train-0-{index:06d}": 10 + index for index in range(6)},
        "dogs_train-0-000000": 40,
        "dogs_train-0-000002": 50,
    }
    said = [photos[f"cats_train-0-{index:06d}"].caption for index in range(6)]
    assert said == [caption or "" for caption in captions]
    shards = list(_assets().rglob("*.tar"))
    stamps = [shard.stat().st_mtime_ns for shard in shards]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.reachable_during.cache_clear()
    assert fetch_dataset(NAME) == dataset and len(shards) == 2
    assert [shard.stat().st_mtime_ns for shard in shards] == stamps


def test_tables_of_names_leave_the_pictures_beside_them(local_hub: Hub) -> None:
    _push(local_hub, {"train/a.png": _png(7), "train.parquet": _parquet(name=["a.png"])})
    assert _reds(fetch_dataset(NAME).folders) == {"a": 7}


def test_tables_that_cannot_be_unpacked_leave_nothing_behind(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _parquet(image=[_image(1, "a.png")] * 6)
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")],
    )
    monkeypatch.setattr("silo.parquet_tables.MAX_FILE_BYTES", 5000)
    for content, message in (
        (b"PAR1", "cannot be unpacked"),
        (whole[:20] + bytes(60) + whole[80:], "cannot be unpacked"),
        (_parquet(image=[_png(1)], text=broken), "cannot be unpacked"),
        (_parquet(image=[bytes(6000)]), "unpacks to more than pictures take"),
        (_parquet(image=[bytes(4000)] * 500), "unpacks to more than pictures take"),
    ):
        _push(local_hub, {"data/train-0.parquet": content})
        with pytest.raises(BadRequest, match=message):
            fetch_dataset(NAME)
    assert not [path for path in _assets().rglob("*") if path.is_file()]


@pytest.mark.parametrize("installed", [None, "14.0.0"])
def test_tables_that_nothing_here_reads_are_told_before_anything_is_downloaded(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, installed: str | None
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    _push(local_hub, {"preview.png": _png(1), "data/train-0.parquet": b"PAR1"})
    monkeypatch.setattr("silo.parquet_tables.version", version)
    with pytest.raises(BadRequest, match="pip install .pyarrow>=21"):
        fetch_dataset(NAME)
    _push(local_hub, {"data-0.arrow": b"ARROW1"}, name="lab/saved")
    with pytest.raises(BadRequest, match="Arrow files .data-0.arrow.*lab/saved@refs/convert"):
        fetch_dataset("lab/saved")
    assert not [path for path in local_hub.requests if "/resolve/" in path]


def test_what_is_wrong_with_a_dataset_is_named(local_hub: Hub) -> None:
    _push(local_hub, {"a.csv": b"1,2"})
    for name, message in (
        (NAME, "holds no pictures"),
        ("lab/none", "no dataset lab/none"),
        (f"{NAME}@v9", "no revision 'v9'"),
        ("lab/a b", "names no dataset"),
    ):
        with pytest.raises(BadRequest, match=message):
            fetch_dataset(name)
    local_hub.disturb(f"GET /api/datasets/{NAME}/revision/main", fail(500), times=9)
    with pytest.raises(HubUnavailable, match="failed"):
        fetch_dataset(NAME)


def test_a_damaged_picture_is_named(local_hub: Hub) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    _push(local_hub, {"cut.png": buffer.getvalue()[:5000]})
    with pytest.raises(BadImage, match="'cut' in .* is damaged"):
        _reds(fetch_dataset(NAME).folders)
    _push(local_hub, {"script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"})
    with pytest.raises(BadImage, match="'script'"):
        _reds(fetch_dataset(NAME).folders)
    _push(local_hub, {"cut.tar": _tar(c__png=_png(30))[:700]})
    with pytest.raises((BadRequest, BadImage), match=r"cut.tar"):
        _reds(fetch_dataset(NAME).folders)
