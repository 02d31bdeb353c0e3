"""Vetting: what speaks against a picture as a reference, before it becomes one.

One bad reference matches thousands of innocent uploads. So each new one is looked at from four
sides: its pixels (they show nothing), the model (it takes the picture for a test pattern), the hot
set (the reference is there already, or an allow reference is the same picture), and the
calibration's null images (too many of them would match).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from worker.descriptor.embedders import Embedder
from worker.errors import Objection
from worker.hotset.found import Bars
from worker.hotset.hot_set import Against
from worker.hotset.mirror import Mirror
from worker.hotset.types import Bank, Descriptors, Hit, Reference
from worker.image import information, patterns
from worker.records import Pixels
from worker.scoring.rules import Applied, Rules

PATTERN = 0.5
"""Cosine from which a picture counts as one of the patterns. Of 93 photographs the highest was 0.40
(coins, to dots); of 176 patterns of another seed 159 were above, 139 when resized and saved as JPEG
at quality 60."""
DUPLICATE = 0.95
"""Cosine from which a reference is there already: it would find nothing that the other does not.
Of 20 photographs 18 kept 0.97 as JPEG at quality 85; stereo pairs have 0.88 to 0.90."""
ALLOWED = 0.75
"""Cosine from which a picture collides with one of the other kind of bank: what the model's card
gives for copies."""
BATCH = 16
"""Patterns that are described at a time."""
_NEAREST = 32
_CROWD = 2048
"""Pairs of views and rows that the banks share where more than the nearest are alike."""
_ANY = -2.0
"""Below every cosine."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture that is to become a reference; `pixels`, where they are at hand, as described."""

    reference: Reference
    descriptors: Descriptors
    pixels: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Objected:
    """One objection with its reason; `reference_id` is the reference that it is about, if any."""

    objection: Objection
    detail: str
    reference_id: str | None = None


class Vetting:
    """Judges candidates against what is known of the model and the hot set, and each other.

    `mirror` holds the hot set, and `rules` are made of it. `known` are the references of the bank,
    also those that the mirror does not search: disabled ones, and those that another model
    described. `share` is the most of its bank's budget of false matches that one reference may use
    up.
    """

    def __init__(
        self,
        embedder: Embedder,
        mirror: Mirror,
        rules: Rules,
        share: float,
        known: Iterable[Reference] = (),
    ) -> None:
        self._mirror = mirror
        self._rules = rules
        self._share = share
        self._device = embedder.device
        self._patterns = described_patterns(embedder)
        self._fresh = _Fresh(embedder.model.dims, embedder.device)
        self.known = {one.reference_id: one for one in known}
        self._digests = {one.sha256: name for name, one in self.known.items() if one.sha256}

    def objections(self, bank: Bank, candidates: Sequence[Candidate]) -> list[tuple[Objected, ...]]:
        """What speaks against each candidate for the bank, gravest first; often nothing.

        One without objections is taken as added: the same picture after it is a duplicate. A canary
        is a benign picture: its pixels and the patterns alone can speak against it.
        """
        if not candidates:
            return []
        rows = [_vectors(one.descriptors, self._device) for one in candidates]
        found = self._mirror.search(torch.cat(rows), [None] * sum(map(len, rows)), _NEAREST)
        applied = self._rules.of(found.against)
        judged: list[tuple[Objected, ...]] = []
        at = 0
        for candidate, own in zip(candidates, rows, strict=True):
            hits = self._hits(bank, own, found.hits[at : at + len(own)])
            at += len(own)
            raised = _distinct(self._of_the_picture(candidate, own))
            if not candidate.reference.canary:
                raised += self._of_the_hot_set(bank, candidate, own, hits)
                raised += self._of_the_null_images(bank, candidate, own, applied)
                if not raised:
                    self._remember(candidate, own)
            judged.append(tuple(raised))
        return judged

    def _of_the_picture(self, candidate: Candidate, own: Tensor) -> Iterator[Objected]:
        if candidate.pixels is not None:
            found = information.objection(candidate.pixels)
            if found is not None:
                yield Objected(*found)
        best = {family: float((own @ drawn.T).max()) for family, drawn in self._patterns.items()}
        family = max(best, key=lambda one: best[one])
        if best[family] >= PATTERN:
            detail = f"to the model it is {family}: cosine {best[family]:.2f}"
            yield Objected(patterns.OBJECTIONS[family], detail)

    def _of_the_hot_set(
        self, bank: Bank, candidate: Candidate, own: Tensor, hits: Sequence[Hit]
    ) -> Iterator[Objected]:
        # A reference that is there already is no duplicate, of itself least of all.
        if candidate.reference.reference_id not in self.known and (
            objected := self._duplicate(bank, candidate.reference, own, hits)
        ):
            yield objected
        if objected := _allowed(bank, hits):
            yield objected

    def _duplicate(
        self, bank: Bank, reference: Reference, own: Tensor, hits: Sequence[Hit]
    ) -> Objected | None:
        reference_id = reference.reference_id
        same = self._digests.get(reference.sha256 or "")
        if same is not None and same != reference_id:
            return Objected(Objection.DUPLICATE, f"the very file of reference {same}", same)
        near = [
            (hit.cosine, hit.reference.reference_id) for hit in hits if hit.bank.name == bank.name
        ]
        near += self._fresh.like(own, DUPLICATE)
        others = (one for one in near if one[1] != reference_id)
        cosine, other = max(others, default=(-1.0, ""))
        if cosine < DUPLICATE:
            return None
        return Objected(Objection.DUPLICATE, f"like reference {other}: cosine {cosine:.2f}", other)

    def _of_the_null_images(
        self, bank: Bank, candidate: Candidate, own: Tensor, applied: Applied
    ) -> Iterator[Objected]:
        budget, rule = bank.max_false_matches_per_million, applied.rules.get(bank.name)
        if budget is None or rule is None or rule.state != "budget" or rule.threshold is None:
            return
        copies = candidate.reference.copies
        expected = applied.false_matches_of(own, rule.threshold, self._rules.looks, copies)
        if expected > self._share * budget:
            share = f"{self._share:.0%} of the bank's {budget:g}"
            detail = f"{expected:g} false matches per million expected, more than {share}"
            yield Objected(Objection.FALSE_MATCHES, detail)

    def _hits(self, bank: Bank, own: Tensor, nearest: Sequence[Sequence[Hit]]) -> list[Hit]:
        """The hits of a candidate: where many are alike, of each bank that may speak against it."""
        if any(len(hits) == _NEAREST and hits[-1].cosine >= ALLOWED for hits in nearest):
            nearest = self._mirror.search_banks(
                own, None, lambda against: _bars(against, bank, len(own)), _CROWD
            ).hits
        return list(chain.from_iterable(nearest))

    def _remember(self, candidate: Candidate, own: Tensor) -> None:
        reference = candidate.reference
        self._fresh.add(reference.reference_id, own)
        if reference.sha256:
            self._digests.setdefault(reference.sha256, reference.reference_id)


