import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from prometheus_client import REGISTRY

from worker.compare import Compared
from worker.errors import BadEvent, DeadLetterReason, Unscreenable, UnscreenedReason
from worker.events import MATCHES_SHOWN, THRESHOLDS_SHOWN, Event, MatchEvent, Verdict, schema
from worker.hotset.census import Subject
from worker.hotset.floods import Flooded, Sightings
from worker.hotset.hot_set import Against
from worker.hotset.types import Bank, Hit, Reference
from worker.records import (
    ImageInfo,
    Look,
    Model,
    Origin,
    Position,
    Record,
    Rendition,
    Upload,
    Version,
)
from worker.results import Results, Screened, Unscreened
from worker.scoring.drift import Drift
from worker.scoring.policy import Decision, decide, near_thresholds, score
from worker.scoring.rules import Applied, rule_of
from worker.settings import Settings
from worker.stream.publisher import RESULT_BYTES

NOW = datetime(2026, 1, 2, tzinfo=UTC)
AT = Position("uploads", 1, 42, 7)
MODEL = Model("m", "a" * 64, 512, "bilinear-320")
INFO = ImageInfo("JPEG", 640, 480, 1, 1000, "b" * 64, truncated=False)
LOOKS = (Look(Rendition(), "plain"),)
BLOCK = Bank(name="bad", label="bad", severity="high", action="block", threshold=0.5)
SHADOW = Bank(name="trial", label="trial", severity="low", threshold=0.5, mode="shadow")
ALLOW = Bank(name="fine", label="fine", severity="low", kind="allow", suppresses=("bad",))

TOP_SCORES = ("copysieve_top_score_count",)


def upload(upload_id="u1", **fields):
    return Upload(Origin(AT, NOW, NOW, 1, 1, 0), upload_id, image=b"x", **fields)


def hit(bank, cosine, reference_id="r1"):
    reference = Reference(reference_id=reference_id, bank=bank.name, added_by="t", added_at=NOW)
    return Hit(reference, bank, "plain", cosine, cosine)


def alike(allow, matched):
    """Every allow reference resembles every matched one."""
    return np.ones((len(allow), len(matched)))


def screened(*hits, of=None, looks=LOOKS):
    rules = {one.bank.name: rule_of(one.bank, None, None) for one in hits}
    scored = score(hits)
    decision = decide(scored, rules, resemblance=alike)
    thresholds = near_thresholds(scored, decision, rules, THRESHOLDS_SHOWN)
    version, banks = Version(1700000000000, 5), {one.bank.name: one.bank for one in hits}
    applied = Applied(Against(version, banks, None, {}, frozenset()), rules)
    compared = Compared(decision, version, None, thresholds, applied)
    return Screened(of or upload(), INFO, looks, compared)


def results(sightings=None, **verdicts):
    return Results(Settings(verdicts=verdicts), MODEL, "fp32", sightings or Sightings())


def by_kind(events):
    return {event.kind: json.loads(event.value) for event in events}


def test_a_match_is_a_verdict_and_a_match_event():
    events = results().screened(screened(hit(BLOCK, 0.9)))
    told = by_kind(events)
    assert set(told) == {"verdict", "match"}
    assert told["verdict"]["outcome"] == "match"
    assert told["verdict"]["matches"] == told["match"]["matches"]
    assert told["verdict"]["thresholds"] == {"bad": 0.5}
    assert told["verdict"]["hot_set"] == {"epoch": 1700000000000, "seq": 5}
    assert told["match"]["matches"][0]["euclidean"] == pytest.approx(0.447214)
    assert {event.key for event in events} == {b"u1"}
    headers = dict(events[0].headers)
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"].decode() == f"verdict-{told['verdict']['verdict_id']}"


def test_shadow_never_changes_the_outcome_and_has_its_own_topic():
    events = results().screened(screened(hit(SHADOW, 0.9)))
    assert {e.kind: e.topic for e in events} == {
        "verdict": "image.verdicts",
        "shadow": "image.matches.shadow",
    }
    told = by_kind(events)
    assert told["verdict"]["outcome"] == "no_match"
    assert told["verdict"]["matches"] == []
    assert told["shadow"]["matches"][0]["bank"] == "trial"


def test_what_was_suppressed_is_told():
    events = results().screened(screened(hit(BLOCK, 0.7), hit(ALLOW, 0.8, "ok")))
    (one,) = by_kind(events)["verdict"]["suppressed"]
    assert (one["reference_id"], one["suppressed_by"], one["suppressed_by_bank"]) == (
        "r1",
        "ok",
        "fine",
    )


