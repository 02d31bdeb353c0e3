"""All cases of the corpus, by kind."""

from tests.viewers.corpus import (
    animation,
    apng_webp,
    bitmaps,
    color_chunks,
    colors,
    damage,
    damage_png,
    geometry,
    jpegxl,
    tiffs,
    transparency,
)
from tests.viewers.corpus.case import Case

_MODULES = (
    colors,
    color_chunks,
    transparency,
    bitmaps,
    animation,
    apng_webp,
    geometry,
    tiffs,
    jpegxl,
    damage_png,
    damage,
)
KINDS = ("Colour", "Transparency", "Animation", "Geometry", "Damage")
ALL: tuple[Case, ...] = tuple(
    case for kind in KINDS for module in _MODULES for case in module.CASES if case.kind == kind
)
"""Also those whose tool is not installed."""
