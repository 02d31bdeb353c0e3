"""The hot set's values: banks and references, and the changes that make one hot set of another.

What people write (`Bank`, `Reference`) and what replicas tell (`Heartbeat`) are strict pydantic
models, held to the same rules when read back from Redis; what only flows inside is a dataclass.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from worker.errors import Objection
from worker.events import Action, Identifier, Severity, Sha256
from worker.records import Version

if TYPE_CHECKING:
    from torch import Tensor

type View = Literal["plain", "inverted", "mirrored", "rotated_90", "rotated_180", "rotated_270"]
"""A picture derived from a reference that is described as well: `inverted` in its colours,
`mirrored` left to right, rotated by so many degrees counter-clockwise."""


def _distinct[T](values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must not repeat a value")
    return values


Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ReferenceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Pdq = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MOST_BANKS = 1000
"""Banks of a hot set."""
MOST_TENANTS = 1000
"""Tenants that a bank names."""
Tenants = Annotated[
    tuple[Identifier, ...],
    Field(min_length=1),
    AfterValidator(_distinct),
]
Views = Annotated[tuple[View, ...], Field(min_length=1), AfterValidator(_distinct)]
Score = Annotated[float, Field(allow_inf_nan=False)]
PerMillion = Annotated[float, Field(gt=0, lt=1_000_000)]


HIGHEST_COSINE = 0.995
"""Descriptors are kept in fp16, and computed on several devices: an exact copy reaches this."""
SCORES = (-1.0, 2.0)
"""Scores under a calibration lie between these."""


class Strict(BaseModel):
    """Base of all that is read back from Redis: frozen, nothing unknown, nothing converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Bank(Strict):
    """A named group of references with one policy.

    `threshold` is in scores and is pinned to the `calibration` it was set for (None: raw cosine).
    A block bank with neither threshold nor budget matches nothing. One of its references, or all
    together, are a flood where they match more than `flood_per_hour` distinct images; then
    `flood_demotes` makes the action `review`. An allow bank has `suppresses`
    instead of action, threshold and budget: its `action` stays at the default and means nothing.
    """

    name: Slug
    label: Label
    severity: Severity
    action: Action = "review"
    kind: Literal["block", "allow"] = "block"
    mode: Literal["enforce", "shadow"] = "enforce"
    threshold: Score | None = None
    calibration: Identifier | None = None
    max_false_matches_per_million: PerMillion | None = None
    tenants: Tenants | None = None
    views: Views = ("plain", "inverted")
    enabled: bool = True
    flood_per_hour: Annotated[int, Field(ge=1)] | None = None
    flood_demotes: bool = False
    suppresses: Annotated[tuple[Slug, ...], AfterValidator(_distinct)] = ()

    def screens(self, tenant: str | None) -> bool:
        """Whether a tenant's uploads are compared with it; None: an upload without one."""
        return self.enabled and (tenant is None or self.tenants is None or tenant in self.tenants)

    @property
    def threshold_problem(self) -> str | None:
        """Why nobody may set this threshold: it would match all or nothing; None: it may be set.

        Banks that are read are not held to it, so that one slip does not make a store unreadable.
        """
        if self.threshold is None:
            return None
        if self.calibration is None and not 0 < self.threshold <= HIGHEST_COSINE:
            limits = f"a cosine above 0 and up to {HIGHEST_COSINE}"
        elif not SCORES[0] < self.threshold < SCORES[1]:
            limits = f"a score between {SCORES[0]:g} and {SCORES[1]:g}"
        else:
            return None
        effect = "nearly every picture matches" if self.threshold <= 0 else "no copy matches"
        return f"threshold {self.threshold:g}: {effect}; give {limits}"

    def refusal(self, old: "Bank | None") -> str | None:
        """Why nobody may write this in place of `old`; None: it may be written.

        What `old` does already is no reason: a bank must not be in the way of being turned off. In
        shadow any threshold may be tried.
        """
        enforces = self.enabled and self.mode == "enforce"
        is_new = old is None or self.enforcement != old.enforcement
        if enforces and is_new and (problem := self.threshold_problem):
            return problem
        if len(self.tenants or ()) > MOST_TENANTS and (old is None or old.tenants != self.tenants):
            return f"{len(self.tenants or ()):,} tenants, {MOST_TENANTS:,} at most"
        return None

    @property
    def enforcement(self) -> tuple[object, ...]:
        """What its matches are enforced by, and whether they are."""
        return self.threshold, self.calibration, self.enabled, self.mode

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.threshold is not None and self.max_false_matches_per_million is not None:
            raise ValueError("threshold and max_false_matches_per_million exclude each other")
        if self.calibration is not None and self.threshold is None:
            raise ValueError("calibration goes with a threshold")
        return self

    @model_validator(mode="after")
    def _allow_banks_suppress(self) -> Self:
        if self.kind == "block":
            if self.suppresses:
                raise ValueError("only an allow bank suppresses")
            return self
        if not self.suppresses:
            raise ValueError("an allow bank must name the banks it suppresses")
        if self.name in self.suppresses:
            raise ValueError("an allow bank cannot suppress itself")
        if self.action != "review":
            raise ValueError("an allow bank has no action")
        if self.threshold is not None or self.max_false_matches_per_million is not None:
            raise ValueError("an allow bank has no threshold and no budget")
        return self


