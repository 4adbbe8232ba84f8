"""The endpoint for programs, on the real app: what it gives, takes and refuses."""

import ast
import asyncio
import base64
import struct
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError, Status
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent, Tool
from PIL import Image

from silo.__main__ import main
from silo.images import load_image, read_parameters, save_png
from tests.photos import blurred, scratched
from tests.photos import photo as skimage_photo
from tests.served_app import App, connect, own_operator

SETTINGS = {"task": "super_resolution_x4", "simulate": True, "steps": 2, "seed": 5}


@pytest.fixture
def client(app: App, tmp_path: Path) -> Client:
    return connect(app, tmp_path)


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
    assert (parameters["keep_known"], parameters["prior"]) == ("bool", "str")
    assert parameters["working_size"] == "int"


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"prior": "/etc"}, "Prior is none of those here: tiny"),
        ({"operator": "operators/trained/jpeg_q10"}, "Operator is none of those here: trained/"),
        ({"operator": "trained/jpeg_q10"}, "trained for jpeg_q10, not for gaussian_blur"),
    ],
)
def test_only_what_the_page_offers_restores(
    client: Client, photo: Path, chosen: dict[str, Any], told: str
) -> None:
    with pytest.raises(AppError, match=told):
        client.predict(
            photo=handle_file(photo), task="gaussian_blur", **chosen, api_name="/restore"
        )


def test_prior_operator_and_what_is_kept_are_the_programs_choice(
    client: Client, photo: Path
) -> None:
    chosen: dict[str, Any] = {"prior": "tiny", "operator": "trained/inpainting_box"}
    chosen |= {"keep_known": False, "working_size": 300}
    settings = {**SETTINGS, "task": "inpainting_box"}
    _, used = client.predict(photo=handle_file(photo), **settings, **chosen, api_name="/restore")
    assert used["operator"]["name"] == "trained/inpainting_box"
    assert (used["prior"]["name"], used["keep_known"]) == ("tiny", False)
    assert used["working_size"] == 300


def test_what_is_wrong_is_found_unless_it_is_said(client: Client, tmp_path: Path) -> None:
    given = {"steps": 2, "api_name": "/restore"}
    sharp, blurry = tmp_path / "sharp.png", tmp_path / "blurry.png"
    save_png(sharp, skimage_photo("coffee"))
    save_png(blurry, blurred(skimage_photo("coffee"), 2))
    _, used = client.predict(photo=handle_file(blurry), **given)
    assert (used["task"], used["simulate"]) == ("gaussian_blur", False)
    with pytest.raises(AppError, match="name the task"):
        client.predict(photo=handle_file(sharp), task=None, **given)
    for needing in ({"simulate": True}, {"mask": handle_file(sharp)}, {"blur_std": 0}):
        with pytest.raises(AppError, match="Task is missing"):
            client.predict(photo=handle_file(sharp), **needing, **given)


def test_scratches_are_found_where_no_mask_is_sent(client: Client, tmp_path: Path) -> None:
    clean = skimage_photo("coffee")
    picture, where = scratched(clean)
    save_png(tmp_path / "old.png", picture)
    given = {"photo": handle_file(tmp_path / "old.png"), "steps": 2, "api_name": "/restore"}
    (file,), used = client.predict(task="inpainting_free", **given)
    assert "was found to be scratched" in used["notices"][0]
    left = ((load_image(file).pixels - clean).abs() * where).sum()
    assert left < 0.3 * ((picture - clean).abs() * where).sum()
    with pytest.raises(AppError, match="needs a mask"):
        client.predict(task="inpainting_random", **given)


def test_a_task_of_ones_own_goes_with_its_operator(app: App, client: Client, photo: Path) -> None:
    given = {**SETTINGS, "task": "old_lens", "photo": handle_file(photo)}
    with own_operator(app) as name:
        with pytest.raises(AppError, match="lack one for old lens"):
            client.predict(**given, api_name="/restore")
        _, used = client.predict(**given, operator=name, api_name="/restore")
    assert (used["task"], used["noise_sigma"]) == ("old_lens", 0.04)
    assert f"{used['operator']['name'].partition('@')[0]}@{used['operator']['revision']}" == name


