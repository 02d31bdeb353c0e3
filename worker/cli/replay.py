"""`copysieve replay`: send dead letters again, or uploads to another topic."""

import shlex
import signal
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from worker.cli.common import (
    ConfigOption,
    JsonOption,
    SinceOption,
    emit,
    load_settings,
    stderr,
    stdout,
    time_of,
)
from worker.cli.progress import counts
from worker.errors import DeadLetterReason, StreamError
from worker.settings import Settings
from worker.stream.replay import Choice, LettersReplay, LettersReport, Part, UploadsReplay

app = typer.Typer(name="replay", no_args_is_help=True, help="Send records again.")

UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="To before here.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Tell, and send nothing.")]


@app.command("dead-letters")
def dead_letters(
    reason: Annotated[
        list[DeadLetterReason] | None, typer.Option(help="Those of this reason; may be repeated.")
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="No more than these.")
    ] = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what became dead letters to the uploads topic again, when what was wrong is mended.

    Chosen by reason, and by when they failed. Key, value and headers are the record's own; what the
    dead letter does not hold whole is read from where the record came from. What is not there any
    more is named, and the exit code is 1. A dry run looks just as closely, and sends nothing.
    """
    first, last = _range(since, until)
    settings = load_settings(config)
    choice = Choice(frozenset(reason or ()), first, last, limit)
    with closing(LettersReplay(settings.kafka, choice)) as replay:
        ended = _watched(replay.total, lambda on: replay.run(on, dry_run=dry_run))
        report = replay.report
    _tell_letters(report, dry_run=dry_run)
    if as_json:
        emit(
            {
                "dry_run": dry_run,
                "sent": report.sent,
                "by_reason": report.by_reason,
                "not_sent": [one._asdict() for one in report.not_sent],
                "repeated": report.repeated,
                "of_other_topics": report.of_other_topics,
                "unreadable": report.unreadable,
                "complete": ended is None,
            }
        )
    _exit(ended, fine=report.complete)


@app.command()
def uploads(
    to: Annotated[str, typer.Option(metavar="TOPIC", help="Where they go.")],
    partition: Annotated[int | None, typer.Option(min=0, help="Of this partition alone.")] = None,
    from_offset: Annotated[
        int | None, typer.Option(min=0, help="From this offset on; needs --partition.")
    ] = None,
    to_offset: Annotated[
        int | None, typer.Option(min=0, help="To before this offset; needs --partition.")
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    same_topic: Annotated[
        bool, typer.Option("--same-topic", help="TOPIC may be the uploads topic itself.")
    ] = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy uploads to another topic byte for byte, for a worker group of its own to screen.

    Chosen by offsets, or by the records' timestamps. Interrupted, it says how to go on.
    """
    first, last = _range(since, until)
    if partition is None and (from_offset is not None or to_offset is not None):
        raise typer.BadParameter("offsets need --partition", param_hint="--from-offset")
    settings = load_settings(config)
    _refuse_topic(settings, to, same_topic=same_topic)
    part = Part(partition, from_offset, to_offset, first, last)
    with closing(UploadsReplay(settings.kafka, to, part)) as replay:
        ended = _watched(replay.total, lambda on: replay.run(on, dry_run=dry_run))
    lost = replay.taken_by_retention
    stdout.print(
        f"{replay.chosen} uploads chosen, {replay.sent} sent to {to}"
        + (f", {lost} offsets gone by retention" if lost else ""),
        highlight=False,
    )
    told: list[dict[str, Any]] = [
        span._asdict() | {"next": replay.next_offsets[span.partition]} for span in replay.spans
    ]
    if ended is not None:
        for one in told:
            stderr.print(_to_go_on(one, to, part, same_topic=same_topic), soft_wrap=True)
    if as_json:
        emit(
            {
                "dry_run": dry_run,
                "chosen": replay.chosen,
                "sent": replay.sent,
                "taken_by_retention": lost,
                "partitions": told,
                "complete": ended is None,
            }
        )
    _exit(ended, fine=not lost)


def _range(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    first, last = time_of(since, "--since"), time_of(until, "--until")
    if first and last and first >= last:
        raise typer.BadParameter("must be before --until", param_hint="--since")
    return first, last


def _refuse_topic(settings: Settings, to: str, *, same_topic: bool) -> None:
    topics = settings.kafka.topics
    if to in (topics.matches, topics.shadow, topics.verdicts, topics.dead_letters):
        raise typer.BadParameter(f"{to} is a topic of results", param_hint="--to")
    if to == topics.uploads and not same_topic:
        raise typer.BadParameter(
            f"{to} is where they are: they would be screened again; --same-topic if you want that",
            param_hint="--to",
        )


def _watched(total: int, work: Callable[[Callable[[int], object]], None]) -> str | None:
    """Do the work under a progress bar; returns what ended it early, if anything did."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    with counts("offsets", total) as advance:
        try:
            work(advance)
        except KeyboardInterrupt:
            return "interrupted"
        except StreamError as error:
            return str(error)
    return None


def _tell_letters(report: LettersReport, *, dry_run: bool) -> None:
    names = ("whole", "from the source", "gone", "changed", "unreadable")
    table = Table("reason", "chosen", *names, box=None)
    for reason, fates in sorted(report.by_reason.items()):
        table.add_row(reason, str(sum(fates.values())), *map(str, fates.values()))
    stdout.print(table)
    for one in report.not_sent:
        stderr.print(f"cannot be sent: {one.source}: {one.why}", markup=False, highlight=False)
    notes = {
        "sent": report.sent,
        "cannot be sent": len(report.not_sent),
        "told twice": report.repeated,
        "of other topics": report.of_other_topics,
        "no dead letters": report.unreadable,
    }
    line = ", ".join(f"{what} {count}" for what, count in notes.items() if count or what == "sent")
    stdout.print(f"{line}{' (dry run)' if dry_run else ''}", highlight=False)


def _to_go_on(told: dict[str, Any], to: str, part: Part, *, same_topic: bool) -> str:
    """The command that does what is left of a partition."""
    words = ["copysieve", "replay", "uploads", "--to", to, "--partition", str(told["partition"])]
    words += ["--from-offset", str(told["next"]), "--to-offset", str(told["stop"])]
    for name, moment in (("--since", part.since), ("--until", part.until)):
        words += [name, moment.isoformat()] if moment else []
    words += ["--same-topic"] if same_topic else []
    return f"to go on: {shlex.join(words)}"


def _exit(ended: str | None, *, fine: bool) -> None:
    if ended is not None:
        stderr.print(f"copysieve: {ended}", style="red", markup=False, highlight=False)
    if ended is not None or not fine:
        raise typer.Exit(1)
