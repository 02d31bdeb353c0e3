"""Decoders that hang, crash and lie, in a real worker: each costs its own picture."""

import sys
import time
from collections import Counter

import pytest

from tests.fixtures.hostile_decoder import SIGNATURE
from tests.fixtures.processes import picture

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

PROGRAM = """
from worker.image.sandbox import Sandbox
Sandbox.__init__.__defaults__ = ("tests.fixtures.hostile_decoder",)
from worker.__main__ import main
main()
"""
HOSTILE = {
    "hang": "decode_timeout",
    "segfault": "decoder_crashed",
    "socket": "decoder_crashed",
    "garbage": "decoder_crashed",
}
"""What becomes of an upload, by what its decoder does."""
OTHERS = 20
RAW = (("content-type", b"image/jpeg"),)


def eventually(check, seconds=90):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def test_what_a_decoder_does_is_the_verdict_of_its_own_upload(screening):
    uploads = [(f"u{n}".encode(), picture(n), RAW) for n in range(OTHERS)]
    for n, act in enumerate(HOSTILE):
        uploads.insert(3 * n + 1, (act.encode(), SIGNATURE + act.encode(), RAW))
    screening.stream.produce(uploads)
    worker = screening.start_command(
        [sys.executable, "-c", PROGRAM, "run"],
        COPYSIEVE_DECODE__ISOLATION="processes",
        COPYSIEVE_DECODE__WORKERS="2",
        COPYSIEVE_DECODE__DEADLINE_SECONDS="3",
    )
    eventually(lambda: len(screening.verdicts()) >= len(uploads))
    verdicts = screening.verdicts()
    found = {verdict["upload_id"]: verdict for verdict in verdicts}
    assert len(verdicts) == len(found) == len(uploads)
    assert {act: found[act]["reason"] for act in HOSTILE} == HOSTILE
    assert found["u0"]["outcome"] == "match"
    assert {found[f"u{n}"]["outcome"] for n in range(1, OTHERS)} == {"no_match"}
    for reason, number in Counter(HOSTILE.values()).items():
        counted = f'copysieve_unscreened_total{{reason="{reason}"}}'
        assert worker.total(counted) == number
    assert worker.total("copysieve_decoders_replaced_total") == len(HOSTILE)
    assert worker.terminate() == 0