def test_it_is_a_tool_of_the_mcp_server(app: App, client: Client, photo: Path) -> None:
    link = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()

    async def call() -> tuple[list[Tool], CallToolResult]:
        async with (
            streamable_http_client(f"{app.url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, await session.call_tool("restore", {**SETTINGS, "photo": link})

    (tool,), answer = asyncio.run(call())
    described = tool.inputSchema["properties"]
    assert "gaussian_blur" in described["task"]["enum"]
    assert all(each["description"].endswith(".") for each in described.values())
    (text,) = answer.content
    assert isinstance(text, TextContent) and not answer.isError
    files, parameters = ast.literal_eval(text.text)
    assert parameters["seed"] == SETTINGS["seed"]
    with urllib.request.urlopen(files[0]["url"]) as served:
        by_mcp = Image.open(BytesIO(served.read()))
    by_client, _ = client.predict(photo=handle_file(photo), **SETTINGS, api_name="/restore")
    assert by_mcp.tobytes() == Image.open(by_client[0]).tobytes()


def test_what_of_a_file_was_not_taken_is_said(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "see-through.png"
    Image.new("RGBA", (64, 64), (90, 160, 40, 128)).save(path)
    _, used = client.predict(photo=handle_file(path), **SETTINGS, api_name="/restore")
    assert any("transparent" in notice for notice in used["notices"])


def test_the_command_line_gives_the_same_picture(client: Client, photo: Path) -> None:
    files, parameters = client.predict(photo=handle_file(photo), **SETTINGS, api_name="/restore")
    out = photo.with_name("cli.png")
    settings = ["--task", SETTINGS["task"], "--simulate", "--seed", "5"]
    settings += ["--preset", "quick", "--steps", "2"]
    assert main(["restore", str(photo), "--out", str(out), *settings]) == 0
    assert torch.equal(load_image(files[0]).pixels, load_image(out).pixels)
    assert parameters.pop("notices") == []
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


def half_a_photo() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


def peak_memory(pid: int) -> int:
    """The most memory the process has held since its peak was last forgotten, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak_memory(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bomb.png", bomb(), "900 megapixels"),
        ("large.png", b"\x89PNG\r\n\x1a\n" + bytes(20_000_000), "damaged"),
        ("half.jpg", half_a_photo(), "damaged or cut off"),
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
    memory, work = process.memory_info().rss, sum(process.cpu_times()[:2])
    forget_peak_memory(app.pid)
    with pytest.raises((AppError, ValueError), match=told) as caught:  # some the client refuses
        client.predict(photo=handle_file(path), task="gaussian_blur", api_name="/restore")
    assert "\n" not in str(caught.value)
    assert peak_memory(app.pid) - memory < 300 * 2**20
    # Of the processor, not of the clock: whatever else the machine does, the answer comes at once.
    assert sum(process.cpu_times()[:2]) - work < 2


def odd_files(folder: Path) -> tuple[Path, list[Path]]:
    """A plain PNG, and files that hold the same picture in ways that are easily misread."""
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    ramp[:8] = 255
    plain = Image.fromarray(ramp)
    plain.convert("RGB").save(folder / "plain.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    see_through = plain.convert("RGB")
    see_through.paste("red", (0, 0, 64, 8))  # a colour that nobody sees
    opaque = Image.new("L", plain.size, 255)
    opaque.paste(0, (0, 0, 64, 8))
    see_through.putalpha(opaque)
    see_through.save(folder / "alpha.png")
    black = Image.fromarray(255 - ramp)
    nothing = Image.new("L", plain.size)
    Image.merge("CMYK", [nothing, nothing, nothing, black]).save(folder / "cmyk.tiff")
    plain.save(folder / "animated.gif", save_all=True, append_images=[black])
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    plain.rotate(90, expand=True).convert("RGB").save(folder / "turned.png", exif=turned)
    names = "sixteen_bit.png", "alpha.png", "cmyk.tiff", "animated.gif", "turned.png"
    return folder / "plain.png", [folder / name for name in names]


def test_odd_files_are_restored_as_the_picture_that_they_show(
    client: Client, tmp_path: Path
) -> None:
    def restored(path: Path) -> torch.Tensor:
        given = {"task": "gaussian_blur", "steps": 1}
        files, _ = client.predict(photo=handle_file(path), **given, api_name="/restore")
        return load_image(files[0]).pixels

    plain, odd = odd_files(tmp_path)
    expected = restored(plain)
    assert expected.shape == (1, 3, 48, 64)
    for path in odd:
        assert torch.equal(restored(path), expected), path.name


def test_settings_out_of_range_get_one_sentence(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="Steps must be an integer from 1 to 1000"):
        client.predict(
            photo=handle_file(photo), task="gaussian_blur", steps=10_000, api_name="/restore"
        )


def test_a_client_that_leaves_frees_its_slot(app: App, client: Client, photo: Path) -> None:
    leaving = connect(app)
    endless = {**SETTINGS, "preset": "paper", "steps": 1000, "samples": 4}
    job = leaving.submit(photo=handle_file(photo), **endless, api_name="/restore")
    while job.status().code is not Status.PROCESSING:
        assert not job.done()
        time.sleep(0.1)
    leaving.close()
    client.predict(photo=handle_file(photo), **SETTINGS, api_name="/restore")
    assert "its client left" in str(job.exception(timeout=60))


def test_a_crowd_is_served_and_leaves_no_memory_behind(app: App, photo: Path) -> None:
    clients = [connect(app) for _ in range(4)]
    process = psutil.Process(app.pid)

    def crowd() -> list[str]:
        """Five requests from each of four clients, all at once; returns how each ended."""
        with ThreadPoolExecutor(20) as pool:
            return list(pool.map(lambda i: ask(clients[i % 4], i), range(20)))

    def ask(client: Client, seed: int) -> str:
        try:
            given = {**SETTINGS, "steps": 1, "seed": seed}
            _, used = client.predict(photo=handle_file(photo), **given, api_name="/restore")
        except (AppError, QueueError) as error:
            return "full" if "queue is full" in str(error).lower() else str(error)
        return "own" if used["seed"] == seed else "another's"

    assert set(crowd()) <= {"own", "full"}
    before = process.memory_info().rss
    ends = crowd()
    assert set(ends) <= {"own", "full"}
    assert ends.count("own") >= 16
    assert process.memory_info().rss < 1.1 * before
