"""What a start that cannot succeed prints: one line that names the cause, before any upload."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("overrides", "code", "line"),
    [
        ({"BATCH__MAX_SIZE": "0"}, 2, "batch.max_size: Input should be greater than 0"),
        ({"KAFKA__GROUP": "x"}, 2, "kafka.group: there is no such setting"),
        ({"COLOUR": "red"}, 2, "COPYSIEVE_COLOUR: there is no such setting"),
        ({"KAFKA__BOOTSTRAP_SERVERS": NOWHERE}, 1, f"Kafka at {NOWHERE} cannot be used"),
        ({"KAFKA__TOPICS__SHADOW": "nowhere"}, 1, "there is no topic nowhere at"),
        ({"REDIS__URL": f"redis://:secret@{NOWHERE}/0"}, 1, "Redis"),
        ({"MODEL__SHA256": "0" * 64}, 1, "sha256"),
        ({"MODEL__NAME": "resnet_9000"}, 1, "resnet_9000"),
        ({"CANARIES__PER_MINUTE": "1"}, 2, "canaries: per_minute needs a folder"),
        (
            {"CANARIES__PER_MINUTE": "1", "CANARIES__FOLDER": "/nowhere"},
            1,
            "canaries.folder /nowhere: no such folder",
        ),
    ],
    ids=[
        "wrong value",
        "unknown setting",
        "unknown group",
        "no broker",
        "missing topic",
        "no redis",
        "wrong digest",
        "unknown model",
        "canaries without a folder",
        "no folder of canaries",
    ],
)
def test_a_bad_start_is_one_line(screening, overrides, code, line):
    extra = {f"COPYSIEVE_{name}": value for name, value in overrides.items()}
    environment = screening.environment(**extra, COPYSIEVE_KAFKA__START_TIMEOUT_SECONDS="2")
    if "COPYSIEVE_KAFKA__TOPICS__SHADOW" in extra:
        topics = screening.stream.topics.model_copy(update={"shadow": "nowhere"})
        environment["COPYSIEVE_KAFKA__TOPICS"] = topics.model_dump_json()
        del environment["COPYSIEVE_KAFKA__TOPICS__SHADOW"]
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *logs, last = ended.stderr.strip().splitlines()
    assert ended.returncode == code, ended.stderr
    assert last.startswith("copysieve: ")
    assert line in last
    assert "secret" not in ended.stderr
    assert all(log.startswith("{") for log in logs), ended.stderr
    assert not ended.stdout
    assert not screening.verdicts()


def test_a_config_file_that_is_not_there(tmp_path):
    missing = tmp_path / "none.yaml"
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "run", "--config", str(missing)],
        env={k: v for k, v in os.environ.items() if not k.startswith("COPYSIEVE_")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == f"copysieve: --config {missing}: no such file\n"
