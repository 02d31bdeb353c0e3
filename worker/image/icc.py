"""Colour profiles (ICC): what Chromium reads of one, and the arithmetic that it means.

A profile is a program from a stranger. It is parsed here into curves, tables and a matrix, and
checked as Chromium's colour engine (skcms) checks it: a profile that fails one check is ignored as
a whole. `stages.py` does the arithmetic, exactly but slowly; `color.py` is quick.

Only `kTRC`, the three `TRC` and `XYZ` tags and `A2B0` or `A2B1` count. lcms would prefer `D2B0`.
"""

import struct
from collections.abc import Sequence

import numpy as np

from worker.image.profiles import (
    COLUMNS,
    CURVES,
    HEADER_BYTES,
    SRGB_COLUMNS,
    SRGB_CURVE,
    TAG_BYTES,
    curve,
    is_known_nclx,
    matrix_profile,
    profile_of_nclx,
)
from worker.image.stages import (
    GREY,
    Curve,
    Curves,
    Floats,
    Gamut,
    Matrix,
    Profile,
    Stage,
    Table,
    stored,
    xyz_of_lab,
)

_D50 = np.array([0.9642, 1.0, 0.8249])
_ILLUMINANT_TOLERANCE = 0.01
_MOST_VERSION = 4
_SRGB = curve(*SRGB_CURVE)
_XYZ, _LAB = b"XYZ ", b"Lab "
_TABLES = (b"A2B0", b"A2B1")
_BACKWARDS = (b"B2A0", b"B2A1")
_FIXED = 65536
_ONE_NUMBER = b"\0\0\0\1"
"""Points of a curve that is a power."""
_XYZ_OF_TABLE = 65535 / 32768
_CURVE_TABLE = range(2, 4097)
"""Points of a curve in a tag of kind `mft2`."""


class Refused(Exception):
    """A profile that Chromium does not apply."""


def parse(icc: bytes, *, strict: bool = True) -> Profile:
    """Parse a profile as Chromium does, or as the most lenient viewer might.

    Not strict: lengths may be wrong, and what nobody needs to read the picture may be damaged.
    Raises Refused.
    """
    try:
        return _Parser(icc, strict=strict).profile()
    except (struct.error, IndexError, ValueError, OverflowError):
        raise Refused from None


