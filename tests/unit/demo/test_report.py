import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.fixtures.demo import findings, match, verdict
from worker.demo import report

LOADING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster"}


class Page(HTMLParser):
    """What a browser would load, and what stands where."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids.update(value for name, value in attrs if name == "id")
        self.loads += [value for name, value in attrs if name in LOADING]


@pytest.fixture
def page(tmp_path, references):
    def page(found, of=references):
        return Page(report.write(found, of, tmp_path).read_text(encoding="utf-8"))

    return page


def test_the_page_loads_nothing_from_anywhere(planned, page):
    loaded = page(findings(planned))
    assert {load.partition(",")[0] for load in loaded.loads if load[0] != "#"} == {
        "data:image/jpeg;base64"
    }
    assert not re.findall(r"@import|url\((?!#)", loaded.text)
    assert loaded.tags["script"] == loaded.tags["link"] == 0


def test_every_picture_is_blurred_until_clicked(planned, page):
    loaded = page(findings(planned))
    assert loaded.tags["img"] > 30
    framed = re.findall(r'<label class="frame"[^>]*><input type="checkbox"[^>]*><img ', loaded.text)
    assert len(framed) == loaded.tags["img"]


def test_the_plots_share_no_ids_and_take_the_colours_of_the_page(planned, page):
    loaded = page(findings(planned))
    assert loaded.tags["svg"] == 3
    assert max(loaded.ids.values()) == 1
    assert not re.findall(r"#0[1-5]0[1-5]0[1-5]", loaded.text)


def test_names_of_files_are_no_html(planned, page, references):
    evil = "<script>alert(1)</script>"
    renamed = [replace(one, expected=evil) if one.kind == "copy" else one for one in planned]
    loaded = page(findings(renamed), [replace(references[0], name=evil)])
    assert loaded.tags["script"] == 0
    assert "&lt;script&gt;" in loaded.text


def test_the_figures_of_page_and_json_are_the_same(planned, page, tmp_path):
    found = findings(planned)
    loaded = page(found)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == json.loads(json.dumps(found.document()))
    assert f"<b>{document['copies_found']}/{document['copies']}</b>" in loaded.text
    assert loaded.text.count("a-model") >= 4


def test_a_failure_stands_on_top(planned, page):
    benign = next(one for one in planned if one.kind == "benign")
    wrong = {benign.upload_id: [verdict(benign.upload_id, [match("reference-1", 0.61)])]}
    loaded = page(findings(planned, wrong))
    assert "The demo failed" in loaded.text
    assert f"matched: {benign.upload_id}" in loaded.text
    assert "The demo failed" not in page(findings(planned)).text
