"""Every event with every field at its bound is below what an output topic has to take."""

import json
from collections import defaultdict
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import MODEL, bank, descriptors, reference, snapshot
from worker.compare import compare
from worker.events import (
    ATTRIBUTES_BYTES,
    MATCHES_SHOWN,
    THRESHOLDS_SHOWN,
    DeadLetter,
    MatchEvent,
    Verdict,
    schema,
    thresholds_digest,
)
from worker.hotset.floods import Sightings
from worker.hotset.mirror import Mirror
from worker.hotset.types import MOST_BANKS
from worker.records import ImageInfo, Look, Origin, Position, Rendition, Upload
from worker.results import Results, Screened
from worker.scoring.rules import Rules
from worker.settings import Settings
from worker.stream.dead_letters import HEADERS_BYTES, VALUE_BYTES
from worker.stream.publisher import RESULT_BYTES
from worker.stream.refusals import FRAMING_BYTES

NOW = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
WORST = "\x01"
"""Six bytes in JSON; no other character takes more."""
NUMBER = -2.2250738585072014e-308
BANKS = MOST_BANKS


def largest(part, definitions):
    """The value of a part of a schema that takes most bytes. What has no bound is an error."""
    part = resolved(part, definitions)
    kind = "choice" if "enum" in part or "const" in part else part["type"]
    return {
        "choice": lambda: max(part.get("enum", [part.get("const")]), key=len),
        "object": lambda: largest_object(part, definitions),
        "array": lambda: [largest(part["items"], definitions)] * part["maxItems"],
        "string": lambda: longest_text(part),
        "boolean": lambda: False,
        "integer": lambda: -(2**63),
        "number": lambda: NUMBER,
    }[kind]()


def resolved(part, definitions):
    """What a reference leads to; of something that may be null, the other."""
    if "$ref" in part:
        return definitions[part["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in part:
        (some,) = [one for one in part["anyOf"] if one.get("type") != "null"]
        return resolved(some, definitions)
    return part


def largest_object(part, definitions):
    if "properties" not in part:
        key = WORST * part["propertyNames"]["maxLength"]
        return {f"{n:03}{key[3:]}": NUMBER for n in range(part["maxProperties"])}
    fields = dict(part["properties"])
    attributes = fields.pop("attributes", None) and {WORST * ATTRIBUTES_BYTES: ""}
    values = {name: largest(field, definitions) for name, field in fields.items()}
    return values | ({"attributes": attributes} if attributes else {})


def longest_text(part):
    if part.get("format") == "date-time":
        return NOW.isoformat()
    if part.get("pattern") == "^[0-9a-f]{64}$":
        return "f" * 64
    if part.get("pattern", "").startswith("^[A-Za-z0-9+/]"):
        return "A" * part["maxLength"]
    # What takes no control characters takes four bytes for a character at most.
    return ("\U0001f600" if "pattern" in part else WORST) * part["maxLength"]


@pytest.mark.parametrize("model", [Verdict, MatchEvent, DeadLetter])
def test_an_event_with_every_field_at_its_bound_is_below_the_limit_of_a_result(model):
    described = schema(model)
    fields = largest(described, described["$defs"])
    if model is Verdict:
        fields["outcome"] = "unscreened"  # which has a reason
    size = len(model(**fields).model_dump_json().encode())
    beside = VALUE_BYTES + HEADERS_BYTES  # key and headers of a dead letter; results have less
    assert size + beside + FRAMING_BYTES < RESULT_BYTES


def screened(tenants):
    """An upload of each tenant that is like references 0 to 19 of as many banks, of many more."""
    banks = {
        f"bank-{n:05}": bank(f"bank-{n:05}", threshold=0.5 if n < 3 else 2 - n / BANKS)
        for n in range(BANKS)
    }
    described = [
        (reference(f"r{n}", bank=f"bank-{n:05}"), descriptors(0, ("plain",))) for n in range(20)
    ]
    mirror, rules = Mirror(MODEL, "cpu"), Rules(["plain"])
    mirror.load(snapshot(banks.values(), described))
    rows = torch.from_numpy(descriptors(0, ("plain",)).rows.astype(np.float32))
    info = ImageInfo("JPEG", 640, 480, 1, 1000, "b" * 64, truncated=False)
    for tenant in tenants:
        (compared,) = compare(mirror, rules, [rows], [tenant])
        origin = Origin(Position("uploads", 1, 42, 7), NOW, NOW, 1, 1, 0)
        upload = Upload(origin, "u1", image=b"x", tenant=tenant)
        yield Screened(upload, info, (Look(Rendition(), "plain"),), compared), banks


def test_a_thousand_banks_leave_a_verdict_small(monkeypatch):
    made: dict[int, int] = defaultdict(int)

    def counted(thresholds):
        made[len(thresholds)] += 1
        return thresholds_digest(thresholds)

    monkeypatch.setattr("worker.scoring.rules.thresholds_digest", counted)
    results = Results(Settings(), MODEL, "fp32", Sightings())
    for one, banks in screened([None, None, "t1", "t2", "t1"]):
        (verdict, _) = results.screened(one)
        told = json.loads(verdict.value)
        assert len(verdict.value) < 16 * 1024
        assert len(told["matches"]) == 3 <= MATCHES_SHOWN
        assert len(told["thresholds"]) == THRESHOLDS_SHOWN
        assert [*told["thresholds"]][:3] == ["bank-00000", "bank-00001", "bank-00002"]
        # Of the others those whose thresholds are least above what was scored.
        assert [*told["thresholds"]][3:] == [f"bank-{n:05}" for n in range(19, 6, -1)]
        everything = {name: bank.threshold for name, bank in banks.items()}
        assert told["thresholds_digest"] == thresholds_digest(everything)
    assert made == {BANKS: 2}, "one for no tenant, one for all tenants that no bank names"
