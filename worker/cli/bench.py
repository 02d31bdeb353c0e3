"""`copysieve bench`: what the stream costs, what exactly once costs on top, ways to describe."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.progress import Progress

from worker.cli import benching, scaling
from worker.cli.benching import REFERENCES, Run
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    emit,
    load_settings,
    stderr,
    stdout,
    with_model,
)
from worker.settings import Delivery, Isolation, Log, ModelSettings, Settings
from worker.telemetry import log

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.embedded.kafka import Broker
    from worker.hotset.mirror import Mirror

app = typer.Typer(name="bench", no_args_is_help=True, help="Measure, both sides in one run.")

MODEL = "sscd_disc_mixup_int8"
"""Unless the settings name one: real weights that come with the extra copysieve[demo]."""
SEEN_PICTURES = 50
PHOTOGRAPHS = 24
BATCHES = (1, 8, 32)
_LINE = "{:18} {:>5} {:>9} {:>8}  {:21} {:>8} {:>11}"


@app.callback()
def _root() -> None:
    """Measure, both sides in one run."""


@app.command()
def pipeline(
    images: Annotated[int, typer.Option(min=20, help="Images in each run.")] = 400,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare topic to topic with decoding and the model alone.

    `direct`: a pool decodes, a batcher collects, the model describes; no Kafka. `stream`: the
    worker's own stages between a real Kafka topic, filled beforehand, and the acknowledgement of
    the last verdict, against 1,000 references. Same images, threads and batches, in one process,
    in alternating pairs. `ratio` is the median of stream over direct.
    """
    with _prepared(config) as (settings, embedder, mirror, broker):
        encoded = benching.pictures(images)
        filled = benching.fill(settings, broker, encoded, "pipeline")
        sides = [
            partial(benching.direct, filled, embedder, encoded),
            partial(benching.stream, filled, embedder, mirror, broker, len(encoded)),
        ]
        measured = _alternate(sides, pairs, "pairs")
        report = _report(measured, settings, embedder, images)
    if as_json:
        emit(report)
    else:
        _show(report)


