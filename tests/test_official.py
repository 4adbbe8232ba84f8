"""The authors' checkpoints: archives of random weights in their layout, converted and compared.

The layout and the two forward passes below are written down from their description, not from the
operators under test.
"""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from operators.convolutional import PaperCNN
from operators.errors import OperatorFileError, OperatorNotFound
from operators.latent import LatentOperator
from operators.readout import ReadoutOperator
from silo.__main__ import main
from silo.errors import CannotSave
from silo.official import MAX_FILE_BYTES, import_official

CHANNELS = [1280] * 6 + [640] * 3 + [320] * 3


def _readout_state(mask: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, scale: float = 0.02, shift: float = 0.0) -> None:
        state[name] = torch.randn(shape, generator=generator) * scale + shift

    put("mixing_weights", 12, scale=1.0)
    for index, channels in enumerate(CHANNELS):
        block = f"bottleneck_layers.{index}"
        for layer, (outputs, inputs, size) in {
            "shortcut": (384, channels + 1, 1),
            "conv1": (96, channels + 1, 1),
            "conv2": (96, 96, 3),
            "conv3": (384, 96, 1),
        }.items():
            put(f"{block}.{layer}.weight", outputs, inputs, size, size)
            put(f"{block}.{layer}.norm.weight", outputs, shift=1.0)
            put(f"{block}.{layer}.norm.bias", outputs)
        put(f"{block}.emb_layers.weight", 96, 1280)
        put(f"{block}.emb_layers.bias", 96)
    put("sigma_emb_linear.weight", 4096, 1280)
    put("sigma_emb_linear.bias", 4096)
    put("sigma_emb_norm.weight", 1, 64, 64, shift=1.0)
    put("sigma_emb_norm.bias", 1, 64, 64)
    put("output_head.0.weight", 128, 386 if mask else 385, 3, 3)
    put("output_head.0.bias", 128)
    put("output_head.2.weight", 32, 128, 3, 3)
    put("output_head.2.bias", 32)
    put("output_head.4.weight", 4, 32, 1, 1, scale=0.2)
    put("output_head.4.bias", 4)
    return state


def _readout_forward(
    state: dict[str, Tensor], features: list[Tensor], embedding: Tensor, mask: Tensor
) -> Tensor:
    """Without an embedding of the timestep, as the authors' sampler runs it."""
    sigma_map = F.linear(
        embedding, state["sigma_emb_linear.weight"], state["sigma_emb_linear.bias"]
    ).reshape(-1, 1, 64, 64)
    sigma_map = F.layer_norm(
        sigma_map, [1, 64, 64], state["sigma_emb_norm.weight"], state["sigma_emb_norm.bias"]
    )

    def normalised(name: str, inputs: Tensor, padding: int = 0) -> Tensor:
        outputs = F.conv2d(inputs, state[f"{name}.weight"], padding=padding)
        norm = state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]
        return F.group_norm(outputs, 32, *norm)

    mixture = torch.zeros(())
    for index, weight in enumerate(torch.softmax(state["mixing_weights"], 0)):
        block = f"bottleneck_layers.{index}"
        feature = F.interpolate(features[index], (64, 64), mode="bilinear")
        inputs = torch.cat([feature, sigma_map], 1)
        hidden = F.relu(normalised(f"{block}.conv1", inputs))
        hidden = F.relu(normalised(f"{block}.conv2", hidden, padding=1))
        hidden = normalised(f"{block}.conv3", hidden) + normalised(f"{block}.shortcut", inputs)
        mixture = mixture + weight * F.relu(hidden)
    hidden = torch.cat([mixture, sigma_map, mask], 1)
    for layer, padding in (("output_head.0", 1), ("output_head.2", 1), ("output_head.4", 0)):
        hidden = F.conv2d(hidden, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=padding)
        hidden = hidden if padding == 0 else F.silu(hidden)
    return hidden


