"""What the page offers to restore with: links, fetching from a Hub, what stays in memory."""

import gc
import json
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from operators.convolutional import CompactCNN
from operators.degradation import Degradation
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from silo import hub
from silo.errors import BadRequest, HubUnavailable
from silo.operator_listing import on_shelf
from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_NAME, HUB_PRIORS, WEIGHTS
from silo.request import RestorationRequest
from silo.ui.adding import Added, Adding, parse_link
from silo.ui.models import AUTOMATIC, MAX_KEPT, Models, check_simulated
from silo.ui.saved_settings import Weights
from tests.hub_server import File, Hub, fail, lose_answer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", "main")),
        (" owner/name@v2 ", ("owner/name", "v2")),
        ("https://huggingface.co/owner/name", ("owner/name", "main")),
        ("huggingface.co/owner/name/", ("owner/name", "main")),
        (f"https://hf.co/owner/name/tree/{COMMIT}", ("owner/name", COMMIT)),
        ("https://huggingface.co/owner/name/blob/dev/config.json", ("owner/name", "dev")),
    ],
)
def test_ids_and_links_name_a_repository(text: str, expected: tuple[str, str]) -> None:
    assert parse_link(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", "../../etc/passwd", "/etc/passwd", "a/b/c", "owner/na me", "~/x"),
        *("https://example.com/owner/name", "file:///etc/passwd", "https://huggingface.co/owner"),
        *("https://huggingface.co.example.com/owner/name", "https://[", "hf.co]/owner/name"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(OperatorNotFound, match="Hub"):
        parse_link(text)


def repository(
    local_hub: Hub, tmp_path: Path, task: str = "motion_blur", **metadata: object
) -> CompactCNN:
    """Put an operator of random weights on the Hub, as lab/operator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        operator = CompactCNN(latent_channels=4, width=8, blocks=1, groups=4)
    operator.metadata = {"task": task, "prior": EMBEDDED_NAME, **metadata}
    operator.save_pretrained(tmp_path / "operator")
    card = b"---\nlibrary_name: silo\nlicense: mit\n---\n"
    files = {
        path.name: File(path.read_bytes(), path.suffix == ".safetensors")
        for path in (tmp_path / "operator").iterdir()
    }
    created = local_hub.create("models/lab/operator")
    created.commit("operator", {**files, "README.md": File(card, False)})
    return operator


def test_an_operator_of_the_hub_is_fetched_listed_and_restored_with(
    local_hub: Hub, tmp_path: Path, tiny_prior: LatentPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(local_hub, tmp_path)
    monkeypatch.setattr("silo.ui.models.shelf", lambda: [])
    models = Models(lambda _: tiny_prior)
    assert "motion_blur" not in models.tasks()
    added = Adding().add(f"{local_hub.url}/lab/operator")
    head = local_hub.repositories["models/lab/operator"].head
    assert (added.name, added.task) == (f"lab/operator@{head}", "motion_blur")
    assert "motion_blur" in models.tasks()
    (label,) = [label for label, name in models.operators() if name == added.name]
    assert "motion_blur" in label and "MB here" in label and "mit" in label
    request = RestorationRequest("motion_blur", torch.zeros(1, 3, 64, 64), simulate=True, steps=1)
    result = models.restorer(None, added.name).run(request)
    assert result.parameters["operator"] == {"name": added.name, "revision": head}


def test_what_is_no_operator_is_refused_before_it_is_fetched(
    local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_prior: LatentPrior
) -> None:
    models = Models(lambda _: tiny_prior)
    repository(local_hub, tmp_path)
    local_hub.create("models/lab/text").commit("words", {"config.json": File(b"{}", False)})
    with pytest.raises(OperatorFileError, match="no latent operator"):
        Adding().add("lab/text")
    with pytest.raises(OperatorNotFound, match="no open model lab/none"):
        Adding().add("lab/none")
    monkeypatch.setattr("silo.ui.adding.MAX_OPERATOR_BYTES", 10)
    with pytest.raises(OperatorError, match="at most"):
        Adding().add("lab/operator")
    assert not [name for _, name in models.operators() if "lab/" in name]


def test_no_file_of_an_operator_is_fetched_that_is_too_large(
    local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(local_hub, tmp_path)
    pushed = local_hub.repositories["models/lab/operator"]
    files = pushed.files
    size = sum(len(file.content) for file in files.values())
    monkeypatch.setattr("silo.ui.adding.MAX_OPERATOR_BYTES", size)
    Adding().add("lab/operator")
    for name in ("config.json", "README.md"):
        grown = File(files[name].content + bytes(size), False)
        pushed.commit(name, {**files, name: grown})
        with pytest.raises(OperatorError, match="at most"):
            Adding().add("lab/operator")


def test_nothing_but_the_config_is_fetched_of_what_is_no_operator(
    local_hub: Hub, tmp_path: Path
) -> None:
    repository(local_hub, tmp_path)
    pushed = local_hub.repositories["models/lab/operator"]
    for config, told in ((b"{}", "format_version"), (bytes(2**20 + 1), "larger than 1 MiB")):
        pushed.commit(told, {**pushed.files, "config.json": File(config, False)})
        with pytest.raises(OperatorFileError, match=told):
            Adding().add("lab/operator")
    assert not any("model.safetensors" in request for request in local_hub.requests)


def test_an_operator_that_fails_its_check_is_deleted_unless_it_was_here(
    local_hub: Hub, tmp_path: Path, tiny_prior: LatentPrior
) -> None:
    repository(local_hub, tmp_path)
    pushed, cache = local_hub.repositories["models/lab/operator"], Path(constants.HF_HUB_CACHE)
    models, whole = Models(lambda _: tiny_prior), pushed.head

    def names() -> list[str]:
        return [name for _, name in models.operators() if name.startswith("lab/")]

    pushed.commit("damaged", {**pushed.files, "model.safetensors": File(bytes(99), True)})
    with pytest.raises(OperatorFileError, match="damaged"):
        Adding().add("lab/operator")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size == 99]
    added = Adding().add(f"lab/operator@{whole}")
    assert names() == [added.name]
    next(cache.rglob("model.safetensors")).resolve().write_bytes(bytes(9))
    with pytest.raises(OperatorFileError, match="damaged"):
        Adding().add(added.name)
    assert names() == [added.name]


def test_operators_of_visitors_do_not_fill_the_disk(
    local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(local_hub, tmp_path)
    files = local_hub.repositories["models/lab/operator"].files
    local_hub.create("models/lab/another").commit("operator", files)
    size = sum(len(file.content) for file in files.values())
    monkeypatch.setattr("silo.ui.adding.MAX_ADDED_BYTES", 1.5 * size)
    Adding().add("lab/operator")
    with pytest.raises(OperatorError, match="take up nearly all .* choose one of those"):
        Adding().add("lab/another")
    assert Adding().add("lab/operator").name.startswith("lab/operator@")  # which is here
    monkeypatch.setattr("silo.ui.adding.MAX_ADDED_BYTES", 2.5 * size)
    Adding().add("lab/another")


@pytest.mark.parametrize("trouble", [fail(503), fail(429), lose_answer])
def test_a_hub_that_fails_is_asked_again_and_not_taken_for_one_without_the_model(
    local_hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[], None],
) -> None:
    monkeypatch.setattr("silo.hub_commit.RETRY_WAITS", (0.0, 0.0))
    repository(local_hub, tmp_path)
    local_hub.disturb("GET /api/models/lab/operator/revision/main", trouble, times=3)
    with pytest.raises(HubUnavailable, match="try again"):
        Adding().add("lab/operator")
    local_hub.disturb("GET /api/models/lab/operator/revision/main", trouble)
    assert Adding().add("lab/operator").task == "motion_blur"


def test_the_commit_that_was_checked_is_fetched(
    local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(local_hub, tmp_path)
    pushed = local_hub.repositories["models/lab/operator"]
    checked, fetch = pushed.head, hub.snapshot

    def fetch_after_a_push(*arguments: Any, token: Any) -> tuple[Path, str]:
        pushed.commit("larger", {**pushed.files, "README.md": File(bytes(10**6), False)})
        return fetch(*arguments, token=token)

    monkeypatch.setattr(hub, "snapshot", fetch_after_a_push)
    assert Adding().add("lab/operator").name == f"lab/operator@{checked}"


@pytest.mark.parametrize(
    "described",
    [
        {"kind": "gaussian_blur", "parameters": {"std": 1.5}, "noise_sigma": 0.02},
        {"kind": "function", "parameters": {"name": "old_lens", "sha256": "0" * 64}},
    ],
)
def test_an_operator_of_a_task_of_ones_own_is_added(
    local_hub: Hub, tmp_path: Path, tiny_prior: LatentPrior, described: dict[str, object]
) -> None:
    repository(local_hub, tmp_path, "old_lens", degradation=described)
    models = Models(lambda _: tiny_prior)
    added = Adding().add("lab/operator")
    assert models.added(added.name) == added == Added(added.name, "old_lens", False)
    assert "old_lens" in models.tasks()
    task = models.task("old_lens", None, added.name)
    assert task.degradation == Degradation.from_dict(described)
    if task.degradation.kind == "function":
        with pytest.raises(BadRequest, match="already damaged"):
            check_simulated(task)
    else:
        check_simulated(task)
    with pytest.raises(BadRequest, match="usual operators lack one for old lens"):
        models.task("old_lens", None, AUTOMATIC)
    request = RestorationRequest(
        "old_lens", torch.zeros(1, 3, 64, 64), degradation=task.degradation, steps=1
    )
    models.restorer(None, added.name).run(request)


def test_only_tasks_that_a_prior_has_an_operator_for_are_offered() -> None:
    models = Models(lambda _: pytest.fail("nothing is loaded to list them"))
    assert "denoising" in models.tasks(EMBEDDED_NAME)
    assert models.tasks("rv51") == models.tasks("sd15") < models.tasks(EMBEDDED_NAME)
    assert "denoising" not in models.tasks("sd15")
    models.check("denoising", EMBEDDED_NAME, AUTOMATIC)
    models.check("denoising", "sd15", "lab/operator@c0ffee")
    with pytest.raises(BadRequest, match="choose another task"):
        models.check("denoising", "sd15", AUTOMATIC)


def test_nobody_waits_for_a_prior_that_another_visitor_chose(tiny_prior: LatentPrior) -> None:
    begun, go_on = threading.Event(), threading.Event()
    loaded: list[str] = []

    def load(name: str) -> LatentPrior:
        loaded.append(name)
        if name == "slow":
            begun.set()
            assert go_on.wait(60)
        return tiny_prior

    models = Models(load)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(models.restorer, "slow")]
        assert begun.wait(60)
        waiting.append(pool.submit(models.restorer, "slow"))
        usual = pool.submit(models.restorer)
        assert usual.result(60).prior is tiny_prior
        assert not any(each.done() for each in waiting)
        go_on.set()
        assert waiting[0].result() is waiting[1].result()
    assert loaded == ["slow", EMBEDDED_NAME]


def test_a_prior_that_failed_to_load_is_tried_again(tiny_prior: LatentPrior) -> None:
    failures = [HubUnavailable("go online")]

    def load(name: str) -> LatentPrior:
        if failures:
            raise failures.pop()
        return tiny_prior

    models = Models(load)
    with pytest.raises(HubUnavailable):
        models.restorer("a")
    assert models.restorer("a").prior is tiny_prior


def test_the_last_operators_stay_in_memory_and_no_more(tiny_prior: LatentPrior) -> None:
    models = Models(lambda _: tiny_prior)
    kept = [weakref.ref(models.restorer(None, f"lab/{i}")) for i in range(MAX_KEPT + 1)]
    gc.collect()
    assert [each() is None for each in kept] == [True] + [False] * MAX_KEPT
    assert models.restorer(None, "lab/1") is kept[1]()  # the one that was unused longest
    models.restorer(None, "lab/new")
    gc.collect()
    assert kept[1]() is not None and kept[2]() is None


def test_a_prior_is_here_when_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    prior = HUB_PRIORS["sd15"]
    folder = tmp_path / f"models--{prior.repo_id.replace('/', '--')}"
    models = Models(lambda _: pytest.fail("nothing is loaded to list it"))

    def download(part: str, stem: str) -> str:
        path = folder / "snapshots" / prior.revision / part / f"{stem}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        (label,) = (label for label, name in models.priors() if name == "sd15")
        return label

    labels = [download(part, stem) for part, stem in WEIGHTS.items()]
    assert ["download" in label for label in labels] == [True, True, False]
    assert "here" in labels[-1]
    assert models.same_prior(Weights("rv51", None)) is None


def test_what_is_open_to_this_machines_token_alone_is_not_added(
    local_hub: Hub, tmp_path: Path
) -> None:
    repository(local_hub, tmp_path)
    local_hub.repositories["models/lab/operator"].private = True
    with pytest.raises(OperatorError, match="no open model lab/operator"):
        Adding().add("lab/operator")


def test_operators_of_the_collection_are_offered_until_they_are_here(
    local_hub: Hub, tmp_path: Path, tiny_prior: LatentPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silo.ui.models.COLLECTION_SECONDS", 1e12)  # in one period
    repository(local_hub, tmp_path)
    local_hub.collections["lab/silo-1"] = ["lab/operator"]
    models = Models(lambda _: tiny_prior, collection="lab/silo-1")
    head = local_hub.repositories["models/lab/operator"].head
    (choice,) = models.offered()
    assert choice[0].startswith("lab/operator: motion_blur (0.") and "download, mit" in choice[0]
    assert choice[1] == f"lab/operator@{head}"
    requests = len(local_hub.requests)
    assert models.offered() == [choice] and len(local_hub.requests) == requests
    assert Adding().add(choice[1]).task == "motion_blur"
    assert models.offered() == [] == Models(lambda _: tiny_prior).offered()
    with pytest.raises(OperatorError, match="'lab/none'"):
        Models(lambda _: tiny_prior, collection="lab/none").offered()


@pytest.mark.parametrize(
    ("task", "described", "told"),
    [
        ("mind_reading", {}, "which task"),
        ("../outside", {"degradation": {"kind": "denoising"}}, "letters, digits"),
    ],
)
def test_an_operator_of_no_known_task_is_not_added(
    local_hub: Hub,
    tmp_path: Path,
    tiny_prior: LatentPrior,
    task: str,
    described: dict[str, object],
    told: str,
) -> None:
    repository(local_hub, tmp_path)
    files = local_hub.repositories["models/lab/operator"]
    config = json.loads(files.files["config.json"].content)
    config["metadata"] |= {"task": task, **described}
    changed = File(json.dumps(config).encode(), False)
    files.commit("other", {**files.files, "config.json": changed})
    models = Models(lambda _: tiny_prior)
    with pytest.raises(OperatorError, match=told):
        Adding().add("lab/operator")
    assert "../outside" not in models.tasks()


def test_without_network_the_cache_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(hub.HubUnavailable, match="nobody/nothing"):
        Adding().add("nobody/nothing")


def test_the_usual_prior_and_the_last_one_stay_in_memory(tiny_prior: LatentPrior) -> None:
    loaded: list[str] = []

    def load(name: str) -> LatentPrior:
        loaded.append(name)
        return tiny_prior

    models = Models(load)
    usual = models.restorer()
    assert models.restorer(EMBEDDED_NAME, AUTOMATIC) is usual
    models.restorer("a")
    models.restorer("b")
    assert models.restorer() is usual
    assert models.restorer("b") is models.restorer("b")
    models.restorer("a")
    assert loaded == [EMBEDDED_NAME, "a", "b", "a"]


def test_the_prior_and_the_operator_of_a_result_are_found_again(
    local_hub: Hub, tmp_path: Path
) -> None:
    repository(local_hub, tmp_path)
    models = Models(LatentPrior.load)
    blurred = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 64, 64), simulate=True)

    usual = Weights("trained/gaussian_blur", None)
    added = Adding().add("lab/operator").name
    pinned = Weights("lab/operator", added.partition("@")[2])  # as the command line records it
    assert models.same_prior(Weights(EMBEDDED_NAME, None)) == EMBEDDED_NAME
    assert models.same_operator(usual, EMBEDDED_NAME, blurred) == AUTOMATIC
    assert models.same_operator(pinned, EMBEDDED_NAME, blurred) == added
    assert models.same_operator(Weights(added, pinned.revision), EMBEDDED_NAME, blurred) == added

    assert models.same_prior(Weights(EMBEDDED_NAME, "f00")) is None
    assert models.same_prior(Weights("sd15", None)) is None
    assert models.same_prior(Weights("/etc", None)) is None
    assert models.same_operator(Weights("trained/other", None), EMBEDDED_NAME, blurred) is None
    assert models.same_operator(Weights("lab/operator", "f00"), EMBEDDED_NAME, blurred) is None


def test_what_is_on_the_shelf_is_listed_by_prior_and_task_and_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_prior: LatentPrior
) -> None:
    shelf = tmp_path / "trained"
    for name, task, prior in (
        ("own", "gaussian_blur", EMBEDDED_NAME),
        ("shared", "gaussian_blur", "sd15"),
        ("other", "jpeg_q10", EMBEDDED_NAME),
    ):
        operator = CompactCNN(latent_channels=4, width=8, blocks=1, groups=4)
        operator.metadata = {"task": task, "prior": prior}
        operator.save_pretrained(shelf / name)
    (shelf / "own" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("silo.ui.models.on_shelf", lambda: on_shelf(shelf))
    monkeypatch.setattr("silo.ui.models.in_cache", lambda: [])
    monkeypatch.setattr("silo.ui.models.SHELF", shelf)
    models = Models(lambda _: tiny_prior)

    def names(prior: str | None = None, task: str | None = None) -> list[str]:
        return [name for _, name in models.operators(prior, task)]

    assert names() == [AUTOMATIC, "trained/other", "trained/own", "trained/shared"]
    assert names(EMBEDDED_NAME, "gaussian_blur") == [AUTOMATIC, "trained/own"]
    assert names("rv51", "gaussian_blur") == [AUTOMATIC, "trained/shared"]
    assert names("rv51", "jpeg_q10") == [AUTOMATIC]
    (label,) = [label for label, name in models.operators() if name == "trained/own"]
    assert re.fullmatch(r"own: gaussian_blur \([\d.]+ MB here, mit\)", label)
    for words in ("buy now " * 99, '"\\u202e"'):  # the latter turns the words after it around
        (shelf / "own" / "README.md").write_text(f"---\nlicense: {words}\n---\n")
        labels = [label for label, name in models.operators() if name == "trained/own"]
        assert re.fullmatch(r"own: .* MB here, licence unknown\)", labels[0])
    request = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 64, 64), simulate=True, steps=1)
    restorer = models.restorer(None, "trained/own")
    restorer.run(request)


def test_a_shelf_operator_that_is_not_the_usual_one_is_found_again(
    monkeypatch: pytest.MonkeyPatch, tiny_prior: LatentPrior
) -> None:
    models = Models(lambda _: tiny_prior, "sd15")
    blurred = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 64, 64), simulate=True)
    chosen = "trained/gaussian_blur_sd15"
    record = models.restorer("sd15", chosen).parameters(blurred)["operator"]
    assert record["name"] == chosen
    usual = Weights("trained/usual", None)
    monkeypatch.setattr(models.restorer(), "parameters", lambda _: {"operator": vars(usual)})
    assert models.same_operator(Weights(**record), "sd15", blurred) == chosen
    assert models.same_operator(usual, "sd15", blurred) == AUTOMATIC


def test_the_embedded_prior_is_listed_with_its_size_and_licence() -> None:
    (label, name), *_ = Models(lambda _: pytest.fail("nothing is loaded to list it")).priors()
    assert name == EMBEDDED_NAME
    assert "MB here" in label and "cc-by-sa-4.0" in label