@app.command()
def delivery(
    images: Annotated[int, typer.Option(min=20, help="New images in each run.")] = 400,
    seen: Annotated[int, typer.Option(min=100, help="Images seen before in each run.")] = 20_000,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs of each kind.")] = 5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare exactly once with at least once, topic to topic.

    `model`: images that the model has to describe. `seen`: a few images again and again, whose
    descriptors are remembered, so that the stream is the limit. Both deliveries in alternating
    pairs, in one process. `ratio` is the median of exactly_once over at_least_once.
    """
    report: dict[str, Any] = {}
    with _prepared(config) as (settings, embedder, mirror, broker):
        few = benching.pictures(SEEN_PICTURES)
        workloads = {
            "model": benching.pictures(images),
            "seen": list(itertools.islice(itertools.cycle(few), seen)),
        }
        for name, encoded in workloads.items():
            filled = benching.fill(settings, broker, encoded, name)
            sides = [
                partial(
                    benching.stream,
                    _delivering(filled, one),
                    embedder,
                    mirror,
                    broker,
                    len(encoded),
                    one,
                )
                for one in get_args(Delivery)
            ]
            measured = _alternate(sides, pairs, name)
            report[name] = _compared(measured, *get_args(Delivery)) | {"images": len(encoded)}
        report |= {"model_name": embedder.model.name, "device": str(embedder.device)}
    if as_json:
        emit(report)
        return
    for name in workloads:
        one = report[name]
        low, high = one["ratio_spread"]
        stdout.print(
            f"{name}: exactly once {one['exactly_once']} images/s, at least once"
            f" {one['at_least_once']} images/s, ratio {one['ratio']} ({low} to {high})",
            highlight=False,
        )


@app.command()
def isolation(
    images: Annotated[int, typer.Option(min=20, help="Images in each run.")] = 400,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare decoding in processes with decoding in threads, topic to topic.

    The same images in both, in alternating pairs. `ratio` is the median of processes over threads.
    """
    with _prepared(config) as (settings, embedder, mirror, broker):
        encoded = benching.pictures(images)
        filled = benching.fill(settings, broker, encoded, "isolation")
        sides = [
            partial(
                benching.stream,
                _isolating(filled, one),
                embedder,
                mirror,
                broker,
                len(encoded),
                one,
            )
            for one in get_args(Isolation)
        ]
        measured = _alternate(sides, pairs, "pairs")
        report = _compared(measured, *get_args(Isolation)) | {"images": images}
        report |= {"model": embedder.model.name, "device": str(embedder.device)}
    if as_json:
        emit(report)
        return
    low, high = report["ratio_spread"]
    stdout.print(
        f"processes {report['processes']} images/s, threads {report['threads']} images/s,"
        f" ratio {report['ratio']} ({low} to {high})",
        highlight=False,
    )


@app.command()
def describe(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="FILE|NAME", help="A model to measure; may be repeated."),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option("--architecture", help="A network with random weights; may be repeated."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of JPEG, PNG, GIF, WebP; else photos."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Pictures in a batch; may be repeated. 1, 8, 32."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all rows.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Of each measurement, at least.")] = 2.0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Measure torch.compile as well.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure ways to run the model: precision, layout, size of batch.

    Every row is compared with the loop of Birder's model card (open, convert, transform, the fp32
    network, one picture at a time), which runs right before it in every round. Both begin with
    encoded pictures. `ratio` is the median over the rounds, with the lowest and the highest.

    The drift is the lowest and the mean cosine of the descriptors to those of fp32, over the
    pictures as the worker decodes them, so it is of precision alone. ONNX graphs have no fp32 form
    here: they are compared with the loop over a ResNet-50.

    Without a model: the default one, with random weights where its file is absent, and the int8
    graph of copysieve[demo].
    """
    settings = load_settings(config)

    from worker.cli import describing, subjects  # noqa: PLC0415 - torch takes seconds to import

    chosen = [subjects.of_model(with_model(settings.model, one)) for one in model or ()]
    chosen += [subjects.of_architecture(one, settings.model) for one in architecture or ()]
    if not chosen:
        chosen = subjects.usual(settings)
    if images is None:
        encoded = benching.pictures(PHOTOGRAPHS)
    else:
        encoded = subjects.of_folder(images, settings)
    sizes = batch or BATCHES
    ways = sum(len(describing.options(one, compiled=compiled)) for one in chosen)
    bench = describing.Bench(encoded, settings, seconds)
    measured: list[dict[str, Any]] = []
    with closing(bench), Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("", total=ways * (1 + rounds * len(sizes)))
        for subject in chosen:
            rows = bench.measure(
                subject,
                sizes,
                rounds,
                lambda step: progress.update(task, description=step, advance=1),
                compiled=compiled,
            )
            measured.append(describing.told(subject, rows))
    report = {
        "machine": describing.machine(settings.model),
        "pictures": len(encoded),
        "decode_workers": settings.decode.workers,
        "rounds": rounds,
        "seconds": seconds,
        "models": measured,
    }
    if as_json:
        emit(report)
    else:
        _show_describe(report)


@app.command()
def hotset(
    references: Annotated[int, typer.Option(min=1000, help="References in it.")] = 100_000,
    dims: Annotated[int, typer.Option(min=64, help="Of a descriptor.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Searches on each side.")] = 10,
    folder: Annotated[
        Path | None, typer.Option(file_okay=False, help="For the copy; else a temporary one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a large hot set: import, memory, starts, search, and additions meanwhile.

    A real Redis, random descriptors, one row a reference. Each start is a new process: first from
    Redis, then with the copy that the first has left. Searches are of 32 queries, in turns with
    faiss' exact index of the same descriptors. `bytes_per_dimension` is the mirror's memory that no
    file is behind, for each dimension of a row.
    """
    from worker.embedded.redis import redis_server  # noqa: PLC0415 - needs the extra

    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(TemporaryDirectory(prefix="copysieve-bench-")))
        server = stack.enter_context(redis_server("any"))
        plan = scaling.Plan(server.url, home, references, dims, rounds)
        progress = stack.enter_context(Progress(console=stderr, transient=True))
        task = progress.add_task("import", total=references)
        report: dict[str, Any] = {
            "references": references,
            "dims": dims,
            "redis": server.version,
            **scaling.fill(plan, lambda count: progress.advance(task, count)),
        }
        for what, work in (
            ("start from Redis", scaling.start_from_redis),
            ("start from the copy, searches", scaling.start_and_search),
            ("additions", scaling.start_and_add),
        ):
            progress.update(task, description=what, total=None)
            report |= scaling.in_a_process(work, plan)
    if as_json:
        emit(report)
        return
    for name, value in report.items():
        stdout.print(f"{name:28} {value}", highlight=False)


