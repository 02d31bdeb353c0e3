"""`copysieve evaluate`, with real weights."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from worker.cli.main import app
from worker.errors import StartupError
from worker.evaluation.edits import EDITS, copy_of
from worker.evaluation.trials import FIGURES

MODEL = "sscd_disc_mixup_int8"
EDITED = ["negative", "captioned", "cropped, 70% a side", "pasted, 60% a side"]
NAMES = (
    *("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "page", "clock", "moon"),
    *("text", "brick", "grass", "gravel", "immunohistochemistry", "retina", "colorwheel"),
)


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def photographs():
    """Two distant parts of each picture, as pictures of their own."""
    found = {}
    for name in NAMES:
        whole = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        whole.thumbnail((500, 500))
        width, height = whole.width * 9 // 20, whole.height * 9 // 20
        found[name] = whole.crop((0, 0, width, height))
        corner = (whole.width - width, whole.height - height)
        found[f"{name}-part"] = whole.crop((*corner, *whole.size))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pictures, one that is broken, one twice, one small."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, picture in photographs().items():
        picture.save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "twice.png").write_bytes((folder / "moon.png").read_bytes())
    Image.new("RGB", (40, 200)).save(folder / "small.png")
    return folder


def test_own_pictures(folder, tmp_path):
    page, groups = tmp_path / "report.html", tmp_path / "groups.csv"
    lines = [f"{part}.png,{name}" for name in NAMES[:4] for part in (name, f"{name}-part")]
    groups.write_text("\n".join(["image,group", *lines, "broken.jpg,moon"]) + "\n")
    choices = ["cosine", "normalised", "views", "whitened+normalised+views", "pdq_dihedral"]
    arguments = ["--images", folder, "--model", MODEL, "--splits", 4, "--replicates", 12]
    arguments += [part for name in EDITED for part in ("--edit", name)]
    arguments += [part for name in choices for part in ("--choice", name)]
    result = run(*arguments, "--groups", groups, "--output", page, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])

    assert [row["choice"] for row in told["rows"]] == choices
    for row in [*told["rows"], *told["rows_without_inversion"]]:
        for figure in FIGURES:
            assert 0 <= row[f"{figure}_low"] <= row[figure] <= row[f"{figure}_high"] <= 1
        assert row["recall_at_zero"] <= row["recall_at_fpr_1e-3"] <= row["recall_at_fpr_1e-2"]
        assert row["model"] == (None if row["choice"] == "pdq_dihedral" else MODEL)
    recall = {(one["choice"], one["edit"]): one["recall_at_zero"] for one in told["edits"]}
    assert set(recall) == {(choice, edit) for choice in choices for edit in EDITED}
    assert recall["cosine", "negative"] < 0.5 < recall["views", "negative"]
    assert recall["cosine", "captioned"] > 0.5
    apart = {(one["choice"], one["less"]["choice"]): one for one in told["differences"]}
    assert ("normalised", "cosine") in apart
    assert ("cosine", "pdq_dihedral") in apart
    gain = apart["views", "cosine"]
    assert gain["recall_at_zero_low"] <= gain["recall_at_zero"] <= gain["recall_at_zero_high"]
    rows = {row["choice"]: row for row in told["rows"]}
    expected = rows["views"]["uap"] - rows["cosine"]["uap"]
    assert gain["uap"] == pytest.approx(expected, abs=2e-4)
    assert told["scenes"] <= told["pictures"] - 4 == len(photographs()) - 4
    assert {Path(one["file"]).name: one["reason"].split(":")[0] for one in told["left_out"]} == {
        "broken.jpg": "unsupported_format",
        "small.png": "too small",
        "twice.png": "repeated",
    }
    setters = [one for one in told["operating_points"] if one["choice"] == "cosine"]
    assert sum(one["splits"] for one in setters if one["at"] == "recall_at_zero") == 4
    assert all((folder / one["negative"]).is_file() for one in setters)
    assert {(one["rate"]) for one in told["thresholds_from_null"]} == {0.01, 0.001}

    table = result.stdout.splitlines()
    assert any(re.match(r"cosine +\.\d{3}", line) for line in table)
    assert any(re.match(r"whitened\+normalised\+views +\.\d{3}", line) for line in table)
    left_out = "unsupported_format (1), too small (1), repeated (1)"
    assert any(re.fullmatch(rf"left out +{re.escape(left_out)}", line) for line in table)
    assert any(re.match(r"pdq_dihedral +the same with references mirrored", line) for line in table)
    assert re.search(
        r"  cosine: \S+\.png \(.*\) resembles \S+\.png, in \d of 4 splits", result.stdout
    )
    assert "(--groups)" in table[-3]
    fewest = told["benign_queries"]
    assert told["benign_pictures"] * (1 + len(EDITED)) == fewest < 1000
    assert (
        f"Only {told['benign_pictures']} benign pictures in a split, {fewest} queries"
        in result.stderr
    )
    assert page.stat().st_mode & 0o777 == 0o600
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert "collage" not in text
    for name in (*choices, *EDITED, "broken.jpg"):
        assert name in text
    assert not re.search(r'(src|href)="?http', text)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).lower().split()


def test_a_labelled_set(tmp_path):
    pictures = photographs()
    names = list(pictures)
    roles = {"references": names[:8], "background": names[8:16], "queries": names[16:24]}
    for role, chosen in roles.items():
        (tmp_path / role).mkdir()
        for name in chosen:
            pictures[name].save(tmp_path / role / f"{name}.png")
    lines = ["query_id,reference_id", *(f"{name}," for name in roles["queries"])]
    for number, name in enumerate(roles["references"]):
        copy = copy_of(pictures[name], name, EDITS["captioned"], 1, ())
        (tmp_path / "queries" / f"Q{number}.jpg").write_bytes(copy)
        lines.append(f"Q{number},{name}")
    truth = tmp_path / "truth.csv"
    truth.write_text("\n".join(lines) + "\n")
    arguments = [part for role in roles for part in (f"--{role}", tmp_path / role)]
    page = tmp_path / "report.html"
    result = run(*arguments, "--truth", truth, "--model", MODEL, "--choice", "cosine",
                 "--choice", "normalised", "--choice", "pdq", "--beta", 1, "--nearest", 3,
                 "--replicates", 5, "--output", page, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["references"], told["queries"], told["true_pairs"]) == (8, 16, 8)
    assert told["beta"] == 1
    for row in told["rows"][:2]:
        assert row["recall_at_zero"] >= 0.75
        assert row["uap"] >= 0.9
    assert "as given" in page.read_text(encoding="utf-8")

    truth.write_text("query_id,reference_id\nQ0,nobody\n")
    result = run(*arguments, "--truth", truth, "--model", MODEL)
    assert isinstance(result.exception, StartupError)
    assert str(result.exception) == f"{truth}: line 2: there is no reference 'nobody'"


def test_wrong_usage(tmp_path):
    def refused(*arguments):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        return " ".join(result.stderr.replace("│", " ").split())

    assert "expected --images, or --references" in refused()
    assert "expected --images, or --references" in refused("--references", tmp_path)
    assert "expected --images" in refused("--images", tmp_path, "--background", tmp_path)
    assert "goes with nothing else" in refused("--images", tmp_path, "--choice", "pdq+views")
    assert "no such edit" in refused("--images", tmp_path, "--edit", "upside")
    assert "expected a .html file" in refused("--images", tmp_path, "--output", tmp_path / "a.txt")
    result = run("--images", tmp_path, "--model", MODEL)
    assert isinstance(result.exception, StartupError)
    assert str(result.exception) == f"{tmp_path}: there is no picture that can be read"
    if find_spec("imagehash") is None:
        result = run("--images", tmp_path, "--choice", "phash")
        assert "phash needs the package ImageHash" in str(result.exception)


def test_too_few_pictures(tmp_path):
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    result = run("--images", tmp_path, "--model", MODEL)
    assert "5 files, evaluate needs 20 scenes" in str(result.exception)


def test_more_neighbours_than_the_background_has(folder):
    result = run("--images", folder, "--model", MODEL, "--k", "50", "--edit", "captioned")
    assert result.exit_code == 2
    assert "50: the background has" in result.stderr
