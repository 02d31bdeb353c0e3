import json

import numpy as np
import pytest

from tests.fixtures.hot_set import (
    MODEL,
    NOW,
    OTHER_MODEL,
    bank,
    descriptors,
    put,
    put_bank,
    reference,
)
from worker.hotset import entries, layout
from worker.hotset.layout import Keys, Unusable
from worker.hotset.types import (
    Accepted,
    BankRemoved,
    CalibrationPut,
    Descriptors,
    ReferencePut,
    ReferenceRemoved,
)
from worker.records import Version


def test_all_keys_share_one_slot():
    keys = Keys("copysieve")
    made = [value for value in vars(keys).values() if value.startswith("{copysieve}:")]
    made += [keys.artefact("c1")]
    made += [keys.references(3), keys.descriptors("a" * 64, 3), keys.replica("host-1")]
    made += [keys.flood("b", 1), keys.flood("b:r", 1), keys.screened(1)]
    assert len(set(made)) == 20
    assert {key.partition("}")[0] for key in made} == {"{copysieve"}


def test_descriptors_are_the_same_after_storage():
    rows = descriptors()
    read = layout.read_descriptors("r1", layout.write_descriptors(rows), MODEL.dims)
    assert read.views == rows.views
    np.testing.assert_array_equal(read.rows, rows.rows)


def _stored(views=b"plain,inverted", scale=1.0, cut=0, fill=None):
    rows = descriptors().rows * np.float16(scale)
    if fill is not None:
        rows[1, 2] = fill
    data = rows.astype("<f2").tobytes()
    return views + b"\n" + data[: len(data) - cut]


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "views"),
        (_stored(views=b"plain,sideways"), "views"),
        (_stored(views=b"plain,plain"), "views"),
        (_stored(views=b"plain,\xff"), "views"),
        (_stored(views=b"plain"), "length"),
        (_stored(cut=1), "length"),
        (_stored(scale=0.0), "norm"),
        (_stored(scale=1.2), "norm"),
        (_stored(fill=np.nan), "norm"),
        (_stored(fill=np.inf), "norm"),
    ],
)
def test_descriptors_that_break_a_rule_are_unusable(raw, field):
    with pytest.raises(Unusable) as caught:
        layout.read_descriptors("r1", raw, MODEL.dims)
    assert (caught.value.name, caught.value.field) == ("r1", field)


