"""Fixtures for all tests."""

pytest_plugins = ["tests.fixtures.kafka", "tests.fixtures.stream"]