class Reference(Strict):
    """One known image. `label` and `severity` are the bank's where None; times are aware.

    `objections` are those it was added in spite of: in `shadow`, where its matches are not
    enforced, or by force. A person has `confirmed` it: a flood of its matches is no alarm.
    `copies` are digests of images that passed for benign and are copies of it: while it is here
    they count as neither background nor null, or it would not stand out from them.
    """

    reference_id: ReferenceId
    bank: Slug
    label: Label | None = None
    severity: Severity | None = None
    source: Text | None = None
    added_by: Text
    added_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    enabled: bool = True
    canary: bool = False
    shadow: bool = False
    confirmed: bool = False
    objections: Annotated[tuple[Objection, ...], AfterValidator(_distinct)] = ()
    note: Text | None = None
    sha256: Sha256 | None = None
    pdq: Pdq | None = None
    copies: Annotated[tuple[Sha256, ...], AfterValidator(_distinct)] = ()


class KeptCalibration(Strict):
    """What is told of a calibration that the store keeps, applied or not."""

    calibration_id: Identifier
    model_sha256: Sha256
    size: Annotated[int, Field(gt=0)]
    added_by: Text
    added_at: AwareDatetime


class Tombstone(Strict):
    """What a removed reference leaves: what it was, and who removed it when."""

    reference: Reference
    removed_by: Text
    removed_at: AwareDatetime


type State = Literal["waiting", "loading", "following", "damaged", "away", "shrunk"]
"""What a replica's mirror does.

`waiting` for the store to have an epoch, `loading` a snapshot, `following` the changes. Or it is
not known to equal the store: that holds values which cannot be read (`damaged`: the rest is
followed), Redis is `away`, or its set is `shrunk` and not yet accepted (what there was is kept).
"""


class Heartbeat(Strict):
    """What a replica tells about its mirror. `unusable` references are held but cannot match.

    `process` is another for each process, so that two with one name are two. `digest` is of all
    that the mirror holds, like `Tallies.digest`.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    process: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    state: State
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}-[0-9]{1,20}$")] | None
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")] | None
    references: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=0)]
    unusable: Annotated[int, Field(ge=0)] = 0
    model: Sha256
    at: AwareDatetime

    @property
    def identity(self) -> str:
        """What its key in Redis is called by: name and process, which earlier versions lack."""
        return f"{self.name}:{self.process}" if self.process else self.name


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of the index that is among a query's best.

    `similarity` is the cosine after the calibration's projection; without one it is the cosine.
    """

    reference: Reference
    bank: Bank
    view: str
    cosine: float
    similarity: float


