"""The endpoint for programs, on the real app: what it gives, takes and refuses."""

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from silo.__main__ import main
from silo.decoding import MAX_FILE_BYTES
from silo.images import load_image, read_parameters, save_png
from tests.served_app import App

SETTINGS = {"task": "super_resolution_x4", "simulate": True, "steps": 2, "seed": 5}


@pytest.fixture
def client(app: App, tmp_path: Path) -> Client:
    return Client(app.url, verbose=False, download_files=tmp_path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    ramp = torch.linspace(-1, 1, 64)
    save_png(
        path,
        torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), -ramp * ramp[:, None]]),
    )
    return path


def test_programs_see_one_endpoint_with_typed_parameters(client: Client) -> None:
    endpoints: Any = client.view_api(return_format="dict", print_info=False)
    assert list(endpoints["named_endpoints"]) == ["/restore"]
    parameters = {
        parameter["parameter_name"]: parameter["python_type"]["type"]
        for parameter in endpoints["named_endpoints"]["/restore"]["parameters"]
    }
    assert parameters["photo"] == "filepath"
    assert "'gaussian_blur'" in parameters["task"]
    assert (parameters["simulate"], parameters["steps"]) == ("bool", "int")
    assert (parameters["eta"], parameters["seed"]) == ("float", "int")


def test_the_command_line_gives_the_same_picture(client: Client, photo: Path) -> None:
    files, parameters = client.predict(photo=handle_file(photo), **SETTINGS, api_name="/restore")
    out = photo.with_name("cli.png")
    settings = ["--task", SETTINGS["task"], "--simulate", "--seed", "5"]
    settings += ["--preset", "quick", "--steps", "2"]
    assert main(["restore", str(photo), "--out", str(out), *settings]) == 0
    assert torch.equal(load_image(files[0]).pixels, load_image(out).pixels)
    assert read_parameters(files[0]) == {**parameters, "sample": 0}
    saved = read_parameters(out)
    assert saved is not None
    assert {key: saved[key] for key in parameters} == parameters


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of 900 megapixels in some 20 kB."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20_000_000))
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bomb.png", bomb(), "900 megapixels"),
        ("text.jpg", b"dear reader, " * 99, "not a picture"),
        ("empty.png", b"", "empty"),
        ("cut.png", b"\x89PNG\r\n\x1a\n" + bytes(8), "damaged"),
        ("phone.jpg", b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
        ("drawing.png", b'<?xml version="1.0"?><svg width="9e9"/>', "SVG"),
        ("drawing.svg", b"<svg/>", "Invalid file type"),  # gradio's own sentence
    ],
)
def test_a_hostile_file_gets_one_sentence_and_little_memory(
    app: App, client: Client, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    process = psutil.Process(app.pid)
    before = process.memory_info().rss
    with pytest.raises(AppError, match=told) as caught:
        client.predict(photo=handle_file(path), task="gaussian_blur", api_name="/restore")
    assert "\n" not in str(caught.value)
    assert process.memory_info().rss - before < 300 * 2**20


def test_a_large_result_may_come_back_for_its_settings_but_not_as_a_photo(
    client: Client, tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((5000, 5000), 80).save(large, compress_level=0)
    assert large.stat().st_size > MAX_FILE_BYTES
    with pytest.raises(AppError, match="larger than 20 MB"):  # it arrived, and was looked at
        client.predict(photo=handle_file(large), task="gaussian_blur", api_name="/restore")


def test_settings_out_of_range_get_one_sentence(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="steps must be an integer from 1 to 1000"):
        client.predict(
            photo=handle_file(photo), task="gaussian_blur", steps=10_000, api_name="/restore"
        )


def test_a_crowd_is_served_and_leaves_no_memory_behind(app: App, photo: Path) -> None:
    clients = [Client(app.url, verbose=False, download_files=False) for _ in range(4)]
    process = psutil.Process(app.pid)

    def crowd() -> list[str]:
        """Five requests from each of four clients, all at once; returns how each ended."""
        with ThreadPoolExecutor(20) as pool:
            return list(pool.map(lambda i: ask(clients[i % 4], i), range(20)))

    def ask(client: Client, seed: int) -> str:
        try:
            given = {**SETTINGS, "steps": 1, "seed": seed}
            _, used = client.predict(photo=handle_file(photo), **given, api_name="/restore")
        except AppError as error:
            return "full" if "queue is full" in str(error).lower() else str(error)
        return "own" if used["seed"] == seed else "another's"

    assert set(crowd()) <= {"own", "full"}
    before = process.memory_info().rss
    ends = crowd()
    assert set(ends) <= {"own", "full"}
    assert ends.count("own") >= 16
    assert process.memory_info().rss < 1.1 * before
