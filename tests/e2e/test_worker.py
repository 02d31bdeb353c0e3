"""Whole replicas as processes on a real Kafka and a real Redis or Valkey."""

import base64
import hashlib
import http.server
import io
import json
import threading
import time
from collections import Counter, defaultdict
from datetime import datetime

import pytest
from jsonschema import Draft202012Validator
from PIL import Image, ImageOps

from tests.fixtures.processes import picture
from tests.viewers.containers import iccp, png_with
from tests.viewers.corpus import profile_bytes as icc
from worker.events import DeadLetter, Event, MatchEvent, Verdict, schema

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

RAW = [("content-type", b"image/jpeg")]


def event(upload_id, **fields):
    return upload_id.encode(), json.dumps({"upload_id": upload_id} | fields).encode(), ()


def inline(upload_id, image, **fields):
    return event(upload_id, image_base64=base64.b64encode(image).decode(), **fields)


def raw(upload_id, image):
    return upload_id.encode(), image, RAW


def opened(data):
    return Image.open(io.BytesIO(data))


def eventually(check, seconds=60):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def test_every_form_of_event_gets_its_verdict(screening):
    one, other = picture(0), picture(1)
    cloud_event = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_type", b"upload"),
        ("ce_source", b"/app"),
        ("content-type", b"application/json; charset=utf-8"),
    ]
    key, value, _ = inline("cloud", one)
    screening.stream.produce(
        [
            inline("json", one, tenant="t1", attributes={"user": "u1"}),
            raw("raw", one),
            (b"a-key", one, [*RAW, ("upload-id", b"by-header")]),
            (key, value, cloud_event),
            inline("other", other),
            inline("text", b"this is no picture"),
            event("link", image_url="http://169.254.169.254/latest/meta-data/"),
            (b"k1", b"{not json", ()),
            event("both", image_base64="AAAA", image_url="https://example.org/a.jpg"),
            event("b64", image_base64="%%%"),
            (None, one, RAW),
            (b"k2", None, ()),
        ]
    )
    worker = screening.start()
    eventually(lambda: len(screening.verdicts()) == 7)
    eventually(lambda: len(screening.stream.read(screening.stream.topics.dead_letters)) == 5)
    assert worker.get("/health/live") == (200, "ok\n")
    assert worker.get("/health/ready") == (200, "ok\n")
    assert worker.terminate() == 0

    verdicts = {v["upload_id"]: v for v in screening.verdicts()}
    outcomes = {upload_id: (v["outcome"], v["reason"]) for upload_id, v in verdicts.items()}
    assert outcomes == {
        "json": ("match", None),
        "raw": ("match", None),
        "by-header": ("match", None),
        "cloud": ("match", None),
        "other": ("no_match", None),
        "text": ("unscreened", "unsupported_format"),
        "link": ("unscreened", "fetch_denied"),
    }
    match = verdicts["json"]["matches"][0]
    assert (match["reference_id"], match["bank"], match["action"]) == (
        "ref-0",
        "known-bad",
        "block",
    )
    assert match["cosine"] == match["score"] > 0.99
    assert verdicts["json"]["attributes"] == {"user": "u1"}
    assert verdicts["json"]["tenant"] == "t1"
    assert verdicts["json"]["hot_set"]["seq"] >= 2

    letters = screening.stream.read(screening.stream.topics.dead_letters)
    reasons = Counter(json.loads(letter.value)["reason"] for letter in letters)
    assert reasons == {
        "not_json": 1,
        "invalid_event": 1,
        "bad_base64": 1,
        "missing_id": 1,
        "no_value": 1,
    }
    headers = dict(next(r for r in letters if r.key == b"k1").headers)
    assert headers["__connect.errors.topic"] == screening.stream.topics.uploads.encode()


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_the_verdict_names_the_look_that_matched(screening):
    known, others = opened(picture(0)), [opened(picture(seed)) for seed in (1, 2, 3)]
    frames = [others[0], others[1], known, others[2]]
    page = Image.new("RGB", (240, 240), "white")
    page.paste(others[0].resize((240, 240)))
    page.paste(known, (80, 80))  # what a crop of 2/3 shows
    screening.stream.produce(
        [
            raw("plain", picture(0)),
            raw("negative", saved(ImageOps.invert(known), "JPEG")),
            raw("animation", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])),
            raw("corner", saved(page, "PNG")),
            raw("other", picture(1)),
        ]
    )
    screening.start(COPYSIEVE_VIEWS__UPLOADS="plain,five_crops")
    eventually(lambda: len(screening.verdicts()) == 5)
    found = {
        verdict["upload_id"]: [
            (match["view"], match["upload_view"], match["rendition"]["frame"])
            for match in verdict["matches"]
        ]
        for verdict in screening.verdicts()
    }
    assert found == {
        "plain": [("plain", "plain", 0)],
        "negative": [("inverted", "plain", 0)],
        "animation": [("plain", "plain", 2)],
        "corner": [("plain", "bottom_right_crop", 0)],
        "other": [],
    }
    assert {tuple(verdict["views"]) for verdict in screening.verdicts()} == {
        ("plain", "five_crops")
    }


