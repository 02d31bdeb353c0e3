"""`copysieve refs export` and `refs import`, on a real Redis."""

import json
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from tests.fixtures.hot_set import MODEL, NOW, OTHER_MODEL, bank, descriptors, reference
from worker.cli.main import app
from worker.errors import StoreError
from worker.hotset import exchange
from worker.hotset.store import Store

pytestmark = pytest.mark.redis
SUFFIXES = ["jsonl", "jsonl.gz", "npz", "parquet"]
TALLIED = (b"references", b"descriptors", b"banks")


@pytest.fixture
def run(monkeypatch, redis_server):
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", redis_server.url)
    monkeypatch.setattr("worker.telemetry.log.configure", lambda _: None)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, ["refs", *map(str, arguments)])
        if isinstance(result.exception, StoreError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def raw(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def filled(store):
    store.set_bank(bank())
    store.set_bank(bank("other", views=("plain", "mirrored"), tenants=("t1",)))
    described = [(reference(f"r{n}"), descriptors(n)) for n in range(300)]
    described += [
        (reference("o1", "other", expires_at=NOW + timedelta(days=9)), descriptors(1)),
        (reference("o2", "other", note='"ü\n'), descriptors(2, ("plain",))),
    ]
    store.add_references(described, MODEL)
    store.set_enabled(["r7"], enabled=False)
    return store


def values(raw):
    """All that is tallied, as stored."""
    keys = [key for key in raw.keys("*") if key.split(b":")[1] in TALLIED]
    return {key: raw.hgetall(key) for key in keys}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_exported_is_imported_to_the_same_set(run, filled, raw, tmp_path, suffix):
    path = tmp_path / f"set.{suffix}"
    run("export", path)
    before, tallies = values(raw), filled.head().tallies
    raw.flushall()
    told = json.loads(run("import", path, "--json").stdout.splitlines()[-1])
    assert (told["added"], told["replaced"], told["unchanged"]) == (302, 0, 0)
    assert values(raw) == before
    assert filled.head().tallies == tallies
    told = json.loads(run("import", path, "--json").stdout.splitlines()[-1])
    assert (told["added"], told["replaced"], told["unchanged"]) == (0, 0, 302)


def test_a_dry_run_tells_and_writes_nothing(run, filled, raw, tmp_path):
    path = tmp_path / "set.jsonl"
    run("export", path)
    filled.remove_references(["o1", "r1"])
    filled.add_references([(reference("r2", note="another"), descriptors(2))], MODEL)
    head = filled.head()
    told = json.loads(run("import", path, "--dry-run", "--json").stdout.splitlines()[-1])
    assert (told["added"], told["replaced"], told["unchanged"]) == (2, 1, 299)
    assert filled.head() == head
    raw.flushall()
    result = run("import", path, "--dry-run")
    assert "would add 302" in result.stdout
    assert "bank other: new" in result.stdout
    assert raw.keys("*") == []


@pytest.mark.usefixtures("filled")
def test_an_import_that_was_interrupted_goes_on(run, raw, tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    run("export", path)
    before = values(raw)
    raw.flushall()
    monkeypatch.setattr(exchange, "AT_ONCE", 100)
    original, calls = Store.add_references, []

    def add_and_interrupt(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Store, "add_references", add_and_interrupt)
    with pytest.raises(StoreError, match="after 100 of 302 references: run it again"):
        run("import", path)
    monkeypatch.setattr(Store, "add_references", original)
    told = json.loads(run("import", path, "--json").stdout.splitlines()[-1])
    assert (told["added"], told["unchanged"]) == (202, 100)
    assert values(raw) == before


@pytest.mark.usefixtures("filled")
def test_a_file_with_a_bad_record_adds_nothing(run, raw, tmp_path):
    path = tmp_path / "set.jsonl"
    run("export", path)
    lines = path.read_text().splitlines()
    lines[-2] = lines[-2].replace("known-bad", "elsewhere")
    path.write_text("\n".join(lines) + "\n")
    raw.flushall()
    with pytest.raises(StoreError, match="record 302: bank"):
        run("import", path)
    assert raw.keys("*") == []


def test_a_bank_keeps_its_policy_unless_told_otherwise(run, filled, tmp_path):
    path = tmp_path / "set.parquet"
    run("export", path)
    filled.set_bank(bank(threshold=0.9))
    assert "keeps its policy" in run("import", path).stderr
    assert filled.banks()["known-bad"].threshold == 0.9
    run("import", path, "--banks", "replace")
    assert filled.banks()["known-bad"] == bank()


def test_one_bank_by_one_model(run, filled, tmp_path):
    path = tmp_path / "set.jsonl"
    run("export", path, "--bank", "other")
    assert {one.reference_id for one, _ in exchange.Archive(path).references()} == {"o1", "o2"}
    with pytest.raises(StoreError, match="no bank nowhere"):
        run("export", path, "--bank", "nowhere")
    described = [(reference("r1"), descriptors(1, model=OTHER_MODEL))]
    filled.add_references(described, OTHER_MODEL)
    with pytest.raises(StoreError, match=r"which one\? .*toy \(aaa.*, other \(bbb|other \(bbb"):
        run("export", path)
    result = run("export", path, "--model", "other", code=1)
    assert "301 left out" in result.stderr
    run("export", path, "--model", MODEL.sha256[:8])


def test_who_imports_is_noted_and_what_is_exported_says_who_added(run, filled, raw, tmp_path):
    path = tmp_path / "set.jsonl"
    run("export", path)
    raw.flushall()
    run("import", path, "--by", "carol")
    assert {entry.by for entry in filled.audit(None, 100)} == {"carol"}
    assert filled.reference("r1").added_by == "ann"


def test_thresholds_of_another_calibration_are_told_of(run, filled, raw, tmp_path):
    filled.set_bank(bank("pinned", calibration="0123456789abcdef"))
    path = tmp_path / "set.npz"
    run("export", path)
    raw.flushall()
    told = run("import", path, "--dry-run").stderr
    assert "bank pinned: its threshold is of calibration 0123456789abcdef" in told
    assert "bank-a" not in told
