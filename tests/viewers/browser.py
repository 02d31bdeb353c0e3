"""What Chromium shows of image files: the control for what the worker screens.

A `Browser` runs one headless Chromium without network. Files go to a page of it in batches, over
loopback and from memory. The page paints each file as `<img>` on white and on black, and on request
each frame that `ImageDecoder` gives. A file that kills or stalls the page is an outcome of its own;
the browser is started again for the next one.
"""

import base64
import io
import json
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.viewers import devtools
from tests.viewers.devtools import BrowserError, DevTools, TabCrashed

type Pixels = npt.NDArray[np.uint8]
"""[height, width, 3], red, green, blue."""
type Status = Literal["shown", "refused", "crashed", "timed_out"]

_PAGE = Path(__file__).with_name("page.html").read_bytes()
_BATCH_FILES = 32
_BATCH_BYTES = 8 << 20
_FILE_SECONDS = 10.0
_RENEW_AFTER = 4000
"""Files, after which the page is opened anew: decoded pictures pile up in its memory."""


@dataclass(frozen=True)
class File:
    """An encoded picture, and the content type that a host would send with it.

    `only` is the one frame that `ImageDecoder` decodes of it, where not all are wanted.
    """

    data: bytes
    content_type: str
    only: int | None = None


@dataclass(frozen=True)
class Painted:
    """A picture on a white and on a black page; the same array where the picture is opaque."""

    white: Pixels
    black: Pixels

    @property
    def is_opaque(self) -> bool:
        return self.white is self.black

    @property
    def is_empty(self) -> bool:
        """Whether nothing is seen: both pages show only themselves."""
        return not self.is_opaque and bool((self.white == 255).all() and not self.black.any())


@dataclass(frozen=True)
class Frame:
    """A frame of `ImageDecoder`. `painted` is None where the frame cannot be decoded."""

    number: int
    seconds: float
    complete: bool
    painted: Painted | None


