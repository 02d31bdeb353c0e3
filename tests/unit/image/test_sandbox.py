"""Decoding in processes: the same pictures, and nothing that a decoder does gets out."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from pydantic import ValidationError

from tests.fixtures.conformance import ROWS
from tests.fixtures.conformance_table import made
from tests.fixtures.container_bombs import noise
from tests.fixtures.hostile_decoder import ACTS, LIES, SIGNATURE
from tests.fixtures.profiles import DISPLAY_P3, rgb
from tests.fixtures.samples import samples
from tests.fixtures.writers import photograph
from worker.errors import DecodeError, StartupError, UnscreenedReason
from worker.image.answers import Picture, Refusal
from worker.image.budget import ByteBudget
from worker.image.decoder import Decoder
from worker.image.formats import HEIC_SAMPLE
from worker.image.preprocess import prepare
from worker.image.sandbox import CHILD, SLACK_BYTES, Sandbox, _Child
from worker.image.sandbox_child import ANSWER_BYTES
from worker.records import Preprocessing
from worker.settings import Decode, Limits, Views
from worker.telemetry import metrics

LIMITS = Limits()
PREPROCESSING = Preprocessing("test", 96, "bicubic")
VIEWS = Views()
HOSTILE = "tests.fixtures.hostile_decoder"
CONFINED = {"exit": "exit code 3", "raise": "exit code 1", "allocate": "exit code 1"}
CONFINED |= {"segfault": "SIGSEGV", "abort": "SIG", "threads": "exit code 4"}


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def files() -> list[bytes]:
    """Every format and mode, whole and cut, turned and transparent."""
    image, exif = noise(700, 500), Image.Exif()
    exif[0x0112] = 6
    encoded = [
        encode(image, "JPEG", quality=90, exif=exif),
        encode(image, "JPEG", progressive=True),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image.convert("RGBA"), "PNG", exif=exif),
        encode(image.convert("P"), "PNG", transparency=3),
        encode(image.convert("L"), "GIF", save_all=True, append_images=[image.convert("L")] * 3),
        encode(image, "WEBP", lossless=True, exif=exif),
        encode(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
    ]
    return [*encoded, *(data[: len(data) // 2] for data in encoded)]


def outcome(prepare, data):
    try:
        made = prepare(data)
    except DecodeError as error:
        return error.reason, str(error)
    return made.info, made.looks, made.pixels.shape, made.pixels.tobytes()


@contextlib.contextmanager
def sandbox(program=HOSTILE, workers=1, seconds=30.0, **limits):
    settings = Decode(workers=workers, isolation="processes", deadline_seconds=seconds)
    made = Sandbox(settings, Limits(**limits), PREPROCESSING, program=program)
    try:
        yield made
    finally:
        made.close()


def children(pid: int | str = "self") -> set[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for thread in threads for child in thread.read_text().split()}


def replaced(reason):
    return metrics.DECODERS_REPLACED.labels(reason)._value.get()


@pytest.fixture(scope="module")
def hostile():
    with sandbox() as made:
        yield made


@pytest.fixture
def others():
    """Children that were there before."""
    return children()


@functools.cache
def every_kind() -> list[tuple[str, bytes]]:
    """Of each row of the conformance table a small file, and all samples, whole and cut."""
    small = photograph("astronaut").resize((200, 150))
    rows = [(f"{row.format}, {row.quirk}", made(row, small)) for row in ROWS]
    encoded = [(f"sample {number}", data) for number, data in enumerate(samples())]
    return [*rows, *encoded, *((f"{name}, cut", data[:-40]) for name, data in rows + encoded)]


def test_no_kind_of_file_makes_a_confined_child_do_what_it_must_not():
    """A child that imports, opens or looks for a file after its warm-up is ended by the kernel."""
    before = {why: replaced(why) for why in ("crashed", "timeout", "lied")}
    refused = dict[str, UnscreenedReason]()
    with sandbox(CHILD, seconds=60) as confined:
        for name, data in every_kind():
            try:
                confined.prepare(data, nullcontext)
            except DecodeError as error:
                refused[name] = error.reason
    crashed = [name for name, why in refused.items() if why is UnscreenedReason.DECODER_CRASHED]
    assert crashed == []
    assert len(refused) < len(every_kind()) // 2
    assert {why: replaced(why) for why in before} == before


def test_pictures_are_the_same_to_the_bit():
    decoder = Decoder(Decode(workers=2, isolation="processes"), LIMITS, PREPROCESSING)
    before = {reason: replaced(reason) for reason in ("crashed", "timeout", "lied")}
    try:
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(
                lambda data: outcome(lambda d: decoder.prepare(d, nullcontext), data), files() * 3
            )
            for data, one in zip(files() * 3, found, strict=True):
                assert one == outcome(lambda d: in_threads(d, nullcontext), data)
    finally:
        decoder.close()
    assert before == {reason: replaced(reason) for reason in before}


@pytest.mark.parametrize("act", sorted(set(ACTS) - {"hang"}))
def test_what_a_decoder_tries_ends_it_alone(hostile, act):
    before = replaced("crashed")
    with pytest.raises(DecodeError) as caught:
        hostile.prepare(SIGNATURE + act.encode(), nullcontext)
    assert caught.value.reason is UnscreenedReason.DECODER_CRASHED
    assert CONFINED.get(act, "SIGSYS") in str(caught.value)
    assert replaced("crashed") == before + 1
    assert hostile.prepare(files()[0], nullcontext).info.format == "JPEG"
    assert not Path("created-by-a-decoder").exists()


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_child_that_lies_is_ended(hostile, lie):
    before = replaced("lied")
    with pytest.raises(DecodeError) as caught:
        hostile.prepare(SIGNATURE + lie.encode(), nullcontext)
    assert caught.value.reason is UnscreenedReason.DECODER_CRASHED
    assert str(caught.value) == "the decoder gave a false answer"
    assert replaced("lied") == before + 1
    assert hostile.prepare(files()[0], nullcontext).info.format == "JPEG"


def test_an_answer_too_many_is_never_taken_for_the_next_picture(hostile):
    with pytest.raises(DecodeError, match="broken"):
        hostile.prepare(SIGNATURE + b"twice", nullcontext)
    assert hostile.prepare(files()[0], nullcontext).info.format == "JPEG"


def test_a_picture_that_takes_too_long_is_ended_and_others_go_on():
    with sandbox(workers=2, seconds=2.0) as made, ThreadPoolExecutor(2) as pool:
        before = replaced("timeout")
        stuck = pool.submit(made.prepare, SIGNATURE + b"hang", nullcontext)
        for data in files()[:4]:
            assert made.prepare(data, nullcontext)
        with pytest.raises(DecodeError) as caught:
            stuck.result()
        assert caught.value.reason is UnscreenedReason.DECODE_TIMEOUT
        assert replaced("timeout") == before + 1


def test_nothing_of_the_parent_is_in_the_environment(monkeypatch):
    monkeypatch.setenv("COPYSIEVE_KAFKA__SASL__PASSWORD", "secret")
    with sandbox() as made, pytest.raises(DecodeError, match="clean"):
        made.prepare(SIGNATURE + b"environment", nullcontext)


def in_threads(data, reserve):
    return prepare(data, LIMITS, PREPROCESSING, VIEWS, reserve)


def reserved(prepare, data):
    """What is asked for, and given back as a negative number."""
    asked = []

    @contextlib.contextmanager
    def reserve(cost):
        asked.append(cost)
        yield
        asked.append(-cost.nbytes)

    with contextlib.suppress(DecodeError):
        prepare(data, reserve)
    return asked


def test_memory_is_reserved_as_in_threads_and_the_wait_for_it_costs_no_time():
    data = files()[0]
    budget = ByteBudget(10_000_000, metrics.DECODED_BYTES)
    with sandbox("worker.image.sandbox_child", seconds=2.0) as made, ThreadPoolExecutor(1) as pool:
        for one in files():
            assert reserved(made.prepare, one) == reserved(in_threads, one)
        with budget.reserve(10_000_000):
            waiting = pool.submit(made.prepare, data, lambda cost: budget.reserve(cost.nbytes))
            time.sleep(2.5)
            assert not waiting.done()
        assert waiting.result().info.format == "JPEG"
        assert budget._reserved == 0


class NotNow(Exception):
    pass


def test_a_picture_that_is_put_off_leaves_the_child_as_it_was(others):
    """As the first lane does with a large picture."""

    @contextlib.contextmanager
    def put_off(_cost):
        raise NotNow
        yield

    with sandbox("worker.image.sandbox_child") as made:
        first = made.prepare(files()[0], nullcontext)
        before = children() - others
        for data in files()[:4]:
            with pytest.raises(NotNow):
                made.prepare(data, put_off)
        assert made.prepare(files()[0], nullcontext).info == first.info
        assert children() - others == before


def test_an_empty_file_is_no_format_and_harms_no_child(others):
    with sandbox("worker.image.sandbox_child") as made:
        before = children() - others
        with pytest.raises(DecodeError) as caught:
            made.prepare(b"", nullcontext)
        assert caught.value.reason is UnscreenedReason.UNSUPPORTED_FORMAT
        assert made.prepare(files()[0], nullcontext)
        assert children() - others == before


def test_a_child_is_replaced_when_it_has_served(others):
    settings = Decode(workers=1, pictures_per_process=3)
    made = Sandbox(settings, LIMITS, PREPROCESSING)
    before = replaced("served")
    seen = set[int]()
    try:
        for _ in range(7):
            assert made.prepare(files()[0], nullcontext).info.format == "JPEG"
            seen |= children() - others
    finally:
        made.close()
    assert replaced("served") == before + 2
    assert len(seen) == 3
    assert not children() - others


def test_memory_is_bounded_by_what_was_reserved(others):
    """The kernel holds a child to it: beyond it there is no memory, whatever the machine has."""
    limits = {"image_pixels": 1_000_000, "in_flight_decoded_bytes": 100_000_000}
    limits |= {"image_bytes": 1_000_000}
    with sandbox(**limits) as made, ThreadPoolExecutor(1) as pool:
        (child,) = children() - others
        trying = pool.submit(made.prepare, SIGNATURE + b"allocate", nullcontext)
        peak = 0
        while not trying.done():
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{child}/status").read_text(encoding="ascii")
                peak = max(peak, 1024 * int(status.split("VmHWM:")[1].split()[0]))
        with pytest.raises(DecodeError, match="exit code 1"):
            trying.result()
    assert 0 < peak < SLACK_BYTES + 100_000_000


def test_children_have_one_thread_no_privileges_and_nothing_open(others):
    looked_at = 0
    with sandbox("worker.image.sandbox_child", workers=3) as made:
        assert made.prepare(files()[0], nullcontext)
        for child in children() - others:
            status = Path(f"/proc/{child}/status").read_text(encoding="ascii")
            if "Seccomp:\t2" not in status:  # still starting
                continue
            assert "Threads:\t1" in status
            assert "NoNewPrivs:\t1" in status
            looked_at += 1
            if os.geteuid():  # what a child has open is root's to see
                continue
            opened = {str(one.readlink()) for one in Path(f"/proc/{child}/fd").iterdir()}
            kinds = {name.split(":")[0].split(" ")[0] for name in opened}
            assert kinds == {"/dev/null", "socket", "/memfd"}
    assert looked_at
    assert not children() - others


def test_signals_are_the_parents_business(others):
    with sandbox("worker.image.sandbox_child") as made:
        (child,) = children() - others
        assert os.getpgid(child) != os.getpgid(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(child, number)
        assert made.prepare(files()[0], nullcontext)
        assert children() - others == {child}


def test_children_go_first_when_memory_is_short_whoever_runs_the_worker():
    """As in production: without root, and from files that this user may not be able to read."""
    code = (
        "import ctypes, os; from pathlib import Path; from worker.image import confine\n"
        "if os.geteuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # as after a start by that user
        "confine.tie_to_parent()\n"
        "print(os.geteuid() > 0, Path('/proc/self/oom_score_adj').read_text())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told.split() == ["True", "1000"]


def test_a_child_killed_while_idle_costs_no_picture(others):
    with sandbox("worker.image.sandbox_child") as made:
        (child,) = children() - others
        os.kill(child, signal.SIGKILL)
        while alive(child):
            time.sleep(0.01)
        assert made.prepare(files()[0], nullcontext)
        assert children() - others not in (set(), {child})


def test_no_child_survives_a_killed_worker():
    code = (
        "from contextlib import nullcontext; import sys, threading; "
        "from tests.unit.image.test_sandbox import sandbox, SIGNATURE, children\n"
        "with sandbox(workers=2, seconds=1000) as made:\n"
        "    run = lambda: made.prepare(SIGNATURE + b'hang', nullcontext)\n"
        "    threading.Thread(target=run, daemon=True).start()\n"
        "    print(*children(), flush=True); threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as worker:
        assert worker.stdout is not None
        left = [int(child) for child in worker.stdout.readline().split()]
        assert len(left) == 2
        worker.kill()
    while any(alive(child) for child in left):  # the test's own limit ends this
        time.sleep(0.01)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"
    return False


def test_a_program_that_does_not_start_is_told():
    with pytest.raises(StartupError, match="did not start: the decoder ended with exit code 1"):
        Sandbox(Decode(workers=2), LIMITS, PREPROCESSING, program="worker.image.nowhere")


def test_a_child_that_cannot_even_be_made_is_told(monkeypatch):
    """Whatever it was: the thread that makes them has to go on, and whoever waits has to know."""
    with sandbox("worker.image.sandbox_child") as made:

        def broken(*_):
            raise MemoryError

        monkeypatch.setattr(_Child, "__init__", broken)
        made._wanted.put(True)
        (child,) = {made._take()}
        with pytest.raises(StartupError, match="did not start: MemoryError"):
            made._take()
        with pytest.raises(StartupError, match="did not start: MemoryError"):
            made.prepare(files()[0], nullcontext)
        assert made._thread.is_alive()
        child.end()


def test_a_signal_without_a_name_is_told_by_its_number(hostile):
    (child,) = {hostile._take()}
    os.kill(child._process.pid, signal.SIGRTMIN + 1)
    child._process.wait()
    assert child.death == f"the decoder died of signal {signal.SIGRTMIN + 1}"
    hostile._idle.put(child)
    assert hostile.prepare(files()[0], nullcontext)


def test_in_threads_mode_what_is_risky_goes_to_the_children(monkeypatch):
    """A new format, unless its entry says otherwise; and any with a colour profile to apply."""
    settings = Decode(workers=1, isolation="threads")
    decoder = Decoder(settings, LIMITS, PREPROCESSING)
    asked = []

    def prepare_in_child(data, reserve):
        asked.append(data)
        return children_prepare(data, reserve)

    children_prepare = decoder._sandbox.prepare
    monkeypatch.setattr(decoder._sandbox, "prepare", prepare_in_child)
    safe = [encode(noise(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP")]
    risky = [encode(noise(), kind) for kind in ("AVIF", "BMP", "TIFF", "ICO")]
    risky += [HEIC_SAMPLE, encode(noise(), "JPEG", icc_profile=rgb(DISPLAY_P3))]
    for data in (*safe, *risky):
        assert decoder.prepare(data, nullcontext)
    decoder.close()
    assert asked == risky


def test_the_longest_honest_answers_fit():
    """And one character more would not pass for honest."""
    reasons = get_args(Refusal.model_fields["reason"].annotation)
    (longest,) = sorted(reasons, key=len)[-1:]
    detail = "x" * 120
    Refusal(reason=longest, detail=detail)
    with pytest.raises(ValidationError):
        Refusal(reason=longest, detail=detail + "x")
    assert len(json.dumps({"reason": longest, "detail": detail})) <= ANSWER_BYTES
    most = 2**32 - 1
    picture = Picture(
        format="JPEG",
        width=most,
        height=most,
        frames=most,
        truncated=False,
        frames_decoded=most,
        renditions_left_out=most,
        playing_time_described=1 / 3,
        renditions=tuple((most - n, "untagged", "white", "applied") for n in range(16)),
    )
    assert len(json.dumps(picture.model_dump())) <= ANSWER_BYTES
    assert {UnscreenedReason(reason) for reason in reasons}
