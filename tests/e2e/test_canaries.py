"""Canaries through whole replicas, on a real Kafka and a real Redis or Valkey."""

import json
import subprocess
import sys
import time

import pytest
import skimage.data
from PIL import Image
from pydantic import SecretStr

from tests.fixtures.processes import picture
from worker.hotset.store import open_store
from worker.hotset.types import Bank
from worker.settings import Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

PREFIX = "canary:"
RAW = ("content-type", b"image/jpeg")
PER_MINUTE = "120"


def eventually(check, seconds=90):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def command(screening, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "worker", *map(str, arguments)],
        env=screening.environment(**screening.canaries),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def planted(screening):
    """A folder of two pictures, both registered, in a bank in enforce mode."""
    folder = screening.folder / "canaries"
    folder.mkdir()
    for name in ("coffee", "astronaut"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg")
    screening.canaries = {
        "COPYSIEVE_CANARIES__FOLDER": str(folder),
        "COPYSIEVE_CANARIES__PER_MINUTE": PER_MINUTE,
    }
    screening.bank = Bank(
        name="canaries", label="ours", severity="low", action="block", threshold=0.5
    )
    screening.store.set_bank(screening.bank)
    command(screening, "refs", "add", folder, "--bank", "canaries", "--canary")
    screening.pictures = folder
    return screening


def on_shadow(screening):
    """The canaries' results in order."""
    return [json.loads(r.value) for r in screening.stream.read(screening.stream.topics.shadow)]


def uploads(screening):
    """What is on the topic of uploads: id to (value, headers)."""
    records = screening.stream.read(screening.stream.topics.uploads)
    return {r.key.decode(): (r.value, tuple(r.headers)) for r in records}


def reasons(screening):
    letters = screening.stream.read(screening.stream.topics.dead_letters)
    return {letter.key.decode(): json.loads(letter.value)["reason"] for letter in letters}


def recognised(worker):
    return worker.metric("copysieve_canaries_recognised_total")


def missed(worker, reason):
    return worker.metric(f'copysieve_canaries_missed_total{{reason="{reason}"}}')


def holders(*workers):
    return [one for one in workers if one.metric("copysieve_canary_lease_held")]


def test_one_replica_publishes_and_when_it_is_killed_the_other(planted, valkey, capsys):
    workers = [planted.start(**planted.canaries) for _ in range(2)]
    for worker in workers:
        worker.wait_for("started")
    eventually(lambda: sum(map(recognised, workers)) >= 6)
    (holder,) = holders(*workers)
    (other,) = [one for one in workers if one is not holder]
    assert recognised(other) == other.metric("copysieve_canaries_published_total") == 0
    assert sum(missed(holder, reason) for reason in ("not_matched", "unscreened", "lost")) == 0
    assert holder.metric("copysieve_canary_last_recognised_timestamp_seconds") > 0
    seconds = holder.metric("copysieve_canary_seconds_sum")
    mean = seconds / holder.metric("copysieve_canary_seconds_count")

    holder.kill()
    died = time.monotonic()
    eventually(lambda: recognised(other) >= 3)
    took_over = time.monotonic() - died
    assert holders(other) == [other]
    with capsys.disabled():
        print(
            f"\npublished to read: {mean:.2f} s in the mean; 3 recognised by the other replica"
            f" {took_over:.0f} s after kill -9"
        )

    told = on_shadow(planted)
    assert {one["upload_id"].startswith(PREFIX) for one in told} == {True}
    assert {match["bank"] for one in told for match in one["matches"]} == {"canaries"}
    assert len({one["image"]["sha256"] for one in told}) == len({o["upload_id"] for o in told})
    assert planted.verdicts() == []
    assert planted.stream.read(planted.stream.topics.matches) == []
    assert reasons(planted) == {}
    assert other.metric('copysieve_uploads_total{outcome="canary"}') >= 3
    assert "copysieve_matches_total{" not in other.get("/metrics")[1]
    assert other.metric("copysieve_top_score_count") == 0
    assert other.terminate() == 0
    with valkey.client() as client:
        assert not client.exists("{copysieve}:canary:lease")


def test_users_cannot_pass_for_canaries_nor_match_them(planted):
    worker = planted.start(**planted.canaries)
    eventually(lambda: recognised(worker) >= 2)
    genuine = {n: u for n, u in uploads(planted).items() if n.startswith(PREFIX)}
    (first, (value, headers)), (second, (_, other_headers)) = list(genuine.items())[:2]
    signature = ("copysieve-canary", dict(headers)["copysieve-canary"])
    bad = picture(0)

    def raw(upload_id, image, *more):
        return upload_id.encode(), image, (RAW, ("upload-id", upload_id.encode()), *more)

    inline = json.dumps({"upload_id": "canary:json", "image_url": "https://example.org/a"})
    planted.stream.produce(
        [
            raw("canary:none", bad),
            raw("canary:wrong", bad, ("copysieve-canary", signature[1][:17] + b"0" * 64)),
            raw("canary:copied", bad, signature),
            raw(f"{PREFIX}{'0' * 32}", value, signature),
            (first.encode(), value, other_headers),
            (b"canary:json", inline.encode(), (signature,)),
            raw("bad", bad),
            raw("looks-like-one", (planted.pictures / "coffee.jpg").read_bytes()),
            raw("looks-like-a-copy", value),
        ]
    )
    eventually(lambda: len(planted.verdicts()) == 3)
    forged = {"canary:none", "canary:wrong", "canary:copied", f"{PREFIX}{'0' * 32}", "canary:json"}
    eventually(lambda: len(reasons(planted)) == len(forged) + 1)
    assert reasons(planted) == dict.fromkeys([*forged, first], "reserved_id")
    verdicts = {one["upload_id"]: one for one in planted.verdicts()}
    assert {name: one["outcome"] for name, one in verdicts.items()} == {
        "bad": "match",
        "looks-like-one": "no_match",
        "looks-like-a-copy": "no_match",
    }
    assert [m["reference_id"] for m in verdicts["bad"]["matches"]] == ["ref-0"]
    assert not forged & {one["upload_id"] for one in on_shadow(planted)}
    assert second in {one["upload_id"] for one in on_shadow(planted)}
    assert worker.terminate() == 0


def test_a_replica_without_canaries_screens_those_of_others(planted):
    off = planted.start()
    off.wait_for("partition_assigned")
    on = planted.start(**planted.canaries)
    eventually(lambda: recognised(on) >= 8)
    assert off.metric('copysieve_uploads_total{outcome="canary"}') > 0
    assert reasons(planted) == {}
    assert off.metric("copysieve_canary_lease_held") == 0


def test_another_namespace_screens_canaries_as_uploads(planted, valkey):
    """Two namespaces on one topic: neither makes dead letters of the other's canaries."""
    theirs = open_store(Redis(url=SecretStr(valkey.url), namespace="theirs"))
    theirs.set_bank(planted.bank)
    theirs.close()
    other = planted.start(
        COPYSIEVE_REDIS__NAMESPACE="theirs",
        COPYSIEVE_KAFKA__GROUP_ID=f"{planted.stream.settings.kafka.group_id}-2",
    )
    other.wait_for("partition_assigned")
    worker = planted.start(**planted.canaries)
    eventually(lambda: recognised(worker) >= 4)
    eventually(lambda: len(planted.verdicts()) >= 4)
    assert reasons(planted) == {}
    assert {v["outcome"] for v in planted.verdicts() if v["upload_id"].startswith(PREFIX)} == {
        "no_match"
    }
    assert sum(missed(worker, reason) for reason in ("not_matched", "unscreened", "lost")) == 0


def test_sabotage_is_seen(planted):
    worker = planted.start(**planted.canaries)
    eventually(lambda: recognised(worker) >= 3)
    assert missed(worker, "not_matched") == 0

    planted.store.set_bank(planted.bank.model_copy(update={"enabled": False}))
    eventually(lambda: missed(worker, "not_matched") >= 3)
    stood = recognised(worker)
    eventually(lambda: missed(worker, "not_matched") >= 6)
    assert recognised(worker) == stood

    planted.store.set_bank(planted.bank)
    eventually(lambda: recognised(worker) >= stood + 3)

    gone, stays = sorted(one.reference_id for one in planted.store.references("canaries"))
    command(planted, "refs", "disable", gone, "--no-wait")
    before = missed(worker, "not_matched")
    eventually(lambda: missed(worker, "not_matched") >= before + 3)
    command(planted, "refs", "remove", gone, "--no-wait")
    findings = json.loads(command(planted, "check", "--json").splitlines()[-1])
    told = [(one["status"], one["detail"]) for one in findings if one["what"] == "canaries"]
    assert told[0] == ("ok", f"{PER_MINUTE} a minute, of 1 pictures")
    assert [(status, "not registered" in detail) for status, detail in told[1:]] == [
        ("warning", True)
    ]
    unpaired = 'copysieve_canaries_unpaired{what="picture"}'
    eventually(lambda: worker.metric(unpaired) == 1)
    command(planted, "refs", "remove", stays, "--no-wait")
    eventually(lambda: worker.metric(unpaired) == 2)
    assert "canaries_unpaired" in {event["event"] for event in worker.events()}
    assert worker.get("/health/live")[0] == 200