@app.command()
def freshness(
    references: Annotated[int, typer.Option(min=1, help="Added one at a time.")] = 200,
    hot_set: Annotated[int, typer.Option(min=0, help="References that are there before.")] = 10_000,
    uploads_per_second: Annotated[float, typer.Option(min=0.1, help="The load meanwhile.")] = 5.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how soon a new reference is matched by every replica.

    An embedded Kafka and Redis, two `copysieve run` on the model of copysieve[demo], and new
    uploads at a steady rate. Each reference is timed from its write's return until both replicas
    have said that they applied it.
    """
    settings = load_settings(config)

    from worker.cli import freshness as work  # noqa: PLC0415 - torch takes seconds to import

    model = settings.model.name if "model" in settings.model_fields_set else MODEL
    plan = work.Plan(references, hot_set, uploads_per_second)
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("servers", total=None)

        def told(step: str, done: int, total: int | None) -> None:
            progress.update(task, description=step, completed=done, total=total)

        report = work.measure(plan, model, config, told)
    if as_json:
        emit(report)
        return
    stdout.print(
        "from the write's return to all replicas:"
        f" p50 {report['p50_ms']} ms, p99 {report['p99_ms']} ms, max {report['max_ms']} ms\n"
        f"{report['references']} references, added to {report['hot_set']} one at a time;"
        f" {report['replicas']} replicas, {report['uploads_per_second']} uploads/s,"
        f" {report['verdicts']} verdicts ({report['model']}, {report['redis']})",
        highlight=False,
    )


def _delivering(settings: Settings, delivery: str) -> Settings:
    kafka = settings.kafka.model_copy(update={"delivery": delivery})
    return settings.model_copy(update={"kafka": kafka})


def _isolating(settings: Settings, isolation: str) -> Settings:
    decode = settings.decode.model_copy(update={"isolation": isolation})
    return settings.model_copy(update={"decode": decode})


@contextmanager
def _prepared(
    config: ConfigOption,
) -> Iterator[tuple[Settings, "Embedder", "Mirror", "Broker"]]:
    """Settings, a warm model, a hot set, and a broker."""
    settings = load_settings(config)
    log.configure(Log(level="error"))  # the stages start anew in every run

    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import
    from worker.embedded.kafka import kafka_broker  # noqa: PLC0415

    chosen = settings.model if "model" in settings.model_fields_set else ModelSettings(name=MODEL)
    embedder = embedders.load(chosen)
    embedder.warm(settings.batch.max_size)
    with ExitStack() as stack:
        broker = stack.enter_context(kafka_broker())
        mirror = stack.enter_context(benching.hot_set(settings, embedder))
        yield settings, embedder, mirror, broker


def _alternate(
    sides: Sequence[Callable[[], Run]], pairs: int, description: str
) -> list[dict[str, Run]]:
    """Each side once in every pair, by turns first; one of each before, that is not counted."""
    for side in sides:
        side()
    measured: list[dict[str, Run]] = []
    with Progress(console=stderr, transient=True) as progress:
        for pair in progress.track(range(pairs), description=description):
            both = [side() for side in (sides if pair % 2 == 0 else sides[::-1])]
            measured.append({run.side: run for run in both})
    return measured


def _compared(measured: list[dict[str, Run]], usual: str, other: str) -> dict[str, Any]:
    """`ratio` is of the other side over the usual one."""
    ratios = [p[other].images_per_second / p[usual].images_per_second for p in measured]
    return {
        "ratio": _median(ratios),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        usual: _median(p[usual].images_per_second for p in measured),
        other: _median(p[other].images_per_second for p in measured),
        "runs": [asdict(run) for pair in measured for run in pair.values()],
    }


def _report(
    measured: list[dict[str, Run]], settings: Settings, embedder: "Embedder", images: int
) -> dict[str, Any]:
    ratios = [p["stream"].images_per_second / p["direct"].images_per_second for p in measured]
    streams = [p["stream"] for p in measured]
    busy = {
        stage: round(statistics.median(run.busy[stage] for run in streams), 3)
        for stage in streams[0].busy
    }
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "direct_images_per_second": _median(p["direct"].images_per_second for p in measured),
        "stream_images_per_second": _median(run.images_per_second for run in streams),
        "limited_by": max(busy, key=lambda stage: busy[stage]),
        "busy": busy,
        "broker_cpu_share": _median(run.broker_cpu_share for run in streams),
        "model": embedder.model.name,
        "device": str(embedder.device),
        "images": images,
        "pairs": len(measured),
        "references": REFERENCES,
        "batch": settings.batch.model_dump(),
        "decode_workers": settings.decode.workers,
        "runs": [asdict(run) for pair in measured for run in pair.values()],
    }


def _show(report: dict[str, Any]) -> None:
    low, high = report["ratio_spread"]
    stdout.print(
        f"topic to topic {report['stream_images_per_second']} images/s,"
        f" decode and model alone {report['direct_images_per_second']} images/s"
        f" ({report['model']} on {report['device']})\n"
        f"ratio {report['ratio']} ({low} to {high} over {report['pairs']} pairs of"
        f" {report['images']} images), limited by: {report['limited_by']}\n"
        f"busy: {report['busy']}, broker: {report['broker_cpu_share']} of one core",
        highlight=False,
    )


def _show_describe(report: dict[str, Any]) -> None:
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    stdout.print(f"{facts}, decode workers {report['decode_workers']}", highlight=False)
    for subject in report["models"]:
        stdout.print(
            f"\n{subject['model']} ({subject['architecture']}, weights {subject['weights'][:12]})."
            f" The card's loop over {subject['card']}: {subject['card_images_per_second']}"
            " images/s",
            highlight=False,
        )
        heading = ("option", "batch", "images/s", "alone", "ratio", "lowest", "mean cosine")
        for cells in (heading, *map(_cells, subject["options"])):
            stdout.print(_LINE.format(*cells).rstrip(), highlight=False, markup=False)
        if (chosen := subject["auto"]) is not None:
            stdout.print(
                f"auto is {chosen['option']}: {_judged(chosen)}; the fastest within the bound of"
                f" {chosen['bound']}: {chosen['fastest']}",
                highlight=False,
            )


def _judged(chosen: dict[str, Any]) -> str:
    if (lowest := chosen["lowest_cosine"]) is None:
        return "not measured"
    return (
        f"lowest cosine {lowest:.6f}, {'within' if chosen['within_bound'] else 'BELOW'} the bound"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    named = row["option"], str(row["batch"])
    if "not_available" in row:
        return (*named, f"not available: {row['not_available']}", "", "", "", "")
    low, high = row["ratio_spread"]
    drift = row["lowest_cosine"], row["mean_cosine"]
    return (
        *named,
        str(row["images_per_second"]),
        str(row["describe_only_images_per_second"]),
        f"{row['ratio']} ({low} to {high})",
        *("" if cosine is None else f"{cosine:.6f}" for cosine in drift),
    )


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)
