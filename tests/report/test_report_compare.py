"""Groups of one question, marks of the Pareto front, and that nothing which was not measured gets a figure."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cactus_edge.report.compare import MISSING, Entry, Question, compared, latency, render
from cactus_edge.report.results import Score

ASKED = Question("digits", "0" * 64, "1/16 of the sensor range [0, 1]", 100, "1" * 64)


def entry(name: str, certified: int, size: int, **changes: object) -> Entry:
    """Some network."""
    made = Entry(
        name=name,
        recipe="r",
        trained_by="CACTUS, IBP, full",
        seed=0,
        target="",
        profile="tflm",
        conditional=False,
        question=ASKED,
        float_clean=Score(97, 100),
        clean=Score(95, 100),
        attacked=None,
        float_certified=None,
        certified=Score(certified, 100),
        engine="intervals",
        bytes=size,
        macs=1000,
        latency_us=None,
        instructions=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def marked(*entries: Entry) -> set[str]:
    """The names on the Pareto front of the first group."""
    (group, *_) = compared(entries).groups
    return {e.name for e in group.entries if group.best(e)}


def test_the_front() -> None:
    assert marked(entry("small", 80, 10), entry("large", 90, 30), entry("worse", 79, 11)) == {"small", "large"}
    assert marked(entry("a", 80, 10), entry("twin", 80, 10)) == {"a", "twin"}
    assert marked(entry("a", 80, 10), entry("same size", 81, 10), entry("same proof", 81, 9)) == {"same proof"}


def test_most_certified_first() -> None:
    (group,) = compared([entry("a", 80, 10), entry("b", 90, 10), entry("c", 85, 10)]).groups
    assert [e.name for e in group.entries] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": "mnist", "data_sha256": "2" * 64}, "data set mnist, not digits"),
        ({"data_sha256": "2" * 64}, "another version or split of digits"),
        ({"region": "1/8 of the sensor range [0, 1]"}, "eps 1/8 of"),
        ({"samples": 50, "inputs_sha256": "3" * 64}, "50 listed inputs, not 100"),
        ({"inputs_sha256": "3" * 64}, "other listed inputs"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_another_question_stands_apart_and_says_why(change: dict[str, object], reason: str) -> None:
    other = entry("other", 99, 1, question=replace(ASKED, **change))  # type: ignore[arg-type]
    found = compared([other, entry("a", 80, 10), entry("b", 70, 10)])
    first, second = found.groups
    assert [e.name for e in first.entries] == ["a", "b"] and not first.apart
    assert [e.name for e in second.entries] == ["other"] and reason in second.apart[0]
    assert first.best(first.entries[0]), "an entry of another question dominates nothing here"
    assert f"apart from the first group: {second.apart[0]}" in found.text()


def test_what_was_not_measured_is_said() -> None:
    bare = entry("bare", 80, 10, notes=("latency: a run has no target",))
    assert latency(bare) == MISSING
    text = compared([bare]).text()
    assert text.count(MISSING) == 4  # attacked, certified float, corrupted, latency
    assert "bare: latency: a run has no target" in text
    (row,) = compared([bare]).to_json()["groups"][0]["entries"]
    assert (row["attacked"], row["float_certified"], row["corrupted"], row["latency_us"]) == (None,) * 4
    assert row["certified"] == {"count": 80, "total": 100} and row["pareto"] is True
    assert latency(entry("m", 80, 10, latency_us=12.34)) == "12.3 µs"
    assert latency(entry("m", 80, 10, latency_us=1234.5)) == "1,234 µs"


def test_a_condition_is_said() -> None:
    text = compared([entry("orin", 80, 10, conditional=True, profile="tensorrt")]).text()
    assert "orin: certified under the condition that profile tensorrt names" in text


class _Balanced(HTMLParser):
    """Every element that is opened is closed, and no id is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself() -> None:
    odd = entry("runs/<odd>$a$", 80, 10, latency_us=7.0)
    other = entry("b", 70, 20, question=replace(ASKED, region="1/8"))
    page = render(compared([odd, other, entry("c", 60, 5)]), created="2026-01-01", tool="cactus-edge 1")
    assert page == render(compared([odd, other, entry("c", 60, 5)]), created="2026-01-01", tool="cactus-edge 1")
    checked = _Balanced()
    checked.feed(page)
    assert not checked.open and len(checked.ids) == len(set(checked.ids))
    assert page.count("<svg") == 4 + 3, "latency only where somebody measured it"
    assert "<odd>" not in page and "&lt;odd&gt;$a$" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert '<span class="missing">not measured</span>' in page
