"""The page goes to a Space whole, in one commit, on a Hub that speaks the real protocol."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from operators.convolutional import CompactCNN
from silo.__main__ import main
from silo.commands import deploy_space
from silo.commands.deploy_space import SHELF
from silo.errors import PushRefused
from silo.hub import OPERATOR_FILES
from silo.prior_files import HUB_PRIORS, WEIGHTS, HubPrior
from tests.hub_server import File, Hub, fail

ROOT = Path(__file__).parents[1]
SPACE = "lab/silo"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_space_is_created_and_updated_in_one_commit_each(
    local_hub: Hub, tmp_path: Path, monkeypatch, capfd
) -> None:
    assert main(["deploy-space", SPACE, "--private", "--hardware", "zero-a10g"]) == 0
    space = local_hub.repositories[f"spaces/{SPACE}"]
    assert capfd.readouterr().out == f"{local_hub.url}/spaces/{SPACE}/commit/{space.head}\n"
    assert space.private and space.created_with["sdk"] == "gradio"
    assert local_hub.hardware == {SPACE: "zero-a10g"}
    assert len(space.commits) == 2
    held = space.files.keys() - {".gitattributes"}
    for path in held - {"requirements.txt"}:
        assert space.files[path].content == (ROOT / path).read_bytes(), path
    assert {"app.py", "requirements.txt", "README.md", "silo/__main__.py"} <= held
    assert {
        "operators/trained/jpeg_q10/model.safetensors",
        "silo/embedded/unet/config.json",
    } <= held
    assert not [path for path in held if path.startswith((".", "tests/")) or ".pyc" in path]

    # An update drops what is gone here, keeps what the Space has of its own, and needs no rights
    # to choose hardware.
    stray = File(b"", False)
    space.commit("by hand", {**space.files, "silo/gone.py": stray, "packages.txt": stray})
    monkeypatch.setattr(deploy_space, "ROOT", _copy(tmp_path / "copy"))
    (tmp_path / "copy" / "app.py").write_text("print('new')\n")
    assert main(["deploy-space", SPACE]) == 0
    assert len(space.commits) == 4
    assert space.files.keys() - held == {".gitattributes", "packages.txt"}
    assert space.files["app.py"].content == b"print('new')\n"


def test_a_space_asks_for_a_torch_that_zero_gpu_has(local_hub: Hub) -> None:
    assert main(["deploy-space", SPACE]) == 0
    deployed = local_hub.repositories[f"spaces/{SPACE}"].files["requirements.txt"].content.decode()
    here = (ROOT / "requirements.txt").read_text().splitlines()
    changed = [(a, b) for a, b in zip(here, deployed.splitlines(), strict=True) if a != b]
    assert [line.split(">=")[0] for line, _ in changed] == ["torch"]
    (torch,) = (Requirement(line.partition("#")[0]) for _, line in changed)
    assert all(torch.specifier.contains(v) for v in ("2.8.0", "2.9.1", "2.10.0", "2.11.0"))
    assert not torch.specifier.contains("2.12.0")


@pytest.mark.parametrize(("hardware", "variant"), [("zero-a10g", ".fp16"), ("cpu-basic", "")])
def test_a_chosen_prior_is_the_usual_one_and_fetched_when_the_space_is_built(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: Any, hardware: str, variant: str
) -> None:
    parts = "scheduler", "text_encoder", "tokenizer", "unet", "vae"
    names = [f"{part}/config.json" for part in parts[1:2] + parts[3:]]
    for ending in ("", ".fp16"):
        names += [f"{part}/{stem}{ending}.safetensors" for part, stem in WEIGHTS.items()]
    names += ["scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    strays = ["model.ckpt", "unet/diffusion_pytorch_model.bin", "safety_checker/config.json"]
    repository = local_hub.create("models/lab/prior")
    repository.commit("weights", {name: File(b"", False) for name in (*names, *strays)})
    monkeypatch.setitem(HUB_PRIORS, "sd15", HubPrior("lab/prior", repository.head))

    assert main(["deploy-space", SPACE, "--prior", "sd15", "--hardware", hardware]) == 0
    assert local_hub.variables == {SPACE: {"SILO_PRIOR": "sd15"}}
    card = local_hub.repositories[f"spaces/{SPACE}"].files["README.md"].content.decode()
    _, front, body = card.split("---\n", 2)
    _, front_here, body_here = (ROOT / "README.md").read_text().split("---\n", 2)
    assert body.strip() == body_here.strip()
    settings = yaml.safe_load(front)
    (preloaded,) = settings.pop("preload_from_hub")
    assert settings == yaml.safe_load(front_here)
    repo_id, files, revision = preloaded.split(" ")
    assert (repo_id, revision) == ("lab/prior", repository.head)
    assert set(files.split(",")) == {
        name for name in names if not name.endswith(".safetensors") or _variant(name) == variant
    }

    # An update keeps what was chosen, the files for it included.
    assert main(["deploy-space", SPACE]) == 0
    updated = local_hub.repositories[f"spaces/{SPACE}"].files["README.md"].content.decode()
    assert updated == card
    assert local_hub.variables == {SPACE: {"SILO_PRIOR": "sd15"}}
    head = local_hub.repositories[f"spaces/{SPACE}"].head
    local_hub.disturb(f"GET /api/spaces/{SPACE}/variables", fail(503), times=100)
    assert main(["deploy-space", SPACE]) == 2
    assert "lab/silo is as it was" in capfd.readouterr().err
    assert local_hub.repositories[f"spaces/{SPACE}"].head == head


def _variant(name: str) -> str:
    return ".fp16" if ".fp16." in name else ""


def _copy(root: Path) -> Path:
    """The repository's files, with what must not be deployed beside them."""
    for path in deploy_space.space_files(ROOT):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, root / path)
    for stray in ("silo/__pycache__/hub.pyc", "silo/.env", "tests/test_x.py", "notes.txt"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_text("stray")
    return root


def test_what_must_not_be_published_is_not_deployed(tmp_path: Path, local_hub: Hub) -> None:
    root = _copy(tmp_path / "copy")
    operator = CompactCNN(width=8, blocks=1, groups=4)
    operator.metadata = {"task": "jpeg_q10", "prior": "rv51", "imported_from": "RG/jpeg.pt"}
    operator.save_pretrained(root / "operators" / "trained" / "official")
    with pytest.raises(PushRefused, match="no licence"):
        deploy_space.space_files(root)
    shutil.rmtree(root / "operators" / "trained" / "official")
    # Nor what was downloaded, perhaps with a token, and what else lies beside an operator.
    operator.metadata = {"task": "jpeg_q10", "prior": "tiny"}
    operator.save_pretrained(root / SHELF / "pulled")
    record = root / SHELF / "pulled" / ".cache/huggingface/download/config.json.metadata"
    record.parent.mkdir(parents=True)
    record.write_text("c0ffee" * 6 + "c0ff\nabc\n0\n")
    (root / SHELF / "jpeg_q10" / "notes.txt").write_text("mine")
    assert deploy_space.space_files(root).keys() == deploy_space.space_files(ROOT).keys()
    operator.save_pretrained(root / SHELF / "trained_here")
    new = deploy_space.space_files(root).keys() - deploy_space.space_files(ROOT).keys()
    assert new == {f"operators/trained/trained_here/{name}" for name in OPERATOR_FILES[:2]}
    (root / "README.md").write_text("---\nsdk: docker\n---\n")
    with pytest.raises(PushRefused, match="sdk: gradio"):
        deploy_space.space_files(root)


def test_a_refused_space_leaves_nothing_behind(local_hub: Hub, monkeypatch, capfd) -> None:
    assert main(["deploy-space", "no name/at all"]) == 2
    assert "no name of a repository" in capfd.readouterr().err
    assert main(["deploy-space", "eve/silo"]) == 2
    assert "you may not write to eve/silo" in capfd.readouterr().err
    local_hub.disturb(f"POST /api/spaces/{SPACE}/commit/main", fail(400))
    assert main(["deploy-space", SPACE]) == 2
    assert "refuses this push" in capfd.readouterr().err
    assert local_hub.repositories == {}
    local_hub.disturb(f"POST /api/spaces/{SPACE}/hardware", fail(402))
    assert main(["deploy-space", SPACE, "--hardware", "t4-small"]) == 2
    assert "the files are on lab/silo" in capfd.readouterr().err
    assert "app.py" in local_hub.repositories[f"spaces/{SPACE}"].files
