"""From settings to a Redis client, and from its errors to ours."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from redis import Redis, RedisCluster
from redis.backoff import ExponentialBackoff
from redis.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker import settings
from worker.errors import StoreError
from worker.telemetry import log

logger = log.get(__name__)

_ERRORS = (RedisError, RedisClusterException, OSError)

_READ_BYTES = 1 << 20
"""At a time: a snapshot is gigabytes."""

type Client = Any
"""A `Redis` or `RedisCluster` that replies in bytes; redis-py's own types leave that open."""


def connect(config: settings.Redis) -> Client:
    """Return a client that has talked to Redis once. Raises StoreError, without the password.

    Warns in the log where Redis might evict references, or does not let us see whether.
    """
    try:
        client = _client(config)
    except ValueError:
        raise StoreError("redis.url: expected redis://, rediss:// or unix://") from None
    except _ERRORS as error:  # a cluster's client connects at once
        raise StoreError(_away(config, error)) from None
    try:
        client.ping()
    except _ERRORS as error:
        client.close()
        raise StoreError(_away(config, error)) from None
    _warn_of_eviction(client)
    return client


def as_store_errors[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Make errors of the Redis client StoreErrors of one line."""

    @wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except _ERRORS as error:
            raise StoreError(f"Redis: {_one_line(error)}") from error

    return translated


def _client(config: settings.Redis) -> Client:
    url = config.url.get_secret_value()
    behaviour: dict[str, Any] = {
        "socket_timeout": config.timeout_seconds,
        "socket_connect_timeout": config.timeout_seconds,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=2),
        "socket_read_size": _READ_BYTES,
        "protocol": 2,  # one shape of replies, whatever the server prefers
    }
    options = behaviour | (_tls(config.ssl) if url.startswith("rediss://") else {})
    if config.cluster:
        return RedisCluster.from_url(url, **options)
    if config.sentinel.hosts:
        sentinels = [_host_and_port(host) for host in config.sentinel.hosts]
        parts = _parts(url)
        options |= {name: parts[name] for name in ("db", "username", "password") if name in parts}
        options["ssl"] = url.startswith("rediss://")
        sentinel = Sentinel(sentinels, sentinel_kwargs=behaviour)  # type: ignore[no-untyped-call]
        return sentinel.master_for(config.sentinel.service, **options)  # type: ignore[no-untyped-call]
    return Redis.from_url(url, **options)


def _tls(config: settings.Ssl) -> dict[str, Any]:
    return {
        "ssl_ca_certs": _path(config.cafile),
        "ssl_certfile": _path(config.certfile),
        "ssl_keyfile": _path(config.keyfile),
        "ssl_password": config.password.get_secret_value() if config.password else None,
        "ssl_check_hostname": config.check_hostname,
    }


def _parts(url: str) -> dict[str, Any]:
    parts: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    return parts


def _path(path: object) -> str | None:
    return None if path is None else str(path)


def _host_and_port(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    if not (name and port.isdecimal()):
        raise StoreError(f"redis.sentinel.hosts: {host!r} is not HOST:PORT")
    return name, int(port)


def _away(config: settings.Redis, error: Exception) -> str:
    if config.sentinel.hosts:
        where = f"through Sentinel for {config.sentinel.service}"
    else:
        parts = _parts(config.url.get_secret_value())
        where = parts.get("path") or f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}"
        where = f"at {where}"
    if isinstance(error, AuthenticationError):
        return f"Redis {where} refuses the login of redis.url"
    return f"Redis {where} cannot be reached: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _warn_of_eviction(client: Client) -> None:
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    except ResponseError:
        logger.warning("redis_policy_unknown", detail="CONFIG is denied: see to noeviction")
        return
    if policy != "noeviction":
        logger.warning("redis_may_evict", maxmemory_policy=policy, detail="set noeviction")
