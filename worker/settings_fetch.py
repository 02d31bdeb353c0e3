"""Settings of the group `fetch`: which images are fetched, and how."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

import worker
from worker.settings_base import Group, Names, Positive, PositiveFloat, split

OBJECT_SCHEMES = ("s3", "gs", "az")

_BUCKET = re.compile(r"(s3|gs|az)://[a-z0-9][a-z0-9._-]{1,221}")
_HOST = re.compile(r"(\*\.)?[\w.-]+|[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*", re.ASCII | re.IGNORECASE)


def _hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what no host is called: it would allow nothing, silently."""
    for name in names:
        if name.startswith(tuple(f"{scheme}://" for scheme in OBJECT_SCHEMES)):
            raise ValueError("must hold hosts; a bucket belongs in fetch.allowed_buckets")
        if not _HOST.fullmatch(name):
            raise ValueError(
                "must hold hosts such as example.org or *.example.org, without scheme, port or path"
            )
    return names


def _buckets(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_BUCKET.fullmatch(name) for name in names):
        raise ValueError(
            "must hold whole buckets, without a key: s3://bucket, gs://bucket, az://container"
        )
    return names


UserAgent = Annotated[
    str, Field(max_length=256, pattern=r"^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$")
]
"""Printable ASCII that neither begins nor ends with a space: it becomes one line of a request."""


class Fetch(Group):
    """Fetching of linked images. Link-local and metadata addresses are denied whatever is set.

    `allowed_buckets` names every bucket that uploads may link to, as the link begins:
    `s3://bucket`, `gs://bucket`, `az://container` (the storage account is that of the worker's
    login). Whoever can write an upload event could otherwise learn from verdicts what lies in any
    bucket that the worker may read. Loopback and private addresses each need their own setting.
    `user_agent` is sent with every request for an image, to web servers and object stores.
    """

    allowed_schemes: Annotated[
        tuple[Literal["https", "http", "s3", "gs", "az"], ...],
        NoDecode,
        BeforeValidator(split),
    ] = ("https",)
    allowed_hosts: Annotated[Names, AfterValidator(_hosts)] = ()
    allowed_buckets: Annotated[Names, AfterValidator(_buckets)] = ()
    allow_private_addresses: bool = False
    allow_loopback_addresses: bool = False
    deadline_seconds: PositiveFloat = 20.0
    connect_timeout_seconds: PositiveFloat = 5.0
    redirects: Annotated[int, Field(ge=0, le=10)] = 3
    user_agent: UserAgent = f"copysieve/{worker.__version__}"
    workers: Positive = 64

    @model_validator(mode="after")
    def _buckets_are_named(self) -> Self:
        named = {bucket.partition("://")[0] for bucket in self.allowed_buckets}
        for scheme in OBJECT_SCHEMES:
            if scheme in self.allowed_schemes and scheme not in named:
                raise ValueError(
                    f"allowed_schemes has {scheme}, so allowed_buckets must name the buckets "
                    f"that uploads may link to, such as {scheme}://uploads"
                )
            if scheme in named and scheme not in self.allowed_schemes:
                raise ValueError(
                    f"allowed_buckets names {scheme}:// buckets, so allowed_schemes must "
                    f"have {scheme}"
                )
        return self
