import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.evaluation.edits import EDITS, OTHERS, copy_of
from worker.image import edits as plain

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
KINDS = {
    "recompression", "rescale", "crop", "border", "caption", "emoji", "filter", "noise", "blur",
    "greyscale", "inversion", "flip", "rotation", "perspective", "screenshot", "paste", "collage",
    "pair",
}  # fmt: skip
RANDOM = [
    *("cropped, 80% a side", "six emoji, 20%", "noise, sigma 15", "perspective, 8%"),
    *("pasted, 40% a side", "captioned above"),
]


def picture(seed, size=(240, 180)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


OF_OTHERS = [picture(seed, size) for seed, size in ((1, (200, 300)), (2, (64, 64)), (3, (512, 64)))]


def copy(edit, key="a", seed=1, of=None):
    made = copy_of(of or picture(0), key, EDITS[edit], seed, OF_OTHERS)
    return Image.open(io.BytesIO(made))


def test_the_table_of_the_documentation_is_the_code():
    table = PAGE.read_text(encoding="utf-8").split("<!-- edits -->")[1]
    rows = ["| edit | kind | what is done |", "|---|---|---|"]
    rows += [f"| {one.name} | {one.kind} | {one.what} |" for one in EDITS.values()]
    assert table.strip() == "\n".join(rows)


def test_there_are_enough_and_of_every_kind():
    assert len([one for one in EDITS.values() if one.kind != "pair"]) >= 20
    assert {one.kind for one in EDITS.values()} == KINDS
    assert len(OF_OTHERS) == OTHERS


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("size", [(240, 180), (64, 500)])
def test_the_same_copy_every_time_and_another_picture(edit, size):
    given = picture(0, size)
    before = given.tobytes()
    made = copy(edit, of=given)
    assert (made.format, made.mode) == ("JPEG", "RGB")
    assert given.tobytes() == before
    again = copy(edit, of=given)
    assert again.tobytes() == made.tobytes()
    assert made.size != size or np.abs(np.asarray(made, int) - np.asarray(given)).max() > 8


@pytest.mark.parametrize("edit", RANDOM)
def test_chance_is_the_seeds_and_the_pictures(edit):
    copies = {copy(edit, *of).tobytes() for of in (("a", 1), ("a", 2), ("b", 1))}
    assert len(copies) == 3


@pytest.mark.parametrize("edit", EDITS)
def test_light_is_dark_where_it_says_so(edit):
    half = Image.new("RGB", (200, 200), "white")
    half.paste("black", (0, 0, 200, 120))
    marked = np.asarray(copy(edit, of=half).convert("L")) > 128
    pure = EDITS[edit].kind in {"inversion", "recompression", "rescale", "noise", "flip"}
    if pure:
        assert (marked.mean() > 0.5) == EDITS[edit].inverts


def test_those_of_the_demonstration_are_the_same_here():
    for name in set(plain.EDITS) & set(EDITS):
        made = plain.EDITS[name](picture(0))
        assert made.size == copy(name).size
        assert np.abs(np.asarray(made, int) - np.asarray(copy(name))).mean() < 6
    assert len(set(plain.EDITS) & set(EDITS)) >= 10


def test_pasted_pictures_are_there_whole():
    white = Image.new("RGB", (100, 100), "white")
    black = [Image.new("RGB", (400, 300), "black")] * OTHERS
    for edit, share in (("pasted, 40% a side", 0.4 * 0.4 * 3 / 4), ("collage of four", 0.25)):
        made = Image.open(io.BytesIO(copy_of(white, "a", EDITS[edit], 1, black)))
        assert (np.asarray(made.convert("L")) > 128).mean() == pytest.approx(share, abs=0.02)