def test_a_disguised_file_is_matched_by_the_rendition_that_people_see(screening):
    known, other = opened(picture(0)), opened(picture(1))
    scrambled = png_with(saved(icc.scrambled(known), "PNG"), iccp(icc.unscrambling()))
    hidden = known.convert("RGB")
    hidden.putalpha(0)  # its colours are there for viewers that drop the alpha channel
    times = [20, 60_000, 20]
    long = saved(other, "PNG", save_all=True, append_images=[known, other], duration=times)
    files = {"scrambled": scrambled, "hidden": saved(hidden, "PNG"), "long": long}
    screening.stream.produce([raw(name, data) for name, data in files.items()])
    screening.start()
    eventually(lambda: len(screening.verdicts()) == 3)
    matches = {one["upload_id"]: one["matches"] for one in screening.verdicts()}
    assert {name: match["rendition"] for name, (match,) in matches.items()} == {
        "scrambled": {"frame": 0, "colors": "tagged", "background": "white", "crop": "applied"},
        "hidden": {"frame": 0, "colors": "untagged", "background": "none", "crop": "applied"},
        "long": {"frame": 1, "colors": "untagged", "background": "white", "crop": "applied"},
    }


def test_a_flood_is_told_once_and_its_matches_are_reviewed_on_every_replica(screening):
    bank = screening.store.banks()["known-bad"]
    screening.store.set_bank(bank.model_copy(update={"flood_per_hour": 3, "flood_demotes": True}))
    workers = [screening.start(), screening.start()]
    known = opened(picture(0))
    copies = [
        raw(f"u{quality}", saved(known, "JPEG", quality=quality)) for quality in range(90, 95)
    ]
    screening.stream.produce(copies)
    eventually(lambda: all(worker.total("copysieve_floods{") == 2 for worker in workers))
    screening.stream.produce([raw(f"late-{n}", picture(0)) for n in range(8)])
    eventually(lambda: len(screening.verdicts()) == 13)
    late = [one for one in screening.verdicts() if one["upload_id"].startswith("late")]
    assert [
        (one["outcome"], match["flooded"], match["action"])
        for one in late
        for match in one["matches"]
    ] == [("match", True, "review")] * 8
    told = [one for worker in workers for one in worker.events() if one["event"] == "flood_began"]
    assert sorted((one["reference"] or "", one["level"]) for one in told) == [
        ("", "error"),
        ("ref-0", "error"),
    ]
    entries = screening.store.audit(None, 10)
    assert [entry.what for entry in entries].count("flood_began") == 2
    assert [worker.terminate() for worker in workers] == [0, 0]


def test_what_is_published_fits_the_schemas(screening):
    topics = screening.stream.topics
    screening.stream.produce([raw("a", picture(0)), raw("b", b"no picture"), (b"c", b"[]", ())])
    screening.start()
    eventually(lambda: len(screening.stream.read(topics.dead_letters)) == 1)
    eventually(lambda: len(screening.verdicts()) == 2)
    models: dict[str, type[Event]] = {
        topics.verdicts: Verdict,
        topics.matches: MatchEvent,
        topics.dead_letters: DeadLetter,
    }
    for topic, model in models.items():
        records = screening.stream.read(topic)
        assert records
        for record in records:
            Draft202012Validator(schema(model)).validate(json.loads(record.value))
            model.model_validate_json(record.value)


def test_a_ten_megabyte_picture_inline_is_followed_by_normal_verdicts(screening):
    large = picture(0, size=600) + bytes(9_900_000)  # a JPEG may be followed by anything
    screening.stream.produce([raw("first", picture(1)), inline("large", large)])
    screening.stream.produce([raw("raw", large), raw("last", picture(2))])
    screening.start()
    eventually(lambda: len(screening.verdicts()) == 4)
    outcomes = {v["upload_id"]: v["outcome"] for v in screening.verdicts()}
    assert outcomes == {
        "first": "no_match",
        "large": "match",
        "raw": "match",
        "last": "no_match",
    }


UPLOADS = 2000


def numbered(start, stop):
    return [raw(f"u{n}", picture(n)) for n in range(start, stop)]


def by_upload(verdicts):
    found = defaultdict(list)
    for verdict in verdicts:
        found[verdict["upload_id"]].append(verdict)
    return found


