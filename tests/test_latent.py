import json
import stat
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn

from operators import pretrained
from operators.convolutional import CompactCNN, PaperCNN
from operators.degradation import Degradation
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.latent import LatentOperator, architectures, check_metadata, read_config
from operators.readout import ReadoutOperator, ResidualReadoutOperator

METADATA = {
    "task": "gaussian_blur",
    "degradation": Degradation("gaussian_blur", {"std": 2.0}).to_dict(),
    "prior": "tiny",
    "eta": 0.5,
    "rmse": 0.031,
    "noise_range": [0.0, 0.05],
    "steps": 2000,
}


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Give every weight a value of its own, the zero-initialised layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def make() -> list[LatentOperator]:
    return [
        ReadoutOperator([6, 3], 2, 5, 4, 4, 8, True, 2),
        ResidualReadoutOperator([6, 3], 2, 5, 4, 4, 8, True, 2),
        PaperCNN(latent_channels=2, latent_size=4, embedding_dim=5),
        CompactCNN(latent_channels=2, width=8, blocks=2, mask=True, scale=2, groups=4),
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    operator = CompactCNN(width=8, blocks=1, groups=4)
    randomise(operator)
    operator.metadata = dict(METADATA)
    operator.save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_parameters(folder: Path, **changes: Any) -> None:
    parameters = json.loads((folder / "config.json").read_text())["config"]
    edit_config(folder, config=parameters | changes)


def refused(folder: Path, *words: str, error: type[OperatorError] = OperatorFileError) -> None:
    """Loading must fail with a single line that holds all `words`."""
    with pytest.raises(error) as caught:
        LatentOperator.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert word in message


@pytest.mark.parametrize("operator", make(), ids=list(architectures()))
def test_round_trip_is_bit_exact_and_finds_the_class(
    operator: LatentOperator, tmp_path: Path
) -> None:
    randomise(operator)
    operator.metadata = dict(METADATA)
    operator.save_pretrained(tmp_path / "new" / "folder")
    loaded = LatentOperator.from_pretrained(tmp_path / "new" / "folder")
    assert type(loaded) is type(operator)
    assert loaded.config == operator.config
    assert loaded.metadata == METADATA
    assert loaded.revision is None
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in operator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_config_rebuilds_the_network_and_degradation_survives(saved: Path) -> None:
    config = read_config(saved)
    assert config.architecture == "compact_cnn"
    assert CompactCNN(**config.parameters).config == config.parameters
    assert Degradation.from_dict(config.metadata["degradation"]).parameters["std"] == 2.0


def test_half_precision_on_disk_is_float32_in_memory(saved: Path) -> None:
    full = LatentOperator.from_pretrained(saved)
    full.save_pretrained(saved, dtype=torch.float16)
    stored = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    half = LatentOperator.from_pretrained(saved)
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, full.state_dict()[name].half().float())


