"""Files of references: what is written is read back, what is damaged is named by its number."""

import base64
import gzip
import json
import zipfile
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tests.fixtures.hot_set import MODEL, NOW, bank, descriptors, reference
from worker.errors import Objection
from worker.hotset import exchange, layout
from worker.hotset.exchange import Archive, BadFile

SUFFIXES = [".jsonl", ".jsonl.gz", ".npz", ".parquet"]
BANKS = [bank(), bank("other", tenants=("t1", "t2"), views=("plain", "mirrored"))]
DESCRIBED = [
    (reference("r1", note="über \n\" 'all'"), descriptors(1)),
    (reference("r2", "other", expires_at=NOW + timedelta(days=1)), descriptors(2, ("plain",))),
    (reference("r3", enabled=False, objections=(Objection.BLANK,), shadow=True), descriptors(3)),
]


def written(path, described=DESCRIBED, banks=BANKS):
    count = exchange.write(path, MODEL, banks, described)
    assert count == len(described)
    return path


def read(path):
    return [(one, layout.write_descriptors(rows)) for one, rows in Archive(path).references()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = written(tmp_path / f"set{suffix}")
    archive = Archive(path)
    assert list(archive.header.banks) == BANKS
    assert (archive.model.name, archive.model.sha256) == (MODEL.name, MODEL.sha256)
    assert archive.model.dims == MODEL.dims
    assert read(path) == [(one, layout.write_descriptors(rows)) for one, rows in DESCRIBED]
    assert path.stat().st_mode & 0o077 == 0
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2])), max_size=20))
def test_any_set_in_any_format(tmp_path_factory, shapes):
    described = [
        (reference(f"r{n}", note="x" * (1 + note)), descriptors(n, ("plain", "inverted")[:views]))
        for n, (note, views) in enumerate(shapes)
    ]
    folder = tmp_path_factory.mktemp("sets")
    expected = [(one, layout.write_descriptors(rows)) for one, rows in described]
    for suffix in SUFFIXES:
        assert read(written(folder / f"set{suffix}", described)) == expected


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path):
    path = written(tmp_path / "set.jsonl")
    before = path.read_bytes()

    def breaks():
        yield DESCRIBED[0]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        exchange.write(path, MODEL, BANKS, breaks())
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["set.jsonl"]


def test_a_suffix_of_none_of_the_formats(tmp_path):
    with pytest.raises(BadFile, match=r"expected one of \.jsonl"):
        exchange.write(tmp_path / "set.csv", MODEL, BANKS, DESCRIBED)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"hello\n", b"{}\n", b"PK\x05\x06" + bytes(18), b"PAR1"])
def test_what_is_no_such_file(tmp_path, suffix, content):
    path = tmp_path / f"set{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(BadFile, match="set"):
        list(Archive(path).references())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_file_that_was_cut(tmp_path, suffix, share):
    path = written(tmp_path / f"set{suffix}")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(BadFile):
        list(Archive(path).references())


def test_lines_that_are_missing_at_the_end_or_before_it(tmp_path):
    path = written(tmp_path / "set.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(BadFile, match="ends before its last line"):
        read(path)
    path.write_text("".join([*lines[:2], lines[-1]]))
    with pytest.raises(BadFile, match="record 2: not a line"):
        read(path)


def _line(**changes):
    row = json.loads(reference("r9").model_dump_json()) | changes.pop("row", {})
    rows = descriptors(9, ("plain",)).rows
    told = {
        "reference": row,
        "views": "plain",
        "descriptors": base64.b64encode(rows.tobytes()).decode(),
    }
    return json.dumps(told | changes)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not a line"),
        ("[" * 100_000, "not a line"),
        ("[]", "not a line"),
        (_line(descriptors="???"), "not a line"),
        (_line(descriptors="AAAA"), "descriptors: length"),
        (_line(descriptors=base64.b64encode(bytes(16)).decode()), "descriptors: norm"),
        (_line(views="sideways"), "descriptors: views"),
        (_line(row={"severity": "bad"}), "severity"),
        (_line(row={"surprise": 1}), "surprise"),
        (_line(row={"bank": "elsewhere"}), "bank"),
        (_line(row={"reference_id": "r1"}), "it came before"),
        (_line(row={"note": "secret" * 1000}), "note"),
    ],
)
def test_a_bad_record_is_named_by_its_number_without_its_content(tmp_path, line, what):
    path = written(tmp_path / "set.jsonl")
    *lines, end = path.read_text().splitlines()
    path.write_text("\n".join([*lines, line, end]) + "\n")
    with pytest.raises(BadFile, match=f"record 4: .*{what}") as caught:
        list(Archive(path).references())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("change", [{"copysieve": 2}, {"model": {}}, {"banks": [{"name": "x"}]}])
def test_a_header_that_breaks_a_rule(tmp_path, change):
    path = written(tmp_path / "set.jsonl")
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps(json.loads(first) | change) + "\n" + rest)
    with pytest.raises(BadFile, match="not a file of references"):
        Archive(path)


def _arrays(path):
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize(
    "change",
    [
        {"ends": np.array([2, 3])},
        {"ends": np.array([2, 1, 5])},
        {"ends": np.array([2, 3, 1 << 40])},
        {"ends": np.array([2, 3, 9])},
        {"ends": np.array([[2, 3, 5]])},
        {"ends": np.array([2.0, 3.0, 5.0])},
        {"descriptors": np.ones((5, 8), dtype=np.float32)},
        {"descriptors": np.ones(40, dtype=np.float16)},
        {"descriptors": np.full((5, 8), np.nan, dtype=np.float16)},
        {"views": np.frombuffer(b"plain", dtype=np.uint8)},
        {"more": np.zeros(1)},
    ],
)
def test_arrays_that_do_not_go_together(tmp_path, change):
    path = written(tmp_path / "set.npz")
    np.savez(path, **_arrays(path) | change)
    with pytest.raises(BadFile):
        list(Archive(path).references())


def test_arrays_that_are_compressed_pickled_or_larger_than_the_file(tmp_path):
    path = written(tmp_path / "set.npz")
    arrays = _arrays(path)
    np.savez_compressed(path, **arrays)
    with pytest.raises(BadFile, match="compressed"):
        Archive(path)
    np.savez(path, **arrays | {"header": np.array([{}], dtype=object)})
    with pytest.raises(BadFile):
        Archive(path)
    huge = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(written(path), "a") as packed:
        members = {info.filename: packed.read(info) for info in packed.infolist()}
    start = b"\x93NUMPY\x01\x00" + len(huge).to_bytes(2, "little") + huge
    with zipfile.ZipFile(path, "w") as packed:
        for name, raw in (members | {"header.npy": start}).items():
            packed.writestr(name, raw)
    with pytest.raises(BadFile, match="more than the file holds"):
        Archive(path)


def test_parquet_of_other_columns(tmp_path):
    path = tmp_path / "set.parquet"
    header = parquet.ParquetFile(written(path)).schema_arrow.metadata
    for columns in ({"a": [1]}, {"reference": [1], "views": ["plain"], "descriptors": [b""]}):
        parquet.write_table(pa.table(columns).replace_schema_metadata(header), path)
        with pytest.raises(BadFile, match="columns"):
            list(Archive(path).references())
