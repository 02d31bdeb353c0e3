"""The benchmark runs, both sides, and tells what it measured. How fast is not judged here."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]


def report(command: str) -> dict:
    arguments = ["--images", "30", "--pairs", "1", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "bench", command, *arguments],
        env=os.environ | {"COPYSIEVE_MODEL__NAME": "sscd_distilled"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_bench_pipeline_ends_with_one_line_of_json():
    told = report("pipeline")
    assert told["model"] == "sscd_distilled"
    assert {run["side"] for run in told["runs"]} == {"direct", "stream"}
    stream, direct = told["stream_images_per_second"], told["direct_images_per_second"]
    assert told["ratio"] == pytest.approx(stream / direct, rel=0.01)
    assert told["limited_by"] in told["busy"]


def test_bench_isolation_compares_processes_with_threads():
    found = report("isolation")
    assert {run["side"] for run in found["runs"]} == {"threads", "processes"}
    assert found["ratio"] == pytest.approx(found["processes"] / found["threads"], rel=0.01)
