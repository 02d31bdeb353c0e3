"""Attacks by URL, on the worker's fetcher and on a plain `requests.get` as the control.

An attack leaks if it reaches an address that is not public, gets the inside's secret, swallows more
than the limit, goes on beyond its bound, or has something told that is nobody's business. The
control shows that the attacks bite. Its table: `pytest -s tests/integration/image/test_ssrf.py`.
"""

import gzip
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.fixtures.http_server import Server, answer
from tests.integration.image.conftest import Certificate
from tests.integration.image.world import EVIL, GOOD, PICTURE, SECRET, World, within
from worker.image.fetch import Fetcher
from worker.settings import Fetch

LIMIT = 100_000
DEADLINE = 0.5
BOUND = 2.5
"""Several times as long as either is allowed to take."""
PRIVATE = {"authorization", "cookie", "proxy-authorization", "x-injected", "referer"}

type Prepare = Callable[[World], object]


@dataclass(frozen=True)
class Attack:
    kind: str
    url: str
    prepare: Prepare = lambda _world: None
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    forbidden: tuple[str, ...] = ()
    """Public addresses that are not to be reached either."""

    def leak(self, world: World, data: bytes, *, ended: bool) -> str:
        """What went wrong; empty if nothing."""
        told = {
            name
            for server in world.servers
            for request in server.requests
            for name in request.headers
        }
        leaks = {
            "inside": world.leaked or SECRET in data,
            "forbidden": any(host in self.forbidden for host, _ in world.reached),
            "port": any(port < 1024 and port not in {80, 443} for _, port in world.reached),
            "swallowed": len(data) > LIMIT,
            "endless": not ended or len(world.reached) > 10,
            "told": told & PRIVATE,
            "file": b"root:" in data,
        }
        return ", ".join(name for name, leaked in leaks.items() if leaked)


def hosts(kind: str, *names: str) -> list[Attack]:
    return [Attack(kind, f"http://{name}/secret") for name in names]


def redirects(*targets: str, status: str = "302 Found") -> list[Attack]:
    def to(target: str) -> Prepare:
        return lambda world: world.evil.answers.update({"/": answer(b"", status, location=target)})

    kind = f"redirect {status[:3]}"
    return [Attack(kind, "http://evil.test/", to(target)) for target in targets]


def names(kind: str, url: str, prepare: Prepare = lambda _: None, **zone: Any) -> Attack:
    def also(world: World) -> None:
        world.dns.zone.update({name.replace("_", "."): turns for name, turns in zone.items()})
        prepare(world)

    return Attack(kind, url, also)


def responses(kind: str, *bodies: bytes | Callable[[World], Any]) -> list[Attack]:
    def say(body: bytes | Callable[[World], Any]) -> Prepare:
        return lambda world: world.evil.answers.update(
            {"/": body(world) if callable(body) else body}
        )

    return [Attack(kind, "http://evil.test/", say(body)) for body in bodies]


def drip(head: bytes, piece: bytes = b"x") -> Callable[[World], Any]:
    return lambda world: world.evil.drip(head, piece)


def flood(head: bytes, piece: bytes) -> Callable[[World], Any]:
    """As fast as it goes, and no more than a test can hold."""

    def behave(peer: socket.socket) -> None:
        peer.sendall(head)
        for _ in range(400):
            peer.sendall(piece)

    return lambda _world: behave


def chain(world: World) -> None:
    world.evil.answers["/"] = answer(b"", "301 Moved", location="http://good.test/hop")
    world.good.answers["/hop"] = answer(b"", "307 T", location="//internal.test/secret")


def downgrade(world: World) -> None:
    world.tls.answers["/down"] = answer(b"", "302 Found", location="http://internal.test/secret")


def again(world: World) -> None:
    """The first look-up is public, the second, for the redirect to itself, is not."""
    moved = answer(b"", "302 Found", location="/secret", connection="close")
    world.good.answers["/"] = lambda peer: peer.sendall(moved)


def cookies(world: World) -> None:
    world.evil.answers["/"] = answer(b"", "302 Found", location="/two", set_cookie="session=1")
    world.evil.answers["/two"] = answer(PICTURE)


