"""From benign images to scores by a calibration, on a hot set that a replica follows."""

import hashlib
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.fixtures.hot_set import OTHER_MODEL, calibration
from tests.fixtures.processes import picture
from worker.cli import applying
from worker.cli.main import app
from worker.compare import compare
from worker.descriptor import embedders
from worker.errors import CopysieveError, SettingsError, StoreError
from worker.hotset.mirror import Mirror
from worker.hotset.sync import HotSetSync
from worker.scoring import artefact
from worker.scoring.rules import Rules
from worker.settings import HotSetSettings, ModelSettings

pytestmark = pytest.mark.redis

BENIGN = 90
BUDGET = 100_000


@pytest.fixture(scope="module")
def embedder():
    return embedders.load(ModelSettings(name="sscd_distilled"))


@pytest.fixture
def run(monkeypatch, redis_server):
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", "sscd_distilled")
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", redis_server.url)
    monkeypatch.setattr("worker.telemetry.log.configure", lambda _: None)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, CopysieveError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def told(run):
    return lambda *arguments, code=0: json.loads(
        run(*arguments, "--json", code=code).stdout.splitlines()[-1]
    )


@pytest.fixture(scope="module")
def benign(tmp_path_factory):
    """Pictures that are nothing to each other, one that is there twice, and no picture."""
    folder = tmp_path_factory.mktemp("benign")
    for number in range(BENIGN):
        (folder / f"{number:02}.jpg").write_bytes(picture(number))
    (folder / "again.jpg").write_bytes(picture(7))
    (folder / "notes.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def replica(store, embedder):
    """A mirror that follows the store, and the rules that its replica has."""
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
    while not store.heartbeats():  # commands wait for replicas that are known
        time.sleep(0.01)
    yield mirror
    sync.stop()
    assert failures == []


@pytest.fixture
def bank(run, tmp_path):
    """A bank with a budget and some references that are in nothing else."""
    run("banks", "set", "bad", "--max-false-matches-per-million", BUDGET, "--action", "block")
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(500, 508):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    run("refs", "add", folder, "--bank", "bad", "--force", "--note", "drawn")
    return folder


def described(embedder, data, tmp_path):
    file = tmp_path / "upload.jpg"
    file.write_bytes(data)
    pixels = np.asarray(Image.open(file).resize([embedder.preprocessing.size] * 2))
    return embedder.describe(pixels[None])


def test_from_benign_images_to_enforced_matches(run, told, benign, bank, replica, tmp_path):
    file, page, kept = (tmp_path / name for name in ("c.npz", "c.html", "collection.npz"))
    result = told(
        *("calibrate", "--images", benign, "-o", file, "--report", page, "--with-images"),
        *("--save-collection", kept, "--project", "centre"),
    )
    assert [one["image"] for one in result["failed"]] == ["notes.jpg"]
    assert result["about"]["images"] == f"{BENIGN}, 1 more of the same bytes, 1 not read"
    (of_bank,) = result["banks"]
    assert of_bank["state"] == "budget"
    assert of_bank["references"] == 8
    assert "At most 100,000 false matches per million: the threshold is" in " ".join(
        of_bank["sentences"]
    )
    reaching = [one for one in of_bank["near"] if one["reaches_threshold"]]
    assert 0 < len(reaching) < len(of_bank["near"])
    known = {one["reference_id"] for one in told("refs", "list")}
    html = page.read_text()
    for one in of_bank["near"]:
        assert one["reference_id"] in known
        assert one["reference_id"] in html
        assert all((benign / image).is_file() for image in one["images"])
    assert html.count("<svg") == 4
    assert re.search(r"Copies of \d+ benign images were made for this plot", html)
    assert "data:image/jpeg;base64," in html
    assert not re.search(r'(src|href)="http', html)  # it stands alone
    assert file.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o600

    before = run("banks", "list").stdout
    assert "matches nothing: its budget needs a calibration" in before
    applied = told("calibrations", "apply", file)
    assert applied["waited"]["applied"] == ["replica-1"]
    (listed,) = told("calibrations", "list")
    assert (listed["calibration_id"], listed["applied"]) == (result["calibration"], True)
    (of_bank_now,) = told("banks", "list")
    assert of_bank_now["rule"]["threshold"] == pytest.approx(of_bank["threshold"], abs=1e-5)
    assert of_bank_now["rule"]["enforced"]
    against = replica.against()
    assert against.calibration.id == result["calibration"]
    shown = Rules(["plain"]).of(against).rules["bad"]
    assert shown.threshold == pytest.approx(of_bank["threshold"], abs=1e-5)
    matched = told("screen", "--hot-set", bank)["files"]
    assert {one["outcome"] for one in matched} == {"match"}

    again = told("calibrate", "--images", kept, "-o", tmp_path / "d.npz", "--no-hot-set")
    assert again["banks"] == []
    document = told("calibrations", "show", result["calibration"])
    assert document["projection"] == "centre"
    assert document["null_images"] + document["background_images"] == BENIGN
    assert document["groups_checked_by"] == ["sha256", "pdq", "alignment"]


@pytest.mark.usefixtures("bank")
@pytest.mark.parametrize("where", ["background", "null"])
def test_a_reference_that_passed_for_benign_is_matched_from_its_first_upload_on(
    run, told, benign, replica, embedder, tmp_path, where
):
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file, "--beta", "1", "--no-hot-set")
    run("calibrations", "apply", file)
    one = artefact.read(file.read_bytes())
    assert one.benign is not None
    names = one.benign.names
    chosen = names[: len(one.background)] if where == "background" else names[-len(one.null) :]
    number = next(n for n in range(BENIGN) if hashlib.sha256(picture(n)).hexdigest() in chosen)
    known = tmp_path / "known.jpg"
    known.write_bytes(picture(number))
    upload = described(embedder, picture(number), tmp_path)

    report = told("refs", "add", known, "--bank", "bad", "--id", "known", "--force",
                  "--note", "seen")  # fmt: skip
    assert report["added"] == 1
    assert replica.against().copies == {hashlib.sha256(picture(number)).hexdigest()}
    (found,) = compare(replica, Rules(["plain"]), [upload], [None])
    assert [match.reference.reference_id for match in found.decision.enforced] == ["known"]
    assert str(found.version) == report["version"]
    # Without the mask it would have been taken down by itself, or counted as a false match.
    unmasked = Rules(["plain"]).of(replace(replica.against(), copies=frozenset()))
    masked = Rules(["plain"]).of(replica.against())
    if where == "background":
        assert unmasked.offsets(upload)[0] > masked.offsets(upload)[0] + 0.1
    else:
        before, after = (one.rules["bad"].threshold for one in (unmasked, masked))
        assert before is not None
        assert after is not None
        assert before > after
    run("refs", "remove", "known")
    assert replica.against().copies == set()


