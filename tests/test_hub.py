import socket
import threading
import time
from unittest.mock import Mock

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from silo import hub
from silo.errors import HubUnavailable
from tests.hub_server import File, Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No proxy, no offline switch, and no memory of an earlier probe."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "monotonic", lambda: 1e6)  # nothing is asked again
    hub.reachable_during.cache_clear()
    yield
    hub.reachable_during.cache_clear()


@pytest.fixture
def connections(monkeypatch):
    """The addresses that were connected to, each at once successfully."""
    addresses = []

    def connect(address, timeout):
        addresses.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    return addresses


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A Hub cache that holds one repository with one file."""
    repository = tmp_path / "models--owner--prior"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return repository


def test_a_server_that_accepts_is_reachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert hub.reachable()
        hub.reachable_during.cache_clear()
    assert not hub.reachable()  # refused, now that it is closed


def test_a_connection_or_a_look_up_that_hangs_is_given_up(monkeypatch):
    release, hung = threading.Event(), threading.Event()

    def hang(address, timeout):
        hung.set()
        release.wait()
        raise TimeoutError

    assert hub.PROBE_SECONDS < 2
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(socket, "create_connection", hang)
    assert not hub.reachable()  # returns while the connection is still under way
    release.set()
    assert hung.wait(10)


def test_the_network_is_probed_once_and_again_after_a_while(monkeypatch, connections):
    assert hub.reachable() and hub.reachable()
    assert connections == [("huggingface.co", 443)]
    later = time.monotonic() + hub.REASK_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert hub.reachable() and hub.reachable()
    assert len(connections) == 2


def test_a_network_that_comes_back_is_noticed(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", Mock(side_effect=OSError))
    assert not hub.reachable()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    assert not hub.reachable()
    later = time.monotonic() + hub.REASK_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert hub.reachable()


def test_the_offline_switch_leaves_the_network_alone(monkeypatch, connections):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    assert connections == []


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"HTTPS_PROXY": "proxy.example:3128"}, ("proxy.example", 3128)),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, ("hub.example", 443)),
        (
            {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "hub.example"},
            ("hub.example", 443),
        ),
    ],
)
def test_behind_a_proxy_the_proxy_is_probed(monkeypatch, connections, variables, address):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    assert hub.reachable()
    assert connections == [address]


def test_offline_the_cache_answers_with_the_commit(monkeypatch, cache):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    for revision in ("main", COMMIT):
        folder, commit = hub.snapshot("owner/prior", revision, ["*.json"])
        assert (folder / "config.json").is_file()
        assert commit == COMMIT


def test_offline_and_not_cached_says_what_to_do(monkeypatch, cache):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(HubUnavailable, match="does not answer.*hf download owner/other") as error:
        hub.snapshot("owner/other", "main", ["*.json"])
    assert "\n" not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE is set: unset it"):
        hub.snapshot("owner/prior", "v2", ["*.json"])
    with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE is set; unset it"):
        hub.require_online("push")


def test_a_download_that_fails_is_named_and_a_missing_repository_is_the_callers(monkeypatch):
    request = httpx2.Request("GET", "https://huggingface.co")
    failures = [
        httpx2.ReadTimeout("slow", request=request),
        RepositoryNotFoundError("none", response=httpx2.Response(404, request=request)),
    ]

    def download(*args, **kwargs):
        raise failures.pop(0)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(HubUnavailable, match="download from .* failed"):
        hub.snapshot("owner/prior", "main", ["*.json"])
    with pytest.raises(RepositoryNotFoundError):
        hub.snapshot("owner/prior", "main", ["*.json"])


def test_a_download_tells_how_far_it_is(local_hub: Hub):
    for name in ("prior", "other"):  # of other content: the client fetches the same but once
        weights = {part: File(part.encode() * 500_000, True) for part in (name, "vae")}
        files = {f"{part}.safetensors": file for part, file in weights.items()}
        commit = {**files, "config.json": File(b"{}", False)}
        local_hub.create(f"models/lab/{name}").commit("files", commit)
    told: list[tuple[int, int]] = []
    with hub.reporting(lambda here, total: told.append((here, total))):
        hub.snapshot("lab/prior", "main", ["*"])
    assert max(told) == (4_000_002, 4_000_002)
    heard = len(told)
    hub.snapshot("lab/other", "main", ["*"])  # nobody listens any more
    assert len(told) == heard
