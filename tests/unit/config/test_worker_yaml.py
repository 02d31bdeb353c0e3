"""config/worker.yaml tells every setting, with its default."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from worker import settings

FILE = Path(__file__).parents[3] / "config" / "worker.yaml"
COMPUTED = {"decode.workers", "fetch.user_agent", "replica.name"}


def names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def written(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from written(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(settings.PREFIX):
            monkeypatch.delenv(variable)


def test_it_loads_and_equals_the_defaults() -> None:
    assert settings.load(FILE).model_dump() == settings.load().model_dump()


def test_it_tells_every_setting() -> None:
    text = FILE.read_text()
    computed = re.sub(
        r"^( *)# (workers: |user_agent: |name: |replica:)", r"\1\2", text, flags=re.MULTILINE
    )
    assert set(written(yaml.safe_load(computed))) == set(names(settings.Settings))
    assert set(names(settings.Settings)) - set(written(yaml.safe_load(text))) == COMPUTED