@dataclass(frozen=True)
class Frames:
    """What `ImageDecoder` says of a file. `repetitions` is -1 for ever."""

    count: int = 0
    animated: bool = False
    repetitions: int = 0
    frames: tuple[Frame, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Shown:
    """What Chromium makes of a file. `picture` is what `<img>` paints of its first frame."""

    status: Status
    width: int = 0
    height: int = 0
    picture: Painted | None = None
    animation: Frames | None = None
    detail: str | None = None


class Browser:
    """A headless Chromium that shows files. A context manager; not for several threads."""

    def __init__(self, batch_seconds: float = 60.0) -> None:
        """`batch_seconds` is how long the page may take for a batch of files."""
        self._batch_seconds = batch_seconds
        self._server = _Server()
        self._devtools: DevTools | None = None
        self._shown = 0
        self.restarts = 0

    @staticmethod
    def is_available() -> bool:
        """Whether Chromium is installed."""
        return devtools.is_installed()

    def show(
        self,
        files: Iterable[File],
        *,
        frames: int = 0,
        square: int | None = None,
        largest: int = 1280,
    ) -> Iterator[Shown]:
        """Show files, in order.

        Args:
            files: Read as needed, a batch at a time.
            frames: The largest number of frames of each file that `ImageDecoder` decodes.
            square: Paint everything at this width and height, smoothed.
            largest: Otherwise the side of the largest square in pixels; a wider picture may have as
                many pixels. The aspect ratio is kept.

        Raises:
            BrowserError: Chromium cannot be started.
        """
        options = {
            "frames": frames,
            "square": square,
            "largest": largest,
            "milliseconds": round(_FILE_SECONDS * 1000),
        }
        for batch in _batches(files):
            shown = self._show(batch, options)
            if isinstance(shown, list):
                yield from shown
                continue
            for file in batch:  # to find the file that causes it
                yield self._alone(file, options)

    def _alone(self, file: File, options: Mapping[str, object]) -> Shown:
        """Show one file; without its frames if these kill the page, as some damaged APNGs do."""
        shown = self._show([file], options)
        if isinstance(shown, list):
            return shown[0]
        if options["frames"]:
            still = self._show([file], {**options, "frames": 0})
            if isinstance(still, list):
                return replace(still[0], animation=Frames(error=shown))
        return Shown(shown)

    def screenshot(self, file: File, background: str = "white") -> Pixels:
        """The page itself with the file as `<img>` at its top left corner, as large as the file."""
        page = self.page()
        batch = self._server.offer([file])
        width, height = page.evaluate(
            f"place({batch}, {json.dumps(background)})", self._batch_seconds
        )
        clip = {"x": 0, "y": 0, "width": max(1, width), "height": max(1, height), "scale": 1}
        answer = page.call("Page.captureScreenshot", format="png", clip=clip)
        with Image.open(io.BytesIO(base64.b64decode(answer["data"]))) as image:
            return np.asarray(image.convert("RGB"))

    def _show(
        self, files: Sequence[File], options: Mapping[str, object]
    ) -> list[Shown] | Literal["crashed", "timed_out"]:
        """What is shown, or what became of the page; the next call has a new one then."""
        page = self.page()
        batch = self._server.offer(files)
        self._shown += len(files)
        try:
            page.evaluate(f"show({batch}, {json.dumps(options)})", self._batch_seconds)
        except BrowserError as error:
            self._stop()
            self.restarts += 1
            return "crashed" if isinstance(error, TabCrashed) else "timed_out"
        return _read(self._server.result(batch))

    def page(self) -> DevTools:
        """The page, opened if there is none. Raises BrowserError."""
        unusable = self._devtools is not None and not self._devtools.is_usable
        if unusable or self._shown >= _RENEW_AFTER:
            self._stop()
        if self._devtools is None:
            self._devtools = DevTools()
            self._devtools.open(self._server.url)
            self._shown = 0
        return self._devtools

    def _stop(self) -> None:
        if self._devtools is not None:
            self._devtools.close()
            self._devtools = None

    def close(self) -> None:
        """End Chromium and the server."""
        self._stop()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batches(files: Iterable[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    size = 0
    for file in files:
        batch.append(file)
        size += len(file.data)
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(body: bytes) -> list[Shown]:
    """The page's answer: the length of a JSON text, the text, and the pixels that it describes."""
    (length,) = struct.unpack_from("<I", body)
    pixels = _Reader(body, 4 + length)
    return [_shown(listing, pixels) for listing in json.loads(body[4 : 4 + length])]


def _shown(listing: Mapping[str, Any], pixels: "_Reader") -> Shown:
    image = listing["image"]
    picture = pixels.painted(image.get("painted"))
    animation = None
    if (decoder := listing.get("decoder")) is not None:
        frames = tuple(
            Frame(
                one["number"],
                (one.get("microseconds") or 0) / 1e6,
                one.get("complete", False),
                pixels.painted(one.get("painted")),
            )
            for one in decoder["frames"]
        )
        animation = Frames(
            decoder.get("count", 0),
            decoder.get("animated", False),
            decoder.get("repetitions", 0),
            frames,
            decoder.get("error") or decoder.get("incomplete"),
        )
    status: Status = "refused" if picture is None else "shown"
    size = image["width"], image["height"]
    return Shown(status, *size, picture, animation, image.get("error"))


class _Reader:
    """Takes paintings off the page's answer, in order."""

    def __init__(self, body: bytes, at: int) -> None:
        self._body = body
        self._at = at

    def painted(self, listing: Mapping[str, Any] | None) -> Painted | None:
        if listing is None:
            return None
        white = self._pixels(listing["width"], listing["height"])
        if listing["opaque"]:
            return Painted(white, white)
        return Painted(white, self._pixels(listing["width"], listing["height"]))

    def _pixels(self, width: int, height: int) -> Pixels:
        count = 4 * width * height
        rgba = np.frombuffer(self._body, np.uint8, count, self._at).reshape(height, width, 4)
        self._at += count
        return np.ascontiguousarray(rgba[..., :3])


class _Server:
    """Serves the page and the batch at hand on loopback, and takes the page's answers."""

    def __init__(self) -> None:
        self._batch = 0
        self._offered = b""
        self._results: dict[int, bytes] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == f"/batch/{server._batch}":
                    self._answer(200, server._offered, "application/octet-stream")
                elif self.path == "/":
                    self._answer(200, _PAGE, "text/html")
                else:
                    self._answer(404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server._results[int(self.path.rpartition("/")[2])] = body
                self._answer(200)

            def _answer(self, status: int, body: bytes = b"", content_type: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/"

    def offer(self, files: Sequence[File]) -> int:
        """Serve these files from now on, as the batch of this number."""
        listing = [
            {"type": file.content_type, "size": len(file.data), "only": file.only} for file in files
        ]
        text = json.dumps(listing).encode()
        head = struct.pack("<I", len(text)) + text
        self._offered = head + b"".join(file.data for file in files)
        self._batch += 1
        return self._batch

    def result(self, batch: int) -> bytes:
        """The page's answer, once."""
        body = self._results.pop(batch)
        self._results.clear()  # what came late, of batches before
        return body

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