class _Parser:
    def __init__(self, icc: bytes, *, strict: bool) -> None:
        """Read the header and the table of tags; of two tags of a name the first one counts."""
        self._strict = strict
        if len(icc) < HEADER_BYTES + 4 or icc[36:40] != b"acsp":
            raise Refused
        size, count = int.from_bytes(icc[:4]), int.from_bytes(icc[128:132])
        illuminant = np.array(struct.unpack_from(">3i", icc, 68)) / _FIXED
        if strict:
            near = (np.abs(illuminant - _D50) <= _ILLUMINANT_TOLERANCE).all()
            fits = HEADER_BYTES + 4 + TAG_BYTES * count <= size <= len(icc)
            if not (near and fits and icc[8] <= _MOST_VERSION):
                raise Refused
            icc = icc[:size]
        self._icc = icc
        self._illuminant = illuminant if strict else _D50
        self._space, self._pcs = icc[16:20], icc[20:24]
        if self._pcs not in (_XYZ, _LAB):
            raise Refused
        self._places = self._read_places(min(count, (len(icc) - HEADER_BYTES - 4) // TAG_BYTES))

    def _read_places(self, count: int) -> dict[bytes, tuple[int, int]]:
        entries = np.frombuffer(self._icc, ">u4", 3 * count, HEADER_BYTES + 4).reshape(-1, 3)
        starts, lengths = entries[:, 1].astype(np.int64), entries[:, 2].astype(np.int64)
        sound = (lengths >= 4) & (starts + lengths <= len(self._icc))  # noqa: PLR2004 - a tag's kind
        if self._strict and not sound.all():
            raise Refused
        places = dict[bytes, tuple[int, int]]()
        for name in (b"kTRC", b"cicp", *COLUMNS, *CURVES, *_TABLES, *_BACKWARDS):
            found = np.flatnonzero(entries[:, 0] == int.from_bytes(name))
            if len(found):
                places[name] = int(starts[found[0]]), int(lengths[found[0]])
        return places

    def _tag(self, name: bytes) -> bytes:
        start, length = self._places[name]
        return self._icc[start : start + length]

    def profile(self) -> Profile:
        """Put the stages together. Raises Refused, or what reading numbers raises."""
        matrix, table = self._matrix(), self._table()
        if self._strict:
            self._check_backwards()
        if (found := self._of_code_points()) is not None:
            return found
        if table is not None:
            return table
        if matrix is None:
            raise Refused
        return matrix

    def _of_code_points(self) -> Profile | None:
        """The profile that `cicp` names; Chromium prefers it to all curves and tables."""
        if b"cicp" not in self._places:
            return None
        tag = self._tag(b"cicp")
        if tag[:4] != b"cicp" or len(tag) < 12:  # noqa: PLR2004 - four code points behind 8 bytes
            if self._strict:
                raise Refused
            return None
        primaries, transfer, matrix, full_range = tag[8:12]
        if matrix or full_range != 1 or not is_known_nclx(primaries, transfer):
            return None
        return parse(profile_of_nclx(primaries, transfer) or matrix_profile(SRGB_COLUMNS, _SRGB))

    def _matrix(self) -> Profile | None:
        """Curves and a matrix, or the curve of grey; None where there are none."""
        if self._space == GREY:
            if b"kTRC" not in self._places:
                return None
            curve, _ = _curve(self._tag(b"kTRC"))
            if self._pcs == _LAB and self._strict:
                return None
            white = Matrix(self._illuminant[:, None], np.zeros(3))
            return Profile(self._space, 1, (Curves([curve]), white))
        curves, rows = self._three(CURVES), self._primaries()
        if curves is None or rows is None:
            return None
        each = [_curve(tag)[0] for tag in curves]
        if len(set(curves)) > 1 or (curves[0][8:12] > _ONE_NUMBER and curves[0][:4] == b"curv"):
            each = [_rounded(one) for one in each]
        return Profile(self._space, 3, (Curves(each), Matrix(rows, np.zeros(3))))

    def _three(self, names: Sequence[bytes]) -> list[bytes] | None:
        """Three tags; None unless all are there."""
        return [self._tag(name) for name in names] if self._places.keys() >= {*names} else None

    def _primaries(self) -> Floats | None:
        """Rows X, Y and Z by columns red, green and blue."""
        columns = self._three(COLUMNS)
        return None if columns is None else np.array([_xyz(tag) for tag in columns]).T

    def _table(self) -> Profile | None:
        name = next((name for name in _TABLES if name in self._places), None)
        if name is None:
            return None
        try:
            stages, inputs = _stages(self._tag(name), is_xyz=self._pcs == _XYZ)
        except (Refused, struct.error, IndexError, ValueError):
            if self._strict:
                raise
            return None
        rows = self._primaries()
        lab = (xyz_of_lab,) if self._pcs == _LAB else ()
        gamut = () if rows is None or not np.linalg.det(rows) else (Gamut(rows),)
        return Profile(self._space, inputs, (*stages, *lab, *gamut))

    def _check_backwards(self) -> None:
        """Chromium reads a table from XYZ to the device, too, and wants it sound."""
        name = next((name for name in _BACKWARDS if name in self._places), None)
        if name is None:
            return
        tag = self._tag(name)
        inputs, outputs, grid = tag[8:11]
        if inputs != 3 or outputs not in (3, 4):  # noqa: PLR2004 - from XYZ or Lab
            raise Refused
        if tag[:4] == b"mBA ":
            (at,) = struct.unpack_from(">I", tag, 12)
            if not at:
                raise Refused
            _curves_at(tag, at, inputs)
            return
        width, at, entries, exits = _mft(tag)
        numbers = inputs * entries + outputs * (grid**inputs + exits)
        if grid < 2 or at + width * numbers > len(tag):  # noqa: PLR2004 - a table
            raise Refused


def _xyz(tag: bytes) -> list[float]:
    if tag[:4] != _XYZ:
        raise Refused
    return [number / _FIXED for number in struct.unpack_from(">3i", tag, 8)]


def _curve(tag: bytes) -> tuple[Curve, int]:
    """A curve at the beginning of `tag`, and how many bytes it takes. Raises Refused."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if not count:
            return _power(1, 1, 0, 0, 0, 0, 0), 12
        if count == 1:
            (power,) = struct.unpack_from(">H", tag, 12)
            return _power(power / 256, 1, 0, 0, 0, 0, 0), 14
        return _sampled(np.frombuffer(tag, ">u2", count, 12) / 65535), 12 + 2 * count
    if tag[:4] != b"para":
        raise Refused
    (form,) = struct.unpack_from(">H", tag, 8)
    if form > 4:  # noqa: PLR2004 - the last one
        raise Refused
    count = (1, 3, 4, 5, 7)[form]
    numbers = [one / _FIXED for one in struct.unpack_from(f">{count}i", tag, 12)]
    g, a, b, c, d, e, f = (numbers + [0.0] * 7)[:7]
    if form == 0:
        a = 1.0
    elif form in (1, 2):
        if a == 0:
            raise Refused
        c, d, e, f = 0.0, -b / a, c, c
    # Chromium's engine computes with 32 bits, in which a curve of form 1 often ends just below 0.
    if min(g, a, c, d) < 0 or np.float32(a) * np.float32(d) + np.float32(b) < 0:
        raise Refused
    return _power(g, a, b, c, d, e, f), 12 + 4 * count


def _rounded(curve: Curve) -> Curve:
    """A curve as Chromium applies tables, and three that differ: cut, and rounded to 8 bits."""
    return lambda levels: stored(curve(levels))


def _power(g: float, a: float, b: float, c: float, d: float, e: float, f: float) -> Curve:
    """(ax + b)^g + e, and cx + f where x is below d; below 0 the same, turned around.

    Chromium's engine has 0 to any power as 0.
    """

    def curve(levels: Floats) -> Floats:
        size = np.abs(levels)
        base = np.maximum(a * size + b, 0)
        bright = np.where(base > 0, base**g, 0) + e
        shown: Floats = np.where(size < d, c * size + f, bright) * np.where(levels < 0, -1, 1)
        return shown

    return curve


def _sampled(points: Floats) -> Curve:
    """Straight lines between evenly spaced points."""
    places = np.linspace(0, 1, len(points))
    return lambda levels: np.interp(levels, places, points)


def _stages(tag: bytes, *, is_xyz: bool) -> tuple[Sequence[Stage], int]:
    """The stages of a table's tag, and how many channels come in. Raises Refused."""
    kind = tag[:4]
    if kind == b"mAB ":
        return _stages_of_mab(tag, is_xyz=is_xyz)
    if kind not in (b"mft1", b"mft2"):
        raise Refused
    inputs, outputs, grid = tag[8:11]
    if outputs != 3 or inputs not in range(1, 5) or grid < 2:  # noqa: PLR2004 - XYZ or Lab
        raise Refused
    width, at, entries, exits = _mft(tag)
    numbers = np.frombuffer(tag, f">u{width}", _mft_numbers(inputs, grid, entries, exits), at)
    levels = numbers / (256**width - 1)
    curves = levels[: inputs * entries].reshape(inputs, entries)
    table = levels[inputs * entries : -3 * exits]
    after = levels[-3 * exits :].reshape(3, exits)
    stages = (
        Curves([_sampled(one) for one in curves]),
        Table(table.reshape(*[grid] * inputs, 3)),
        Curves([_sampled(one) for one in after]),
    )
    return stages, inputs


def _mft(tag: bytes) -> tuple[int, int, int, int]:
    """Bytes a number, where the numbers begin, and points of the curves before and behind."""
    if tag[:4] == b"mft1":
        return 1, 48, 256, 256
    if tag[:4] != b"mft2":
        raise Refused
    entries, exits = struct.unpack_from(">HH", tag, 48)
    if entries not in _CURVE_TABLE or exits not in _CURVE_TABLE:
        raise Refused
    return 2, 52, entries, exits


def _mft_numbers(inputs: int, grid: int, entries: int, exits: int) -> int:
    points: int = grid**inputs
    return inputs * entries + 3 * points + 3 * exits


def _stages_of_mab(tag: bytes, *, is_xyz: bool) -> tuple[Sequence[Stage], int]:
    """A curves, table, M curves, matrix, B curves; pairs of them may be missing."""
    inputs, outputs = tag[8:10]
    if outputs != 3 or inputs not in range(1, 5):  # noqa: PLR2004 - XYZ or Lab
        raise Refused
    at_b, at_matrix, at_m, at_table, at_a = struct.unpack_from(">5I", tag, 12)
    if not at_b or bool(at_m) != bool(at_matrix) or bool(at_a) != bool(at_table):
        raise Refused
    stages = list[Stage]()
    if at_a:
        stages += [_curves_at(tag, at_a, inputs), _table_at(tag, at_table, inputs)]
    elif inputs != 3:  # noqa: PLR2004 - nothing that could make three of them
        raise Refused
    if at_m:
        numbers = np.array(struct.unpack_from(">12i", tag, at_matrix)) / _FIXED
        numbers = numbers * _XYZ_OF_TABLE if is_xyz else numbers
        stages += [_curves_at(tag, at_m, 3), Matrix(numbers[:9].reshape(3, 3), numbers[9:])]
    stages.append(_curves_at(tag, at_b, 3))
    return stages, inputs


def _curves_at(tag: bytes, at: int, count: int) -> Curves:
    curves = list[Curve]()
    for _ in range(count):
        curve, length = _curve(tag[at:])
        curves.append(curve)
        at += -(-length // 4) * 4
    return Curves(curves)


def _table_at(tag: bytes, at: int, inputs: int) -> Table:
    shape, width = tuple(tag[at : at + inputs]), tag[at + 16]
    if min(shape) < 2 or width not in (1, 2):  # noqa: PLR2004 - bytes a number
        raise Refused
    count = 3
    for points in shape:
        count *= points
    numbers = np.frombuffer(tag, f">u{width}", count, at + 20)
    return Table((numbers / (256**width - 1)).reshape(*shape, 3))
