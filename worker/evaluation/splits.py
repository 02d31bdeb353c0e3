"""Roles for pictures: references, negatives, background and null, never shared within a group."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.errors import StartupError

type Numbers = npt.NDArray[np.int64]
"""Numbers of pictures, ascending."""

LEAST_GROUPS = 20
"""Groups of pictures without which a split leaves too few in a role."""
SHARES = {"references": 0.35, "negatives": 0.3, "background": 0.25, "null": 0.1}
_HOSTS = 0.08
_FEWEST_HOSTS, _MOST_HOSTS = 4, 40


@dataclass(frozen=True, slots=True)
class Split:
    """Which picture has which role. Of a group only one picture is a reference."""

    references: Numbers
    negatives: Numbers
    background: Numbers
    null: Numbers


def hosts(groups: npt.ArrayLike, seed: int) -> Numbers:
    """Pictures that others are pasted into: of different groups, negatives in every split.

    So a picture needs to be pasted only once, and what it is pasted into is never a reference.
    """
    known, first = np.unique(groups, return_index=True)
    if len(known) < LEAST_GROUPS:
        there = f"{np.size(groups)} pictures of {len(known)} scenes"
        raise StartupError(f"{there}, evaluate needs {LEAST_GROUPS} scenes")
    count = int(np.clip(len(known) * _HOSTS, _FEWEST_HOSTS, _MOST_HOSTS))
    return np.sort(np.random.default_rng([seed, 0]).choice(first, count, replace=False))


def make(groups: npt.ArrayLike, hosts: Collection[int], count: int, seed: int) -> list[Split]:
    """Make `count` splits of pictures that belong to `groups`, by `SHARES` of all pictures."""
    of = np.asarray(groups)
    bound = {int(of[host]) for host in hosts}
    return [_make(of, bound, np.random.default_rng([seed, 1, number])) for number in range(count)]


def _make(of: npt.NDArray[np.int_], bound: Collection[int], luck: np.random.Generator) -> Split:
    sizes = dict(zip(*(found.tolist() for found in np.unique(of, return_counts=True)), strict=True))
    places = {role: round(share * len(of)) for role, share in SHARES.items()}
    roles: dict[str, list[int]] = {role: [] for role in SHARES}
    roles["negatives"] += bound
    places["negatives"] -= sum(sizes[group] for group in bound)
    for group in luck.permutation([group for group in sizes if group not in bound]).tolist():
        # Where most is missing: a large group never leaves a role without any.
        role = max(places, key=lambda one: places[one] / SHARES[one])
        roles[role].append(group)
        places[role] -= 1 if role == "references" else sizes[group]
    members = {
        role: np.flatnonzero(np.isin(of, chosen)).astype(np.int64) for role, chosen in roles.items()
    }
    members["references"] = np.sort(
        [int(luck.choice(np.flatnonzero(of == group))) for group in roles["references"]]
    )
    return Split(**members)