def _row(**changes):
    return json.dumps(reference().model_dump(mode="json") | changes).encode()


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"\xff\xfe", "json_invalid"),
        (b"[]", "model_type"),
        (reference().model_dump_json().encode().replace(b'"ann"', b"7"), "added_by"),
        (_row(source="x" * 2000), "source"),
        (_row(label=""), "label"),
        (_row(bank="../other"), "bank"),
        (_row(severity="apocalyptic"), "severity"),
        (_row(enabled=1), "enabled"),
        (_row(added_at="2026-01-01T00:00:00"), "added_at"),
        (_row(surprise=1), "surprise"),
        (_row(expires_at={"a": [1] * 5}), "expires_at"),
        (b'{"a":' * 5000, "json_invalid"),
        (reference("r2").model_dump_json().encode(), "reference_id"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_without_its_content(raw, field):
    with pytest.raises(Unusable) as caught:
        layout.read_reference("r1", raw)
    assert str(caught.value) == f"reference 'r1' in Redis cannot be used: {field}"


@pytest.mark.parametrize(
    "change",
    [
        put(reference()),
        ReferenceRemoved("r1"),
        put_bank(bank()),
        BankRemoved("known-bad"),
        CalibrationPut("a" * 64, "c1"),
        CalibrationPut("a" * 64, None),
        Accepted(),
    ],
)
def test_a_change_is_the_same_after_the_stream(change):
    entry = _through_stream(change)
    assert entry.changes == [change]
    assert (entry.version, entry.mark, entry.previous) == (Version(5, 7), "m7", "m6")
    assert entry.at == NOW.timestamp()


def test_descriptors_in_the_stream_are_for_their_model_only():
    rows = descriptors()
    (same,) = _through_stream(put(reference(), rows)).changes
    assert isinstance(same.descriptors, Descriptors)
    np.testing.assert_array_equal(same.descriptors.rows, rows.rows)
    assert _through_stream(put(reference(), rows), OTHER_MODEL).changes == [put(reference())]


@pytest.mark.parametrize(
    ("entry_id", "fields"),
    [
        (b"x-1", {}),
        (b"5-7", {b"0:kind": b"revolution"}),
        (b"5-7", {b"at": b"yesterday"}),
        (b"5-7", {b"at": b"nan"}),
        (b"5-7", {b"at": b"-inf"}),
        (b"5-" + b"9" * 30, {}),
        (b"5-7", {b"0:row": b"{}"}),
        (b"5-7", {b"0:row": b'{"a":' * 5000}),
        (b"5-7", {b"0:row": b"x" * 10_000_000}),
        (b"5-7", {b"0:descriptors": b"plain\n" + bytes(10_000_000)}),
        (b"5-7", {b"0:kind": b"calibration", b"0:id": b"c" * 1000, b"0:of": b"a"}),
        (b"5-7", {b"0:kind": b"calibration", b"0:id": b"c\n", b"0:of": b"a"}),
        (b"5-7", {b"0:kind": b"calibration", b"0:id": b"c"}),
        (b"5-7", {b"0:descriptors": b"plain\n12"}),
    ],
)
def test_an_entry_that_breaks_a_rule_is_unusable(entry_id, fields):
    with pytest.raises(Unusable):
        entries.read_entry(
            entry_id, _packed(_fields(put(reference(), descriptors())) | fields), MODEL
        )


def test_an_entry_that_lacks_a_field_is_unusable():
    fields = _fields(put(reference(), descriptors()))
    for name in fields.keys() - {b"model"}:
        left = _packed({k: v for k, v in fields.items() if k != name})
        with pytest.raises(Unusable):
            entries.read_entry(b"5-7", left, MODEL)


@pytest.mark.parametrize(
    "packed",
    [b"x", b"0:kind\n", b"0:kind 1 2\nx", b"0:kind 9\nbank", b"0:kind -1\nbank", b"0:kind x\nbank"],
)
def test_changes_that_are_not_whole_are_unusable(packed):
    fields = _packed(_fields(ReferenceRemoved("r1"))) | {b"packed": packed}
    with pytest.raises(Unusable):
        entries.read_entry(b"5-7", fields, MODEL)


def test_a_head_that_breaks_a_rule_is_unusable():
    assert layout.read_head({}) is None
    for raw in (
        {b"epoch": b"5"},
        {b"epoch": b"5", b"seq": b"-1", b"mark": b"m"},
        {b"epoch": b"9" * 400, b"seq": b"1", b"mark": b"m"},
        {b"epoch": b"9" * 5000, b"seq": b"1", b"mark": b"m"},
        {b"epoch": "\u0665".encode(), b"seq": b"1", b"mark": b"m"},
    ):
        with pytest.raises(Unusable):
            layout.read_head(raw)


def _fields(change):
    described = isinstance(change, ReferencePut) and change.descriptors is not None
    model = "a" * 64 if described else ""
    flat = [
        "mark",
        "m7",
        "previous",
        "m6",
        *entries.write_changes([change], NOW.timestamp(), model),
    ]
    raw = [value if isinstance(value, bytes) else value.encode() for value in flat]
    fields = dict(zip(raw[::2], raw[1::2], strict=True))
    return fields | entries.unpack(fields.pop(b"packed"))


def _packed(fields):
    """As the stream has them: what is of one change, together."""
    of_changes = {name.decode(): value for name, value in fields.items() if b":" in name}
    others = {name: value for name, value in fields.items() if b":" not in name}
    return others | {b"packed": entries.pack(of_changes)}


def _through_stream(change, model=MODEL):
    return entries.read_entry(b"5-7", _packed(_fields(change)), model)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": float("nan")},
        {"threshold": float("inf")},
        {"threshold": "0.5"},
        {"max_false_matches_per_million": 0, "threshold": None},
        {"severity": "none"},
        {"action": "delete"},
        {"kind": "maybe"},
        {"mode": "loud"},
        {"views": []},
        {"views": ["plain", "plain"]},
        {"tenants": []},
        {"tenants": ["a\x00"]},
        {"label": "x" * 129},
        {"suppresses": ["other"]},
        {"name": "other"},
    ],
)
def test_a_bank_that_breaks_a_rule_is_unusable(changes):
    row = json.dumps(bank().model_dump(mode="json") | changes).encode()
    with pytest.raises(Unusable):
        layout.read_bank("known-bad", row)
