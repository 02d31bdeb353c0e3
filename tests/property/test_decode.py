"""Whatever the bytes are: a picture, or a DecodeError."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.samples import samples
from worker.errors import DecodeError
from worker.image.preprocess import decode, prepare
from worker.image.sandbox import Sandbox
from worker.records import DecodedImage, Prepared, Preprocessing
from worker.settings import Decode, Limits, Views

LIMITS = Limits(image_pixels=1_000_000, image_frames=5)
PREPROCESSING = Preprocessing("test", 8, "bilinear")
VIEWS = Views()


SAMPLES = st.sampled_from(samples())
SIGNATURES = st.sampled_from(
    [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8L"]
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(Decode(workers=1, deadline_seconds=60), LIMITS, PREPROCESSING)
    yield made
    made.close()


def attempt(data: bytes) -> DecodedImage | None:
    try:
        decoded = decode(data, LIMITS, target=8)
    except DecodeError:
        return None
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.ndim == 3
    assert decoded.info.width * decoded.info.height <= LIMITS.image_pixels
    assert decoded.info.bytes == len(data)
    return decoded


@given(SAMPLES, st.floats(0, 1, exclude_max=True))
def test_a_cut_anywhere(data: bytes, at: float) -> None:
    cut = data[: int(len(data) * at)]
    decoded = attempt(cut)
    if decoded is None:
        return
    if decoded.info.format == "JPEG":
        assert decoded.info.truncated
    whole = attempt(data)
    assert whole is not None
    assert decoded.info.truncated or np.array_equal(decoded.pixels, whole.pixels)


@given(SAMPLES, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=20))
def test_damage_anywhere(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    attempt(bytes(damaged))


@given(SAMPLES, SAMPLES, st.floats(0, 1), st.floats(0, 1))
def test_one_grafted_onto_another(head: bytes, tail: bytes, end: float, start: float) -> None:
    attempt(head[: int(len(head) * end)] + tail[int(len(tail) * start) :])


@given(SIGNATURES, st.binary(max_size=2000))
def test_random_bytes(signature: bytes, rest: bytes) -> None:
    attempt(signature + rest)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(SAMPLES, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=20))
def test_a_sandboxed_child_says_the_same(
    sandbox: Sandbox, data: bytes, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value

    def told(prepare: Callable[[bytes], Prepared]) -> object:
        try:
            made = prepare(bytes(damaged))
        except DecodeError as error:
            return error.reason, str(error)
        return made.info, made.looks, made.pixels.tobytes()

    expected = told(lambda data: prepare(data, LIMITS, PREPROCESSING, VIEWS))
    assert told(lambda data: sandbox.prepare(data, nullcontext)) == expected