def test_only_no_match_can_be_left_out():
    quiet = results(publish="matches_and_unscreened")
    assert quiet.screened(screened()) == []
    assert by_kind(quiet.screened(screened(hit(BLOCK, 0.9))))["verdict"]["outcome"] == "match"
    error = Unscreenable(UnscreenedReason.UNDECODABLE, "no picture")
    assert by_kind(quiet.unscreened(Unscreened(upload(), error)))["verdict"]["reason"] == (
        "undecodable"
    )


def test_a_canary_has_one_event_on_the_shadow_topic_whatever_came_of_it():
    ours = upload("canary:1", is_canary=True)
    error = Unscreenable(UnscreenedReason.UNDECODABLE, "no picture")
    counted = ("copysieve_matches_total", {"bank": "bad", "mode": "enforce"})
    before = [REGISTRY.get_sample_value(*one) for one in (counted, TOP_SCORES)]
    made = [
        results().screened(screened(hit(BLOCK, 0.9), hit(SHADOW, 0.8, "r2"), of=ours)),
        results().screened(screened(hit(BLOCK, 0.1), of=ours)),
        results(publish="matches_and_unscreened").screened(screened(of=ours)),
        results().unscreened(Unscreened(ours, error)),
    ]
    told = []
    for (event,) in made:
        assert (event.kind, event.topic) == ("canary", "image.matches.shadow")
        assert dict(event.headers)["ce_type"] == b"copysieve.canary.v1"
        told.append(json.loads(event.value))
        Draft202012Validator(schema(MatchEvent)).validate(told[-1])
    found = [{one["reference_id"] for one in event["matches"]} for event in told]
    assert found == [{"r1", "r2"}, set(), set(), set()]
    assert [event["hot_set"] is None for event in told] == [False, False, False, True]
    assert before == [REGISTRY.get_sample_value(*one) for one in (counted, TOP_SCORES)]


@pytest.mark.parametrize("subject", [Subject("bad"), Subject("bad", "r1")])
@pytest.mark.parametrize(("demotes", "action"), [(True, "review"), (False, "block")])
def test_matches_in_a_flood_say_so_and_are_demoted_to_review(subject, demotes, action):
    rule = BLOCK.model_copy(update={"flood_demotes": demotes, "flood_per_hour": 3})
    sightings = Sightings()
    sightings.flooded = Flooded(frozenset({subject}))
    other = SHADOW.model_copy(update={"action": "hold", "flood_demotes": True})
    found = screened(hit(rule, 0.9), hit(other, 0.8, "r2"))
    told = by_kind(results(sightings).screened(found))
    assert told["verdict"]["outcome"] == "match"
    (match,) = told["verdict"]["matches"]
    assert (match["flooded"], match["action"]) == (True, action)
    (match,) = told["shadow"]["matches"]
    assert (match["flooded"], match["action"]) == (False, "hold")
    assert sightings.take() == (
        {Subject("bad"): {INFO.sha256}, Subject("bad", "r1"): {INFO.sha256}},
        1,
    )


def test_canaries_and_what_is_not_enforced_count_for_no_flood():
    limited = {"flood_per_hour": 3}
    block, shadow = (one.model_copy(update=limited) for one in (BLOCK, SHADOW))
    sightings = Sightings()
    made = results(sightings)
    made.screened(screened(hit(block, 0.9), of=upload("canary:1", is_canary=True)))
    made.screened(screened(hit(shadow, 0.9)))
    made.screened(screened(hit(block, 0.7), hit(ALLOW, 0.8, "ok")))
    assert sightings.take() == ({}, 2)


def test_drift_is_told_of_what_is_comparable_with_the_calibrations_images(monkeypatch):
    told = []
    monkeypatch.setattr(Drift, "note", lambda _self, image, *_: told.append(image))
    made = results()
    made.screened(screened(hit(BLOCK, 0.9), of=upload("canary:1", is_canary=True)))
    made.screened(
        screened(hit(BLOCK, 0.9), looks=(Look(Rendition(), "plain"), Look(Rendition(3), "plain")))
    )
    assert not told
    made.screened(screened(looks=(Look(Rendition(), "plain"), Look(Rendition(), "centre_crop"))))
    assert told == [INFO.sha256]


