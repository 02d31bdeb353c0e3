"""Which files are AVIF and which are HEIC: by the codec of the picture, then by their brands."""

from worker.image.formats.boxes import Box, Parts, boxes
from worker.image.formats.container import Malformed
from worker.image.formats.items import AV1, HEVC, codec_of
from worker.image.formats.meta import read_meta

AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis"),
    *(b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"msf1", b"mif2"),
}
_SIGNATURE = b"ftyp"


class BrandSignature:
    """Matches the beginning of a file, as `re.Pattern.match` does."""

    def __init__(self, codec: bytes, brands: set[bytes]) -> None:
        self._codec = codec
        self._brands = brands

    def match(self, data: bytes) -> bool:
        """Whether a file's primary picture is of this codec; else by the first brand that says."""
        if data[4:8] != _SIGNATURE:
            return False
        try:
            codec = _codec(data)
            if codec in (AV1, HEVC):
                return codec == self._codec
            known = [one for one in file_brands(data) if one in AVIF_BRANDS | HEIC_BRANDS]
        except Malformed:
            return False
        return bool(known) and known[0] in self._brands


def file_brands(data: bytes) -> list[bytes]:
    """The major brand, and the compatible ones. Raises Malformed."""
    first = next(boxes(data, 0, len(data), Parts()), None)
    if first is None or first.name != _SIGNATURE:
        raise Malformed("no brands")
    major = data[first.at : first.at + 4]
    return [major, *(data[at : at + 4] for at in range(first.at + 8, first.end, 4))]


def _codec(data: bytes) -> bytes:
    parts = Parts()
    try:
        for one in boxes(data, 0, len(data), parts):
            if one.name == b"meta":
                return codec_of(read_meta(data, Box(*one), parts))
    except Malformed:  # the brands may say it
        pass
    return b""
