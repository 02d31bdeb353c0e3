"""`copysieve check`: settings, Kafka, Redis, banks, canaries and model, and what would go wrong."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import typer
from rich.table import Table

from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr, stdout
from worker.cli.mirroring import apply_rules
from worker.errors import CopysieveError, ModelError
from worker.settings import Settings, chosen_file

if TYPE_CHECKING:
    from worker.hotset.store import Store

type Status = Literal["ok", "warning", "problem"]

_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A `problem` keeps `run` from starting."""

    what: str
    status: Status
    detail: str


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check everything that `run` needs, and tell what would go wrong.

    The exit code is 1 if there is a problem: then `run` would not start. A warning is something
    that a person should know: a bank that cannot match, records that would be refused.
    """
    settings = load_settings(config)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what it finds is told below
    findings = [Finding("settings", "ok", str(chosen_file(config) or "defaults and environment"))]
    for what, examine in (
        ("kafka", _kafka),
        ("redis", _hot_set),
        ("canaries", _canaries),
        ("model", _model),
    ):
        with stderr.status(f"{what} ..."):  # an absent broker takes half a minute to be sure of
            findings += _examine(what, examine, settings)
    table = Table(box=None, show_header=False)
    for finding in findings:
        status = f"[{_STYLES[finding.status]}]{finding.status}[/]"
        table.add_row(finding.what, status, finding.detail)
    if as_json:
        emit([asdict(finding) for finding in findings])
    else:
        stdout.print(table, markup=True)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _examine(
    what: str, examine: Callable[[Settings], Iterator[Finding]], settings: Settings
) -> Iterator[Finding]:
    """What `examine` finds; an error of ours is a problem, and the other checks go on."""
    try:
        yield from examine(settings)
    except CopysieveError as error:
        yield Finding(what, "problem", str(error))


def _kafka(settings: Settings) -> Iterator[Finding]:
    from worker.stream.admin import require_topics  # noqa: PLC0415 - not needed for --help

    warnings = require_topics(settings)
    servers = ",".join(settings.kafka.bootstrap_servers)
    yield Finding("kafka", "ok", f"{servers}, topics are there")
    for warning in warnings:
        yield Finding("kafka", "warning", warning)


def _hot_set(settings: Settings) -> Iterator[Finding]:
    from worker.descriptor import zoo  # noqa: PLC0415 - not needed for --help
    from worker.hotset.store import open_store  # noqa: PLC0415

    store = open_store(settings.redis)
    head = store.head()
    if head is None:
        yield Finding(
            "hot set", "warning", "none yet, `run` waits: `copysieve banks set`, then `refs add`"
        )
        return
    store.require_policies()
    references = store.references()
    yield Finding("hot set", "ok", f"version {head.version}, {len(references)} references")
    with suppress(ModelError):  # which is told of elsewhere
        sha256 = zoo.verify(zoo.locate(settings.model), settings.model)
        if missing := len(references) - store.described(sha256):
            detail = f"{missing} of them are not described by {settings.model.name}: add them again"
            yield Finding("hot set", "warning", detail)
    for bank in store.banks().values():
        if not any(reference.bank == bank.name for reference in references):
            yield Finding(f"bank {bank.name}", "warning", "it has no references")
    yield from _rules(settings, store)


def _rules(settings: Settings, store: "Store") -> Iterator[Finding]:
    """What the banks match at."""
    from worker.scoring.rules import WITHOUT_RULE  # noqa: PLC0415 - imports torch

    try:
        applied = apply_rules(store, settings)
    except ModelError:  # which is told of elsewhere
        return
    if applied is None:
        return
    calibration = applied.against.calibration
    if calibration is None:
        detail = (
            "none is applied: scores are cosines, budgets match nothing, and `refs add` refuses "
            "none for its expected false matches"
        )
        yield Finding("calibration", "ok", detail)
    else:
        yield Finding("calibration", "ok", f"{calibration.id} is applied")
    for name, rule in applied.rules.items():
        bank = applied.against.banks[name]
        if rule.state in (*WITHOUT_RULE, "no_references"):
            effect = "nothing" if rule.threshold is None else f"in shadow, at {rule.threshold:.3f}"
            yield Finding(f"bank {name}", "warning", f"it matches {effect}: {rule.why}")
        elif calibration is None and (bank.threshold or 0) > 1:
            yield Finding(f"bank {name}", "warning", "a cosine is never above its threshold")


def _canaries(settings: Settings) -> Iterator[Finding]:
    from worker.canary.pictures import pair, scan  # noqa: PLC0415 - not needed for --help
    from worker.hotset.store import open_store  # noqa: PLC0415

    folder, per_minute = settings.canaries.folder, settings.canaries.per_minute
    if folder is None or not per_minute:
        yield Finding("canaries", "ok", "off")
        return
    paired = pair(scan(folder), open_store(settings.redis).references())
    enough: Status = "ok" if paired.canaries else "warning"
    yield Finding("canaries", enough, f"{per_minute} a minute, of {len(paired.canaries)} pictures")
    for picture in paired.pictures:
        yield Finding("canaries", "warning", f"{picture}: not registered, `refs add --canary` it")
    for reference in paired.references:
        yield Finding("canaries", "warning", f"no picture of reference {reference.reference_id}")


def _model(settings: Settings) -> Iterator[Finding]:
    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import

    embedder = embedders.load(settings.model)
    embedder.warm(1)
    model = embedder.model
    yield Finding(
        "model",
        "ok",
        f"{model.name} ({model.sha256[:12]}), {model.dims} dims, {model.preprocessing}"
        f", on {embedder.device}",
    )