def test_copies_of_references_are_set_aside_with_the_calibration(run, benign, store, tmp_path):
    run("banks", "set", "bad", "--max-false-matches-per-million", BUDGET)
    turned = Image.open(benign / "03.jpg").transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png")
    files = [benign / "05.jpg", tmp_path / "turned.png"]
    run("refs", "add", *files, "--bank", "bad", "--force", "--note", "drawn")
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file)
    before = store.version()
    result = run("calibrations", "apply", file)
    assert "2 of the calibration's images are copies of references: set aside" in result.stdout
    assert store.version().seq == before.seq + 3  # two references and the calibration, at once
    copies = {digest for one in store.references() for digest in one.copies}
    assert copies == {hashlib.sha256(picture(number)).hexdigest() for number in (3, 5)}


@pytest.mark.usefixtures("bank")
def test_a_person_says_what_is_a_copy(run, benign, replica, store, tmp_path):
    one = store.references("bad")[0].reference_id
    digest = hashlib.sha256((benign / "01.jpg").read_bytes()).hexdigest()
    with pytest.raises(StoreError, match="not among the images of a calibration that is applied"):
        run("calibrations", "mask", one, benign / "01.jpg")
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file, "--no-hot-set")
    run("calibrations", "apply", file)
    with pytest.raises(StoreError, match=f"applied: {'f' * 64}$"):
        run("calibrations", "mask", one, benign / "01.jpg", "f" * 64)
    assert store.reference(one).copies == ()
    run("calibrations", "mask", one, benign / "01.jpg", benign / "02.jpg")
    assert len(replica.against().copies) == 2
    result = run("calibrations", "mask", one, benign / "02.jpg", "--remove")
    assert "benign images set aside 1, before 2" in result.stdout
    assert store.reference(one).copies == (digest,)
    assert replica.against().copies == {digest}
    with pytest.raises(StoreError, match="no reference nobody"):
        run("calibrations", "mask", "nobody", "f" * 64)
    assert "neither a file" in run("calibrations", "mask", one, "nothing", code=2).stderr


