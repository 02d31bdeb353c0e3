"""The formats that are decoded: how each is known, judged and read. No other reader ever runs."""

import base64
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from pi_heif import options as heif_options
from PIL import AvifImagePlugin, Image, TiffImagePlugin

from worker.image.formats import bitmaps, gif, heif, jpeg, jxl, png, tiff, webp
from worker.image.formats.container import Header
from worker.image.formats.file_types import AVIF_BRANDS, HEIC_BRANDS, BrandSignature
from worker.image.formats.items import AV1, HEVC

# Our limits are per call and come before decoding; Pillow's would warn, and be in their way.
Image.MAX_IMAGE_PIXELS = None
# Damaged metadata is no news to anyone, and it must not reach stderr once per hostile upload.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
# Pictures are decoded side by side already, and a confined process starts no more threads than it
# has to: libheif takes 0 for none.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
heif_options.DECODE_THREADS = 0
# Of TIFF all kinds, not only those with compression: Pillow's own reader takes some for others.
TiffImagePlugin.READ_LIBTIFF = True
# Only the picture itself.
heif_options.THUMBNAILS = heif_options.DEPTH_IMAGES = heif_options.AUX_IMAGES = False


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file that is decoded.

    `header` gets the bytes, and the most frames that are counted; it raises anything.
    `peak_bytes_per_pixel` is the most that decoding was measured to hold: Pillow's copies at 4
    bytes a pixel, the decoder's own, and what becomes the array, twice 3. `sandboxed`: only ever
    decoded in a process of its own.
    """

    signature: re.Pattern[bytes] | BrandSignature
    header: Callable[[bytes, int], Header]
    peak_bytes_per_pixel: int
    sandboxed: bool = True


def _is(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


FORMATS = {
    "JPEG": Format(_is(rb"\xff\xd8\xff"), jpeg.jpeg, 10, sandboxed=False),
    "PNG": Format(_is(rb"\x89PNG\r\n\x1a\n"), png.png, 14, sandboxed=False),
    "GIF": Format(_is(rb"GIF8[79]a"), gif.gif, 13, sandboxed=False),
    "WEBP": Format(_is(rb"RIFF.{4}WEBP"), webp.webp, 22, sandboxed=False),
    "AVIF": Format(BrandSignature(AV1, AVIF_BRANDS), heif.heif, 26),
    "HEIC": Format(BrandSignature(HEVC, HEIC_BRANDS), heif.heif, 26),
    "JXL": Format(_is(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), jxl.jxl, 44),
    "BMP": Format(_is(rb"BM"), bitmaps.bmp, 13),
    "TIFF": Format(_is(rb"II\*\0|MM\0\*"), tiff.tiff, 18),
    # And CUR, which browsers show as well.
    "ICO": Format(_is(rb"\0\0[\x01\x02]\0(?!\0\0)"), bitmaps.ico, 15),
}
HEIC_SAMPLE = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAADMAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEA"
    "GEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAAD"
    "AIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEA"
    "AAAQAAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAO21k"
    "YXQAAAAvKAGvEyFkY0D4EPdn/6n83/pGnP+UOx6c7IR0wNIggJtASJNdUAsWEICHdqVW3Pg="
)
"""16x16 pixels of one colour. There is no encoder here to make one."""
JXL_SAMPLE = base64.b64decode(
    "/wpDQEJxIQHoAatyCQCACpVRxg1ezvV8+aHDYtrGdYa22rawhLHZXhgkpNA5qGcMNYv3TfnqFY1Q4DfW6tR+l8ELA4QK"
    "KZBiW41kjMEgL8ZLlKEAQJAg9PEC/vhF13k7mRy4i3iedmEKeu2AQNuFp8YlUka4MuCDzPivFaleesB3CYgD"
)
"""16x16 pixels. Pillow cannot make one either."""