def test_ids_are_the_same_over_repeats_and_differ_between_uploads():
    first, again, other = (
        by_kind(results().screened(screened(hit(BLOCK, 0.9), of=upload(upload_id))))["verdict"]
        for upload_id in ("u1", "u1", "u2")
    )
    assert first["verdict_id"] == again["verdict_id"] != other["verdict_id"]
    assert first["matches"][0]["match_id"] == again["matches"][0]["match_id"]
    assert first["matches"][0]["match_id"] != other["matches"][0]["match_id"]


def test_many_matches_are_cut_and_counted_and_the_event_stays_small():
    crowd = [hit(BLOCK, 0.9, f"r{n:0120}") for n in range(100)]
    large = upload("\U0001f600" * 512, attributes={chr(1) * 8000: ""})
    for event in results().screened(screened(*crowd, of=large)):
        told = json.loads(event.value)
        assert (len(told["matches"]), told["matches_total"]) == (MATCHES_SHOWN, 100)
        assert len(event.value) < RESULT_BYTES


def test_many_matches_in_one_bank_do_not_hide_what_another_asks_for():
    flag = BLOCK.model_copy(update={"name": "flag", "action": "log"})
    crowd = [hit(flag, 0.9, f"r{n}") for n in range(100)]
    crowd += [hit(flag.model_copy(update={"name": f"f{n}"}), 0.8, f"f{n}") for n in range(40)]
    told = by_kind(results().screened(screened(*crowd, hit(BLOCK, 0.6, "x"))))["verdict"]
    shown = [(one["bank"], one["action"], one["score"]) for one in told["matches"]]
    assert (len(shown), told["matches_total"]) == (MATCHES_SHOWN, 141)
    assert shown[0] == ("flag", "log", 0.9)
    assert shown[-1] == ("bad", "block", 0.6)
    assert len({bank for bank, *_ in shown}) == MATCHES_SHOWN


def test_everything_fits_its_schema():
    error = Unscreenable(UnscreenedReason.FETCH_TIMEOUT, "x" * 9999)
    made = [
        *results().screened(screened(hit(BLOCK, 0.9), hit(SHADOW, 0.8, "r2"))),
        *results().unscreened(Unscreened(upload(uploaded_at=NOW, tenant="t"), error)),
    ]
    models: dict[str, type[Event]] = {"verdict": Verdict, "match": MatchEvent, "shadow": MatchEvent}
    assert len(made) == 4
    for event in made:
        Draft202012Validator(schema(models[event.kind])).validate(json.loads(event.value))


def test_a_dead_letter_goes_to_its_topic():
    record = Record(AT, b"k", b"{", (), NOW, NOW)
    (letter,) = results().dead_letter(record, BadEvent(DeadLetterReason.NOT_JSON, "no JSON"))
    assert (letter.topic, letter.key) == ("image.uploads.dlq", b"k")


@pytest.mark.parametrize("reason", UnscreenedReason)
def test_every_reason_of_unscreened_is_counted(reason):
    counted = ("copysieve_unscreened_total", {"reason": reason.value})
    before = REGISTRY.get_sample_value(*counted) or 0
    (event,) = results().unscreened(Unscreened(upload(), Unscreenable(reason, "why")))
    assert json.loads(event.value)["reason"] == reason.value
    assert REGISTRY.get_sample_value(*counted) == before + 1


@pytest.mark.parametrize("reason", DeadLetterReason)
def test_every_reason_of_dead_letters_is_counted(reason):
    counted = ("copysieve_dead_letters_total", {"reason": reason.value})
    before = REGISTRY.get_sample_value(*counted) or 0
    record = Record(AT, b"k", b"{", (), NOW, NOW)
    (event,) = results().dead_letter(record, BadEvent(reason, "why"))
    assert json.loads(event.value)["reason"] == reason.value
    assert REGISTRY.get_sample_value(*counted) == before + 1


def test_the_documents_name_exactly_the_reasons_there_are():
    tables = Path("docs/events.md").read_text(encoding="utf-8").split("| Reason | When |\n")[1:]
    told = [
        [
            name
            for row in table.split("\n\n")[0].splitlines()[1:]
            for name in re.findall(r"`(\w+)`", row.split("|")[1])
        ]
        for table in tables
    ]
    assert [sorted(one) for one in told] == [sorted(UnscreenedReason), sorted(DeadLetterReason)]


def test_without_any_hit_there_is_no_best_score():
    assert Decision().best_score is decide([], {}).best_score is None
