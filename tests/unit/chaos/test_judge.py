"""The book-keeping of chaos finds what it looks for: each test hides one thing in right results."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.chaos.host import Host
from tests.chaos.judge import judge, longest_stall, stall_within
from tests.chaos.phase import nothing_excused, unless_given
from tests.chaos.reader import Result
from tests.chaos.traffic import REPEATS, Sent, plan

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
UPLOADS = plan(seed=3, count=400)
SENT = [Sent(upload, 0, upload.index, at=upload.index / 10) for upload in UPLOADS]


def right(sent):
    """The results of a good worker for one upload."""
    upload = sent.upload
    letter = upload.outcome == "dead_letter"
    answer = Result(
        kind="dead_letter" if letter else "verdict",
        source=(sent.partition, sent.offset),
        at=sent.at + 0.5,
        upload_id=None if letter else upload.upload_id,
        number=None,
        verdict_id=None if letter else f"v{sent.offset}",
        outcome=upload.outcome,
        reason="not_json" if letter else "undecodable" if upload.kind == "broken" else None,
        matches={upload.reference: (0.95, 0.9)} if upload.reference else {},
        received_at=BEGAN,
        screened_at=datetime(2026, 1, 1, 0, 0, 8, tzinfo=UTC),
    )
    if upload.outcome != "match":
        return [answer]
    return [answer, replace(answer, kind="match", outcome="match")]


RIGHT = [result for sent in SENT for result in right(sent)]
CALM = {sent.upload.index: right(sent)[0] for sent in SENT}


def judged(results, calm=CALM, excuse=nothing_excused):
    return judge(SENT, results, calm, excuse, until=100.0)


def first(outcome, **wanted):
    """Where the first result like this is, among the right ones."""
    for number, result in enumerate(RIGHT):
        upload = UPLOADS[result.source[1]]
        if result.outcome == outcome and all(getattr(upload, k) == v for k, v in wanted.items()):
            return number
    raise AssertionError(outcome)


def instead(number, *results):
    return [*RIGHT[:number], *results, *RIGHT[number + 1 :]]


def test_a_plan_is_repeatable_and_has_all_kinds():
    assert plan(3, 400) == UPLOADS != plan(4, 400)
    assert {upload.kind for upload in UPLOADS} == {"copy", "benign", "broken", "garbage"}
    assert any(upload.linked and upload.repeated for upload in UPLOADS)
    ids = [upload.upload_id for upload in UPLOADS if upload.repeated]
    assert len(ids) == 100
    assert {ids.count(one) for one in ids} == {REPEATS}


@pytest.mark.parametrize("calm", [None, CALM])
def test_right_results_are_all_right(calm):
    found = judged(RIGHT, calm)
    assert (found.uploads, found.blamed) == (400, [])
    assert (found.lost, found.duplicates, found.wrong, found.disordered) == (0, 0, 0, 0)
    assert found.stall == pytest.approx(0.5)
    assert found.slowest == pytest.approx(0.5)


@pytest.mark.parametrize("outcome", ["no_match", "unscreened", "match", "dead_letter"])
def test_what_has_no_answer_is_lost(outcome):
    assert judged(instead(first(outcome))).lost == 1


def test_a_match_without_its_event_is_lost():
    event = first("match") + 1
    assert RIGHT[event].kind == "match"
    assert judged(instead(event)).lost == 1


def test_repeats_are_counted_and_must_have_the_same_verdict_id():
    number = first("no_match")
    again = judged([*RIGHT, RIGHT[number]])
    assert (again.duplicates, again.torn, again.wrong) == (1, 0, 0)
    assert judged([*RIGHT, replace(RIGHT[number], verdict_id="another")]).torn == 1
    event = first("match") + 1
    assert judged([*RIGHT, RIGHT[event]]).duplicates == 1


def test_another_outcome_or_reference_is_wrong():
    number = first("match")
    right_one = RIGHT[number]
    for wrong in (
        replace(right_one, outcome="no_match", matches={}),
        replace(right_one, matches={"ref-other": (0.95, 0.9)}),
        replace(right_one, outcome="unscreened", reason="describe_failed", matches={}),
        replace(right_one, upload_id="another"),
        replace(right_one, number="399"),
    ):
        assert judged(instead(number, wrong)).wrong == 1, wrong
        assert judged([*RIGHT, wrong]).wrong == 1, wrong
    unplanned = instead(number, replace(right_one, outcome="no_match", matches={}))
    assert judged(unplanned, calm=None).wrong == 1


def test_a_match_event_that_no_verdict_says_is_wrong():
    verdict = RIGHT[first("no_match")]
    event = replace(verdict, kind="match", outcome="match", matches={"ref-1": (0.95, 0.9)})
    assert judged([*RIGHT, event]).wrong == 1
    number = first("match") + 1
    another = replace(RIGHT[number], matches={"ref-other": (0.95, 0.9)})
    assert judged(instead(number, another)).wrong == 1


def test_a_score_at_the_threshold_may_fall_on_either_side():
    number = first("no_match")
    for score, wrong in ((0.9005, 0), (0.902, 1)):
        near = replace(RIGHT[number], outcome="match", matches={"ref-1": (score, 0.9)})
        event = replace(near, kind="match")
        assert judged(instead(number, near, event)).wrong == wrong


def test_a_result_of_nothing_is_wrong():
    assert judged([*RIGHT, replace(RIGHT[0], source=(3, 9))]).wrong == 1


def test_a_result_of_an_earlier_phase_is_a_repeat():
    late = [*RIGHT, replace(RIGHT[0], source=(3, 9))]
    found = judge(SENT, late, CALM, nothing_excused, until=100.0, before={(3, 9)})
    assert (found.duplicates, found.wrong) == (1, 0)


def test_first_appearances_of_an_id_are_held_to_the_order_of_the_input():
    upload_id = next(u.upload_id for u in UPLOADS if u.repeated)
    mine = [n for n, r in enumerate(RIGHT) if r.kind == "verdict" and r.upload_id == upload_id]
    swapped = list(RIGHT)
    swapped[mine[0]], swapped[mine[1]] = RIGHT[mine[1]], RIGHT[mine[0]]
    assert judged(swapped).disordered == 1
    assert judged([*RIGHT, RIGHT[mine[0]]]).disordered == 0  # a repeat is not out of order


def test_a_link_is_excused_only_if_the_worker_never_had_the_picture():
    number = first("no_match", linked=True)
    upload = UPLOADS[RIGHT[number].source[1]]
    failed = replace(RIGHT[number], outcome="unscreened", reason="fetch_timeout")
    host = Host()
    try:
        excuse = unless_given(host, "host")
        missed = judged(instead(number, failed), excuse=excuse)
        assert (missed.wrong, missed.excused) == (0, 1)
        assert judged(instead(number, failed)).wrong == 1
        host.given["host", upload.index] = [BEGAN.timestamp() + 7.8]  # too late to be of use
        assert judged(instead(number, failed), excuse=excuse).wrong == 0
        host.given["host", upload.index] = [BEGAN.timestamp() + 3]
        assert judged(instead(number, failed), excuse=excuse).wrong == 1
    finally:
        host.close()


def test_the_longest_stall_counts_only_while_something_is_outstanding():
    assert longest_stall([], until=9) == 0
    assert longest_stall([(0, 1), (5, 6)], until=9) == 1
    assert longest_stall([(0, 1), (0.5, 6), (2, 3)], until=9) == 3
    assert longest_stall([(0, 1), (2, None)], until=9) == 7
    assert longest_stall([(2, 1.9), (3, 3)], until=9) == 0


def test_a_stall_after_a_moment_is_that_of_the_worst_partition():
    found = judged(RIGHT)
    found.spans.clear()
    found.spans.update({0: [(0, 4), (5, 6)], 1: [(1, 9)]})
    assert stall_within(found, 3, 100) == 6
    assert stall_within(found, 3, 7) == 4
    assert stall_within(found, 9, 100) == 0
