"""What a change would have matched of the recent uploads, on a real Redis."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.fixtures.hot_set import MODEL, NOW, add_all, bank, reference
from worker.cli.main import app
from worker.compare import compare
from worker.errors import StoreError
from worker.hotset import samples
from worker.hotset.floods import Floods, Sightings
from worker.hotset.mirror import Mirror
from worker.hotset.samples import BANKS, CAPACITY, Sampler
from worker.hotset.types import Descriptors
from worker.records import ImageInfo, Look, Origin, Position, Rendition, Upload
from worker.results import Results, Screened
from worker.scoring import artefact
from worker.scoring.rules import Rules
from worker.settings import Settings

pytestmark = pytest.mark.redis


@pytest.fixture
def run(monkeypatch, redis_server):
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", redis_server.url)
    monkeypatch.setattr("worker.telemetry.log.configure", lambda _: None)

    def invoke(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--no-wait"])
        if isinstance(result.exception, StoreError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return invoke


def along(*weights):
    """A unit vector with these weights on the first axes, fp16 [1, dims]."""
    row = np.zeros((1, MODEL.dims))
    row[0, : len(weights)] = weights
    return (row / np.linalg.norm(row)).astype(np.float16)


class Worker:
    """What a replica does from descriptors on: it screens, counts and samples."""

    def __init__(self, store, per_turn=1000):
        self.sightings = Sightings()
        self.sightings.sampler = Sampler(per_turn)
        self.floods = Floods(store.census(), self.sightings)
        self.results = Results(Settings(), MODEL, "fp32", self.sightings)
        reader = store.of_model(MODEL, artefact.read_for)
        self.mirror = Mirror(MODEL, "cpu")
        self.mirror.load(reader.snapshot(reader.head()))

    def screen(self, *cosines, canary=False):
        """Screen uploads with these cosines to the reference on the first axis."""
        for number, cosine in enumerate(cosines):
            row = torch.from_numpy(along(cosine, (1 - cosine**2) ** 0.5).astype(np.float32))
            (found,) = compare(self.mirror, Rules(["plain"]), [row], [None], [canary])
            upload = Upload(
                origin=Origin(Position("uploads", 0, number, 1), NOW, NOW, 1, 1, 0),
                upload_id=f"{'canary:' if canary else ''}u{number}",
                image=b"x",
                is_canary=canary,
            )
            info = ImageInfo("JPEG", 640, 480, 1, 1000, f"{number:064x}", truncated=False)
            looks = (Look(Rendition(), "plain"),)
            self.results.screened(Screened(upload, info, looks, found))
        self.floods.turn()


@pytest.fixture
def worker(store):
    store.set_bank(bank("bad", threshold=0.9))
    add_all(store, [(reference("r1", bank="bad"), Descriptors(("plain",), along(1)))])
    return Worker(store)


def test_a_change_that_would_have_matched_many_recent_uploads_asks_for_force(run, store, worker):
    assert "no recent uploads" in run("banks", "set", "bad", "--threshold", "0.8").stderr
    worker.screen(*[0.1] * 180, *[0.5] * 19, 0.95)
    told = run("banks", "set", "bad", "--threshold", "0.6").stdout
    assert "of 200 uploads sampled since 20" in told
    assert "it would have matched 1 (0.5%), now 1" in told
    with pytest.raises(StoreError, match=r"would have matched 20 \(10\.0%\), now 1\. --force"):
        run("banks", "set", "bad", "--threshold", "0.4")
    assert store.banks()["bad"].threshold == 0.6
    run("banks", "set", "bad", "--threshold", "0.4", "--force")
    # A bank in shadow matches nothing yet: enforcing it is such a change as well.
    run("banks", "set", "bad", "--mode", "shadow")
    with pytest.raises(StoreError, match=r"would have matched 20 \(10\.0%\), now 0"):
        run("banks", "set", "bad", "--mode", "enforce")
    run("banks", "set", "bad", "--threshold", "0.7", "--mode", "enforce")


def test_what_is_kept_of_uploads_is_bounded_and_says_nothing_of_them(store, worker, monkeypatch):
    worker.screen(0.5, 0.2)
    worker.screen(0.9, canary=True)
    kept = store.samples()
    assert [one.scores for one in kept] == [
        {"bad": pytest.approx(score, abs=0.01)} for score in (0.2, 0.5)
    ]
    assert set(kept[0].model_dump()) == {"at", "calibration", "scores", "unseen"}
    assert store._client.ttl(store._keys.samples) > 0
    best = {f"b{number}": number / 100 for number in range(20)}
    one = samples.sample_of(1.0, None, best, 0.05)
    assert len(one.scores) == BANKS
    assert one.unseen == 0.11  # of the best bank that was left out
    monkeypatch.setattr(samples, "CAPACITY", 50)
    few = Worker(store, per_turn=7)
    for _ in range(10):
        few.screen(*[0.3] * 20)
    assert len(store.samples()) == 50
    assert CAPACITY == 10_000


def test_what_another_calibration_scored_or_cannot_be_read_does_not_count(run, store, worker):
    worker.screen(*[0.5] * 50)
    census = store.census()
    census.keep([samples.sample_of(1.0, "c" * 64, {"bad": 0.7}, -1.0)] * 50)
    store._client.lpush(store._keys.samples, b"{}", b'{"at":"x"}', b"\xff")
    with pytest.raises(StoreError, match=r"of 50 uploads .* matched 50 \(100\.0%\)"):
        run("banks", "set", "bad", "--threshold", "0.4")
    census.keep([samples.sample_of(1.0, None, {"other": 0.9}, 0.8)] * 5)
    told = run("banks", "set", "bad", "--threshold", "0.7").stdout
    assert "matched 0 (0.0%), now 0; of 5 more it is not known" in told
