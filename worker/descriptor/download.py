"""One large file over HTTP(S) into a partial file, which a later try goes on with.

What was there before is kept only while the server says, by a strong ETag or a modification time,
that its file is still the same: two versions are never spliced.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import urllib3
from pydantic import BaseModel, ValidationError
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.response import BaseHTTPResponse

import worker
from worker.environment import proxy_for
from worker.errors import ModelError

type Progress = Callable[[int, int | None], None]
"""Takes the bytes that are there and, where it is known, how many there will be."""

MOST_BYTES = 2 * 1024**3  # the largest known file has 180 MB
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before another try

_CHUNK = 1024 * 1024
_MOST_SHOWN = 100  # characters of what a server says
_MOST_LOCATION = 8192
_REDIRECTS = 5
_TIMEOUT = urllib3.Timeout(connect=10.0, read=60.0)
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,256}"')


class _Cut(Exception):
    """This try failed, the next one may not."""


class _Version(BaseModel):
    """Which file the partial one is the beginning of; lies beside it as JSON."""

    source: str
    validator: str
    total: int | None


def shown(url: str) -> str:
    """The URL without what may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def download(
    source: str,
    part: Path,
    told: Progress,
    pauses: tuple[float, ...] = PAUSES,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Fill `part` with the file at `source`.

    Raises ModelError, in one line, for what another try would not mend or the last one did not;
    what is there then stays for the next call. Raises OSError where `part` cannot be written.
    """
    for pause in (*pauses, None):
        try:
            _try(source, part, told, most_bytes)
        except _Cut as error:
            if pause is None:
                raise ModelError(f"{shown(source)}: {error} (tries: {len(pauses) + 1})") from None
            time.sleep(pause)
        else:
            return


def discard(part: Path) -> None:
    """Remove a partial file, and what is known of it."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _try(source: str, part: Path, told: Progress, most_bytes: int) -> None:
    version = _begun(source, part)
    begun = part.stat().st_size if version else 0
    if version and version.total == begun:
        return  # it was only not installed
    headers = {"accept-encoding": "identity", "user-agent": f"copysieve/{worker.__version__}"}
    if version:
        headers |= {"range": f"bytes={begun}-", "if-range": version.validator}
    with _open(source, headers) as response:
        total: int | None
        if version and response.status in (_PARTIAL, _UNSATISFIABLE):
            total = _continued(response, version, begun, part)
        else:
            total = _anew(source, response, part)
            begun = 0
        if not _copy(response, part, begun, total, told, most_bytes):
            discard(part)
            raise ModelError(f"{shown(source)}: more than the {most_bytes} bytes allowed, stopped")


def _continued(response: BaseHTTPResponse, version: _Version, begun: int, part: Path) -> int:
    """The whole file's size, if the answer is the rest of the very file that was begun."""
    found = _RANGE.fullmatch(response.headers.get("content-range", ""))
    # An answer to If-Range repeats the ETag that it went by, but need not repeat a date.
    dated = not version.validator.startswith('"')
    same = (version.validator, None) if dated else (version.validator,)
    if (
        response.status != _PARTIAL
        or not found
        or int(found[1]) != begun
        or version.total not in (None, int(found[2]))
        or _validator(response) not in same
    ):
        discard(part)
        raise _Cut("the file changed, or the server cannot continue it")
    return int(found[2])


def _anew(source: str, response: BaseHTTPResponse, part: Path) -> int | None:
    """Begin with an empty file. Returns how large it will be, if that is told."""
    if response.status in _TRANSIENT:
        raise _Cut(_status(response))
    if response.status != _OK:
        found = _status(response)
        raise ModelError(f"{shown(source)}: expected the file, found {found}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ModelError(f"{shown(source)}: expected the file as it is, found it encoded")
    discard(part)
    part.touch()
    length = response.headers.get("content-length", "")
    total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    validator = _validator(response)
    if validator:
        version = _Version(source=shown(source), validator=validator, total=total)
        _notes(part).write_text(version.model_dump_json())
    return total


def _status(response: BaseHTTPResponse) -> str:
    return f"HTTP {response.status} {(response.reason or '')[:_MOST_SHOWN]}".rstrip()


def _copy(
    response: BaseHTTPResponse,
    part: Path,
    begun: int,
    total: int | None,
    told: Progress,
    most_bytes: int,
) -> bool:
    """Append the rest. Returns False where it would be, or became, more than allowed."""
    done = begun
    told(done, total)
    if total is not None and total > most_bytes:
        return False
    with part.open("ab") as file:
        for chunk in _chunks(response):
            done += len(chunk)
            if done > most_bytes:
                return False
            file.write(chunk)
            told(done, total)
    if total is not None and done != total:
        raise _Cut(f"cut at {done} of {total} bytes")
    return True


def _chunks(response: BaseHTTPResponse) -> Iterator[bytes]:
    try:
        yield from response.stream(_CHUNK, decode_content=False)
    except HTTPError as error:
        silent = isinstance(error, HTTPTimeoutError)
        raise _Cut("no bytes for too long" if silent else "the connection was cut") from None


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _begun(source: str, part: Path) -> _Version | None:
    """What is known of the partial file; None if it cannot be gone on with."""
    if not part.is_file() or not _notes(part).is_file():
        return None
    try:
        version = _Version.model_validate_json(_notes(part).read_bytes())
    except ValidationError:
        return None
    return version if version.source == shown(source) and part.stat().st_size else None


def _validator(response: BaseHTTPResponse) -> str | None:
    """What names this version of the file, fit for If-Range."""
    etag = response.headers.get("etag", "")
    if _STRONG_ETAG.fullmatch(etag):
        return etag
    modified = response.headers.get("last-modified", "")
    return modified if re.fullmatch(r"[\w,: +-]{1,64}", modified) and not etag else None


@contextlib.contextmanager
def _open(source: str, headers: dict[str, str]) -> Iterator[BaseHTTPResponse]:
    """The answer to a GET, after redirects; never from https to http."""
    url = source
    for _ in range(_REDIRECTS + 1):
        with _get(url, headers) as response:
            location = response.get_redirect_location()
            if not location:
                yield response
                return
        url = _redirected(url, location)
    raise ModelError(f"{shown(source)}: more than {_REDIRECTS} redirects")


def _redirected(url: str, location: str) -> str:
    secure = urlsplit(url).scheme == "https"
    try:
        if len(location) > _MOST_LOCATION:
            raise ValueError
        to = urljoin(url, location)
        allowed = urlsplit(to).scheme in ({"https"} if secure else {"https", "http"})
    except ValueError:
        raise ModelError(f"{shown(url)}: redirected to something that is no URL") from None
    if not allowed:
        found = shown(to)[:_MOST_SHOWN]
        raise ModelError(f"{shown(url)}: redirected to {found}, which is not https")
    return to


@contextlib.contextmanager
def _get(url: str, headers: dict[str, str]) -> Iterator[BaseHTTPResponse]:
    with contextlib.ExitStack() as stack:
        try:
            pool = stack.enter_context(_pool(url))
            response = pool.request(
                "GET",
                url,
                headers=headers | urllib3.make_headers(basic_auth=_login(url)),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=_TIMEOUT,
            )
        except ValueError:  # urllib3's, too; their texts would tell passwords
            raise ModelError(
                f"{shown(url)}: cannot connect: this URL, or the proxy's, is no URL"
            ) from None
        except HTTPError as error:
            transient = isinstance(error, (ProtocolError, HTTPTimeoutError))
            if transient and not isinstance(error, NewConnectionError):
                raise _Cut("no answer") from None
            cause = str(getattr(error, "original_error", error)).rpartition(": ")[2]
            raise ModelError(f"{shown(url)}: cannot connect: {cause[:_MOST_SHOWN]}") from None
        stack.callback(response.close)
        yield response


def _pool(url: str) -> urllib3.PoolManager:
    """A client, through the proxy that the environment names for such a URL."""
    proxy = proxy_for(url)
    if proxy is None:
        return urllib3.PoolManager()
    return urllib3.ProxyManager(
        proxy, proxy_headers=urllib3.make_headers(proxy_basic_auth=_login(proxy))
    )


def _login(url: str) -> str | None:
    """`user:password`, if the URL has them."""
    return unquote(urlsplit(url).netloc.rpartition("@")[0]) or None