@pytest.mark.usefixtures("bank")
def test_what_was_before_can_be_had_again(run, told, benign, replica, tmp_path):
    with pytest.raises(StoreError, match="nothing to go back to"):
        run("calibrations", "rollback")
    ids = []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.npz"
        run("calibrate", "--images", benign, "-o", file, "--seed", seed, "--no-hot-set")
        run("calibrations", "apply", file)
        ids.append(artefact.read(file.read_bytes()).id)

    def current():
        one = replica.against().calibration
        return one and one.id

    assert current() == ids[1]
    run("calibrations", "rollback")
    assert current() == ids[0]
    run("calibrations", "rollback")
    assert current() == ids[1]
    with pytest.raises(StoreError, match=r"then bad matches nothing \(its budget needs a calib"):
        run("calibrations", "apply", "none")
    run("calibrations", "apply", "none", "--force")
    assert current() is None
    assert f"back to {ids[1]}" in run("calibrations", "rollback").stdout
    assert current() == ids[1]

    run("calibrations", "apply", ids[0][:6])  # as many letters as tell it from others
    assert current() == ids[0]
    assert [(one["applied"], one["previous"]) for one in told("calibrations", "list")] == [
        (True, False),
        (False, True),
    ]
    with pytest.raises(StoreError, match=f"{ids[0]} is applied"):
        run("calibrations", "remove", ids[0])
    with pytest.raises(StoreError, match=f"`rollback` would go back to {ids[1]}"):
        run("calibrations", "remove", ids[1])
    run("calibrations", "remove", ids[1], "--force", "--by", "ann")
    (newest, *_) = told("hotset", "log")
    assert (newest["what"], newest["by"]) == ("calibration_removed", "ann")
    assert newest["detail"] == {"calibration": ids[1]}
    assert [one["calibration_id"] for one in told("calibrations", "list")] == ids[:1]
    with pytest.raises(StoreError, match="neither a file nor a calibration"):
        run("calibrations", "rollback", "--force")
    assert current() == ids[0]


@pytest.mark.usefixtures("bank")
def test_a_threshold_that_would_match_nothing_is_not_left_behind(run, benign, tmp_path):
    run("banks", "set", "pinned", "--threshold", "0.6")
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file, "--no-hot-set")
    with pytest.raises(StoreError, match="then pinned matches nothing"):
        run("calibrations", "apply", file)
    result = run("calibrations", "apply", file, "--force")
    assert "pinned: matches nothing (its threshold was set for another" in result.stdout


def test_a_bank_goes_from_a_threshold_to_a_budget_without_a_gap(
    run, benign, replica, store, tmp_path
):
    """What the documentation tells to do first, and what it warns of."""
    run("banks", "set", "bad", "--threshold", "0.6")
    (tmp_path / "bad.jpg").write_bytes(picture(500))
    run("refs", "add", tmp_path / "bad.jpg", "--bank", "bad", "--force", "--note", "drawn")
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file)
    before = store.version()
    with pytest.raises(StoreError, match=r"then bad matches nothing .*apply FILE --budget bad=N"):
        run("banks", "set", "bad", "--max-false-matches-per-million", BUDGET)
    with pytest.raises(StoreError, match=r"then bad matches nothing .*--budget BANK=N"):
        run("calibrations", "apply", file)
    with pytest.raises(StoreError, match=r"then bad only matches in shadow \(its budget takes"):
        run("calibrations", "apply", file, "--budget", "bad=5")
    assert store.version() == before
    result = run("calibrations", "apply", file, "--budget", f"bad={BUDGET}")
    assert "bad: matches at score" in result.stdout
    assert store.version().seq == before.seq + 2  # of one change
    assert replica.against().banks["bad"].max_false_matches_per_million == BUDGET

    with pytest.raises(StoreError, match=r"bad only matches in shadow .*a larger budget"):
        run("banks", "set", "bad", "--max-false-matches-per-million", "5")
    result = run("banks", "set", "bad", "--max-false-matches-per-million", "5", "--force")
    assert "bad: only matches in shadow, at score" in result.stdout
    assert "in shadow only, score" in run("banks", "list").stdout
    run("banks", "set", "bad", "--mode", "shadow")  # as is asked for
    run("calibrations", "apply", "none", "--threshold", "bad=0.6")
    assert replica.against().banks["bad"].threshold == 0.6
    assert replica.against().calibration is None
    for wrong in (("--budget", "bad"), ("--budget", "worse=1"), ("--budget", "bad=-1")):
        run("calibrations", "apply", file, *wrong, code=2)
    run("calibrations", "apply", file, "--budget", "bad=1", "--threshold", "bad=1", code=2)


def between(monkeypatch, act):
    """Let something happen after a command has looked ahead, and before it writes."""
    look = applying.preview_banks

    def late(*arguments):
        found = look(*arguments)
        act()
        return found

    monkeypatch.setattr(applying, "preview_banks", late)