OK = b"HTTP/1.1 200 OK\r\n"
PROXY = "http://10.0.0.9:3128"

ATTACKS = [
    *hosts(
        "address",
        *("127.0.0.1", "127.0.0.2", "127.255.255.254", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("100.64.0.1", "198.18.0.1", "192.0.2.1", "0.0.0.0", "224.0.0.1", "240.0.0.1"),
        "255.255.255.255",
    ),
    *hosts(
        "metadata",
        *("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("[fd00:ec2::254]", "[fd00:42::42]", "[fd20:ce::254]", "2852039166", "0xA9FEA9FE"),
        *("0xa9.254.0251.254", "[::ffff:169.254.169.254]"),
    ),
    *hosts(
        "IPv6",
        *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *("[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]"),
        *("[2001:0:7f00:1::]", "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[fe80::5efe:7f00:1]"),
        *("[2400:cb00::5efe:7f00:1]", "[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[fec0::1]"),
        *("[ff02::1]", "[2001:db8::1]", "[::1%25lo]"),
    ),
    *hosts(
        "spelling",
        *("127.1", "127.0.1", "0", "0x7f.1", "0x7f000001", "2130706433", "017700000001"),
        *("0177.0.0.1", "127.0.0.1.", "0x7f.0.0.0x1", "00000177.0.0.1", "10.5", "3232235777"),
    ),
    *hosts(
        "letters",
        "１２７.０.０.１",  # noqa: RUF001 - such letters are the attack
        "127.0.0.１",  # noqa: RUF001
        "127．0．0．1",  # noqa: RUF001
        "ｌocalhost",  # noqa: RUF001
        *("127。0。0。1", "①②⑦.⓪.⓪.①", "local\u00adhost"),
        *("127%2e0%2e0%2e1", "%31%32%37.0.0.1", "127.0.0.1%00"),
    ),
    *hosts("name", "localhost", "LOCALHOST", "localhost.", "internal.test", "INTERNAL.test."),
    *(
        Attack("user", url)
        for url in (
            "http://good.test@127.0.0.1/secret",
            "http://good.test:80@127.0.0.1/secret",
            "http://good.test%40127.0.0.1/secret",
            "http://good.test%2f@127.0.0.1/secret",
            "http://127.0.0.1\\@good.test/secret",
            "http://good.test\\@127.0.0.1/secret",
            "http://127.0.0.1#@good.test/",
            "http://127.0.0.1?@good.test/",
            "http://good.test@evil.test@127.0.0.1/secret",
            "http://@127.0.0.1/secret",
        )
    ),
    *(
        Attack("blanks", url)
        for url in (
            " http://127.0.0.1/secret",
            "http://127.0.0.1\n/secret",
            "http://\t127.0.0.1/secret",
            "http://good.test\t@127.0.0.1/secret",
            "http:\\\\127.0.0.1\\secret",
            "http:/127.0.0.1/secret",
            "http:///127.0.0.1/secret",
            "http://good.test/picture HTTP/1.1\r\nX-Injected: 1\r\nX: ",
            "http://good.test/picture\r\nX-Injected: 1",
            "http://good.test\r\nX-Injected: 1/picture",
        )
    ),
    *(
        Attack("port", f"http://{host}:{port}/secret")
        for host, port in [
            ("127.0.0.1", 6379),
            ("127.0.0.1", 2375),
            ("127.0.0.1", 9200),
            ("10.0.0.1", 8080),
            ("good.test", 22),
            ("good.test", 25),
            ("good.test", 445),
            ("good.test", 1),
        ]
    ),
    *(
        Attack("scheme", url)
        for url in (
            "file:///etc/passwd",
            "FILE:///etc/passwd",
            "file://localhost/etc/passwd",
            "gopher://127.0.0.1:6379/_INFO",
            "ftp://127.0.0.1/secret",
            "dict://127.0.0.1:11211/stats",
            "ldap://127.0.0.1/",
            "jar:http://127.0.0.1/secret!/",
            "data:text/plain,the%20secret",
            "HtTp://127.0.0.1/secret",
            "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
            "url:file:///etc/passwd",
        )
    ),
    *(
        attack
        for status in ("301 M", "302 F", "303 S", "307 T", "308 P")
        for attack in redirects("http://127.0.0.1/secret", status=status)
    ),
    *redirects(
        "//127.0.0.1/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:10.0.0.1]/secret",
        "http://2130706433/secret",
        "http://internal.test/secret",
        "http://good.test@127.0.0.1/secret",
        "https://127.0.0.1/secret",
        "http://good.test:25/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_INFO",
        "s3://internal.test/secret",
        "\\\\127.0.0.1\\secret",
        "http:\\\\127.0.0.1\\secret",
        "/",
    ),
    Attack("redirects", "http://evil.test/", chain),
    Attack("redirects", "https://images.test/down", downgrade),
    names("rebinding", "http://turn.test/", again, turn_test=[[GOOD], ["127.0.0.1"]]),
    names("rebinding", "http://turn.test/", again, turn_test=[[GOOD], ["::ffff:10.0.0.1"]]),
    names("two addresses", "http://two.test/secret", two_test=[["127.0.0.1", GOOD]]),
    names("two addresses", "http://two.test/secret", two_test=[["::1", GOOD]]),
    names("CNAME", "http://alias.test/secret", alias_test=[["internal.test"]]),
    names("CNAME", "http://a.test/secret", a_test=[["b.test"]], b_test=[["localhost"]]),
    names("AAAA", "http://six.test/secret", six_test=[["::ffff:169.254.169.254"]]),
    names("AAAA", "http://six.test/secret", six_test=[["64:ff9b::a00:1"]]),
    Attack(
        "allowed host",
        "http://internal.test/secret",
        settings={"allowed_hosts": ("internal.test",)},
    ),
    *(
        Attack(
            "allowed host",
            url,
            lambda world: world.dns.zone.update(
                {
                    "good.test.evil.test": [[EVIL]],
                    "notgood.test": [[EVIL]],
                    "good.test-evil.test": [[EVIL]],
                }
            ),
            settings={"allowed_hosts": ("good.test", "*.good.test")},
            forbidden=(EVIL,),
        )
        for url in (
            "http://evil.test/picture",
            "http://good.test.evil.test/picture",
            "http://notgood.test/picture",
            "http://good.test-evil.test/picture",
            "http://evil.test/?good.test",
            "http://evil.test/#.good.test",
            "http://evil.test\\.good.test/picture",
            f"http://{EVIL}/picture",
        )
    ),
    Attack(
        "allowed host",
        "http://good.test/",
        lambda world: world.good.answers.update(
            {"/": answer(b"", "302 Found", location="http://evil.test/picture")}
        ),
        settings={"allowed_hosts": ("good.test",)},
        forbidden=(EVIL,),
    ),
    *responses(
        "bomb",
        answer(gzip.compress(bytes(40 * LIMIT)), content_encoding="gzip"),
        answer(zlib.compress(bytes(40 * LIMIT)), content_encoding="deflate"),
        answer(gzip.compress(gzip.compress(bytes(40 * LIMIT))), content_encoding="gzip, gzip"),
    ),
    *responses(
        "endless",
        flood(OK + b"connection: close\r\n\r\n", bytes(10_000)),
        flood(OK + b"content-length: 4000000\r\n\r\n", bytes(10_000)),
        flood(OK + b"transfer-encoding: chunked\r\n\r\n", b"2710\r\n" + bytes(10_000) + b"\r\n"),
        drip(OK, b"x: y\r\n"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(OK + b"transfer-encoding: chunked\r\n\r\n1;", b"x"),
        drip(b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 100000\r\n\r\n"),
    ),
    *responses(
        "slow",
        drip(b"", b""),
        drip(b"H"),
        drip(b"HTTP/1.1 200 "),
        drip(OK + b"x: "),
        drip(OK + b"content-length: 100000\r\n\r\n"),
        drip(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ),
    *responses(
        "lies",
        drip(OK + b"content-length: 99999\r\n\r\nshort", b""),
        answer(b"short", content_length=3) + OK + b"content-length: 10\r\n\r\n" + SECRET,
        answer(b"", content_length=-1) + bytes(2 * LIMIT),
        answer(b"", content_length="0x10") + bytes(2 * LIMIT),
        answer(bytes(2 * LIMIT), content_length=10, transfer_encoding="identity"),
        b"HTTP/1.1 200 " + b"x" * 2_000_000 + b"\r\n\r\n",
        OK + b"x: " + b"y" * 2_000_000 + b"\r\n\r\n",
        b"\x00" * 100_000,
    ),
    *(
        Attack("environment", url, environment={name: PROXY})
        for name, url in (
            ("HTTP_PROXY", "http://good.test/picture"),
            ("http_proxy", "http://good.test/picture"),
            ("ALL_PROXY", "http://good.test/picture"),
            ("HTTPS_PROXY", "https://images.test/picture"),
        )
    ),
    Attack("environment", "http://evil.test/picture", environment={"NETRC": "netrc"}),
    Attack("cookies", "http://evil.test/", cookies),
]


def ours(attack: Attack, world: World, certificate: Certificate) -> Callable[[], bytes]:
    settings = {
        "allowed_schemes": ("https", "http", "s3"),
        "allowed_buckets": ("s3://internal.test",),
        "deadline_seconds": DEADLINE,
    }
    fetcher = Fetcher(
        Fetch(**{**settings, "workers": 2, **attack.settings}),
        LIMIT,
        resolve=world.resolve,
        tls=certificate.client,
    )

    def fetch() -> bytes:
        try:
            return fetcher.fetch(attack.url)
        finally:
            fetcher.close()

    return fetch


def control(attack: Attack, _world: World, _certificate: Certificate) -> Callable[[], bytes]:
    return lambda: requests.get(attack.url, timeout=DEADLINE).content


def outcome(attack: Attack, fetch: Callable[..., Callable[[], bytes]], files: Certificate) -> str:
    """How it leaks; empty if it does not."""
    with World(files.server).entered() as world, pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        patch.setenv("REQUESTS_CA_BUNDLE", str(files.file))
        for name, value in attack.environment.items():
            patch.setenv(name, str(files.file.with_name(value)) if name == "NETRC" else value)
        attack.prepare(world)
        data, ended = within(BOUND, fetch(attack, world, files))
        return attack.leak(world, data, ended=ended)


@pytest.fixture
def files(certificate: Certificate) -> Certificate:
    netrc: Path = certificate.file.with_name("netrc")
    netrc.write_text("machine evil.test login worker password hunter2\n")
    return certificate


def test_the_world_lets_honest_fetches_through(files: Certificate) -> None:
    """Else nothing would leak from it either. And the control comes as far."""
    for url in (
        "http://good.test/picture",
        "https://images.test/picture",
        f"http://{GOOD}/picture",
    ):
        for fetch in (ours, control):
            with World(files.server).entered() as world, pytest.MonkeyPatch.context() as patch:
                patch.setenv("REQUESTS_CA_BUNDLE", str(files.file))
                honest = Attack("none", url)
                assert within(30, fetch(honest, world, files)) == (PICTURE, True)
                assert not honest.leak(world, PICTURE, ended=True)
                assert {port for _, port in world.reached} == {443 if "https" in url else 80}
                asked: list[Server] = [one for one in world.servers if one.requests]
                assert [one.requests[0].headers["host"] for one in asked] == [url.split("/")[2]]


# What the control leaves open until a server stops is left to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_attack_leaks_where_the_control_does(files: Certificate) -> None:
    table = [(one, outcome(one, ours, files), outcome(one, control, files)) for one in ATTACKS]
    print(f"\n{'attack':15} {'worker':10} {'requests.get':20} url")
    for attack, worker, plain in table:
        print(f"{attack.kind:15} {worker or '-':10} {plain or '-':20} {ascii(attack.url)[1:60]}")
    bitten = sum(bool(plain) for *_, plain in table)
    print(f"{len(table)} attacks: 0 must leak from the worker, {bitten} do from requests.get")
    assert [(one.kind, one.url, leak) for one, leak, _ in table if leak] == []
    assert len(table) >= 60
    assert bitten >= 60