def _cnn_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "sigma_condition_precondition.0": (32, 1280),
        "sigma_condition_precondition.2": (4096, 32),
        "adjust_encoding.0": (16, 129, 1, 1),
        "processing.0": (16, 16, 3, 3),
        "processing.3": (4, 16, 3, 3),
    }
    norms = {"adjust_encoding.1": 16, "processing.1": 16}
    widths = [5, 17, 33, 65, 128]
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes[f"encoder.{3 * index}"] = (outputs, inputs, 3, 3)
        norms[f"encoder.{3 * index + 1}"] = outputs
    widths = [128, 64, 32, 16]
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes[f"decoder.{3 * index}"] = (inputs, outputs, 3, 3)  # transposed
        norms[f"decoder.{3 * index + 1}"] = outputs
    state = {}
    for name, shape in shapes.items():
        outputs = shape[1] if name.startswith("decoder") else shape[0]
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.1
        state[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1
    for name, channels in norms.items():
        state[f"{name}.weight"] = 1 + torch.randn(channels, 64, 64, generator=generator) * 0.1
        state[f"{name}.bias"] = torch.randn(channels, 64, 64, generator=generator) * 0.1
    return state


def _cnn_forward(state: dict[str, Tensor], z: Tensor, embedding: Tensor) -> Tensor:
    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(name: str, hidden: Tensor) -> Tensor:
        return F.relu(F.layer_norm(hidden, hidden.shape[1:], *weights(name)))

    sigma = F.leaky_relu(F.linear(embedding, *weights("sigma_condition_precondition.0")))
    sigma = F.linear(sigma, *weights("sigma_condition_precondition.2")).reshape(-1, 1, 64, 64)
    encoded = torch.cat([z, sigma], 1)
    for index in (0, 3, 6, 9):
        convolved = F.conv2d(encoded, *weights(f"encoder.{index}"), padding=1)
        encoded = norm(f"encoder.{index + 1}", convolved)
    decoded = encoded
    for index in (0, 3, 6):
        convolved = F.conv_transpose2d(decoded, *weights(f"decoder.{index}"), padding=1)
        decoded = norm(f"decoder.{index + 1}", convolved)
    skip = F.conv2d(torch.cat([encoded, sigma], 1), *weights("adjust_encoding.0"))
    hidden = decoded + norm("adjust_encoding.1", skip)
    hidden = norm("processing.1", F.conv2d(hidden, *weights("processing.0"), padding=1))
    return F.conv2d(hidden, *weights("processing.3"), padding=1)


def _archive(path: Path, members: dict[str, object]) -> Path:
    """A zip of files by torch.save; bytes go in as they are."""
    with zipfile.ZipFile(path, "w") as release:
        for name, content in members.items():
            if not isinstance(content, bytes):
                saved = io.BytesIO()
                torch.save(content, saved)
                content = saved.getvalue()
            release.writestr(name, content)
    return path


@torch.no_grad()
def test_the_converted_operators_compute_what_the_authors_do(tmp_path: Path, capfd) -> None:
    readout, cnn = _readout_state(mask=True), _cnn_state()
    archive = _archive(
        tmp_path / "trained_ckpt.zip",
        {
            "trained_ckpt/RG/rand_ip_rg_ffhq_operator.pt": {
                "aggregation_network": readout,
                "step": 75_000,
                "optimizer": {"state": {0: {"step": torch.zeros(1)}}},
            },
            "trained_ckpt/CNN/sr_8_cnn_ffhq_operator.pt": cnn,
            "trained_ckpt/RG/sr_4_cnn_ffhq_operator.pt": {"gate": torch.zeros(1)},
            "trained_ckpt/RG/other.pt": {},
        },
    )
    out = tmp_path / "out"
    assert main(["operators", "import-official", str(archive), "--out", str(out)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "inpainting_free for rv51, readout of 13,748,016 parameters" in lines[0]
    assert "super_resolution_x8 for sd15, paper_cnn of 3,548,566 parameters" in lines[1]
    assert "left out: the later CNN" in lines[2] and "left out: not a file" in lines[3]
    assert sorted(path.name for path in out.iterdir()) == [
        "cnn_super_resolution_x8",
        "rv51_inpainting_free",
    ]

    generator = torch.Generator().manual_seed(2)
    z, embedding = (torch.randn(size, generator=generator) for size in ((1, 4, 64, 64), (1, 1280)))
    sigma = torch.tensor([0.01])
    operator = PaperCNN.from_pretrained(out / "cnn_super_resolution_x8")
    torch.testing.assert_close(
        operator(z, sigma, sigma_embedding=embedding), _cnn_forward(cnn, z, embedding)
    )
    assert operator.metadata["prior"] == "sd15" and operator.metadata["noise_range"] == [0, 0.02]

    sides = [8] * 3 + [16] * 3 + [32] * 3 + [64] * 3
    features = [
        torch.randn(1, channels, side, side, generator=generator)
        for channels, side in zip(CHANNELS, sides, strict=True)
    ]
    mask = (torch.rand(1, 1, 64, 64, generator=generator) > 0.5).float()
    operator = ReadoutOperator.from_pretrained(out / "rv51_inpainting_free")
    given = operator(
        z,
        sigma,
        mask=mask.repeat_interleave(8, 2).repeat_interleave(8, 3),
        features=features,
        sigma_embedding=embedding,
    )
    expected = _readout_forward(readout, features, embedding, mask)
    assert expected.std() > 0.01  # not all biases
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def test_a_readout_operator_without_a_mask_has_the_papers_size(tmp_path: Path) -> None:
    archive = _archive(
        tmp_path / "a.zip",
        {"RG/ip_rg_coco_operator.pt": {"aggregation_network": _readout_state(mask=False)}},
    )
    (line,) = import_official(archive, tmp_path)
    assert "inpainting_box for sd15, readout of 13,746,864 parameters" in line
    operator = LatentOperator.from_pretrained(tmp_path / "sd15_inpainting_box")
    assert not operator.uses_mask and operator.metadata["imported_from"].endswith(
        "coco_operator.pt"
    )


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.target, "pwned")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    inside = {"aggregation_network": _cnn_state(), "extra": Malicious(target)}
    for content in (inside, pickle.dumps(inside)):
        archive = _archive(tmp_path / "a.zip", {"CNN/sr_8_cnn_ffhq_operator.pt": content})
        with pytest.raises(OperatorFileError, match="sr_8_cnn_ffhq.*(not read|no file of PyTorch)"):
            list(import_official(archive, tmp_path / "out"))
        assert not target.exists() and not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()  # it would have


def test_other_layouts_are_named(tmp_path: Path) -> None:
    wrong, lacking, surplus = _cnn_state(), _cnn_state(), _cnn_state()
    wrong["encoder.0.weight"] = torch.zeros(17, 6, 3, 3)
    del lacking["processing.3.bias"]
    surplus["gate"] = torch.zeros(1)
    huge = _cnn_state()
    huge["encoder.0.weight"] = torch.zeros(1).expand(1 << 40)  # never to be made contiguous
    infinite = _cnn_state()
    infinite["processing.3.bias"][0] = float("inf")
    name = "CNN/sr_8_cnn_ffhq_operator.pt"
    for content, message in (
        (wrong, r"encoder.0.weight .* has the shape \(17, 6, 3, 3\)"),
        (lacking, "lacks 'processing.3.bias'"),
        (surplus, "has 'gate'"),
        (huge, "encoder.0.weight .* has the shape"),
        ({"aggregation_network": [1, 2]}, "no state dict"),
        ([torch.zeros(1)], "no state dict"),
        (b"not a checkpoint", "no file of PyTorch"),
    ):
        with pytest.raises(OperatorFileError, match=message):
            list(import_official(_archive(tmp_path / "a.zip", {name: content}), tmp_path / "out"))
    with pytest.raises(ValueError, match="not finite"):
        list(import_official(_archive(tmp_path / "a.zip", {name: infinite}), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_archives_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorNotFound, match="there is no file"):
        list(import_official(tmp_path / "none.zip", tmp_path))
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(OperatorFileError, match="no readable zip"):
        list(import_official(tmp_path / "a.zip", tmp_path))
    with pytest.raises(OperatorFileError, match="holds 0 checkpoints"):
        list(import_official(_archive(tmp_path / "b.zip", {"readme.txt": b""}), tmp_path))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("data", "sr_8_cnn_ffhq_operator.pt' cannot be read .*: download trained_ckpt.zip again"),
        ("version", "no readable zip file .*: download trained_ckpt.zip again"),
        ("offset", "sr_8_cnn_ffhq_operator.pt' cannot be read .*: download trained_ckpt.zip again"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, place: str, message: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as release:
        release.writestr("CNN/sr_8_cnn_ffhq_operator.pt", bytes(range(256)) * 40)
    content = bytearray(archive.read_bytes())
    entry = content.index(b"PK\x01\x02")
    if place == "data":
        content[entry - 200 : entry - 100] = b"\xff" * 100
    elif place == "version":  # that is needed to unpack it
        content[entry + 6] = 255
    else:  # of the file, before the beginning of the archive
        content[entry + 42 : entry + 46] = b"\xff" * 4
        directory = content.index(b"PK\x05\x06") + 16
        offset = int.from_bytes(content[directory : directory + 4], "little")
        content[directory : directory + 4] = (offset + 99).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(OperatorFileError, match=message):
        list(import_official(archive, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_card_that_cannot_be_written_is_not_blamed_on_the_archive(tmp_path: Path) -> None:
    name = "CNN/sr_8_cnn_ffhq_operator.pt"
    card = tmp_path / "out" / "cnn_super_resolution_x8" / "README.md"
    card.mkdir(parents=True)  # in the way
    with pytest.raises(CannotSave, match="README.md cannot be written .*: choose another --out"):
        list(import_official(_archive(tmp_path / "a.zip", {name: _cnn_state()}), tmp_path / "out"))


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """A checkpoint whose inner zip claims to unpack to more than any operator takes."""
    saved = io.BytesIO()
    torch.save(_cnn_state(), saved)
    content = bytearray(saved.getvalue())
    entry = content.index(b"PK\x01\x02")  # the first entry of the table of contents
    content[entry + 24 : entry + 28] = (MAX_FILE_BYTES + 1).to_bytes(4, "little")
    archive = _archive(tmp_path / "a.zip", {"CNN/sr_8_cnn_ffhq_operator.pt": bytes(content)})
    with pytest.raises(OperatorFileError, match="too much"):
        list(import_official(archive, tmp_path / "out"))