@pytest.mark.usefixtures("bank")
def test_what_others_change_while_a_bank_is_looked_at_is_not_lost(
    run, benign, store, tmp_path, monkeypatch
):
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file, "--no-hot-set")
    run("calibrations", "apply", file)
    wanted = ("banks", "set", "bad", "--max-false-matches-per-million", 2 * BUDGET)
    with monkeypatch.context() as patch:
        between(patch, lambda: store.set_bank(store.banks()["bad"].model_copy(
            update={"action": "log"})))  # fmt: skip
        run(*wanted)
    assert store.banks()["bad"].action == "log"
    assert store.banks()["bad"].max_false_matches_per_million == 2 * BUDGET
    sha256 = next(iter(store.current_calibrations()))
    with monkeypatch.context() as patch:
        between(patch, lambda: store.apply_calibration(None, sha256))
        with pytest.raises(StoreError, match="another calibration was applied meanwhile"):
            run(*wanted[:-1], BUDGET)
    run("calibrations", "apply", file)
    monkeypatch.setenv("COPYSIEVE_MODEL__PATH", str(tmp_path / "nowhere.onnx"))
    with pytest.raises(CopysieveError, match="nowhere"):
        run(*wanted[:-1], BUDGET)
    assert store.banks()["bad"].max_false_matches_per_million == 2 * BUDGET
    run(*wanted[:-1], BUDGET, "--force")
    assert store.banks()["bad"].max_false_matches_per_million == BUDGET


def test_a_budget_that_no_bank_could_keep_is_told_before_there_are_references(
    run, benign, tmp_path
):
    run("banks", "set", "other", "--threshold", "0.9")
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file, "--no-hot-set")
    run("calibrations", "apply", file, "--threshold", "other=0.5")
    result = run("banks", "set", "tiny", "--max-false-matches-per-million", "5")
    assert "tiny: matches nothing (its budget takes 600000 groups of null images" in result.stdout


def test_whoever_adds_a_copy_of_benign_images_is_told_what_it_costs(run, told, benign, tmp_path):
    for bank in ("bad", "tight"):
        run("banks", "set", bank, "--max-false-matches-per-million", BUDGET)
        file = tmp_path / f"{bank}.jpg"
        file.write_bytes(picture(500 if bank == "bad" else 501))
        run("refs", "add", file, "--bank", bank, "--force", "--note", "drawn")
    file = tmp_path / "c.npz"
    run("calibrate", "--images", benign, "-o", file, "--no-hot-set", "--background", 20)
    run("calibrations", "apply", file)
    groups = len(set(artefact.read(file.read_bytes()).groups.tolist()))
    lowest = 3e6 / groups + 1
    run("banks", "set", "tight", "--max-false-matches-per-million", lowest)
    files = [benign / f"{number:02}.jpg" for number in range(20, 24)]
    report = told("refs", "add", *files, "--bank", "bad", "--force", "--note", "seen")
    assert report["set_aside"] == 4
    assert len(report["weakened"]) == 1
    assert report["weakened"][0].startswith("tight only matches in shadow (its budget takes")


@pytest.mark.usefixtures("bank")
def test_what_cannot_be_used_is_one_line(run, benign, tmp_path, monkeypatch):
    other, damaged = tmp_path / "other.npz", tmp_path / "damaged.npz"
    other.write_bytes(calibration(model=OTHER_MODEL).artefact)
    damaged.write_bytes(b"PK")
    collection = tmp_path / "collection.npz"
    np.savez(collection, descriptors=np.eye(4))
    for which, line in (
        (other, "it is of another model than sscd_distilled"),
        (damaged, "damaged.npz: the calibration cannot be used: it is no .npz file"),
        ("0123456789abcdef", "0123456789abcdef is neither a file nor a calibration that the store"),
        (collection, "collection.npz: the calibration cannot be used: it is a collection"),
    ):
        with pytest.raises(CopysieveError, match=line):
            run("calibrations", "apply", which)
    few = tmp_path / "few"
    few.mkdir()
    for number in range(5):
        (few / f"{number}.jpg").write_bytes(picture(number))
    with pytest.raises(CopysieveError, match="5 images: it takes 40"):
        run("calibrate", "--images", few, "-o", tmp_path / "c.npz")
    with pytest.raises(CopysieveError, match="whitening takes 100"):
        run("calibrate", "--images", benign, "-o", tmp_path / "c.npz", "--project", "whiten")
    for refused, line in (
        (("--background", 100), "--background 100: there are 92 images in all"),
        (("--k", 24), "--k 24: there are 23 images in the background"),
        (("--k", 11, "--background", 10), "--k 11: there are 10 images in the background"),
    ):
        with pytest.raises(SettingsError, match=line):
            run("calibrate", "--images", benign, "-o", tmp_path / "c.npz", *refused)
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", "redis://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"cannot be reached.*; --no-hot-set does without"):
        run("calibrate", "--images", few, "-o", tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()
    for wrong in (
        ("--project", "bleach"),
        ("-o", tmp_path / "nowhere" / "c.npz"),
        ("--report", tmp_path / "c.txt"),
    ):
        run("calibrate", "--images", benign, "-o", tmp_path / "c.npz", *wrong, code=2)