@dataclass(frozen=True, slots=True)
class Descriptors:
    """A reference as one model sees it: `rows` is fp16 [views, dims], L2-normalised."""

    views: tuple[View, ...]
    rows: npt.NDArray[np.float16]


class Calibration(Protocol):
    """What a mirror needs of a calibration; scoring knows the rest of it."""

    @property
    def id(self) -> str:
        """The digest of its artefact."""

    @property
    def artefact(self) -> bytes:
        """How it is stored."""

    @property
    def projection(self) -> "Callable[[Tensor], Tensor] | None":
        """Moves descriptors, floating [n, dims], to where they are compared, L2-normalised."""

    @property
    def probes(self) -> "Tensor":
        """Descriptors whose best similarity in each bank is kept up to date: fp32 [n, dims]."""


@dataclass(frozen=True, slots=True)
class ReferencePut:
    """A reference was added or changed; `row` is how it is stored.

    Without `descriptors` those it has stay.
    """

    reference: Reference
    row: bytes
    descriptors: Descriptors | None


@dataclass(frozen=True, slots=True)
class ReferenceRemoved:
    """A reference was removed, with its descriptors."""

    reference_id: str


@dataclass(frozen=True, slots=True)
class BankPut:
    """A bank was added, or its policy changed; `row` is how it is stored."""

    bank: Bank
    row: bytes


@dataclass(frozen=True, slots=True)
class BankRemoved:
    """A bank was removed."""

    name: str


@dataclass(frozen=True, slots=True)
class CalibrationPut:
    """Another calibration is a model's current one; without an id none is.

    `calibration` is there for the model of the replica that reads it.
    """

    model_sha256: str
    calibration_id: str | None
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A person accepted the store as it is, however few references it has left."""


type Change = ReferencePut | ReferenceRemoved | BankPut | BankRemoved | CalibrationPut | Accepted


class Tally(NamedTuple):
    """How many values there are of a kind, and the sum of their checksums."""

    number: int = 0
    checksum: int = 0


class Tallies(dict[str, Tally]):
    """A tally for each kind of value.

    `banks`, `references`, and of each model `descriptors:SHA256` and `calibration:SHA256`.
    """

    def of_model(self, sha256: str) -> "Tallies":
        """What a mirror with this model holds."""
        kinds = ("banks", "references", f"descriptors:{sha256}", f"calibration:{sha256}")
        return Tallies((kind, self.get(kind, Tally())) for kind in kinds)

    @property
    def digest(self) -> str:
        """One name for all of it: equal where, and almost surely only where, the values are."""
        text = json.dumps(sorted(self.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Head:
    """Where the store's history stands, and what there should be.

    `mark` names the last change uniquely, where two histories (a failover lost some) may have used
    the same version twice. `accepted` is the mark of the last acceptance, or empty.
    """

    version: Version
    mark: str
    accepted: str
    tallies: Tallies = field(default_factory=Tallies)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the change stream: `changes`, which are one, led from `previous` to `mark`.

    `version` counts changes: before the entry it was lower by their number. `at` is the writer's
    clock in Unix seconds.
    """

    version: Version
    mark: str
    previous: str
    at: float
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Stored:
    """References of one bucket, as stored, with what was read of them; lists go together.

    `blobs` are the descriptors by one model, None where there are none. `unreadable` names what
    is not in the lists, because it breaks the rules.
    """

    references: Sequence[Reference]
    rows: Sequence[bytes]
    blobs: Sequence[bytes | None]
    unreadable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a hot set as seen by one model, at `head` or up to a few changes later.

    `buckets` are read as they are asked for.
    """

    head: Head
    banks: Sequence[BankPut]
    buckets: Iterable[Stored]
    calibration: Calibration | None
