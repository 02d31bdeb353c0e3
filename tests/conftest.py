"""Fixtures for all tests."""

pytest_plugins = [
    "tests.fixtures.http_server",
    "tests.fixtures.kafka",
    "tests.fixtures.parity",
    "tests.fixtures.redis",
    "tests.fixtures.replicas",
    "tests.fixtures.stream",
    "tests.fixtures.processes",
]
