"""Reads single bits, as the headers of coded pictures need it."""

from worker.image.formats.container import Malformed


class Bits:
    """Bits of bytes, one after the other: the most significant one first, or the least one."""

    def __init__(self, data: bytes, *, least_first: bool = False) -> None:
        order = "little" if least_first else "big"
        self._number = int.from_bytes(data, order)  # type: ignore[arg-type]
        self._length = 8 * len(data)
        self._least_first = least_first
        self.at = 0

    def take(self, count: int) -> int:
        """Return a number of `count` bits. Raises Malformed beyond the end."""
        self.skip(count)
        shift = self.at - count if self._least_first else self._length - self.at
        return self._number >> shift & ((1 << count) - 1)

    def skip(self, count: int) -> None:
        """Pass over `count` bits. Raises Malformed beyond the end."""
        self.at += count
        if self.at > self._length:
            raise Malformed("a header that ends early")

    def exponential(self) -> int:
        """Return an Exp-Golomb number. Raises Malformed."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:  # noqa: PLR2004 - no number is longer
                raise Malformed("a number without end")
        return (1 << zeros) - 1 + self.take(zeros)
