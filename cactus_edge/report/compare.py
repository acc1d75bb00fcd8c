"""Several runs and builds side by side: groups that may be compared, a table, marks, and one HTML page that needs nothing but itself.

Two networks are compared only on the same question: the same data set, the same listed inputs, the same region. Others stand
in groups of their own, with what sets them apart. A figure that nobody measured is "not measured", never zero and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from cactus_edge.report.html import page, percent, score
from cactus_edge.report.plots import scatter_svg
from cactus_edge.report.results import Score
from cactus_edge.report.table import Column, table

if TYPE_CHECKING:
    from markupsafe import Markup

MISSING = "not measured"


@dataclass(frozen=True)
class Question:
    """What figures speak of. data_sha256: digest of all splits; region: eps and its unit; samples, inputs_sha256: the listed inputs."""

    data: str
    data_sha256: str
    region: str
    samples: int
    inputs_sha256: str

    def unlike(self, other: Question) -> list[str]:
        """What sets two questions apart, in words."""
        found = []
        if self.data != other.data:
            found.append(f"data set {self.data}, not {other.data}")
        elif self.data_sha256 != other.data_sha256:
            found.append(f"another version or split of {self.data}")
        if self.region != other.region:
            found.append(f"eps {self.region}, not {other.region}")
        if self.samples != other.samples:
            found.append(f"{self.samples:,} listed inputs, not {other.samples:,}")
        elif self.inputs_sha256 != other.inputs_sha256 and self.data_sha256 == other.data_sha256:
            found.append("other listed inputs")
        return found


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network: what trained it, its int8 file and what was measured of that. target: "" for a file of no target.

    float_*: the network before it was rounded, certified by float intervals, which is no proof. clean, attacked, certified: the
    int8 file under `profile`; engine: what showed the certified count. corrupted: mean share of right answers over common
    corruptions. macs: multiply-accumulates of one inference. latency_us: median on the target; instructions: of an emulated
    one. notes: why a figure is missing, or what it is a mean of.
    """

    name: str
    recipe: str
    trained_by: str
    seed: int
    target: str
    profile: str
    conditional: bool
    question: Question
    float_clean: Score | None
    clean: Score
    attacked: Score | None
    float_certified: Score | None
    certified: Score
    engine: str
    bytes: int
    macs: int
    latency_us: float | None
    instructions: float | None
    corrupted: float | None = None
    notes: tuple[str, ...] = ()

    def dominated_by(self, other: Entry) -> bool:
        """Whether the other one certifies no less in no more bytes, and is better in one of the two."""
        mine, theirs = (self.certified.count, -self.bytes), (other.certified.count, -other.bytes)
        return theirs != mine and all(t >= m for t, m in zip(theirs, mine, strict=True))


@dataclass(frozen=True)
class Group:
    """Entries with the same question, most certified first. apart: what sets it apart from the first group."""

    question: Question
    entries: tuple[Entry, ...]
    apart: tuple[str, ...]

    def best(self, entry: Entry) -> bool:
        """Whether no other entry of the group is at least as good in certified inputs and bytes: the Pareto front."""
        return not any(entry.dominated_by(other) for other in self.entries)

    @property
    def labels(self) -> list[str]:
        """The entries' folders by their last part, where that tells them apart."""
        short = [PurePath(e.name).name for e in self.entries]
        return short if len(set(short)) == len(short) else [e.name for e in self.entries]

    def label(self, entry: Entry) -> str:
        """The entry's own of `labels`."""
        return self.labels[self.entries.index(entry)]

    @property
    def title(self) -> str:
        """The question in words."""
        q = self.question
        return f"{q.data}, {q.samples:,} listed inputs, eps {q.region}"


