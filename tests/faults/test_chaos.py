"""The short form of `make chaos`: real faults under traffic, counted by input offset."""

import pytest
from rich.console import Console

from tests.chaos.report import table
from tests.chaos.run import Course, Run

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]


def run(folder, **course) -> Run:
    """A whole course, told on the console where pytest shows it."""
    console = Console(width=140)
    made = Run(Course(seed=1, limit_seconds=240, **course), console, folder)
    made.go()
    console.print(table(made.rows))
    assert made.missing == []
    assert [row.failures for row in made.rows if row.failures] == []
    return made


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_nothing_is_lost_wrong_or_out_of_order(tmp_path, delivery):
    made = run(
        tmp_path,
        deliveries=(delivery,),
        faults=("kill", "stop", "broker_restart"),
        uploads=1500,
        seconds=12,
        outage_seconds=0,
    )
    assert sum(row.judged.uploads for row in made.rows) == 1500
    assert all(len(row.marks) >= 2 for row in made.rows if row.fault != "calm")


def test_an_output_broker_that_is_away_costs_neither_memory_nor_results(tmp_path):
    made = run(
        tmp_path,
        deliveries=("at_least_once",),
        faults=("output_away",),
        uploads=0,
        seconds=0,
        outage_seconds=40,
    )
    assert [row.fault for row in made.rows] == ["output_away", "output_away_expired"]
