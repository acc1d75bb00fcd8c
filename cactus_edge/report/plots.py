"""The report's two plots as inline SVG.

Colours are written as placeholders and replaced by CSS variables, so that one drawing serves light, dark and paper. Text
stays text: it can be read aloud, searched and set in the page's own font. Every series differs from the others by dash
and marker as well as by colour. No pyplot: figures are objects, and no state outlives a call.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from cactus_edge.errors import InstallError
from cactus_edge.report.results import CurvePoint, Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
_PLACEHOLDERS = {INK: "currentColor", FAINT: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cactus-edge",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}
_INT8: dict[str, Any] = {"color": FIRST, "linestyle": "-", "marker": "o"}
_FLOAT: dict[str, Any] = {
    "color": SECOND,
    "linestyle": (0, (4, 2)),
    "marker": "s",
    "markerfacecolor": "none",
    "zorder": 4,
}


def curve_svg(points: Sequence[CurvePoint], radius: float, axis: str = "eps, in sensor units") -> str:
    """Certified accuracy (percent) against eps (in the report's unit); the certificate's own radius is marked."""
    eps = [point.eps for point in points]
    floats = [(point.eps, point.float_certified) for point in points if point.float_certified is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(eps, [100 * point.int8_certified for point in points], label="integer file", zorder=3, **_INT8)
        if floats:
            axes.plot([x for x, _ in floats], [100 * y for _, y in floats], label="float network", **_FLOAT)
        axes.axvline(radius, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "certificate", (radius, 1), xycoords=("data", "axes fraction"), xytext=(4, -9), textcoords="offset points"
        )
        axes.set_xlabel(axis)
        axes.set_ylabel("certified, %")
        axes.set_ylim(0, 104)
        axes.legend(loc="lower left")

    summary = "; ".join(f"eps {point.eps:g}: {_series(point)}" for point in points)
    return _svg("curve", "Certified accuracy against eps", summary, (5.4, 3.1), draw)


def brackets_image(certified: Sequence[float | None], refuted: Sequence[float | None], kind: str) -> bytes:
    """A PNG or SVG file: the share of samples (percent) certified at each radius, and the share that is not refuted there.

    certified, refuted: per sample the ends of its bracket in sensor units; None for at no radius. What lies between the two
    curves is open.
    """
    low = [e for e in certified if e is not None]
    high = [math.inf if e is None else e for e in refuted]
    last = max([*low, *(e for e in high if e < math.inf)], default=0.0) or 1.0
    at = sorted({0.0, *low, *(e for e in high if e < math.inf), last})

    def share(flags: Iterable[bool]) -> float:
        return 100 * sum(flags) / max(len(certified), 1)

    # A radius is certified up to and with its end, and refuted from its end on: steps after, and steps before.
    under = [share(e >= r for e in low) for r in at]
    over = [share(e > r for e in high) for r in at]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.step(
            [*at, 1.02 * last], [*over, over[-1]], where="post", label="not refuted", **(_FLOAT | {"marker": None})
        )
        axes.step([*at, 1.02 * last], [*under, 0.0], where="pre", label="certified", **(_INT8 | {"marker": None}))
        axes.set_xlabel("eps, in sensor units")
        axes.set_ylabel("samples, %")
        axes.set_ylim(0, 104)
        axes.set_xlim(0, 1.02 * last)
        axes.legend(loc="upper right")

    return _file(kind, (5.4, 3.1), draw)


def training_svg(epochs: Sequence[Epoch]) -> str:
    """Validation accuracy (percent) above, training loss below, against the epoch."""
    last = epochs[-1]
    parts = [f"{len(epochs)} epochs", f"loss at the end {last.loss:.4g}"]
    parts += [
        f"{name} {value:.2f} %"
        for name, pairs in zip(("clean", "certified"), _validated(epochs), strict=True)
        for _, value in pairs[-1:]
    ]
    title = "Training: validation accuracy and loss"
    return _svg("training", title, "; ".join(parts), TRAINING_INCHES, _training(epochs))


def training_image(epochs: Sequence[Epoch], kind: str) -> bytes:
    """`training_svg` as a PNG or SVG file."""
    return _file(kind, TRAINING_INCHES, _training(epochs))


def scatter_svg(name: str, title: str, across: str, up: str, points: Sequence[tuple[str, float, float, bool]]) -> str:
    """Named points (label, x, y, whether marked); the marked ones, joined from left to right, are the front."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        front = sorted((x, y) for _, x, y, marked in points if marked)
        rest = [(x, y) for _, x, y, marked in points if not marked]
        if rest:
            axes.plot(*zip(*rest, strict=True), **(_FLOAT | {"linestyle": "none"}))
        if front:
            axes.step(*zip(*front, strict=True), where="post", zorder=3, **_INT8)
        spots: dict[tuple[float, float], list[str]] = {}
        for label, x, y, _ in points:
            spots.setdefault((x, y), []).append(_short(label))
        for spot, names in spots.items():
            axes.annotate(", ".join(names), spot, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.margins(x=0.2, y=0.15)
        axes.set_xlabel(across)
        axes.set_ylabel(up)

    summary = "; ".join(f"{label}: {across} {x:g}, {up} {y:.2f}" for label, x, y, _ in points)
    return _svg(name, title, summary, (4.2, 3.0), draw)


def _short(label: str, most: int = 24) -> str:
    """The end of a long name, which tells folders apart; dollars would be formulas to matplotlib."""
    text = label if len(label) <= most else f"…{label[1 - most :]}"
    return text.replace("$", r"\$")


TRAINING_INCHES = (5.4, 3.4)
Pairs = list[tuple[int, float]]


def _validated(epochs: Sequence[Epoch]) -> tuple[Pairs, Pairs]:
    """Clean and certified accuracy on the validation split, percent by epoch, where they were evaluated."""
    clean = [(e.epoch, 100 * e.clean) for e in epochs if e.clean is not None]
    return clean, [(e.epoch, 100 * e.certified) for e in epochs if e.certified is not None]


def _training(epochs: Sequence[Epoch]) -> Callable[[Figure], None]:
    clean, certified = _validated(epochs)

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        every = max(1, len(epochs) // 12)
        if clean:
            above.plot(*zip(*clean, strict=True), label="clean", markevery=every, **_FLOAT)
        if certified:
            above.plot(*zip(*certified, strict=True), label="certified", markevery=every, **_INT8)
        if clean or certified:
            above.legend(loc="lower right")
        above.set_ylim(0, 104)
        above.set_ylabel("validation, %")
        below.plot([e.epoch for e in epochs], [e.loss for e in epochs], color=INK, linewidth=1.2)
        below.set_ylabel("loss")
        below.set_xlabel("epoch")
        _whole_numbers(below)

    return draw


def _series(point: CurvePoint) -> str:
    text = f"integer file {100 * point.int8_certified:.2f} %"
    return text if point.float_certified is None else f"{text}, float network {100 * point.float_certified:.2f} %"


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _svg(name: str, title: str, summary: str, inches: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draws on a fresh figure and returns an <svg> element whose ids start with `name`, titled and described."""
    style, figure_of, canvas_of = _library()
    # The default style first: a matplotlibrc of the user must not change what a report looks like.
    with style.context(["default", _STYLE]):
        figure = figure_of(figsize=inches, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas_of(figure).print_svg(stream, metadata=nothing)
    return _inline(stream.getvalue(), name, title, summary)


def _library() -> tuple[Any, Any, Any]:
    """matplotlib's styles, its figure and its SVG canvas."""
    try:
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InstallError("plots need matplotlib", hint="see `cactus-edge doctor`") from error
    return style, Figure, FigureCanvasSVG


_PAPER = {INK: "#1a1a1a", FAINT: "#c8c8c8", FIRST: "#0b6e4f", SECOND: "#b3541e"}


def _file(kind: str, inches: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Draws on a fresh white figure; kind: "png" or "svg". Equal drawings give equal bytes."""
    paper = {key: _PAPER.get(value, value) if isinstance(value, str) else value for key, value in _STYLE.items()}
    style, figure_of, _ = _library()
    with style.context(["default", paper]):
        figure = figure_of(figsize=inches, layout="constrained")
        draw(figure)
        for artist in figure.findobj(lambda a: hasattr(a, "get_color") and a.get_color() in _PAPER):
            artist.set_color(_PAPER[artist.get_color()])
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=160, metadata={"Date": None, "Creator": None} if kind == "svg" else {})
    return stream.getvalue()


def _inline(text: str, name: str, title: str, summary: str) -> str:
    body = text[text.index("<svg") : text.rindex("</svg>") + len("</svg>")]
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None
    inner = body[body.index(">") + 1 :]
    # Both plots live in one page: what matplotlib numbers from one must be told apart.
    inner = re.sub(r'\bid="', f'id="{name}-', inner)
    inner = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inner)
    inner = inner.replace("xlink:href", "href")
    for colour, variable in _PLACEHOLDERS.items():
        inner = inner.replace(colour, variable)
    # The background is the page's.
    inner = re.sub(r"fill: #ffffff", "fill: none", inner)
    inner = "\n".join(line.rstrip() for line in inner.splitlines())
    labels = f'<title id="{name}-title">{escape(title)}</title>\n <desc id="{name}-desc">{escape(summary)}</desc>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">\n {labels}{inner}'
    )
