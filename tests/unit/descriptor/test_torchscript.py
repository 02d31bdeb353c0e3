"""TorchScript archives by their content; archives that mean ill."""

import pickle
import tracemalloc
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
        code += b"q\x000c__torch__\nModule\n)\x81}(U\x01ah\x00U\x01bh\x00ub"
    return b"\x80\x02" + code + b"."


def module(name: bytes, value: bytes) -> bytes:
    """A pickled module with one attribute; `h\\x00` as a value is the module itself."""
    name = b"X" + len(name).to_bytes(4, "little") + name
    return b"\x80\x02c__torch__\nModule\n)\x81q\x00}" + name + value + b"sb."


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


@pytest.mark.parametrize("four", [b"K\x04", b"G\x40\x10\0\0\0\0\0\0"])
def test_an_attribute_counts_whatever_the_code_has(tmp_path, four):
    code = b"return torch.pow(torch.clamp(x, 1e-6), 3)"
    entries = {"data.pkl": module(b"pooling_param", four), "code/a.py": code}
    assert "p = 3, found p = 4" in refused(archive_of(tmp_path / "four.pt", **entries))


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


def read_module(path: Path, data: bytes) -> torchscript.Scripted:
    return read_archive(archive_of(path, **{"data.pkl": data}))


def read_archive(path: Path) -> torchscript.Scripted:
    with ZipFile(path) as archive:
        return torchscript.read(archive, ())


def test_modules_that_share_modules_come_to_an_end(tmp_path):
    path = archive_of(tmp_path / "many.pt", **{"data.pkl": modules(40)})
    assert "damaged, or no .pt file (ValueError)" in refused(path)
    with pytest.raises(ValueError, match="more than 100000 attributes"):
        read_archive(path)


@pytest.mark.parametrize("data", [module(b"x" * 600, b"h\x00"), module(b"", b"h\x00")])
def test_modules_that_hold_themselves_come_to_an_end(tmp_path, data):
    with pytest.raises(ValueError, match="a name is no text of 1000 characters at most"):
        read_module(tmp_path / "round.pt", data)


def test_attributes_without_a_name(tmp_path):
    data = b"\x80\x02c__torch__\nModule\n)\x81}K\x01K\x02sb."
    with pytest.raises(ValueError, match="a name is no text of 1000 characters at most"):
        read_module(tmp_path / "number.pt", data)


def test_a_tree_takes_no_more_memory_than_its_size(tmp_path):
    high_index = module(b"a", b"K\x01r\xff\xff\xff\x0f")
    long_array = module(b"a", b"\x96" + (1 << 30).to_bytes(8, "little"))
    tracemalloc.start()
    try:
        read_module(tmp_path / "index.pt", high_index)
        with pytest.raises(KeyError):  # no opcode of protocol 2
            read_module(tmp_path / "array.pt", long_array)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match=r"data\.pkl has more than 4194304 bytes"):
        read_module(tmp_path / "large.pt", bytes((4 << 20) + 1))


def test_a_file_cannot_change_what_stands_in(tmp_path):
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    change = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b"
    with pytest.raises(TypeError, match="expected a module, found function"):
        read_module(tmp_path / "change.pt", b"\x80\x02" + function + change + b".")


def overlapping(source: Path, target: Path) -> Path:
    """Tell of every entry but the largest that it is the largest."""
    with ZipFile(source) as plain, ZipFile(target, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for entry in archive.infolist():
            entry.header_offset = largest.header_offset
            entry.file_size = entry.compress_size = largest.file_size
    return target


def test_entries_that_overlap(tmp_path):
    torch.save({"state": {"a": torch.ones(1000)}}, tmp_path / "plain.pt")
    scripted = archive_of(tmp_path / "scripted.pt", **{"data/0": bytes(4000)})
    for source in (tmp_path / "plain.pt", scripted):
        path = overlapping(source, tmp_path / f"odd {source.name}")
        assert "(ValueError)" in refused(path)
        with ZipFile(path) as archive, pytest.raises(ValueError, match="larger than the file"):
            torchscript.checked_names(archive)


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
    path = archive_of(tmp_path / "code.pt", **{"data.pkl": module(b"a", b"K\x01")})
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(skeleton, tmp_path, value):
    bias = torch.zeros(512)
    bias[3] = value
    torch.save(skeleton | {"embeddings.1.bias": bias}, tmp_path / "bad.pt")
    assert "expected finite weights, found others in embeddings.1.bias" in refused(
        tmp_path / "bad.pt"
    )


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("name", "tensor", "line"),
    [
        ("embeddings.1.weight", torch.zeros(1).expand(10**12, 2048), "1 to 8192 dims, found 1000"),
        ("embeddings.1.weight", torch.zeros(1000, 1), "found the 1000 classes of ImageNet"),
        ("embeddings.1.bias", torch.zeros(512).to_sparse(), "bias: torch.sparse_coo [512] instead"),
        ("embeddings.1.bias", torch.zeros(512, device="meta"), "bias: meta [512] instead of float"),
        (
            "embeddings.1.bias",
            torch.zeros(512, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
            "damaged",
        ),
        ("a\x1b[2J" + "n" * 200, torch.ones(1), r"found a\x1b[2J" + "n" * 95 + ": float [1]"),
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


def test_a_dict_that_wraps_its_weights(skeleton, tmp_path):
    torch.save({"state_dict": skeleton, "epoch": 3}, tmp_path / "wrapped.pt")
    assert checkpoints.read(tmp_path / "wrapped.pt").dims == 512


def test_a_pickled_module_is_never_loaded(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "never loaded: save model.state_dict()" in refused(tmp_path / "module.pt")
