"""The judge of the demo: a demo that cannot fail would prove nothing."""

import pytest

from tests.fixtures.demo import findings, match, right_result, verdict


def first(planned, kind, what=None):
    return next(u for u in planned if u.kind == kind and what in (None, u.what))


def test_right_results_are_no_failure_and_are_all_counted(planned):
    found = findings(planned)
    assert found.failures() == []
    document = found.document()
    copies = sum(one.kind == "copy" for one in planned)
    assert document["uploads"] == 60
    assert document["copies"] == document["copies_found"] == copies
    assert sum(share["total"] for share in document["recall_by_edit"].values()) == copies
    assert document["verdicts"] == {
        "match": copies,
        "no_match": document["benign"],
        "unscreened": 4,
    }
    assert document["dead_letters"] == 1
    assert (document["missing"], document["duplicates"], document["benign_matched"]) == (0, 0, 0)


def test_latency_is_of_the_steady_part_and_throughput_of_the_burst(planned):
    document = findings(planned).document()
    assert document["latency_seconds"]["p50"] == 10.5  # 1 to 20 seconds
    assert document["images_per_second"] == round(40 / 60, 1)


def test_the_score_is_also_told_of_what_matched_nothing(planned):
    benign = first(planned, "benign")
    (outcome,) = (one for one in findings(planned).outcomes if one.upload == benign)
    assert (outcome.score, outcome.match, outcome.as_expected) == (0.3, None, True)


@pytest.mark.parametrize(
    ("kind", "what", "results", "line"),
    [
        ("benign", None, lambda _: [], "1 uploads without a result: "),
        ("benign", None, lambda u: [right_result(u)] * 2, "1 uploads with two results: "),
        (
            "broken",
            "no JSON",
            lambda u: [right_result(u)] * 2,
            "1 uploads with two results: ",
        ),
        ("copy", "unedited", lambda u: [verdict(u.upload_id)], "1 unedited copies were missed: "),
        (
            "copy",
            "unedited",
            lambda u: [verdict(u.upload_id, [match("another", 0.9)])],
            "1 unedited copies were missed: ",
        ),
        (
            "benign",
            None,
            lambda u: [verdict(u.upload_id, [match("reference-1", 0.61)])],
            "1 uploads that are no copies matched: ",
        ),
        (
            "broken",
            "cut JPEG",
            lambda u: [verdict(u.upload_id)],
            "1 broken uploads ended otherwise: ",
        ),
    ],
)
def test_each_broken_promise_is_one_line_that_names_the_upload(kind, what, results, line, planned):
    upload = first(planned, kind, what)
    (failure,) = findings(planned, {upload.upload_id: results(upload)}).failures()
    assert failure.startswith(line)
    assert upload.upload_id in failure


def test_a_missed_edit_costs_recall_and_is_no_failure(planned):
    upload = first(planned, "copy", "blurred")
    found = findings(planned, {upload.upload_id: [verdict(upload.upload_id)]})
    assert found.failures() == []
    assert found.recall["blurred"].found == found.recall["blurred"].total - 1
