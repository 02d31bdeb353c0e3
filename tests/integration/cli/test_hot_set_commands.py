"""`copysieve refs`, `banks` and `hotset`, with real weights and a real Redis."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from tests.fixtures.hot_set import MODEL, calibration
from tests.fixtures.http_server import Server, answer
from worker.cli.check import _hot_set
from worker.cli.main import app
from worker.descriptor import embedders
from worker.descriptor.embedders import OnnxEmbedder
from worker.errors import StoreError, Unscreenable, UnscreenedReason
from worker.hotset.mirror import Mirror
from worker.hotset.sync import HotSetSync
from worker.hotset.types import Heartbeat, State
from worker.image import pdq
from worker.image.preprocess import decode, resize
from worker.scoring import artefact
from worker.settings import HotSetSettings, Limits, ModelSettings, Settings

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def embedder():
    return embedders.load(ModelSettings(name="sscd_distilled"))


@pytest.fixture
def run(monkeypatch, redis_server):
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", "sscd_distilled")
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", redis_server.url)
    # The replica's thread outlives the runner's stderr.
    monkeypatch.setattr("worker.telemetry.log.configure", lambda _: None)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, StoreError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def told(run):
    """The one line of JSON that ends stdout."""
    return lambda *arguments, code=0: json.loads(
        run(*arguments, "--json", code=code).stdout.splitlines()[-1]
    )


@pytest.fixture
def replica(store, embedder):
    mirror = Mirror(embedder.model, embedder.device)
    failures: list[BaseException] = []
    sync = HotSetSync(
        store.of_model(embedder.model, artefact.read_for),
        mirror,
        HotSetSettings(),
        "replica-1",
        failures.append,
    )
    sync.start()
    yield mirror
    sync.stop()
    assert failures == []


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("coffee", "astronaut"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg")
    return folder


def test_a_folder_is_added_and_matched(run, told, photos, replica, embedder):
    assert told("banks", "set", "known-bad", "--threshold", "0.5")["waited"]["late"] == []
    (photos / "broken.jpg").write_bytes(b"no picture")
    report = told("refs", "add", photos, photos / "coffee.jpg", "--bank", "known-bad", code=1)
    assert (report["added"], report["replaced"], report["unchanged"]) == (2, 0, 0)
    assert [failed["reason"] for failed in report["failed"]] == ["unsupported_format"]
    assert report["waited"]["applied"] == ["replica-1"]
    assert str(replica.head.version) == report["version"]

    image = decode((photos / "coffee.jpg").read_bytes(), Limits(), target=320)
    pixels = resize(image.pixels, embedder.preprocessing)
    queries = embedder.describe(np.stack([pixels, 255 - pixels]))
    plain, inverted = replica.search(queries, [None, None], 1).hits
    assert (plain[0].view, inverted[0].view) == ("plain", "inverted")
    assert plain[0].reference.sha256 == inverted[0].reference.sha256 == image.info.sha256
    assert plain[0].reference.reference_id in report["reference_ids"]
    assert told("banks", "list")[0]["lacking_views"] == {}
    assert min(plain[0].cosine, inverted[0].cosine) > 0.999

    (photos / "broken.jpg").unlink()
    told("banks", "set", "known-bad", "--view", "plain", "--view", "mirrored")
    assert told("banks", "list")[0]["lacking_views"] == {"sscd_distilled": 2}
    assert "2 references lack one of them (by sscd_distilled)" in run("banks", "list").stdout
    told("refs", "add", photos / "coffee.jpg", "--bank", "known-bad")
    assert told("banks", "list")[0]["lacking_views"] == {"sscd_distilled": 1}
    told("refs", "add", photos, "--bank", "known-bad")
    again = told("refs", "add", photos, "--bank", "known-bad")
    assert (again["added"], again["replaced"], again["unchanged"]) == (0, 0, 2)


def test_of_an_animation_the_first_frame_is_the_reference(run, told, tmp_path):
    frames = [Image.fromarray(getattr(skimage.data, n)()) for n in ("coffee", "astronaut")]
    frames[0].save(tmp_path / "both.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "first.png")
    run("banks", "set", "known-bad", "--threshold", "0.5")
    result = run("refs", "add", tmp_path / "both.gif", "--bank", "known-bad")
    assert "1 have several frames or pages: the first of each" in result.stderr
    (screened,) = told("screen", "--hot-set", tmp_path / "first.png")["images"]
    (match,) = screened["matches"]
    assert (match["view"], match["upload_view"], match["rendition"]["frame"]) == (
        "plain",
        "plain",
        0,
    )


def test_one_image_that_cannot_be_screened_is_a_row(run, told, tmp_path, monkeypatch):
    pictures = [getattr(skimage.data, name)() for name in ("coffee", "astronaut", "rocket")]
    frames = [Image.fromarray(one).resize((64, 64)) for one in pictures]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"x" * 300_000)
    frames[1].save(tmp_path / "d.png")
    real, sizes = OnnxEmbedder.describe, []

    def describe(self, pixels):
        sizes.append(len(pixels))
        if not pixels.any():
            raise Unscreenable(UnscreenedReason.DESCRIBE_FAILED, "not of norm 1")
        return real(self, pixels)

    run("banks", "set", "known-bad", "--threshold", "0.5")
    run("refs", "add", tmp_path / "d.png", "--bank", "known-bad")
    monkeypatch.setattr(OnnxEmbedder, "describe", describe)
    monkeypatch.setenv("COPYSIEVE_LIMITS__IMAGE_BYTES", "200000")
    monkeypatch.setenv("COPYSIEVE_BATCH__MAX_SIZE", "2")
    rows = told("screen", "--hot-set", tmp_path, code=1)["images"]
    assert [(Path(row["image"]).name, row["outcome"], row.get("reason")) for row in rows] == [
        ("a.gif", "match", None),
        ("b.png", "unscreened", "describe_failed"),
        ("c.png", "unscreened", "too_large"),
        ("d.png", "match", None),
    ]
    assert rows[0]["matches"][0]["rendition"]["frame"] == 1
    assert sizes == [2, 1, 1, 1]


def test_the_life_of_a_reference(run, told, photos, store):
    run("banks", "set", "known-bad", "--threshold", "0.5")
    run("banks", "set", "other", "--threshold", "0.5")
    coffee = photos / "coffee.jpg"
    with pytest.raises(StoreError, match="no bank none"):
        run("refs", "add", coffee, "--bank", "none")
    run(
        *("refs", "add", coffee, "--bank", "known-bad", "--id", "coffee", "--severity", "critical"),
        *("--expires", "2030-01-01", "--note", "a cup", "--by", "ann", "--canary"),
    )
    run("refs", "add", coffee, "--bank", "other", "--no-wait")
    shown = told("refs", "show", "coffee")["reference"]
    assert (shown["severity"], shown["note"], shown["added_by"]) == ("critical", "a cup", "ann")
    assert (shown["expires_at"], shown["canary"]) == ("2030-01-01T00:00:00Z", True)
    assert shown["sha256"] == hashlib.sha256(coffee.read_bytes()).hexdigest()
    hashed = np.frombuffer(bytes.fromhex(shown["pdq"]), np.uint8)
    whole, _ = pdq.hash_of(decode(coffee.read_bytes(), Limits()).pixels)
    assert np.bitwise_count(hashed ^ np.frombuffer(whole, np.uint8)).sum() <= pdq.SAME
    listed = next(line for line in run("refs", "list").stdout.splitlines() if "coffee" in line)
    assert "canary, until 2030-01-01" in listed
    with pytest.raises(StoreError, match="is a canary; remove it first"):
        run("refs", "add", coffee, "--bank", "known-bad", "--id", "coffee")
    run("banks", "set", "fine", "--kind", "allow", "--suppresses", "known-bad")
    with pytest.raises(StoreError, match="fine matches nothing, it allows"):
        run("refs", "add", coffee, "--bank", "fine", "--canary")
    assert [one["bank"] for one in told("refs", "list", "--bank", "other")] == ["other"]
    run("refs", "disable", "coffee")
    assert not store.reference("coffee").enabled
    run("refs", "enable", "coffee")
    assert store.reference("coffee").enabled
    run("refs", "remove", "coffee", "--by", "bob")
    gone = told("refs", "show", "coffee")
    assert (gone["reference"], gone["removed"]["removed_by"]) == (None, "bob")
    run("refs", "remove", "--purge", "coffee")
    with pytest.raises(StoreError, match="nor was there"):
        run("refs", "show", "coffee")


def test_a_linked_picture_is_fetched(run, photos, monkeypatch):
    monkeypatch.setenv("COPYSIEVE_FETCH__ALLOWED_SCHEMES", "http")
    monkeypatch.setenv("COPYSIEVE_FETCH__ALLOW_LOOPBACK_ADDRESSES", "true")
    run("banks", "set", "known-bad", "--threshold", "0.5")
    server = Server()
    server.answers["/coffee"] = answer((photos / "coffee.jpg").read_bytes())
    links = [server.url("/coffee"), server.url("/absent?signature=secret")]
    result = run("refs", "add", *links, "--bank", "known-bad", "--json", code=1)
    server.stop()
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["added"] == 1
    assert [failed["image"] for failed in report["failed"]] == ["http://127.0.0.1/..."]
    assert "secret" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("refs", "add", "absent.jpg", "--bank", "b"),
        ("refs", "add", "PHOTOS", "--bank", "b", "--id", "two-at-once"),
        ("refs", "add", "PHOTOS/coffee.jpg", "--bank", "known-bad", "--id", "a/b"),
        ("refs", "add", "PHOTOS/coffee.jpg", "--bank", "known-bad", "--expires", "soon"),
        ("refs", "add", "PHOTOS/coffee.jpg", "--bank", "known-bad", "--force"),
        ("refs", "add", "PHOTOS", "--bank", "b", "--force", "--note", "x", "--shadow"),
        ("refs", "wait", "7"),
        ("banks", "set", "Known Bad"),
        ("banks", "set", "b", "--threshold", "1", "--max-false-matches-per-million", "1"),
        ("banks", "set", "b", "--view", "sideways"),
        ("banks", "set", "b", "--kind", "allow"),
        ("banks", "set", "b", "--flood-per-hour", "few"),
        ("banks", "set", "b", "--flood-per-hour", "-1"),
        ("hotset", "log", "--since", "soon"),
        ("hotset", "log", "--limit", "0"),
    ],
)
def test_wrong_usage(run, photos, arguments):
    run("banks", "set", "known-bad")
    run(*(argument.replace("PHOTOS", str(photos)) for argument in arguments), code=2)


def test_what_is_not_given_of_a_bank_stays(run, told, store, embedder):
    result = run(
        "banks", "set", "known-bad", "--label", "Known", "--tenant", "t1", "--view", "plain"
    )
    assert "neither threshold nor budget: it matches nothing" in result.stderr
    result = run("banks", "set", "known-bad", "--max-false-matches-per-million", "10")
    assert "known-bad: matches nothing (its budget needs a calibration" in result.stdout
    one = calibration(model=embedder.model)
    kept = store.keep_calibration(one.artefact, embedder.model.sha256)
    store.apply_calibration(kept, embedder.model.sha256)
    run("banks", "set", "known-bad", "--threshold", "0.6", "--action", "block", "--all-tenants")
    result = run("banks", "set", "known-bad", "--view", "plain", "--view", "inverted")
    assert "until they are added again" in result.stderr
    bank = store.banks()["known-bad"]
    assert (bank.label, bank.tenants, bank.action) == ("Known", None, "block")
    assert (bank.threshold, bank.calibration) == (0.6, one.id)
    assert bank.max_false_matches_per_million is None
    run("banks", "set", "known-bad", "--kind", "allow", "--suppresses", "other", "--disable")
    bank = store.banks()["known-bad"]
    assert (bank.kind, bank.threshold, bank.action, bank.enabled) == (
        "allow",
        None,
        "review",
        False,
    )
    assert "allow over other" in run("banks", "list").stdout
    assert told("banks", "list") == [
        bank.model_dump(mode="json") | {"lacking_views": {}, "rule": None}
    ]
    run("banks", "remove", "known-bad")
    assert told("banks", "list") == []


def test_when_a_bank_rings_is_set_told_and_cleared(run, told, store):
    run("banks", "set", "known-bad", "--flood-per-hour", "50", "--flood-demotes")
    run("banks", "set", "known-bad", "--action", "block")
    bank = store.banks()["known-bad"]
    assert (bank.flood_per_hour, bank.flood_demotes) == (50, True)
    assert "; flood alarm above 50 an hour, then review\n" in run("banks", "list").stdout
    for cleared in ("0", "none"):
        run("banks", "set", "known-bad", "--flood-per-hour", "7", "--no-flood-demotes")
        assert "; flood alarm above 7 an hour\n" in run("banks", "list").stdout
        run("banks", "set", "known-bad", "--flood-per-hour", cleared)
        assert store.banks()["known-bad"].flood_per_hour is None
    (listed,) = told("banks", "list")
    assert (listed["flood_per_hour"], listed["flood_demotes"]) == (None, False)
    assert "flood" not in run("banks", "list").stdout
    run("banks", "set", "known-bad", "--max-false-matches-per-million", "5")
    assert "far above its budget" in run("banks", "list").stdout


def test_a_person_vouches_for_references(run, told, photos, store):
    run("banks", "set", "known-bad", "--threshold", "0.5")
    run("refs", "add", photos / "coffee.jpg", "--bank", "known-bad", "--id", "coffee")
    run("refs", "confirm", "coffee")
    assert store.reference("coffee").confirmed
    assert "confirmed, enabled" in run("refs", "list").stdout
    version = told("hotset", "status")["version"]
    assert told("refs", "confirm", "coffee")["version"] == version
    run("refs", "unconfirm", "coffee")
    assert not store.reference("coffee").confirmed
    assert "confirmed" not in run("refs", "list").stdout
    with pytest.raises(StoreError, match="no reference absent"):
        run("refs", "confirm", "absent")


def test_the_log_tells_who_did_what(run, told, redis_server):
    assert told("hotset", "log") == []
    entries = [
        {"by": "ann", "what": "bank_set", "detail": '{"bank":"[red]"}', "version": "5-1"},
        {"by": "\x1b[2J", "what": "flood_began", "detail": '{"images":9}', "version": ""},
    ]
    with redis_server.client() as client:
        for milliseconds, entry in enumerate(entries, start=1_767_323_045_000):
            client.xadd("{copysieve}:audit", entry, id=f"{milliseconds}-0")
    newest, oldest = told("hotset", "log")
    assert (newest["what"], newest["detail"], newest["version"]) == (
        "flood_began",
        {"images": 9},
        None,
    )
    assert (oldest["by"], oldest["at"], oldest["version"]) == ("ann", "2026-01-02T03:04:05Z", "5-1")
    assert told("hotset", "log", "--limit", "1") == [newest]
    assert told("hotset", "log", "--since", "2026-01-02T03:04:05.001Z") == [newest]
    table = run("hotset", "log").stdout
    assert "\x1b[2J" not in table
    assert "\\x1b[2J" in table
    first, second = table.splitlines()[1:3]
    assert "2026-01-02 03:04:05" in first
    assert '{"bank":"[red]"}' in second


def test_status_and_waiting_name_who_is_late(run, told, replica, store, redis_server):
    run("banks", "set", "known-bad")
    status = told("hotset", "status")
    (beat,) = status["replicas"]
    assert (beat["name"], beat["state"], beat["behind"]) == ("replica-1", "following", 0)
    assert beat["version"] == status["version"]
    assert (beat["equal"], beat["late"]) == (True, False)
    assert beat["digest"] == store.head().tallies.of_model(beat["model"]).digest
    assert (status["banks"], status["references"], status["floods"]) == (1, 0, [])
    assert told("refs", "wait", status["version"])["waited"]["applied"] == ["replica-1"]
    epoch, seq = status["version"].split("-")
    result = run("refs", "wait", f"{epoch}-{int(seq) + 1}", "--timeout", "0.1", code=1)
    assert "by replica-1" in result.stderr
    with redis_server.client() as client:
        client.flushall()
    with pytest.raises(StoreError, match="no hot set to accept"):
        run("hotset", "accept")
    run("banks", "set", "anew", "--no-wait")
    while not told("hotset", "status")["replicas"]:  # its heartbeat was emptied with the rest
        pass
    assert told("hotset", "accept")["waited"]["late"] == []
    assert list(replica.against().banks) == ["anew"]


def test_status_tells_of_each_replica_in_a_line(run, told, store, redis_server):
    run("banks", "set", "known-bad", "--no-wait")
    run("banks", "set", "other", "--no-wait")
    digest = store.head().tallies.of_model(MODEL.sha256).digest
    epoch = store.head().version.epoch
    beats: dict[str, tuple[State, str | None, str | None, int]] = {
        "copysieve-7c9f8d7b5c-x2x4z": ("following", f"{epoch}-2", digest, 0),
        "copysieve-7c9f8d7b5c-z4x2x": ("damaged", f"{epoch}-2", "0" * 12, 3),
        "late": ("following", f"{epoch}-1", digest, 0),
        "new": ("loading", None, None, 0),
    }
    for name, (state, version, own, unusable) in beats.items():
        beat = Heartbeat(
            name=name,
            state=state,
            version=version,
            digest=own,
            references=99_990,
            rows=0,
            unusable=unusable,
            model=MODEL.sha256,
            at=datetime.now(UTC),
        )
        store.of_model(MODEL, artefact.read_for).replicas.tell(beat)
    with redis_server.client() as client:
        client.sadd("{copysieve}:floods", "known-bad", "known-bad:r1")
    told_of = {one["name"]: one for one in told("hotset", "status")["replicas"]}
    found = {name: (one["behind"], one["equal"], one["late"]) for name, one in told_of.items()}
    assert found == {
        "copysieve-7c9f8d7b5c-x2x4z": (0, True, False),
        "copysieve-7c9f8d7b5c-z4x2x": (0, False, False),
        "late": (1, None, True),
        "new": (None, None, True),
    }
    lines = run("hotset", "status").stdout.splitlines()
    assert lines[0] == f"store: version {epoch}-2, 2 banks, 0 references"
    assert [line.split()[0] for line in lines[1:6]] == ["replica", *beats]
    assert f"{digest} equal" in lines[2]
    assert f"{'0' * 12} DIFFERS" in lines[3]
    assert max(map(len, lines)) <= 100
    assert lines[6:] == [
        "late: late, new",
        "unusable references: copysieve-7c9f8d7b5c-z4x2x 3",
        "in flood: known-bad, known-bad:r1",
    ]


def test_a_hot_set_of_another_model_is_no_answer(run, photos, monkeypatch):
    run("banks", "set", "known-bad", "--threshold", "0.5")
    run("refs", "add", photos, "--bank", "known-bad")
    first, scores = _hot_set(Settings())
    assert (first.status, scores.status) == ("ok", "ok")
    assert scores.detail.startswith("none is applied")
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", "sscd_disc_mixup_int8")
    line = "2 references are not described by sscd_disc_mixup_int8"
    with pytest.raises(StoreError, match=line):
        run("screen", "--hot-set", photos)
    assert "2 of them are not described" in list(_hot_set(Settings()))[1].detail
    run("refs", "add", photos / "coffee.jpg", "--bank", "known-bad")
    assert "1 references are not described" in run("screen", "--hot-set", photos).stderr
