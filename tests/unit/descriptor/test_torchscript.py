"""TorchScript archives by their content; archives that mean ill."""

import pickle
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from torch import nn

from tests.fixtures.meta import Norm, Pooling
from worker.descriptor import checkpoints, torchscript
from worker.errors import ModelError


def save_scripted(network: nn.Module, path: Path, *, frozen: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files are not gone
        scripted: Any = torch.jit.script(network.eval())
        torch.jit.save(torch.jit.freeze(scripted) if frozen else scripted, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        checkpoints.read(path)
    text = str(error.value)
    assert "\n" not in text
    return text


def archive_of(path: Path, **entries: bytes) -> Path:
    with ZipFile(path, "w") as archive:
        for name, content in ({"constants.pkl": b"", "data.pkl": b""} | entries).items():
            archive.writestr(f"model/{name}", content)
    return path


def modules(depth: int) -> bytes:
    """A pickled module of modules, each of which holds the next one twice."""
    code = b"c__torch__\nModule\n)\x81}b"
    for _ in range(depth):
        # memo 0 is the module so far; the next holds it as `a` and as `b`
        code += b"q\x000c__torch__\nModule\n)\x81}(\x8c\x01ah\x00\x8c\x01bh\x00ub"
    return b"\x80\x04" + code + b"."


def test_content_says_what_a_file_is_not_its_suffix(meta_torchscript, meta_classy, tmp_path):
    expected = checkpoints.read(meta_classy.path).weights
    for source, name in ((meta_torchscript, "a.pth"), (meta_torchscript, "a.safetensors")):
        path = tmp_path / name
        path.symlink_to(source.path)
        found = checkpoints.read(path).weights
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_a_scripted_network_tells_its_pooling_by_an_attribute(tmp_path):
    network = nn.Sequential(Pooling(4.0), Norm())
    text = refused(save_scripted(network, tmp_path / "four.pts"))
    assert text.endswith("four.pts: expected GeM pooling with p = 3, found p = 4")


def test_a_traced_network_tells_its_pooling_by_its_code(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(Pooling(2.5), torch.rand(1, 8, 4, 4))
        torch.jit.save(traced, tmp_path / "other.pt")
    assert "p = 3, found p = 0.4, 2.5" in refused(tmp_path / "other.pt")


def test_a_frozen_archive_is_refused_for_what_it_is(tmp_path):
    path = save_scripted(nn.Sequential(nn.Linear(3, 2), Norm()), tmp_path / "a.pt", frozen=True)
    assert "found a frozen TorchScript archive" in refused(path)


def test_a_zip_that_is_neither(tmp_path):
    with ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "damaged, or no .pt file" in refused(tmp_path / "other.pt")


def read_archive(path: Path) -> torchscript.Scripted:
    with ZipFile(path) as archive:
        return torchscript.read(archive, ())


def test_modules_that_share_modules_come_to_an_end(tmp_path):
    path = archive_of(tmp_path / "many.pt", **{"data.pkl": modules(40)})
    assert "damaged, or no .pt file (ValueError)" in refused(path)
    with pytest.raises(ValueError, match="more than 100000 attributes"):
        read_archive(path)


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00(K\x01t(K\x01ttR"


def test_a_storage_that_is_asked_for_often_is_in_memory_once(tmp_path):
    data = b"\x80\x02](" + STORAGE * 100 + b"e."
    path = archive_of(tmp_path / "often.pt", **{"data.pkl": data, "data/0": bytes(400)})
    with ZipFile(path) as archive:
        storages = torchscript._ModuleReader(archive, "model").load()
    assert len(storages) == 100
    assert len({storage.data_ptr() for storage in storages}) == 1


def test_tensors_whose_names_collide(tmp_path):
    inner = b"c__torch__\nModule\n)\x81}(X\x01\x00\x00\x00b" + TENSOR + b"ub"
    outer = b"c__torch__\nModule\n)\x81}(X\x03\x00\x00\x00a.b" + TENSOR
    outer += b"X\x01\x00\x00\x00a" + inner + b"ub"
    entries = {"data.pkl": b"\x80\x02" + outer + b".", "data/0": bytes(4)}
    path = archive_of(tmp_path / "twice.pt", **entries)
    with pytest.raises(ValueError, match=r"two tensors are named a\.b"):
        read_archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_whose_names_collide(tmp_path):
    path = archive_of(tmp_path / "entries.pt")
    with ZipFile(path, "a") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(None))
    with pytest.raises(ValueError, match="two entries have the same name"):
        read_archive(path)


def test_code_without_end(tmp_path):
    path = archive_of(tmp_path / "code.pt")
    with ZipFile(path, "a", ZIP_DEFLATED) as archive:
        archive.writestr("model/code/a.py", bytes(20 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="bytes of code"):
        read_archive(path)


def test_a_saved_dict_with_compressed_entries(tmp_path):
    torch.save({"state": {}}, tmp_path / "plain.pt")
    with (
        ZipFile(tmp_path / "plain.pt") as plain,
        ZipFile(tmp_path / "small.pt", "w", ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert "(ValueError)" in refused(tmp_path / "small.pt")


def test_weights_that_are_not_numbers_are_weights(skeleton, tmp_path):
    state = skeleton | {"embeddings.1.bias": torch.full((512,), torch.nan)}
    torch.save(state, tmp_path / "nan.pt")
    assert checkpoints.read(tmp_path / "nan.pt").weights["fc.bias"].isnan().all()


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("name", "tensor", "line"),
    [
        ("embeddings.1.weight", torch.zeros(1).expand(10**12, 2048), "1 to 8192 dims, found 1000"),
        ("embeddings.1.weight", torch.zeros(1000, 1), "found the 1000 classes of ImageNet"),
        ("embeddings.1.bias", torch.zeros(512).to_sparse(), "bias: torch.sparse_coo [512] instead"),
        ("embeddings.0.p", torch.ones(1), "by Classy Vision's names, found embeddings.0.p: float"),
        ("conv1.weight", torch.ones(1), "found conv1.weight: float [1] instead of nothing"),
    ],
)
def test_what_does_not_belong(skeleton, tmp_path, name, tensor, line):
    torch.save(skeleton | {name: tensor}, tmp_path / "odd.pt")
    assert line in refused(tmp_path / "odd.pt")


@pytest.mark.parametrize("content", [{1: torch.ones(1)}, {"state": [1]}, [1]])
def test_dicts_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    assert "odd.pt: expected " in refused(tmp_path / "odd.pt")


def test_files_from_before_torch_used_zip(skeleton, tmp_path):
    torch.save(skeleton, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert checkpoints.read(tmp_path / "old.pth").dims == 512