def test_saving_replaces_the_files_and_leaves_nothing_else(saved: Path) -> None:
    (saved / "README.md").write_text("card")
    before = (saved / "model.safetensors").read_bytes()
    operator = LatentOperator.from_pretrained(saved)
    operator.save_pretrained(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert {path.name for path in saved.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    for name in ("config.json", "model.safetensors"):
        assert stat.S_IMODE((saved / name).stat().st_mode) == 0o644


def test_loaded_weights_do_not_follow_the_file(saved: Path) -> None:
    operator = LatentOperator.from_pretrained(saved)
    before = operator.state_dict()["input.weight"].clone()
    path = saved / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size - path.stat().st_size // 2))
    assert torch.equal(operator.state_dict()["input.weight"], before)


def test_weights_that_are_not_finite_are_not_saved(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    operator = CompactCNN(width=8, blocks=1, groups=4)
    nn.init.constant_(operator.output.weight, 1e6)
    with pytest.raises(OperatorError, match="output.weight is not finite"):
        operator.save_pretrained(saved, dtype=torch.float16)
    with pytest.raises(OperatorError, match="float32 or float16"):
        operator.save_pretrained(saved, dtype=torch.bfloat16)
    assert (saved / "model.safetensors").read_bytes() == before


def test_saving_below_a_file_is_a_named_error(saved: Path) -> None:
    with pytest.raises(OperatorFileError, match="choose another folder"):
        CompactCNN(width=8, groups=4).save_pretrained(saved / "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eta", 0),
        ("eta", True),
        ("rmse", -1.0),
        ("rmse", float("nan")),
        ("task", ""),
        ("task", "../task"),
        ("task", "/srv/task"),
        ("task", "task.png\n"),
        ("task", "x" * 101),
        ("prior", 3),
        ("degradation", "blur"),
        ("noise_range", [0.05, 0.0]),
        ("noise_range", [0.0]),
        ("trained_by", {1, 2}),
    ],
)
def test_malformed_metadata_is_refused(saved: Path, key: str, value: Any) -> None:
    operator = LatentOperator.from_pretrained(saved)
    operator.metadata[key] = value
    with pytest.raises(OperatorError, match="metadata"):
        operator.save_pretrained(saved)
    assert LatentOperator.from_pretrained(saved).metadata == METADATA


def test_metadata_is_copied() -> None:
    source = {"degradation": {"kind": "denoising"}}
    checked = check_metadata(source)
    checked["degradation"]["kind"] = "other"
    assert source["degradation"]["kind"] == "denoising"


def test_only_pickles_are_refused_by_name(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({}, saved / "operator.pt")
    refused(saved, "operator.pt", "only safetensors are loaded", "convert")
    refused(saved / "operator.pt", "pickle", "convert")


def test_missing_folders_and_files(saved: Path) -> None:
    refused(saved / "absent", "check the path", error=OperatorNotFound)
    refused(saved / "config.json", "is a file", "pass the folder")
    (saved / "model.safetensors").unlink()
    refused(saved, "no model.safetensors", error=OperatorNotFound)
    (saved / "config.json").unlink()
    refused(saved, "no config.json and no model.safetensors", error=OperatorNotFound)
    for name in ("", "nowhere", "a\0b", "x" * 5000, "/etc/absent"):
        with pytest.raises(OperatorNotFound):
            LatentOperator.from_pretrained(name)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights(saved: Path, share: float) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(saved, "model.safetensors", "is damaged", "download")


def test_weights_that_are_a_pickle_in_disguise(saved: Path) -> None:
    torch.save({"a": torch.zeros(3)}, saved / "model.safetensors")
    refused(saved, "is damaged")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(saved: Path, value: float) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["input.bias"][1] = value
    save_file(weights, saved / "model.safetensors")
    refused(saved, "input.bias", "not finite")


def test_names_shapes_and_types_must_match(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if name != "input.bias"}, path)
    refused(saved, "lacks 'input.bias'")
    save_file(weights | {"extra": torch.tensor(1.0)}, path)
    refused(saved, "'extra'", "does not have")
    save_file(weights | {"input.bias": torch.zeros(9)}, path)
    refused(saved, "input.bias", "(9,)", "(8,)")
    save_file(weights | {"input.bias": torch.tensor(0.0)}, path)
    refused(saved, "input.bias", "()", "(8,)")
    save_file(weights | {"input.bias": torch.zeros(8, dtype=torch.float64)}, path)
    refused(saved, "input.bias", "F64")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[1]", "JSON object"),
        (b"null", "JSON object"),
        (b'{"format_version": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b" " * ((1 << 20) + 1), "larger than 1 MiB"),
        (b"{}", "format_version None"),
        (b'{"format_version": 2}', "format_version 2"),
        (b'{"format_version": 1}', "exactly"),
    ],
)
def test_malformed_config(saved: Path, content: bytes, word: str) -> None:
    (saved / "config.json").write_bytes(content)
    refused(saved, "config.json", word)


