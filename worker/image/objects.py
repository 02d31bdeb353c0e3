"""Images in object stores: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`.

Endpoint and credentials are the operator's, through the platform's usual chain (environment, web
identity, instance metadata); only bucket and key come from the event. The bucket must be one that
`fetch.allowed_buckets` names: a login may read more than uploads may link to. The key is what
follows the bucket, letter by letter: nothing in it is decoded, `?` and `#` belong to it.

The stores' client follows redirects to any host, whatever its address. It takes `Authorization`
along to none, but `X-Amz-Security-Token`, a part of S3's credentials, and, as the referer, the
whole URL, in which a shared access signature of Azure stands. So wherever an object can be had by
its URL alone (S3; Azure by account key, shared access signature or without a login) our own hands
fetch it, which follow no redirect. What remains with the client, for its login is a header: Google,
and Azure by a token.
"""

import re
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from worker.environment import store_login
from worker.errors import FetchError, UnscreenedReason
from worker.image.threads import started_pool
from worker.settings import Fetch

if TYPE_CHECKING:
    from obstore.store import ClientConfig  # exists for type checkers only

type _Store = S3Store | GCSStore | AzureStore
type GetStored = Callable[[str, str, float], bytes]
"""Gets the URL of an object in a bucket within some seconds. Raises FetchError."""

_STORES: dict[str, Callable[..., _Store]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
SCHEMES = frozenset(_STORES)

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_CHUNK_BYTES = 64 * 1024
_STORES_KEPT = 64
_TRUE = frozenset({"1", "true", "on", "yes", "y"})
_SIGNED_FOR = timedelta(minutes=5)
_NOBODY: dict[str, dict[str, Any]] = {
    "s3": {"access_key_id": "nobody", "secret_access_key": "none", "expires_at": None},
    "az": {"access_key": "bm9uZQ==", "expires_at": None},
}
"""Logins that nobody has: what they sign shows where an object lies."""
_FINAL_STATUS = re.compile(r"status code: 4(?!08|25|29)")


class ObjectFetcher:
    """Fetches objects for many threads. `config` overrides the stores' environment."""

    def __init__(
        self,
        settings: Fetch,
        image_bytes: int,
        get_stored: GetStored,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = settings
        self._image_bytes = image_bytes
        self._get_stored = get_stored
        self._config = dict(config or {})
        self._store = lru_cache(_STORES_KEPT)(self._new_store)
        self._threads = started_pool(settings.workers, "fetch-object")

    def fetch(self, url: str, seconds: float) -> bytes:
        """Fetch one object in one attempt; blocks for `seconds` at most. Raises FetchError."""
        scheme, bucket, key = self.admit(url)
        deadline = time.monotonic() + seconds
        if at := self._within(deadline, bucket, self._url, scheme, bucket, key):
            return self._get_stored(at, bucket, deadline - time.monotonic())
        return self._within(deadline, bucket, self._read, scheme, bucket, key)

    def _within[**P, T](
        self, deadline: float, bucket: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Have the stores' client do something until a deadline.

        Its timeouts are for one request, and finding credentials takes several: so the wait is
        bounded here, and the client ends what is left of it a little later.
        """
        working = self._threads.submit(work, *args, **kwargs)
        try:
            return working.result(timeout=deadline - time.monotonic())
        except FileNotFoundError:
            raise FetchError(UnscreenedReason.FETCH_NOT_FOUND, f"{bucket}: no such key") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            detail = f"{bucket}: {type(error).__name__}"
            raise FetchError(UnscreenedReason.FETCH_DENIED, detail) from None
        except (BaseError, OSError, TypeError, ValueError) as error:
            working.cancel()
            # The client's own timeouts have no type that tells them from other failures.
            if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
                detail = f"{bucket}: too slow"
                raise FetchError(UnscreenedReason.FETCH_TIMEOUT, detail, transient=True) from None
            raise FetchError(
                UnscreenedReason.FETCH_FAILED,
                f"{bucket}: {type(error).__name__}",
                transient=_may_pass(error),
            ) from None

    def close(self) -> None:
        """Let the threads end as their requests do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def admit(self, url: str) -> tuple[str, str, str]:
        """Scheme, bucket and key, held to the settings. Raises FetchError."""
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        denied = UnscreenedReason.FETCH_DENIED
        if scheme.lower() not in self._settings.allowed_schemes:
            raise FetchError(denied, "the scheme is not allowed")
        if not _BUCKET.fullmatch(bucket):
            raise FetchError(denied, "not the name of a bucket")
        if f"{scheme.lower()}://{bucket}" not in self._settings.allowed_buckets:
            raise FetchError(denied, f"{bucket}: the bucket is not allowed")
        if not key:
            raise FetchError(denied, f"{bucket}: no key")
        return scheme.lower(), bucket, key

    def _new_store(self, scheme: str, bucket: str, *, nobodys: bool = False) -> _Store:
        options: ClientConfig = {
            "allow_http": True,  # only where the operator has set such an endpoint
            "connect_timeout": timedelta(seconds=self._settings.connect_timeout_seconds),
            "timeout": timedelta(seconds=self._settings.deadline_seconds),
            "user_agent": self._settings.user_agent,
        }
        more: dict[str, Any] = {"config": self._config}
        if nobodys:
            more = {
                "config": self._config | {"skip_signature": False},
                "credential_provider": lambda: _NOBODY[scheme],
            }
        return _STORES[scheme](
            bucket, client_options=options, retry_config={"max_retries": 0}, **more
        )

    def _url(self, scheme: str, bucket: str, key: str) -> str | None:
        """Where an object can be had without any header; None if it cannot."""
        login = store_login(scheme) | self._config
        public = str(login.get("skip_signature", "")).lower() in _TRUE
        if scheme not in _NOBODY:
            return None
        if not public and (scheme == "s3" or "account_key" in login):
            return obstore.sign(self._store(scheme, bucket), "GET", key, _SIGNED_FOR)
        if not public and "sas_key" not in login:
            return None
        nobodys = obstore.sign(self._store(scheme, bucket, nobodys=True), "GET", key, _SIGNED_FOR)
        plain = nobodys.partition("?")[0]  # those of the key are encoded
        return plain if public else f"{plain}?{login['sas_key'].lstrip('?')}"

    def _read(self, scheme: str, bucket: str, key: str) -> bytes:
        result = obstore.get(self._store(scheme, bucket), key)
        too_large = FetchError(
            UnscreenedReason.TOO_LARGE, f"{bucket}: more than {self._image_bytes} bytes"
        )
        if result.meta["size"] > self._image_bytes:
            raise too_large
        data = BytesIO()  # it hands over what it holds, without a copy
        for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
            data.write(chunk)
            if data.tell() > self._image_bytes:
                raise too_large
        return data.getvalue()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: the client has one type for all of it, and texts."""
    return isinstance(error, GenericError) and not _FINAL_STATUS.search(str(error))
