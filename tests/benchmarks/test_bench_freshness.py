"""The benchmark runs real replicas under load, and tells what it measured. How fast is not judged.

That a reference is matched once it was waited for is tested in `tests/e2e/test_freshness.py`.
"""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]


def test_bench_freshness_ends_with_one_line_of_json():
    arguments = ["--references", "5", "--hot-set", "50", "--uploads-per-second", "10", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "bench", "freshness", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (told["references"], told["hot_set"], told["replicas"]) == (5, 50, 2)
    assert 0 < told["p50_ms"] <= told["p99_ms"] <= told["max_ms"]
    assert told["verdicts"] > 0
    assert told["uploads_per_second"] > 0