@dataclass(frozen=True)
class Comparison:
    """All entries in groups, the largest group first, then in the order in which they were named."""

    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what was not measured is null."""
        return {
            "format": "cactus-edge comparison",
            "version": 1,
            "groups": [
                {
                    "question": asdict(group.question),
                    "apart": list(group.apart),
                    "entries": [_plain(entry) | {"pareto": group.best(entry)} for entry in group.entries],
                }
                for group in self.groups
            ],
        }

    def text(self, *, width: int | None = None) -> str:
        """Tables for the terminal."""
        parts = []
        for group in self.groups:
            head = [group.title, *(f"apart from the first group: {reason}" for reason in group.apart)]
            heads = [Column(c.title, right=c.right) for c in COLUMNS]
            rows = [[c.cell(entry, group) for c in COLUMNS] for entry in group.entries]
            parts.append("\n".join([*head, "", table(heads, rows, width=width), *remarks(group)]))
        return "\n\n".join(parts)


def compared(entries: Sequence[Entry]) -> Comparison:
    """The entries, grouped by their question."""
    found: dict[Question, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.question, []).append(entry)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    first = ordered[0][0]
    return Comparison(
        tuple(
            Group(question, tuple(sorted(members, key=lambda e: -e.certified.count)), tuple(question.unlike(first)))
            for question, members in ordered
        )
    )


def remarks(group: Group) -> list[str]:
    """What a reader of the group's table has to know."""
    found = ["* no other network here certifies as much in as few bytes" if len(group.entries) > 1 else ""]
    said: dict[str, list[str]] = {}
    for e in group.entries:
        for note in e.notes:
            said.setdefault(note, []).append(e.name)
    every = len(group.entries)
    found += [note if len(names) == every > 1 else f"{', '.join(names)}: {note}" for note, names in said.items()]
    found += [
        f"{e.name}: certified under the condition that profile {e.profile} names"
        for e in group.entries
        if e.conditional
    ]
    return [line for line in found if line]


def _plain(entry: Entry) -> dict[str, Any]:
    values = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "question"}
    return {k: asdict(v) if isinstance(v, Score) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Entry, Group], str]
    right: bool = True


def latency(entry: Entry) -> str:
    """The latency in words."""
    if entry.latency_us is None:
        return MISSING
    return f"{entry.latency_us:,.0f} µs" if entry.latency_us >= 100 else f"{entry.latency_us:.1f} µs"


COLUMNS = (
    _Column("", lambda e, g: "*" if g.best(e) and len(g.entries) > 1 else "", right=False),
    _Column("network", lambda e, g: g.label(e), right=False),
    _Column("trained by", lambda e, _: e.trained_by, right=False),
    _Column("target", lambda e, _: f"{e.target or 'none'}, {e.profile}", right=False),
    _Column("clean", lambda e, _: score(e.clean)),
    _Column("attacked", lambda e, _: score(e.attacked)),
    _Column("certified float", lambda e, _: score(e.float_certified)),
    _Column("certified int8", lambda e, _: score(e.certified)),
    _Column("by", lambda e, _: e.engine, right=False),
    _Column("corrupted", lambda e, _: percent(e.corrupted)),
    _Column("bytes", lambda e, _: f"{e.bytes:,}"),
    _Column("MACs", lambda e, _: f"{e.macs:,}"),
    _Column("latency", lambda e, _: latency(e)),
)
"""The table, on the terminal and on the page."""


def render(comparison: Comparison, *, created: str, tool: str) -> str:
    """The page. The same comparison gives the same bytes but for `created`. InstallError where jinja2 or matplotlib is absent."""
    sections = [
        (group, _plots(group, number), remarks(group)) for number, group in enumerate(comparison.groups, start=1)
    ]
    return page("compare.html.j2", sections=sections, columns=COLUMNS, created=created, tool=tool)


def _plots(group: Group, number: int) -> list[tuple[str, Markup]]:
    """(caption, SVG) of each plot."""
    from markupsafe import Markup

    def scatter(
        key: str, title: str, label: str, at: Callable[[Entry], float | None], front: bool
    ) -> tuple[str, Markup]:
        points = [
            (label, x, 100 * e.certified.fraction, front and group.best(e))
            for label, e in zip(group.labels, group.entries, strict=True)
            if (x := at(e)) is not None
        ]
        return title, Markup(scatter_svg(f"{key}{number}", title, label, "certified int8, %", points))

    found = [
        scatter("bytes", "Certified int8 inputs against the size of the file", "bytes", lambda e: e.bytes, True),
        scatter("clean", "Certified against clean", "clean, %", lambda e: 100 * e.clean.fraction, False),
        scatter("macs", "Certified against work", "MACs", lambda e: e.macs, False),
    ]
    if any(e.latency_us is not None for e in group.entries):
        found.append(
            scatter("latency", "Certified against latency, where measured", "µs", lambda e: e.latency_us, False)
        )
    return found
