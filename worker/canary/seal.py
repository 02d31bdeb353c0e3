"""The seal: what tells the worker's own canaries from uploads that only look like them.

HMAC-SHA256 over the upload id, its length before it, and the record's value, as 64 hex digits in a
header, after the key's id and a colon. The key's id is the first 16 hex digits of the key's own
HMAC over a constant, so it does not reveal the key. It says whose the canary is: namespaces that
screen one topic have a key each, and would otherwise take each other's canaries for forged ones. No
time is signed: a canary may wait behind any lag, and one that is published a second time
is only screened a second time, since nobody waits for it any more.
"""

import hmac
import re

from worker.errors import StoreError
from worker.stream.admission import Signer

_KEYS = 2
_ID_DIGITS = 16
_SIGNATURE = re.compile(rb"([0-9a-f]{16}):[0-9a-f]{64}")


class Seal:
    """The keys that this replica knows. Thread-safe.

    The key before the last one goes on being good, for uploads that wait since before a Redis that
    lost it. Without any key nothing is genuine.
    """

    def __init__(self) -> None:
        self._keys: tuple[bytes, ...] = ()  # newest first

    def learn(self, key: bytes) -> bool:
        """Sign with this key from now on; True: it is another than before."""
        if self._keys[:1] == (key,):
            return False
        self._keys = (key, *self._keys)[:_KEYS]
        return True

    def sign(self, upload_id: str, value: bytes) -> bytes:
        """The header's value. Raises StoreError where no key is known."""
        if not self._keys:
            raise StoreError("there is no key to sign canaries with")
        return _signature(self._keys[0], upload_id, value)

    def signer_of(self, upload_id: str, value: bytes, signature: bytes) -> Signer:
        """Who signed this. Any key that is none of ours counts as another namespace's."""
        found = _SIGNATURE.fullmatch(signature)
        if found is None or not self._keys:
            return Signer.NOBODY
        ours = [key for key in self._keys if _key_id(key) == found[1]]
        if not ours:
            return Signer.ANOTHER
        genuine = any(
            hmac.compare_digest(_signature(key, upload_id, value), signature) for key in ours
        )
        return Signer.OURS if genuine else Signer.NOBODY


def _key_id(key: bytes) -> bytes:
    return hmac.new(key, b"copysieve canary key id", "sha256").hexdigest()[:_ID_DIGITS].encode()


def _signature(key: bytes, upload_id: str, value: bytes) -> bytes:
    name = upload_id.encode()
    signing = hmac.new(key, len(name).to_bytes(8, "big") + name, "sha256")
    signing.update(value)
    return _key_id(key) + b":" + signing.hexdigest().encode("ascii")
