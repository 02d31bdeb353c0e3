"""`copysieve bench hotset`, small: what it fills is started from, found, and the same as faiss'."""

import pytest

from worker.cli import scaling

pytestmark = pytest.mark.redis


def test_a_small_one(redis_server, tmp_path):
    plan = scaling.Plan(redis_server.url, tmp_path, references=5000, dims=64, rounds=2)
    told: list[int] = []
    report = scaling.fill(plan, told.append)
    assert sum(told) == 5000
    assert report["redis_bytes_per_reference"] > 2 * 64
    report |= scaling.in_a_process(scaling.start_from_redis, plan)
    assert report["start_from_redis_s"] > 0
    assert list(tmp_path.rglob("state.npz"))
    report |= scaling.in_a_process(scaling.start_and_search, plan)
    assert report["identical_ids"] is True
    assert report["search_ratio_to_faiss"] > 0