@pytest.mark.parametrize("architecture", ["transformer", "LatentOperator", None, ["readout"]])
def test_unknown_architecture(saved: Path, architecture: Any) -> None:
    edit_config(saved, architecture=architecture)
    refused(saved, "unknown architecture", "readout, paper_cnn, compact_cnn")


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0},
        {"width": -8},
        {"width": 8.0},
        {"width": "8"},
        {"width": True},
        {"width": None},
        {"width": 10**30},
        {"blocks": 10**9},
        {"groups": 3},
        {"groups": 0},
        {"mask": 1},
        {"scale": 10**6},
        {"latent_channels": [4]},
        {"depth": 3},
    ],
)
def test_config_out_of_range(saved: Path, changes: dict[str, Any]) -> None:
    edit_parameters(saved, **changes)
    refused(saved, "config.json", next(iter(changes)) if "depth" not in changes else "exactly")


def test_config_of_the_wrong_kind(saved: Path) -> None:
    edit_config(saved, config=[1, 2])
    refused(saved, "'config'", "object")
    edit_config(saved, config={})
    refused(saved, "'config'", "latent_channels")


@pytest.mark.parametrize("metadata", [[], {"eta": -1}, {"noise_range": "wide"}])
def test_metadata_of_a_file_is_checked(saved: Path, metadata: Any) -> None:
    edit_config(saved, metadata=metadata)
    refused(saved, "config.json", "metadata")


def test_a_config_larger_than_the_file_is_refused_before_memory_is_taken(saved: Path) -> None:
    edit_parameters(saved, width=1024, groups=32)
    refused(saved, "has the shape", "1024")
    edit_parameters(saved, width=1024, blocks=64, groups=32)
    refused(saved, "parameters, more than")


def test_a_subclass_loads_only_its_own_architecture(saved: Path) -> None:
    assert isinstance(CompactCNN.from_pretrained(saved), CompactCNN)
    with pytest.raises(OperatorFileError, match="LatentOperator.from_pretrained"):
        PaperCNN.from_pretrained(saved)


def test_a_folder_has_no_revision(saved: Path) -> None:
    with pytest.raises(OperatorError, match="leave revision out"):
        LatentOperator.from_pretrained(saved, revision="main")


def cache_of(saved: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay `saved` out as the Hub's cache keeps "someone/blur" at tag v1; return the snapshot."""
    repository = root / "models--someone--blur"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((saved / name).read_bytes())
    monkeypatch.setattr(pretrained, "hf_hub_download", partial(hf_hub_download, cache_dir=root))
    return snapshot


def test_hub_revision_is_loaded_from_the_cache(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache_of(saved, tmp_path / "hub", monkeypatch)
    operator = LatentOperator.from_pretrained("someone/blur", revision="v1", local_files_only=True)
    assert operator.metadata == METADATA
    assert operator.revision == snapshot.name
    for revision in (None, "v2"):
        with pytest.raises(OperatorNotFound, match="check the network"):
            LatentOperator.from_pretrained("someone/blur", revision=revision, local_files_only=True)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(OperatorNotFound, match="someone/blur"):
        LatentOperator.from_pretrained("someone/blur", revision="v1", local_files_only=True)


def test_hub_names_that_cannot_be() -> None:
    for name in ("some one/blur", "someone/--blur", "someone/", "C:\\op/x"):
        with pytest.raises(OperatorNotFound):
            LatentOperator.from_pretrained(name, local_files_only=True)


def test_failing_download_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def disconnect(*args: object, **kwargs: object) -> str:
        raise ConnectionResetError("the other end hung up\nand more")

    monkeypatch.setattr(pretrained, "hf_hub_download", disconnect)
    with pytest.raises(OperatorNotFound, match="hung up.*check the network") as caught:
        LatentOperator.from_pretrained("someone/blur")
    assert "\n" not in str(caught.value)
