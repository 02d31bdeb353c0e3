"""Why brokers take no login, in words: kafka-python's clients say only "unable to bootstrap".

One connection to a bootstrap server goes the way that a client's goes: TCP, TLS, a request that
anybody may send, the login, a request that needs one. Where it ends is the reason.
"""

import socket
import ssl
import time
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest, MetadataRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from worker.errors import StreamError
from worker.settings import Kafka, Ssl

SECONDS = 5.0
"""For one server; a broker that is asked answers in milliseconds."""
_ALL_SECONDS = 10.0
_GUESSES, _AGAIN_SECONDS = 3, 1.0
_EXCHANGED = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
"""Mechanisms whose exchange needs nothing but the settings."""
_TLS_ALERT = b"\x15\x03"
_CLOSED = "the broker closed the connection"


class _AwayError(Exception):
    """No answer now; there may be one later."""


class _MistakeError(Exception):
    """An answer that will be the same until settings, or the broker's, are others."""


class _GuessError(_MistakeError):
    """The broker closed the connection where one mistake would make it do so."""


def require_login(settings: Kafka, servers: tuple[str, ...]) -> None:
    """Raise StreamError where a server refuses the login and none takes it.

    A closed connection may have other reasons than a mistake. It counts where all servers do so
    again and again.
    """
    for _ in range(_GUESSES):
        reasons = _reasons(settings, servers)
        if sure := [one for one in reasons if type(one) is _MistakeError]:
            raise _refusal(servers, sure[0])
        if not reasons or not all(isinstance(one, _GuessError) for one in reasons):
            return
        time.sleep(_AGAIN_SECONDS)
    raise _refusal(servers, reasons[0])


def why_not(settings: Kafka, servers: tuple[str, ...]) -> str | None:
    """Why none of these servers can be used; None: at least one can."""
    return next((str(one) for one in _reasons(settings, servers)), None)


def _refusal(servers: tuple[str, ...], reason: Exception) -> StreamError:
    return StreamError(f"Kafka at {','.join(servers)} cannot be used: {reason}")


def _reasons(settings: Kafka, servers: tuple[str, ...]) -> list[Exception]:
    """Why each of these servers cannot be used; none where one can."""
    reasons: list[Exception] = []
    until = time.monotonic() + _ALL_SECONDS
    for server in servers:
        if (seconds := min(SECONDS, until - time.monotonic())) <= 0:
            break
        try:
            _log_in(settings, server, seconds)
        except (_MistakeError, _AwayError) as error:
            reasons.append(error)
        else:
            return []
    return reasons


def _log_in(settings: Kafka, server: str, seconds: float) -> None:
    """Raises _MistakeError, _AwayError."""
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    protocol = settings.security_protocol
    context = _context(settings.ssl) if protocol.endswith("SSL") else None
    try:
        connection = socket.create_connection((host, int(port)), timeout=seconds)
    except OSError as error:
        raise _AwayError(error.strerror or str(error)) from None
    with connection:
        if context is None:
            _talk(_Conversation(connection), settings)
            return
        with _wrapped(context, connection, host, protocol) as secured:
            _talk(_Conversation(secured), settings)


def _context(settings: Ssl) -> ssl.SSLContext:
    """As kafka-python makes it. Raises _MistakeError for a file that cannot be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = settings.check_hostname
    password = settings.password.get_secret_value() if settings.password else None
    for name in ("cafile", "certfile", "keyfile"):
        file = getattr(settings, name)
        if file is not None and not file.is_file():
            raise _MistakeError(f"kafka.ssl.{name} {file}: no such file")
    name = "cafile"
    try:
        if settings.cafile:
            context.load_verify_locations(settings.cafile)
        else:
            context.load_default_certs()
        name = "certfile"
        if settings.certfile:
            context.load_cert_chain(settings.certfile, settings.keyfile, password)
    except OSError as error:  # SSLError is one
        reason = getattr(error, "reason", None) or error.strerror
        raise _MistakeError(f"kafka.ssl.{name} cannot be read: {reason}") from None
    return context


def _wrapped(
    context: ssl.SSLContext, connection: socket.socket, host: str, protocol: str
) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        detail = f"its certificate is not trusted: {error.verify_message}"
        raise _MistakeError(f"{detail} (kafka.ssl.cafile, kafka.ssl.check_hostname)") from None
    except TimeoutError:
        raise _AwayError("it does not answer") from None
    except OSError:
        raise _GuessError(
            f"the port does not speak TLS, and kafka.security_protocol is {protocol}"
        ) from None


def _talk(broker: "_Conversation", settings: Kafka) -> None:
    protocol = settings.security_protocol
    try:
        broker.ask(ApiVersionsRequest(version=0))
    except _ClosedError as closed:
        if protocol.endswith("SSL"):
            raise _GuessError(f"{closed}; it may want a certificate (kafka.ssl.certfile)") from None
        raise _GuessError(
            f"{closed}; the port may speak TLS, and kafka.security_protocol is {protocol}"
        ) from None
    if protocol.startswith("SASL"):
        _authenticate(broker, settings)
        return
    try:
        broker.ask(MetadataRequest(version=1, topics=[]))
    except _ClosedError as closed:
        raise _GuessError(
            f"{closed}; it wants a login, and kafka.security_protocol is {protocol}"
        ) from None


def _authenticate(broker: "_Conversation", settings: Kafka) -> None:
    protocol, sasl = settings.security_protocol, settings.sasl
    without = f"the port takes no login, and kafka.security_protocol is {protocol}"
    try:
        answer = broker.ask(SaslHandshakeRequest(version=1, mechanism=sasl.mechanism))
    except _ClosedError:
        raise _GuessError(without) from None
    error = kafka_errors.for_code(answer.error_code)
    if error is kafka_errors.IllegalSaslStateError:
        raise _MistakeError(without)
    if error is not kafka_errors.NoError:
        known = ", ".join(answer.mechanisms)
        raise _MistakeError(
            f"it takes logins by {known}, and kafka.sasl.mechanism is {sasl.mechanism}"
        )
    if sasl.mechanism not in _EXCHANGED:
        return
    exchange = get_sasl_mechanism(sasl.mechanism)(
        sasl_mechanism=sasl.mechanism,
        sasl_plain_username=sasl.username,
        sasl_plain_password=sasl.password.get_secret_value() if sasl.password else None,
    )
    refused = f"it refuses the login of {sasl.username}"
    while not exchange.is_done():
        try:
            answer = broker.ask(SaslAuthenticateRequest(exchange.auth_bytes(), version=0))
        except _ClosedError:
            raise _GuessError(refused) from None
        if answer.error_code:
            raise _MistakeError(f"{refused}: {answer.error_message}")
        exchange.receive(answer.auth_bytes)


class _ClosedError(Exception):
    """The broker ended the connection, or said something that is not Kafka's."""


class _Conversation:
    """Requests and their answers over one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._protocol = KafkaProtocol(client_id="copysieve")

    def ask(self, request: Any) -> Any:
        """Send a request and wait for its answer. Raises _ClosedError, _AwayError."""
        try:
            self._protocol.send_request(request)
            self._connection.sendall(self._protocol.send_bytes())
            while True:
                data = self._connection.recv(65_536)
                if not data or data.startswith(_TLS_ALERT):
                    raise _ClosedError(_CLOSED)
                for _, answer in self._protocol.receive_bytes(data):
                    return answer
        except TimeoutError:
            raise _AwayError("it does not answer") from None
        except (OSError, kafka_errors.KafkaError):
            raise _ClosedError(_CLOSED) from None