@pytest.mark.timeout(600)
def test_a_killed_replica_loses_nothing(screening):
    screening.stream.produce(numbered(0, UPLOADS))
    first, second = screening.start(), screening.start()
    eventually(lambda: len(screening.verdicts()) >= UPLOADS // 2, seconds=240)
    third = screening.start()
    first.kill()
    eventually(lambda: len(by_upload(screening.verdicts())) == UPLOADS, seconds=240)
    third.wait_for("partition_assigned")
    assert third.terminate() == 0
    assert second.terminate() == 0
    found = by_upload(screening.verdicts())
    assert set(found) == {f"u{n}" for n in range(UPLOADS)}
    for verdicts in found.values():
        assert len({verdict["verdict_id"] for verdict in verdicts}) == 1
    assert found["u0"][0]["outcome"] == "match"


@pytest.mark.timeout(600)
def test_a_stopped_replica_repeats_nothing(screening):
    screening.stream.produce(numbered(0, UPLOADS))
    first, second = screening.start(), screening.start()
    eventually(lambda: len(screening.verdicts()) >= UPLOADS // 3, seconds=240)
    third = screening.start()
    assert first.terminate() == 0
    eventually(lambda: len(screening.verdicts()) >= UPLOADS, seconds=240)
    third.wait_for("partition_assigned")
    assert third.terminate() == 0
    assert second.terminate() == 0
    assert Counter(v["upload_id"] for v in screening.verdicts()) == {
        f"u{n}": 1 for n in range(UPLOADS)
    }
    committed = screening.stream.committed().values()
    assert sum(commit.offset for commit in committed) == UPLOADS


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class CloakingHost(http.server.BaseHTTPRequestHandler):
    """Gives browsers the known picture, and every other client a harmless one."""

    def do_GET(self):
        body = picture(0 if "Mozilla" in self.headers["User-Agent"] else 1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def cloaking_host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), CloakingHost) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/picture.jpg"
        server.shutdown()


def test_bytes_of_another_digest_than_the_events_are_unscreened(screening, cloaking_host):
    known, other = picture(0), picture(1)
    wrong = sha256(other)
    screening.stream.produce(
        [
            inline("inline", known, sha256=sha256(known).upper()),
            inline("inline-other", known, sha256=wrong),
            inline("broken-other", b"this is no picture", sha256=wrong),
            event("linked", image_url=cloaking_host, sha256=sha256(other)),
            event("linked-other", image_url=cloaking_host, sha256=sha256(known)),
            event("linked-any", image_url=cloaking_host),
            inline("bad-digest", known, sha256="0x" + sha256(known)[2:]),
        ]
    )
    worker = screening.start()
    eventually(lambda: len(screening.verdicts()) == 6)
    eventually(lambda: len(screening.stream.read(screening.stream.topics.dead_letters)) == 1)
    verdicts = {one["upload_id"]: one for one in screening.verdicts()}
    assert {name: (one["outcome"], one["reason"]) for name, one in verdicts.items()} == {
        "inline": ("match", None),
        "inline-other": ("unscreened", "digest_mismatch"),
        "broken-other": ("unscreened", "digest_mismatch"),
        "linked": ("no_match", None),
        "linked-other": ("unscreened", "digest_mismatch"),
        "linked-any": ("no_match", None),
    }
    assert sha256(other) in verdicts["linked-other"]["detail"]
    assert worker.total('copysieve_unscreened_total{reason="digest_mismatch"}') == 3
    (letter,) = screening.stream.read(screening.stream.topics.dead_letters)
    told = json.loads(letter.value)
    assert (told["reason"], told["detail"]) == ("invalid_event", "sha256: expected 64 hex digits")


def test_a_host_that_cloaks_by_user_agent_is_seen_through(screening, cloaking_host):
    screening.stream.produce([event("linked", image_url=cloaking_host)])
    screening.start(COPYSIEVE_FETCH__USER_AGENT="Mozilla/5.0 (X11; Linux x86_64)")
    eventually(screening.verdicts)
    assert [one["outcome"] for one in screening.verdicts()] == ["match"]


class SlowHost(http.server.BaseHTTPRequestHandler):
    """`/slow/...` answers after 8 s."""

    def do_GET(self):
        if self.path.startswith("/slow"):
            time.sleep(8)
        body = picture(int(self.path.rsplit("/", 1)[1]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def slow_host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowHost) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def latencies(screening, ids):
    """Seconds from an upload's arrival at the worker to its verdict, by upload."""
    return {
        v["upload_id"]: (
            datetime.fromisoformat(v["screened_at"]) - datetime.fromisoformat(v["received_at"])
        ).total_seconds()
        for v in screening.verdicts()
        if v["upload_id"] in ids
    }


def test_a_slow_image_host_delays_only_its_own_upload(screening, slow_host, capsys):
    worker = screening.start()
    worker.wait_for("partition_assigned")

    def send(prefix, slow):
        ids = {f"{prefix}{n}" for n in range(100)}
        links = [event(f"{prefix}{n}", image_url=f"{slow_host}/{n}") for n in range(100)]
        if slow:
            links.insert(0, event("slow", image_url=f"{slow_host}/slow/7"))
        screening.stream.produce(links)
        eventually(lambda: len(latencies(screening, ids)) == 100)
        return sorted(latencies(screening, ids).values())

    without, beside = send("a", slow=False), send("b", slow=True)
    assert "slow" not in {v["upload_id"] for v in screening.verdicts()}
    eventually(lambda: latencies(screening, {"slow"}))
    assert worker.terminate() == 0
    own = latencies(screening, {"slow"})["slow"]
    with capsys.disabled():
        print(
            f"\nmedian (largest) latency of 100 uploads: {without[50]:.2f} s ({without[-1]:.2f} s)"
            f" alone, {beside[50]:.2f} s ({beside[-1]:.2f} s) beside one whose host took 8 s;"
            f" that one: {own:.2f} s"
        )
    assert sum(c.offset for c in screening.stream.committed().values()) == 201
