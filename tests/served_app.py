"""The real app with the embedded prior, served for tests of the page and of its endpoint."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from gradio_client import Client

from operators.convolutional import CompactCNN

ROOT = Path(__file__).parent.parent
START_SECONDS = 180  # a busy machine may need them
STARTS = 3  # gradio gives up where its server takes some seconds, or the port is taken meanwhile


@dataclass(frozen=True)
class App:
    """The app being served with the embedded prior.

    Attributes:
        url: its address.
        pid: its process.
        hub_cache: where it looks for what was downloaded from the Hub.
    """

    url: str
    pid: int
    hub_cache: Path


@contextmanager
def served_app(folder: Path) -> Iterator[App]:
    """Serve the app from a process of its own, whose log and cache lie in `folder`."""
    for _ in range(STARTS):
        url, process = _start(folder)
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if _answers(url):
                    yield App(url, process.pid, folder / "hub")
                    return
                time.sleep(0.2)
        finally:
            process.terminate()
            process.wait()
    pytest.fail(f"the app does not serve: {(folder / 'log').read_text()}")


def connect(app: App, download_files: Path | None = None) -> Client:
    """Return a client that waits as long as a busy machine may need."""
    return Client(
        app.url,
        verbose=False,
        download_files=download_files or False,
        httpx_kwargs={"timeout": START_SECONDS},
    )


@contextmanager
def own_operator(app: App) -> Iterator[str]:
    """Have an operator for "old_lens", no task of the catalog's, where the app finds downloads.

    Yields:
        Its name.
    """
    vae = json.loads((ROOT / "silo" / "embedded" / "vae" / "config.json").read_text())
    operator = CompactCNN(vae["latent_channels"], width=8, blocks=1, groups=4)
    blur = {"kind": "gaussian_blur", "parameters": {"std": 6.0}, "noise_sigma": 0.04}
    operator.metadata = {"task": "old_lens", "degradation": blur, "prior": "tiny"}
    commit = "c0ffee" * 6 + "c0ff"
    folder = app.hub_cache / "models--lab--lens" / "snapshots" / commit
    operator.save_pretrained(folder)
    try:
        yield f"lab/lens@{commit}"
    finally:
        shutil.rmtree(folder.parent.parent)


def _start(folder: Path) -> tuple[str, subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(folder / "hub"),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    return f"http://127.0.0.1:{port}", process


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False
