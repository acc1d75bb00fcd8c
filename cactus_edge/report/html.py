"""A build's results as one HTML page that needs nothing but itself: no network, no script, no fonts, no images.

The page opens with what is certified and what is not, because a reader who stops there must not leave with more than was
proved. The same results give the same bytes (for one version of matplotlib), so a report can be hashed and compared.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cactus_edge.errors import InstallError
from cactus_edge.report.results import INT32_MAX, BuildResults, Layer, Score
from cactus_edge.report.table import counted


@dataclass(frozen=True)
class Part:
    """One part of the test set in the bar that adds up to it: a name, a count, a CSS class, and what it means."""

    name: str
    count: int
    style: str
    meaning: str


def render(results: BuildResults) -> str:
    """The report. Raises InstallError where jinja2 or matplotlib is absent."""
    from markupsafe import Markup  # jinja2's own

    from cactus_edge.report import plots

    return page(
        "report.html.j2",
        r=results,
        problems=problems(results),
        parts=parts(results),
        layers_total=_total(results.layers),
        kinds=[
            (kind, _total(layer for layer in results.layers if layer.kind == kind)) for kind in _kinds(results.layers)
        ],
        int32_max=INT32_MAX,
        overflow_free=all(layer.accumulator is None or layer.accumulator <= INT32_MAX for layer in results.layers),
        eps_text=_eps(results.region.eps),
        features=_product(results.data.input_shape),
        verify_command=verify_command(results),
        measure_command=measure_command(results),
        curve_svg=Markup(plots.curve_svg(results.curve, results.region.radius, results.region.axis))
        if results.curve
        else None,
        training_svg=Markup(plots.training_svg(results.training.epochs)) if results.training.epochs else None,
    )


def page(template: str, **values: Any) -> str:
    """The template of this package, filled. Raises InstallError where jinja2 is absent."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise InstallError("the report needs jinja2", hint="see `cactus-edge doctor`") from error
    environment = Environment(
        loader=PackageLoader("cactus_edge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=percent, score=score, count=count, size=size, shape=shape, real=real, share=share, seconds=seconds
    )
    return environment.get_template(template).render(**values)


def problems(results: BuildResults) -> list[str]:
    """What in these results contradicts the certificate; empty for a build that may be relied on."""
    found = list(results.findings)
    for layer in results.layers:
        if layer.accumulator is not None and layer.accumulator > INT32_MAX:
            found.append(f"Layer {layer.name} can overflow its 32-bit accumulator.")
    for run in results.agreement:
        if run.mismatches:
            found.append(f"{run.runtime} differs from the interpreter on {run.mismatches:,} of {run.inputs:,} inputs.")
    device = results.device
    if device is not None:
        if device.equal < device.compared:
            where = f": {device.first_difference}" if device.first_difference else ""
            found.append(
                f"The device differs from the interpreter on {device.compared - device.equal:,} inputs{where}."
            )
        if not results.model.blob_sha256.startswith(device.blob_sha256):
            found.append(
                f"The device reports another model: blob {device.blob_sha256}, the file has {results.model.blob_sha256}."
            )
    return found


def parts(results: BuildResults) -> list[Part]:
    """The listed inputs, divided without overlap: their counts add up to the test set."""
    a = results.accuracy
    survived = a.int8_attacked.count if a.int8_attacked is not None else a.int8_clean.count
    proved = Part("certified", a.int8_certified.count, "certified", "proved: the right class wins in the whole region")
    undecided = "neither proved nor turned by the attack"
    open_ = Part(
        "undecided", survived - proved.count, "undecided", undecided if a.int8_attacked else "not proved; not attacked"
    )
    turned = Part(
        "turned",
        a.int8_clean.count - survived,
        "turned",
        "the attack found an input in the region that is classified wrongly",
    )
    wrong = Part(
        "wrong", a.int8_clean.total - a.int8_clean.count, "wrong", "classified wrongly without any disturbance"
    )
    return [proved, open_, *([turned] if a.int8_attacked else []), wrong]


def verify_command(results: BuildResults) -> str:
    """The command that re-checks the certificate from the bundle's folder."""
    words = ["cactus-edge", "verify", results.certificate.path, "--model", results.model.path]
    words += ["--data", results.certificate.data_path]
    if results.device is not None:
        words += ["--firmware", results.device.firmware_path]
    return shlex.join(words)


def measure_command(results: BuildResults) -> str:
    """The command that runs the model on the target, from the bundle's folder: on a board, or by ssh on a computer."""
    words = ["cactus-edge", "bench", results.model.path, "--target", results.target]
    return shlex.join(words if results.model.blob_sha256 else [*words, "--host", "user@host"])


def percent(fraction: float | None) -> str:
    """0.8722 -> "87.22 %"; rounded towards zero, so that no figure is better than what was counted.

    The millionth of a hundredth added first undoes the representation error of fractions such as 0.87.
    """
    if fraction is None:
        return "not measured"
    hundredths = int(10_000 * fraction + 1e-6)
    return f"{hundredths // 100}.{hundredths % 100:02d} %"


def score(value: Score | None) -> str:
    """Score(314, 360) -> "87.22 %", from the exact counts."""
    if value is None:
        return "not measured"
    return counted(value.count, value.total).replace("%", " %")


def count(value: int | None) -> str:
    """12345 -> "12,345"."""
    return "–" if value is None else f"{value:,}"


def size(value: int) -> str:
    """38400 -> "38.4 kB" (1 kB = 1000 bytes, as in data sheets of flash)."""
    return f"{value:,} B" if value < 1000 else f"{value / 1000:,.1f} kB"


def shape(value: tuple[int, ...] | None) -> str:
    """(8, 8, 16) -> "8 × 8 × 16"."""
    return "–" if value is None else " × ".join(map(str, value)) or "1"


def real(value: float) -> str:
    """Four significant digits, a true minus sign."""
    return f"{value:.4g}".replace("-", "−")


def share(after: int, before: int) -> str:
    """The percentage that `after` is of `before`, one decimal."""
    return f"{100 * after / before:.1f} %" if before else "–"


def seconds(value: float) -> str:
    """0.0123 -> "0.01 s", 75 -> "1 min 15 s"."""
    whole = round(value)
    return f"{value:.2f} s" if value < 10 else f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _eps(text: str) -> str:
    exact = Fraction(text)
    decimal = repr(float(exact))
    return text if text == decimal else f"{text} ({'=' if Fraction(decimal) == exact else '≈'} {decimal})"


def _product(values: Iterable[int]) -> int:
    total = 1
    for value in values:
        total *= value
    return total


def _kinds(layers: Iterable[Layer]) -> list[str]:
    return list(dict.fromkeys(layer.kind for layer in layers if layer.weights_after is not None))


def _total(layers: Iterable[Layer]) -> dict[str, Any]:
    rows = list(layers)
    return {
        "before": sum(layer.weights_before or 0 for layer in rows),
        "after": sum(layer.weights_after or 0 for layer in rows),
        "bytes": sum(layer.bytes for layer in rows),
    }
