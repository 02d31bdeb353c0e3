"""The short form of `make fuzz`."""

import pytest

from tests.fuzz.run import leaks, run

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]


@pytest.mark.parametrize("isolation", ["threads", "processes"])
def test_every_record_has_its_one_result_and_nothing_of_it_is_logged(tmp_path, isolation):
    report = run(tmp_path, 1, 1500, 300, isolation, lambda _: None)
    assert report.failures == []
    assert report.records == 1800
    expected = {"match", "no_match", "undecodable", "not_json", "fetch_not_found"}
    assert expected <= report.outcomes.keys()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"url": "http://h/1?signature=' + "c0ffee5ec4e7" * 4 + '"}', ["a signed link"]),
        ('{"detail": "' + "QUJD" * 30 + '"}', ["base64"]),
        (r'{"value": "\xff\xd8\xff"}', ["an image"]),
        ('{"row": [0.0123, -0.5511, 0.0001, 1.23e-05, 0.7]}', ["a descriptor"]),
        ('{"sha256": "' + "0f" * 32 + '", "seconds": 0.123}', []),
    ],
)
def test_what_a_log_must_not_hold_is_found(line, what):
    assert leaks(line) == what
