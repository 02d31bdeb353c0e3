"""Servers to fetch from, and fetchers that may."""

import contextlib
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.image.fetch import Fetcher, Resolve
from worker.settings import Fetch

IMAGE_BYTES = 200_000


@dataclass(frozen=True)
class Certificate:
    """For `images.test`, signed by itself."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    file: Path


@pytest.fixture
def fetcher() -> Iterator[Callable[..., Fetcher]]:
    """Build fetchers whose settings allow plain HTTP from loopback unless told otherwise."""
    with contextlib.ExitStack() as stack:

        def build(
            resolve: Resolve | None = None,
            tls: ssl.SSLContext | None = None,
            **settings: Any,
        ) -> Fetcher:
            given: dict[str, Any] = {
                "allowed_schemes": ("http", "https"),
                "allow_loopback_addresses": True,
            }
            values = given | {"workers": 4, "deadline_seconds": 20} | settings
            more: dict[str, Any] = {"resolve": resolve} if resolve else {}
            return stack.enter_context(
                contextlib.closing(Fetcher(Fetch(**values), IMAGE_BYTES, tls=tls, **more))
            )

        yield build


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder: Path = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=images.test", "-addext", "subjectAltName=DNS:images.test"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*new, *subject, *files], check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    trusting = ssl.create_default_context(cafile=folder / "cert.pem")
    return Certificate(serving, trusting, folder / "cert.pem")
