"""The alerts are rules that Prometheus takes, fire when they should, and use metrics there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from worker.telemetry import metrics

ALERTS = Path(__file__).parents[3] / "config" / "alerts" / "copysieve.yaml"
RUNBOOK = ALERTS.parents[2] / "docs" / "runbook.md"
SCENARIOS = Path(__file__).parent / "alerts.test.yaml"

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Prometheus) is not on PATH"
)


def test_their_metrics_exist() -> None:
    assert metrics.BUILD
    exported = {
        name
        for collector, names in REGISTRY._collector_to_names.items()
        if collector.__class__.__module__.startswith("prometheus_client.metrics")
        for name in names
    }
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    used = set(re.findall(r"copysieve_\w+", " ".join(rule["expr"] for rule in rules)))
    assert used
    assert used <= exported


def test_each_leads_to_its_section_of_the_runbook() -> None:
    alerts = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    sections = dict(section.split("\n", 1) for section in RUNBOOK.read_text().split("\n## ")[1:])
    assert list(sections) == [rule["alert"] for rule in alerts]
    for rule in alerts:
        first = next(iter(rule["annotations"].items()))
        assert first == ("runbook_url", f"docs/runbook.md#{rule['alert'].lower()}")
        for part in ("It means", "Users see", "Look at", "Do"):
            assert f"- **{part}:** " in sections[rule["alert"]], rule["alert"]


@promtool
def test_prometheus_takes_them() -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, capture_output=True)


@promtool
def test_they_fire_when_they_should_and_only_then() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(SCENARIOS)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
