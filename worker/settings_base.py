"""Types that settings are made of. `worker.settings` has the settings themselves."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _from_file(value: Any) -> Any:
    """A secret given as `file:/run/secrets/name` is read from that file."""
    if isinstance(value, str) and value.startswith("file:"):
        path = Path(value.removeprefix("file:"))
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"cannot read the secret's file {path}: {error.strerror}") from None
    return value


Secret = Annotated[SecretStr, BeforeValidator(_from_file)]


def split(value: Any) -> Any:
    """A list may be written `a,b`, or as JSON, in an environment variable."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("expected a,b or a JSON list") from None
    return [part.strip() for part in value.split(",") if part.strip()]


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]


class Group(BaseModel):
    """Base of all groups of settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
