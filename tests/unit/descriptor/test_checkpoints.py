"""Birder's files are read for what they hold, and for nothing else."""

import json
import math
import os
import pickle
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors.torch import save_file

from worker.descriptor import checkpoints, dialects
from worker.errors import ModelError


class Hostile:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def with_data(source: Path, target: Path, data: bytes) -> None:
    """Copy a TorchScript archive with another tree of modules."""
    with ZipFile(source) as old, ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("/data.pkl") else old.read(name))


def test_a_pts_is_read_for_its_tensors_and_facts(resnext_101):
    checkpoint = checkpoints.read(resnext_101.path)
    assert checkpoint.architecture.name == "resnext101_32x4d"
    assert (checkpoint.dims, checkpoint.size) == (1024, 320)
    assert checkpoint.mean == (0.485, 0.456, 0.406)
    assert checkpoint.std == (0.229, 0.224, 0.225)
    theirs = resnext_101.backbone.state_dict()
    assert len(checkpoint.weights) == sum("num_batches" not in name for name in theirs)
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(tensor, theirs[dialects.birder(name)]), name


def test_mean_and_std_come_from_the_file(resnet_50):
    checkpoint = checkpoints.read(resnet_50.path)
    assert (checkpoint.architecture.name, checkpoint.dims) == ("resnet50", 512)
    assert checkpoint.mean == (0.5191, 0.5306, 0.4877)
    assert checkpoint.std == (0.2316, 0.2304, 0.2588)


def test_safetensors_with_and_without_birders_metadata(resnet_50, tmp_path):
    state = {f"backbone.{name}": t for name, t in resnet_50.backbone.state_dict().items()}
    facts = torch.load(resnet_50.path, weights_only=True)
    bare, told = tmp_path / "bare.safetensors", tmp_path / "told.safetensors"
    save_file(state, bare)
    metadata = {name: json.dumps(facts[name]) for name in ("signature", "rgb_stats")}
    save_file(state, told, metadata=metadata)
    assert checkpoints.read(bare).mean == (0.485, 0.456, 0.406)  # SSCD's own
    assert checkpoints.read(told).mean == (0.5191, 0.5306, 0.4877)
    original = checkpoints.read(resnet_50.path).weights
    for name, tensor in checkpoints.read(told).weights.items():
        assert torch.equal(tensor, original[name]), name


def test_a_plain_state_dict(resnet_50, tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(resnet_50.backbone.state_dict(), path)
    assert checkpoints.read(path).architecture.name == "resnet50"


def test_nothing_in_a_file_is_run(resnext_101, tmp_path):
    folder = tmp_path / "made by the file"
    payload = Hostile(folder)
    torch.save({"state": payload}, tmp_path / "hostile.pt")
    with_data(resnext_101.path, tmp_path / "hostile.pts", pickle.dumps(payload, protocol=2))
    for name in ("hostile.pt", "hostile.pts"):
        with pytest.raises(ModelError) as error:
            checkpoints.read(tmp_path / name)
        assert name in one_line(error)
    assert not folder.exists()


@pytest.mark.parametrize("suffix", [".pts", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(100)])
def test_foreign_files(tmp_path, suffix, content):
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"foreign{suffix}: damaged, or no {suffix} file"):
        checkpoints.read(path)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.99])
def test_truncated_files(resnext_101, resnet_50, tmp_path, share):
    for source in (resnext_101.path, resnet_50.path):
        path = tmp_path / source.name
        data = source.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ModelError, match="damaged"):
            checkpoints.read(path)


def test_a_compressed_archive_is_refused(tmp_path):
    # Compressed entries could be far larger than the file.
    path = tmp_path / "small.pts"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("small/data.pkl", bytes(1_000_000))
    with pytest.raises(ModelError, match=r"damaged, or no \.pts file .ValueError"):
        checkpoints.read(path)


def test_an_unknown_suffix(tmp_path):
    with pytest.raises(ModelError, match=r"expected one of \.pts, .* found '\.bin'"):
        checkpoints.read(tmp_path / "model.bin")


def _without_bn3(state):
    del state["body.stage3.5.block1.3.bias"]


def _with_attention(state):
    state["body.stage1.0.se.fc1.weight"] = torch.zeros(1)


def _with_another_width(state):
    state["stem.0.0.weight"] = torch.zeros(64, 1, 7, 7)


def _with_whole_numbers(state):
    state["stem.0.1.bias"] = torch.zeros(64, dtype=torch.int8)


def _without_head(state):
    del state["classifier.weight"]


def _nothing_left(state):
    state.clear()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            _without_bn3,
            "of resnet50 by Birder's names, found body.stage3.5.block1.3.bias: nothing instead of",
        ),
        (_with_attention, "found body.stage1.0.se.fc1.weight: float [1] instead of nothing"),
        (_with_another_width, "stem.0.0.weight: float [64, 1, 7, 7] instead of float [64, 3, 7"),
        (_with_whole_numbers, "found stem.0.1.bias: torch.int8 [64] instead of float [64]"),
        (_without_head, "fc.weight, embeddings.1.weight, found 266 tensors, such as body.stage1"),
        (
            _nothing_left,
            "with a matrix named one of classifier.weight, fc.weight, embeddings.1.weight, found 0",
        ),
    ],
)
def test_other_networks_are_refused_by_name(resnet_50, tmp_path, change, line):
    state = resnet_50.backbone.state_dict()
    change(state)
    torch.save({"state": state}, tmp_path / "other.pt")
    with pytest.raises(ModelError) as error:
        checkpoints.read(tmp_path / "other.pt")
    assert line in one_line(error)


@pytest.mark.parametrize(
    ("entry", "value", "line"),
    [
        ("signature", {"inputs": [{"data_shape": [0, 3, 320, 256]}]}, "square input, found 320x2"),
        ("signature", {"inputs": [{"data_shape": [0, 1, 320, 320]}]}, "data_shape.1: Input should"),
        ("signature", {"inputs": []}, "signature.inputs"),
        ("rgb_stats", {"mean": [0, 0, 0], "std": [1, 1, 0]}, "rgb_stats.std.2"),
        ("rgb_stats", {"mean": [0, math.nan, 0], "std": [1, 1, 1]}, "mean.1: Input should be a f"),
        ("rgb_stats", {"mean": [0, 0, 0], "std": [math.inf, 1, 1]}, "std.0: Input should be a fin"),
    ],
)
def test_facts_are_validated(resnet_50, tmp_path, entry, value, line):
    content = torch.load(resnet_50.path, weights_only=True)
    torch.save(content | {entry: value}, tmp_path / "facts.pt")
    with pytest.raises(ModelError) as error:
        checkpoints.read(tmp_path / "facts.pt")
    assert line in one_line(error)
