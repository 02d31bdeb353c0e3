"""`copysieve demo` as a person runs it: real servers, real replicas, real weights."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from worker.demo import pictures

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]


def command(*options):
    return [sys.executable, "-m", "worker", "demo", *options]


def run(*options):
    return subprocess.run(command(*options), capture_output=True, text=True, check=False)


def test_every_upload_gets_its_one_result_and_the_report_tells(tmp_path):
    done = run("--uploads", "60", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == json.loads((tmp_path / "report.json").read_text())
    assert told["uploads"] == 60
    assert told["missing"] == told["duplicates"] == told["benign_matched"] == 0
    assert told["recall_by_edit"]["unedited"] == {"found": 11, "total": 11}
    assert told["copies_found"] == told["verdicts"]["match"] == told["match_events"]
    assert sum(told["verdicts"].values()) + told["dead_letters"] == 60
    reasons = ("undecodable", "unsupported_format", "fetch_not_found", "fetch_denied")
    assert told["unscreened_reasons"] == dict.fromkeys(reasons, 1)
    assert told["dead_letter_reasons"] == {"not_json": 1}
    assert told["model"] == "sscd_disc_mixup_int8"
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    for number in (1, 2):
        events = [
            json.loads(line)["event"]
            for line in (tmp_path / f"replica-{number}.log").read_text().splitlines()
        ]
        assert "partition_assigned" in events
        assert events[-1] == "stopped"


def test_a_benign_upload_that_is_a_copy_fails_the_demo_in_one_line(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    found = pictures.bundled()[:5]
    for number, picture in enumerate([found[0], *found]):  # the second, benign, is the first
        picture.image.save(folder / f"{number}.png")
    done = run("--images", str(folder), "--uploads", "20", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "uploads that are no copies matched: benign-" in done.stderr
    assert "Traceback" not in done.stderr
    assert "The demo failed" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("number", "when"), [(signal.SIGINT, "publishing"), (signal.SIGTERM, "2 replicas: ")]
)
def test_nothing_runs_on_after_it_is_interrupted(number, when, tmp_path):
    with subprocess.Popen(
        command("--uploads", "200", "--out", str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if when in line:
                break
        started = psutil.Process(demo.pid).children(recursive=True)
        assert len(started) >= 4  # Kafka, Redis, two replicas
        demo.send_signal(number)
        output = demo.stdout.read()
        assert demo.wait() != 0
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