class _Fresh:
    """Descriptors of the candidates that were taken as added, in a matrix that grows by doubling.

    It is searched in fp32: none of these is in the mirror yet.
    """

    def __init__(self, dims: int, device: torch.device) -> None:
        self._rows = torch.empty((_NEAREST, dims), device=device)
        self._names: list[str] = []

    def add(self, reference_id: str, rows: Tensor) -> None:
        """Add the rows of a reference, float32 [n, dims]."""
        begin, end = len(self._names), len(self._names) + len(rows)
        if end > len(self._rows):
            more = torch.empty_like(self._rows[:1]).expand(max(end, len(self._rows)), -1)
            self._rows = torch.cat([self._rows, more])
        self._rows[begin:end] = rows
        self._names += [reference_id] * len(rows)

    def like(self, own: Tensor, cosine: float) -> list[tuple[float, str]]:
        """Cosines of at least so much, best of each row, with their references."""
        if not self._names:
            return []
        best = (own @ self._rows[: len(self._names)].T).max(dim=0).values
        close = (best >= cosine).nonzero()[:, 0].tolist()
        return [(float(best[number]), self._names[number]) for number in close]


_DESCRIBED: dict[str, Mapping[patterns.Family, Tensor]] = {}


def described_patterns(embedder: Embedder) -> Mapping[patterns.Family, Tensor]:
    """What the model makes of the patterns: float32 [n, dims] of each family, on its device.

    Once per process and model, for it takes as long as so many pictures.
    """
    sha256 = embedder.model.sha256
    if sha256 not in _DESCRIBED:
        _DESCRIBED[sha256] = {
            family: _describe(embedder, patterns.draw(family, embedder.preprocessing.size))
            for family in patterns.FAMILIES
        }
    return _DESCRIBED[sha256]


def _describe(embedder: Embedder, drawn: Pixels) -> Tensor:
    parts = [embedder.describe(drawn[at : at + BATCH]) for at in range(0, len(drawn), BATCH)]
    return torch.cat(parts)


def _vectors(descriptors: Descriptors, device: torch.device) -> Tensor:
    """As they are searched: float32 [views, dims] on the device."""
    return torch.from_numpy(descriptors.rows.astype(np.float32)).to(device)


def _bars(against: Against, bank: Bank, queries: int) -> Bars:
    """Any row of the bank itself, and of the banks of the other kind."""
    banks = {
        name: _ANY
        for name, one in against.banks.items()
        if name == bank.name or one.kind != bank.kind
    }
    return Bars(banks, [0.0] * queries)


def _distinct(raised: Iterable[Objected]) -> list[Objected]:
    """The first of each objection: pixels and patterns may say the same."""
    return list({one.objection: one for one in reversed(list(raised))}.values())[::-1]


def _allowed(bank: Bank, hits: Iterable[Hit]) -> Objected | None:
    """A block reference that is an allow reference's picture, or the reverse."""
    others = [hit for hit in hits if hit.bank.kind != bank.kind]
    nearest = max(others, key=lambda hit: hit.cosine, default=None)
    if nearest is None or nearest.cosine < ALLOWED:
        return None
    other = nearest.reference.reference_id
    detail = f"{nearest.bank.kind} reference {other} is like it: cosine {nearest.cosine:.2f}"
    return Objected(Objection.ALLOWED, detail, other)
