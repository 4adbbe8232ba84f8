import shutil
from pathlib import Path

import pytest

from operators.catalog import (
    SD_PRIOR,
    TASKS,
    find_operator,
    get_task,
    published_prior_name,
    shelf,
)
from operators.convolutional import CompactCNN
from operators.errors import OperatorError, OperatorNotFound
from operators.readout import ReadoutOperator


def _put(folder: Path, name: str, **metadata: str) -> None:
    operator = CompactCNN(width=8, blocks=1, groups=4)
    operator.metadata = dict(metadata)
    operator.save_pretrained(folder / name)


def test_the_ten_tasks_have_the_papers_degradations() -> None:
    assert len(TASKS) == 10
    assert get_task("gaussian_blur").degradation.parameters == {"kernel_size": 61, "std": 3.0}
    assert get_task("super_resolution_x8").degradation.operator().downscale == 8
    assert get_task("jpeg_q10").degradation.parameters == {"quality": 10, "turns": 0}
    assert get_task("inpainting_box").degradation.parameters == {"fraction": 0.5}
    paper = ("gaussian_blur", "super_resolution_x4", "super_resolution_x8", "jpeg_q10")
    assert {(get_task(t).eta, get_task(t).degradation.noise_sigma) for t in paper} == {(0.5, 0.01)}
    assert get_task("inpainting_box").eta == 1.0
    with pytest.raises(OperatorError, match="gaussian_blur"):
        get_task("blur")


def test_the_operator_for_a_prior_is_found_by_what_it_was_trained_for(tmp_path: Path) -> None:
    _put(tmp_path, "a", task="jpeg_q10", prior="tiny")
    _put(tmp_path, "b", task="jpeg_q10", prior=SD_PRIOR)
    _put(tmp_path, "c", task="denoising", prior="tiny")
    assert [(e.task, e.prior) for e in shelf(tmp_path)] == [
        ("jpeg_q10", "tiny"),
        ("jpeg_q10", SD_PRIOR),
        ("denoising", "tiny"),
    ]
    assert find_operator("jpeg_q10", "tiny", 8, tmp_path) == tmp_path / "a"
    # Every prior of four latent channels shares Stable Diffusion's latent space.
    assert find_operator("jpeg_q10", "rv51", 4, tmp_path) == tmp_path / "b"
    assert find_operator("jpeg_q10", "tiny", 8, tmp_path, "compact_cnn") == tmp_path / "a"
    with pytest.raises(OperatorNotFound, match="No trained readout operator for jpeg_q10"):
        find_operator("jpeg_q10", "tiny", 8, tmp_path, "readout")
    with pytest.raises(OperatorNotFound, match="train-operator --task jpeg_q10"):
        find_operator("jpeg_q10", "my-prior", 8, tmp_path)


def test_a_prior_in_a_folder_is_known_by_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = tmp_path / "mine" / "pipeline"  # as train-prior lays it out
    prior.mkdir(parents=True)
    monkeypatch.chdir(prior)
    for name in (str(prior), f"{prior}/", "."):
        assert published_prior_name(name) == "mine"
    assert published_prior_name("..") == "mine"
    for name in ("tiny", "owner/name@main", "/no/such/folder"):
        assert published_prior_name(name) == name
    _put(tmp_path / "shelf", "a", task="jpeg_q10", prior="mine")
    _put(tmp_path / "shelf", "b", task="jpeg_q10", prior=SD_PRIOR)
    assert find_operator("jpeg_q10", ".", 4, tmp_path / "shelf") == tmp_path / "shelf" / "a"
    with pytest.raises(OperatorNotFound, match="on the prior '/other'"):
        find_operator("jpeg_q10", "/other", 8, tmp_path / "shelf")


def test_a_wrong_folder_is_named_once_and_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _put(tmp_path, "right", task="denoising", prior="tiny")
    _put(tmp_path, "mute")
    wrong = {"another_model": '{"model_type": "bert"}', "torn": '{"format_ver', "empty": ""}
    for name, config in wrong.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    for _ in range(2):
        assert [entry.folder.name for entry in shelf(tmp_path)] == ["right"]
        assert find_operator("denoising", "tiny", 8, tmp_path) == tmp_path / "right"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 5 and not any("\n" in line for line in said)
    for name in (*wrong, "mute", "folder"):
        assert sum(f"/{name}" in line for line in said) == 1


def test_an_operator_that_reads_features_serves_its_own_prior_alone(tmp_path: Path) -> None:
    operator = ReadoutOperator([8], 4, 8, 4, 4, 4, groups=4)
    operator.metadata = {"task": "denoising", "prior": SD_PRIOR}
    operator.save_pretrained(tmp_path / "readout")
    assert find_operator("denoising", SD_PRIOR, 4, tmp_path) == tmp_path / "readout"
    _put(tmp_path, "z", task="denoising", prior=SD_PRIOR)  # every sampler can use this one
    assert find_operator("denoising", SD_PRIOR, 4, tmp_path) == tmp_path / "z"
    assert find_operator("denoising", SD_PRIOR, 4, tmp_path, "readout") == tmp_path / "readout"
    shutil.rmtree(tmp_path / "z")
    with pytest.raises(OperatorNotFound):
        find_operator("denoising", "rv51", 4, tmp_path)
