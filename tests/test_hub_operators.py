"""Operators are pushed to, fetched from and compared with a Hub that speaks the real protocol."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

from operators.catalog import find_operator, get_task, shelf
from operators.convolutional import CompactCNN
from operators.degradation import Degradation
from operators.download_record import changed_files, recorded_commit
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.latent import LatentOperator
from silo import hub
from silo.__main__ import main
from silo.errors import BadRequest, HubUnavailable, PushRefused
from silo.hub_commit import commit_files
from silo.images import read_parameters, save_png
from silo.model_card import NO_LICENSE, base_model_of, render_operator_card
from silo.operator_listing import on_shelf
from silo.own_degradation import load_degradation
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer
from silo.training.operator_presets import OperatorTraining
from tests.hub_server import File, Hub, Refusal, fail, lose_answer

TASK = "super_resolution_x4"
NAME = "lab/sr4"
FILES = {"README.md", "config.json", "model.safetensors"}
HF = Path(sys.executable).with_name("hf")
# huggingface_hub's own upload of large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def _train_a_little(seed: int) -> CompactCNN:
    """An operator that learned in a few steps to halve latents."""
    torch.manual_seed(seed)
    operator = CompactCNN(width=8, blocks=1, groups=4)
    optimizer = torch.optim.Adam(operator.parameters(), lr=0.01)
    z, sigma = torch.randn(4, 4, 8, 8), torch.full((4,), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        error = (operator(z, sigma) - z / 2).abs().mean()
        error.backward()
        optimizer.step()
    task = get_task(TASK)
    operator.metadata = {
        "task": TASK,
        "prior": "sd15",
        "degradation": task.degradation.to_dict(),
        "eta": task.eta,
        "rmse": 0.25,
        "noise_range": [0.0, 0.05],
        "errors": {"l1": round(error.item(), 4), "l1_identity": 0.4, "rmse": 0.25},
        "results": {},
        "license": "cc-by-sa-4.0",
        "training": {
            **asdict(OperatorTraining(resolution=64, pictures=4, steps=20, batch=4, seed=seed)),
            "preset": "fast",
            "photos": 4,
        },
    }
    return operator


def _save(folder: Path, seed: int = 0) -> Path:
    operator = _train_a_little(seed)
    operator.save_pretrained(folder)
    (folder / "README.md").write_text(render_operator_card(operator))
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return _save(tmp_path / "trained" / TASK)


@pytest.fixture
def shelf_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty shelf in place of the repository's."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setattr("silo.commands.operators.SHELF", folder)
    monkeypatch.setattr("silo.commands.operators.on_shelf", lambda: on_shelf(folder))
    return folder


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def _hf(*arguments: str) -> str:
    """What the `hf` command of this environment prints."""
    done = subprocess.run([HF, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _published(folder: Path, repo_id: str = NAME) -> dict[str, bytes]:
    """The files of an operator as a push sends them: the card names the repository."""
    files = _files(folder)
    return {**files, "README.md": files["README.md"].replace(b"FOLDER", repo_id.encode())}


def test_from_training_to_a_restoration_elsewhere(
    local_hub: Hub, trained: Path, shelf_folder: Path, tiny_prior: LatentPrior, capfd
) -> None:
    """A push here, `hf download` onto a shelf there, and a restoration with what arrived."""
    assert main(["operators", "push", str(trained), "--repo_id", NAME]) == 0
    repository = local_hub.repositories[f"models/{NAME}"]
    assert capfd.readouterr().out == f"{local_hub.url}/{NAME}/commit/{repository.head}\n"
    assert len(repository.commits) == 2  # the empty repository, and everything at once
    assert {n: f.content for n, f in repository.files.items() if n in FILES} == _published(trained)

    _save(shelf_folder / "a_shipped_one", seed=1)
    there = shelf_folder / "sr4"
    _hf("download", NAME, "--local-dir", str(there))
    assert [e.folder.name for e in shelf(shelf_folder)] == ["a_shipped_one", "sr4"]
    assert find_operator(TASK, "rv51", 4, shelf_folder) == there  # what was fetched is preferred
    shutil.rmtree(shelf_folder / "a_shipped_one")
    operator = LatentOperator.from_pretrained(there)
    assert operator.revision == repository.head
    _hf("cache", "verify", NAME, "--local-dir", str(there))
    capfd.readouterr()
    assert main(["operators", "verify"]) == 0
    assert capfd.readouterr().out.startswith(f"ok {there} ({TASK}, 4 files as on the Hub")
    assert main(["operators", "list", "--json"]) == 0
    (row,) = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert row == {
        "source": "shelf",
        "name": "sr4",
        "commit": repository.head,
        "task": TASK,
        "prior": "sd15",
        "architecture": "compact_cnn",
        "size": sum(len(content) for content in _published(trained).values()),
        "license": "cc-by-sa-4.0",
    }

    request = RestorationRequest(TASK, torch.zeros(1, 3, 128, 128), simulate=True, steps=2)
    result = Restorer(tiny_prior, operator=there).run(request)
    assert result.parameters["operator"]["revision"] == repository.head
    same = Restorer(tiny_prior, operator=trained).run(request)
    torch.testing.assert_close(result.restored, same.restored, rtol=0, atol=0)


def _blocks(card: str) -> list[str]:
    """The indented code blocks of a card, as Markdown tells them: an empty line ends none."""
    text = card.split("---\n", 2)[2]
    lines = [*text.splitlines(), "."]
    blocks, block = [], ""
    for line in lines:
        if line.startswith("    ") or (block and not line):
            block += f"{line[4:]}\n"
        elif block:
            blocks.append(block.strip())
            block = ""
    return blocks


def test_the_cards_command_runs_as_it_is_once_it_is_published(
    local_hub: Hub, trained: Path, tmp_path: Path, tiny_prior_folder: Path
) -> None:
    hub.push_operator(trained, NAME)
    card = local_hub.repositories[f"models/{NAME}"].files["README.md"].content.decode()
    command, training = _blocks(card)
    said = f"python -m silo restore PHOTO --task {TASK} --prior sd15 --operator {NAME}"
    assert command == said and training.startswith("python -m silo train-operator")
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    save_png(photo, torch.zeros(3, 16, 16))
    words = shlex.split(
        command.replace("PHOTO", str(photo)).replace("sd15", str(tiny_prior_folder))
    )
    assert main([*words[3:], "--steps", "1", "--out", str(out)]) == 0
    used = read_parameters(out)
    assert used is not None and used["operator"]["name"] == NAME


def test_the_card_shows_a_degradation_of_ones_own(trained: Path, tmp_path: Path) -> None:
    operator = LatentOperator.from_pretrained(trained)
    soft = Degradation("gaussian_blur", {"std": 5.0})
    operator.metadata |= {"task": "soft", "degradation": soft.to_dict()}
    _, described, training = _blocks(render_operator_card(operator))
    (tmp_path / "FILE.json").write_text(described)
    assert load_degradation(str(tmp_path / "FILE.json")).degradation == soft
    assert "--degradation FILE.json" in training and "--task soft" in training
    function = Degradation("function", {"name": "fade", "sha256": "0" * 64})
    operator.metadata |= {
        "degradation": function.to_dict(),
        "source": "def fade(x):\n    return x\n",
    }
    command, source, training = _blocks(render_operator_card(operator))
    assert command.startswith("python") and source == "def fade(x):\n    return x"
    assert "--degradation FILE.py:fade" in training


def test_the_card_tells_the_hub_what_it_reads(trained: Path) -> None:
    operator = LatentOperator.from_pretrained(trained)
    front = yaml.safe_load((trained / "README.md").read_text().split("---\n")[1])
    assert front["library_name"] == "silo" and front["pipeline_tag"] == "image-to-image"
    assert front["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert front["base_model_relation"] == "adapter"
    assert front["license"] == "cc-by-sa-4.0" and front["metrics"] == ["l1", "rmse"]
    (result,) = front["model-index"][0]["results"]
    measured = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert measured == {"l1": operator.metadata["errors"]["l1"], "rmse": 0.25}
    assert "0.4" in result["metrics"][0]["name"]  # what the identity reaches
    assert "datasets" not in front
    operator.metadata["results"] = {"pictures": 4, "sampler": "silo-fast", "steps": 16}
    operator.metadata["results"] |= {"psnr": 22.5, "psnr_measurement": 20.25}
    operator.metadata["results"] |= {"lpips": 0.2, "lpips_measurement": 0.4}
    front = yaml.safe_load(render_operator_card(operator).split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    restored = {metric["type"]: metric for metric in result["metrics"]}
    assert list(restored) == front["metrics"] == ["l1", "rmse", "psnr", "lpips"]
    assert (restored["psnr"]["value"], restored["lpips"]["value"]) == (22.5, 0.2)
    assert "(the measurement: 0.4)" in restored["lpips"]["name"]
    assert "4 pictures restored by silo-fast in 16 steps" in restored["psnr"]["name"]
    operator.metadata["prior"] = "tiny"
    operator.metadata["training"] |= {"dataset_name": "lab/photos", "dataset_revision": "a" * 40}
    card = render_operator_card(operator)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["datasets"] == ["lab/photos"] and "base_model" not in front
    assert f"--dataset_name lab/photos@{'a' * 40} " in card and "PHOTOS" not in card
    assert base_model_of("owner/prior@abc") == "owner/prior"
    assert base_model_of("./prior") is None


def test_pull_resolves_a_branch_to_its_commit_and_replaces_older_downloads(
    local_hub: Hub, trained: Path, shelf_folder: Path, tmp_path: Path, capfd
) -> None:
    first = hub.push_operator(trained, NAME).rpartition("/")[2]
    hub.push_operator(_save(tmp_path / "better", seed=1), NAME)
    assert main(["operators", "pull", NAME, "--revision", first]) == 0
    folder = shelf_folder / "sr4"
    assert capfd.readouterr().out == f"{folder} {first}\n"
    assert _files(folder) == _published(trained) and recorded_commit(folder) == first
    assert main(["operators", "pull", NAME]) == 0
    assert _files(folder) == _published(tmp_path / "better")
    assert recorded_commit(folder) == local_hub.repositories[f"models/{NAME}"].head
    assert [path.name for path in shelf_folder.iterdir()] == ["sr4"]
    with pytest.raises(OperatorNotFound, match="no revision 'v9'"):
        hub.pull_operator(NAME, folder, revision="v9")
    with pytest.raises(OperatorNotFound, match="'lab/none'"):
        hub.pull_operator("lab/none", shelf_folder / "none")


def test_pull_leaves_alone_what_is_not_from_the_hub(
    local_hub: Hub, trained: Path, tmp_path: Path
) -> None:
    hub.push_operator(trained, NAME)
    before = _files(trained)
    with pytest.raises(BadRequest, match="--local_dir"):
        hub.pull_operator(NAME, trained)
    assert _files(trained) == before
    folder = tmp_path / "pulled"
    hub.pull_operator(NAME, folder)
    _train_a_little(seed=1).save_pretrained(folder)  # over the download
    assert changed_files(folder) == ["config.json", "model.safetensors"]
    assert recorded_commit(folder) is None
    before = _files(folder)
    with pytest.raises(BadRequest, match="--local_dir"):
        hub.pull_operator(NAME, folder)
    assert _files(folder) == before


def test_pull_deletes_nothing_of_the_users(
    local_hub: Hub, trained: Path, shelf_folder: Path, tmp_path: Path, capfd
) -> None:
    hub.push_operator(trained, NAME)
    folder = shelf_folder / "sr4"
    hub.pull_operator(NAME, folder)
    hub.push_operator(_save(tmp_path / "better", seed=1), NAME)
    before = _files(folder)
    for mine in (folder / "my_eval.json", folder / "notes" / "README.md", folder / ".cache" / "x"):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        assert main(["operators", "pull", NAME]) == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert mine.relative_to(folder).as_posix() in error and "--local_dir" in error
        assert mine.read_text() == "mine"
        mine.unlink()
        assert _files(folder) == before
    late = folder / "written_meanwhile.txt"

    def somebody_writes() -> None:
        late.write_text("mine")

    local_hub.disturb("GET .*/model.safetensors", somebody_writes)
    assert main(["operators", "pull", NAME]) == 2
    assert late.read_text() == "mine"
    late.unlink()
    assert main(["operators", "pull", NAME]) == 0
    assert _files(folder) == _published(tmp_path / "better")
    mine = shelf_folder / "mine.txt"
    mine.write_text("mine")
    assert main(["operators", "pull", NAME, "--local_dir", str(mine)]) == 2
    assert mine.read_text() == "mine"


def test_pull_does_not_replace_another_repositorys_operator(
    local_hub: Hub, trained: Path, shelf_folder: Path, tmp_path: Path, capfd
) -> None:
    first = hub.push_operator(trained, "lab/den").rpartition("/")[2]
    hub.push_operator(_save(tmp_path / "better", seed=1), "ada/den")
    folder = shelf_folder / "den"
    _hf("download", "lab/den", "--local-dir", str(folder))
    capfd.readouterr()
    assert main(["operators", "pull", "ada/den"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "another repository" in error and first[:12] in error
    published = _published(trained, "lab/den")
    assert _files(folder).items() >= published.items() and recorded_commit(folder) == first
    advised = error.split("such as ")[1]
    assert main(["operators", "pull", "ada/den", "--local_dir", advised]) == 0
    assert _files(shelf_folder / "ada_den") == _published(tmp_path / "better", "ada/den")
    assert main(["operators", "pull", "lab/den"]) == 0


@pytest.mark.parametrize(
    "place",
    [
        "GET /api/models/lab/sr4",  # which commit it is
        "GET /api/models/lab/sr4/revision/.*",  # whether it is one of this repository
        "HEAD .*/config.json",
        "GET .*/model.safetensors",
        "cut model.safetensors",
        "cut README.md",
    ],
)
def test_a_pull_that_fails_leaves_what_was_there(
    local_hub: Hub,
    trained: Path,
    shelf_folder: Path,
    tmp_path: Path,
    no_waiting: list[float],
    capfd,
    place: str,
) -> None:
    first = hub.push_operator(trained, NAME).rpartition("/")[2]
    folder = shelf_folder / "sr4"
    hub.pull_operator(NAME, folder)
    hub.push_operator(_save(tmp_path / "better", seed=1), NAME)
    before = _files(folder)
    if place.startswith("cut "):
        local_hub.cut(place.removeprefix("cut "))
    else:
        local_hub.disturb(place, fail(503), times=100)
    capfd.readouterr()
    assert main(["operators", "pull", NAME]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "'lab/sr4'" in error and "check the network" in error
    assert _files(folder) == before and recorded_commit(folder) == first
    assert [path.name for path in shelf_folder.iterdir()] == ["sr4"]


def test_a_damaged_download_is_thrown_away(
    local_hub: Hub, trained: Path, shelf_folder: Path, capfd
) -> None:
    hub.push_operator(trained, NAME)
    local_hub.corrupt("model.safetensors")
    with pytest.raises(OperatorFileError, match="model.safetensors .* is not what the Hub holds"):
        hub.pull_operator(NAME, shelf_folder / "sr4")
    assert list(shelf_folder.iterdir()) == []
    # `hf download` compares sizes only; `verify` does not.
    _hf("download", NAME, "--local-dir", str(shelf_folder / "sr4"))
    capfd.readouterr()
    assert main(["operators", "verify"]) == 1
    assert "FAILED model.safetensors" in capfd.readouterr().err
    assert main(["operators", "verify", str(shelf_folder / "sr4")]) == 2


def test_the_cache_is_listed_and_compared_with_the_hub(
    local_hub: Hub, trained: Path, shelf_folder: Path, capfd
) -> None:
    head = hub.push_operator(trained, NAME).rpartition("/")[2]
    assert main(["operators", "verify", NAME]) == 2
    assert "pull it first" in capfd.readouterr().err
    assert LatentOperator.from_pretrained(NAME).revision == head
    assert main(["operators", "verify", NAME]) == 0
    assert main(["operators", "list"]) == 0
    verified, listed = capfd.readouterr().out.splitlines()
    assert verified == f"ok {NAME}@{head} (2 files as on the Hub)"
    assert listed.split()[-2:] == ["cache", f"{NAME}@{head[:12]}"]
    (weights,) = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("model.safetensors")
    weights.resolve().write_bytes(weights.read_bytes()[::-1])
    assert main(["operators", "verify", NAME]) == 2
    assert "hf download lab/sr4 --force-download" in capfd.readouterr().err


def test_a_collection_lists_operators_with_size_and_licence(
    local_hub: Hub, trained: Path, shelf_folder: Path, monkeypatch, capfd
) -> None:
    hub.push_operator(trained, NAME)
    other = local_hub.create("models/lab/language-model")
    other.commit("weights", {"config.json": File(b"{}", False)})
    local_hub.collections["lab/silo-1"] = [NAME, "lab/language-model"]
    assert main(["operators", "list", "--collection", "lab/silo-1", "--json"]) == 0
    (row,) = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert row["source"] == "hub" and row["name"] == NAME and row["task"] == TASK
    assert row["license"] == "cc-by-sa-4.0"
    assert row["size"] == sum(len(content) for content in _published(trained).values())
    assert main(["operators", "list", "--collection", "lab/none"]) == 2
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert main(["operators", "list", "--collection", "lab/silo-1"]) == 0
    assert "out of reach" in capfd.readouterr().err


def test_what_is_wrong_in_a_collection_or_on_the_shelf_costs_no_other_row(
    local_hub: Hub, trained: Path, shelf_folder: Path, capfd
) -> None:
    def refuse() -> None:
        raise Refusal(403, "Access to model lab/gated is restricted", "GatedRepo")

    hub.push_operator(trained, NAME)
    card = File(b"---\nlibrary_name: silo\nlicense: mit\n---\n", False)
    for name in ("lab/gated", "lab/foreign"):
        config = File(b'{"model_type": "bert"}', False)
        local_hub.create(f"models/{name}").commit("a", {"config.json": config, "README.md": card})
    local_hub.disturb(".* /lab/gated/resolve/.*", refuse, times=100)
    local_hub.collections["lab/silo-1"] = ["lab/gone", "lab/gated", "lab/foreign", NAME]
    _save(shelf_folder / "mine")
    (shelf_folder / "wrong").mkdir()
    (shelf_folder / "wrong" / "config.json").write_text("{}")
    assert main(["operators", "list", "--collection", "lab/silo-1", "--json"]) == 0
    said = capfd.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["source"], row["name"]) for row in rows] == [("shelf", "mine"), ("hub", NAME)]
    notes = [line for line in said.err.splitlines() if line.startswith("Left out of the coll")]
    for note, name in zip(notes, ("lab/gone", "lab/gated", "lab--foreign"), strict=True):
        assert name in note
    # Where the collection itself is gone, what is here is listed nevertheless.
    assert main(["operators", "list", "--collection", "lab/none"]) == 2
    said = capfd.readouterr()
    assert "shelf  mine" in said.out and "'lab/none'" in said.err.splitlines()[-1]
    assert main(["operators", "verify"]) == 1
    said = capfd.readouterr()
    assert said.out.startswith(f"ok {shelf_folder / 'mine'}") and "FAILED" in said.err
    assert str(shelf_folder / "wrong") in said.err


def test_a_card_without_a_licence_is_listed(trained: Path) -> None:
    too_long = f"a: {'b' * 2**16}\nlicense: mit"
    hostile = ("x: " + "[" * 1000, 'license: "\\UFFFFFFFF"', "license: !!str [mit]", too_long)
    for metadata in ("a", "- a", "license: [", "license: 3", "? [license]\n: mit", *hostile):
        (trained / "README.md").write_text(f"---\n{metadata}\n---\nA card.\n")
        assert [row.license for row in on_shelf(trained.parent)] == [None]
    (trained / "README.md").unlink()
    assert [row.license for row in on_shelf(trained.parent)] == [None]


def test_a_licence_is_read_without_the_rest_of_the_card(trained: Path) -> None:
    doubled = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60)]
    front_matter = "\n".join(["a0: &a0 {b: c}", *doubled, "license: mit"])  # 2^59 keys
    (trained / "README.md").write_bytes(f"---\n{front_matter}\n---\n".encode() + b"\xff" * 2**20)
    assert [row.license for row in on_shelf(trained.parent)] == ["mit"]


def test_nobody_elses_work_is_licensed_unasked(
    local_hub: Hub, trained: Path, shelf_folder: Path, capfd
) -> None:
    operator = LatentOperator.from_pretrained(trained)
    del operator.metadata["license"]
    folder = shelf_folder / "mine"
    operator.save_pretrained(folder)
    card = folder / "README.md"
    card.write_text(render_operator_card(operator))
    push = ["operators", "push", str(folder), "--repo_id", NAME]
    assert main(push) == 0
    assert capfd.readouterr().err.splitlines()[-1] == NO_LICENSE
    assert "license:" not in card.read_text()
    before = _published(folder)["README.md"].decode().split("---\n", 2)
    assert main([*push, "--license", "cc-by-4.0"]) == 0
    assert NO_LICENSE not in capfd.readouterr().err
    pushed = local_hub.repositories[f"models/{NAME}"].files["README.md"].content.decode()
    _, front_matter, body = pushed.split("---\n", 2)
    assert body == before[2]
    assert yaml.safe_load(front_matter) == yaml.safe_load(before[1]) | {"license": "cc-by-4.0"}
    assert _published(folder)["README.md"].decode().split("---\n", 2) == before
    card.write_text("---\nlicense: [\n---\n")
    assert main([*push, "--license", "mit"]) == 2
    assert "cannot take the licence mit" in capfd.readouterr().err


def test_a_push_leaves_what_was_pulled_as_it_is(
    local_hub: Hub, trained: Path, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push_operator(trained, NAME).rpartition("/")[2]
    folder = shelf_folder / "sr4"
    hub.pull_operator(NAME, folder)
    push = ["operators", "push", str(folder), "--license", "mit", "--repo_id"]
    assert main([*push, "ada/sr4"]) == 0
    pushed = local_hub.repositories["models/ada/sr4"].files["README.md"].content
    assert b"license: mit\n" in pushed
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert main([*push, "lab/new"]) == 2
    assert _files(folder) == _published(trained) and recorded_commit(folder) == commit


def test_nothing_leaves_that_does_not_load_or_may_not_be_published(
    local_hub: Hub, trained: Path, tmp_path: Path
) -> None:
    without_card, damaged, mute, official = (tmp_path / name for name in "abcd")
    for folder in (without_card, damaged, mute, official):
        shutil.copytree(trained, folder)
    (without_card / "README.md").unlink()
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for folder, change in ((mute, {}), (official, {"imported_from": "x.pt"})):
        operator = LatentOperator.from_pretrained(trained)
        operator.metadata = {**operator.metadata, **change} if change else {}
        operator.save_pretrained(folder)
    for folder, error, message in (
        (without_card, PushRefused, "no README.md"),
        (damaged, OperatorFileError, "damaged"),
        (mute, OperatorFileError, "task and prior"),
        (official, PushRefused, "no licence"),
        (tmp_path / "nothing", OperatorError, "there is no folder"),
    ):
        with pytest.raises(error, match=message):
            hub.push_operator(folder, NAME)
    assert local_hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_stranger", NAME, "you may not write to lab/sr4"),
        ("hf_stranger", "lab/new", "you may not write to lab/new"),
        ("hf_forged", NAME, "hf auth login"),
        (None, NAME, "hf auth login"),
        ("hf_writer", "lab/sr 4", "no name of a repository"),
    ],
)
def test_a_push_without_rights(
    local_hub: Hub, trained: Path, tmp_path: Path, monkeypatch, capfd, token, repo_id, message
) -> None:
    hub.push_operator(trained, NAME)
    head = local_hub.repositories[f"models/{NAME}"].head
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    better = _save(tmp_path / "better", seed=1)
    capfd.readouterr()
    assert main(["operators", "push", str(better), "--repo_id", repo_id]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and message in said
    assert token is None or token not in said
    assert [key for key in local_hub.repositories] == [f"models/{NAME}"]
    assert local_hub.repositories[f"models/{NAME}"].head == head


def test_a_push_over_a_stale_parent(local_hub: Hub, trained: Path, tmp_path: Path) -> None:
    hub.push_operator(trained, NAME)
    repository = local_hub.repositories[f"models/{NAME}"]

    def somebody_else_pushes() -> None:
        repository.commit("theirs", {**repository.files, "note.txt": File(b"theirs", False)})

    local_hub.disturb(rf"POST /api/models/{NAME}/commit/main", somebody_else_pushes)
    with pytest.raises(PushRefused, match="somebody else has changed lab/sr4"):
        hub.push_operator(_save(tmp_path / "better", seed=1), NAME)
    assert [title for title, _ in repository.commits.values()][-1] == "theirs"
    assert repository.files["model.safetensors"].content == _files(trained)["model.safetensors"]
    hub.push_operator(tmp_path / "better", NAME)  # over theirs, now that it is known
    assert repository.files["note.txt"].content == b"theirs"


def test_the_picture_of_a_card_travels_with_it(
    local_hub: Hub, trained: Path, tmp_path: Path
) -> None:
    card = render_operator_card(LatentOperator.from_pretrained(trained), "What it shows.")
    assert "(example.png)\n\nWhat it shows.\n\n| | |" in card
    (trained / "README.md").write_text(card)
    (trained / "example.png").write_bytes(b"a picture")
    (trained / "notes.txt").write_text("mine")
    hub.push_operator(trained, NAME)
    repository = local_hub.repositories[f"models/{NAME}"]
    assert len(repository.commits) == 2  # with the rest, at once
    assert repository.files.keys() == {".gitattributes", "example.png", *FILES}
    hub.pull_operator(NAME, tmp_path / "pulled")
    assert _files(tmp_path / "pulled").keys() == {"example.png", *FILES}


PLACES = ["PUT /lfs/.*", ".*/batch", f"POST /api/models/{NAME}/commit/main", ".*/validate-yaml"]


@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_recovers_is_asked_again(
    local_hub: Hub, trained: Path, no_waiting: list[float], place: str
) -> None:
    local_hub.disturb(place, fail(503))
    hub.push_operator(trained, NAME)
    repository = local_hub.repositories[f"models/{NAME}"]
    assert len(repository.commits) == 2 and FILES <= repository.files.keys()
    assert no_waiting and min(no_waiting) >= 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("exists", [True, False])
def test_a_server_that_fails_for_good_leaves_everything_as_it_was(
    local_hub: Hub, trained: Path, tmp_path: Path, no_waiting, place: str, exists: bool
) -> None:
    if exists:
        hub.push_operator(trained, NAME)
    before = {key: list(each.commits) for key, each in local_hub.repositories.items()}
    local_hub.disturb(place, fail(503), times=100)
    better = _save(tmp_path / "better", seed=1)
    files = _files(better)
    with pytest.raises(HubUnavailable, match="lab/sr4 is as it was: push again later"):
        hub.push_operator(better, NAME)
    assert {key: list(each.commits) for key, each in local_hub.repositories.items()} == before
    assert _files(better) == files


def test_a_repository_that_cannot_be_withdrawn_is_named(
    local_hub: Hub, trained: Path, no_waiting: list[float]
) -> None:
    local_hub.disturb(PLACES[0], fail(500), times=100)
    local_hub.disturb("DELETE /api/repos/delete", fail(500), times=100)
    with pytest.raises(HubUnavailable, match="lab/sr4, which it created, may be left on the Hub"):
        hub.push_operator(trained, NAME)


CREATE = "POST /api/repos/create"


@pytest.mark.parametrize("trouble", [lose_answer, fail(503)])
def test_a_creation_that_fails_once_is_asked_for_again(
    local_hub: Hub, trained: Path, no_waiting: list[float], trouble: Callable[[], None]
) -> None:
    local_hub.disturb(CREATE, trouble)
    url = hub.push_operator(trained, NAME, private=True)
    repository = local_hub.repositories[f"models/{NAME}"]
    assert repository.private and len(repository.commits) == 2 and url.endswith(repository.head)
    assert local_hub.requests.count(CREATE) == 2


@pytest.mark.parametrize("trouble", [lose_answer, fail(503)])
def test_a_creation_that_fails_for_good_leaves_nothing(
    local_hub: Hub, trained: Path, no_waiting: list[float], trouble: Callable[[], None]
) -> None:
    local_hub.disturb(CREATE, trouble, times=100)
    with pytest.raises(HubUnavailable, match="lab/sr4 is as it was"):
        hub.push_operator(trained, NAME)
    assert local_hub.repositories == {}


def test_a_repository_that_somebody_creates_meanwhile_is_theirs(
    local_hub: Hub, trained: Path, no_waiting: list[float]
) -> None:
    def somebody_else_creates_it() -> None:
        local_hub.create(f"models/{NAME}")

    local_hub.disturb(CREATE, somebody_else_creates_it)
    with pytest.raises(PushRefused, match="somebody else has changed lab/sr4"):
        hub.push_operator(trained, NAME)
    assert len(local_hub.repositories[f"models/{NAME}"].commits) == 1


def test_what_somebody_pushed_meanwhile_is_not_withdrawn(
    local_hub: Hub, trained: Path, no_waiting: list[float]
) -> None:
    def somebody_else_pushes() -> None:
        local_hub.repositories[f"models/{NAME}"].commit("theirs", {"a": File(b"theirs", False)})

    local_hub.disturb(f"POST /api/models/{NAME}/commit/main", somebody_else_pushes)
    with pytest.raises(PushRefused, match="somebody else"):
        hub.push_operator(trained, NAME)
    assert local_hub.repositories[f"models/{NAME}"].files["a"].content == b"theirs"


def test_a_commit_whose_answer_is_lost_is_made_once(
    local_hub: Hub, trained: Path, no_waiting: list[float]
) -> None:
    local_hub.disturb(f"POST /api/models/{NAME}/commit/main", lose_answer)
    url = hub.push_operator(trained, NAME)
    repository = local_hub.repositories[f"models/{NAME}"]
    assert len(repository.commits) == 2 and url.endswith(repository.head)


def test_a_private_push(local_hub: Hub, trained: Path, monkeypatch) -> None:
    hub.push_operator(trained, NAME, private=True)
    assert local_hub.repositories[f"models/{NAME}"].private
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(OperatorNotFound, match="private"):
        hub.pull_operator(NAME, trained.parent / "stolen")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    local_hub.create("models/lab/open")
    with pytest.raises(PushRefused, match="everybody can read lab/open"):
        hub.push_operator(trained, "lab/open", private=True)
    assert len(local_hub.repositories["models/lab/open"].commits) == 1


def test_a_card_that_the_hub_rejects(local_hub: Hub, trained: Path) -> None:
    (trained / "README.md").write_text("No metadata.\n")
    with pytest.raises(PushRefused, match="Invalid metadata"):
        hub.push_operator(trained, NAME)
    assert local_hub.repositories == {}


def test_offline_is_said_at_once(
    local_hub: Hub, trained: Path, shelf_folder: Path, monkeypatch, capfd
) -> None:
    hub.push_operator(trained, NAME)
    asked = len(local_hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.reachable_during.cache_clear()
    for action in (
        ["push", str(trained), "--repo_id", NAME],
        ["pull", NAME],
        ["verify", NAME],
    ):
        assert main(["operators", *action]) == 2
        assert "HF_HUB_OFFLINE is set" in capfd.readouterr().err
    assert list(shelf_folder.iterdir()) == []
    assert len(local_hub.requests) == asked


def test_the_command_in_a_process_of_its_own(local_hub: Hub, trained: Path) -> None:
    """With the environment alone, nothing patched."""
    run = [sys.executable, "-m", "silo", "operators", "push", str(trained), "--repo_id", NAME]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert FILES <= local_hub.repositories[f"models/{NAME}"].files.keys()
    assert os.environ["HF_TOKEN"] not in done.stdout + done.stderr


def test_push_by_the_name_of_a_task(local_hub: Hub, trained: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr("silo.commands.operators.shelf", lambda: shelf(trained.parent))
    push = ["operators", "push", TASK, "--repo_id", NAME]
    assert main([*push, "--prior", "sd15"]) == 0
    operator = _train_a_little(seed=1)
    operator.metadata["prior"] = "tiny"
    operator.save_pretrained(trained.parent / "second")
    for more, message in (
        ([], "2 operators for super_resolution_x4"),
        (["--prior", "rv51"], "0 operators for super_resolution_x4 on rv51"),
    ):
        assert main([*push, *more]) == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert message in error and f"{trained.parent / 'second'} for --prior tiny" in error
    assert main(["operators", "push", str(trained), "--prior", "sd15", "--repo_id", NAME]) == 2
    assert "--prior goes with a task" in capfd.readouterr().err


def test_the_papers_operators_are_pushed_by_task_and_prior(local_hub: Hub) -> None:
    for task in ("gaussian_blur", "super_resolution_x8"):
        for prior in ("tiny", "sd15"):
            name = f"lab/{task}-{prior}"
            push = ["operators", "push", task, "--prior", prior, "--repo_id", name]
            assert main(push) == 0
            config = json.loads(
                local_hub.repositories[f"models/{name}"].files["config.json"].content
            )
            assert (config["metadata"]["task"], config["metadata"]["prior"]) == (task, prior)
            assert config["architecture"] == "compact_cnn"


def test_a_folder_is_made_to_hold_nothing_else(local_hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("new")
    old = File(b"old", False)
    local_hub.create("models/lab/any").commit("old", {"a/old": old, "b/old": old, "a.txt": old})
    files = {"a/new": tmp_path / "new.txt"}
    commit_files("lab/any", files, "Replace a", folders=["a"])
    repository = local_hub.repositories["models/lab/any"]
    assert repository.files.keys() == {"a/new", "b/old", "a.txt"}
