"""The suites of the benches of methods: every row is a recipe that trains, judged by judges that there are; mistakes are named."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.errors import InputError
from cactus_edge.semantics import Semantic, transforms
from cactus_edge.train.methods import stages

BENCH = Path(__file__).resolve().parent.parent / "bench"
SUITES = [(bench, suite) for bench in ("train-methods", "robust-compression") for suite in ("quick", "full")]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("_suite")


@pytest.mark.parametrize(("bench", "name"), SUITES)
def test_every_row_can_be_measured(suite: Any, bench: str, name: str) -> None:
    parsed = importlib.import_module("_judges").parsed
    groups = suite.load_suite(bench, name, [])
    assert groups
    for group in groups:
        names = [case.key.split("/", 1)[1] for case in group.cases]
        assert len(set(names)) == len(names)
        assert not group.gpu or group.shape
        for judge in group.judges:
            parsed(judge)
        for case in group.cases:
            assert stages(case.recipe.train.method, case.recipe)
        for one in group.expects:
            assert one["row"] in names
            assert ("at" in one) == (one["above"] not in names), "a figure from elsewhere, or that of a row"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('role = "ours"', 'role = "hours"', "role = 'hours'"),
        ('method = "adverfine-whole"', 'methods = "adverfine"', "unknown key 'methods'"),
        ("finetune_epochs = 0", "epochs = 0", "no [compress] epochs"),
        ("full/adverfine", "full/nothing", "rows_of = 'full/nothing'"),
        ('above = "scratch-pruned"', 'over = "scratch-pruned"', "unknown key 'over'"),
    ],
)
def test_mistakes_are_named(
    suite: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str, told: str
) -> None:
    for path in (BENCH / "suites").glob("*.toml"):
        (tmp_path / path.name).write_text(path.read_text().replace(old, new))
    monkeypatch.setattr(suite, "SUITES", tmp_path)
    with pytest.raises(InputError) as caught:
        suite.load_suite("robust-compression", "full", [])
    assert told in str(caught.value)


def test_a_row_has_its_own_seeds_then_the_groups_unless_the_caller_says(suite: Any) -> None:
    methods = importlib.import_module("_methods")
    group = suite.load_suite("train-methods", "full", ["har/"])[0]
    plain = group.cases[0]
    own = suite.dataclasses.replace(plain, seeds=2)
    for case, asked, count in ((plain, 0, group.seeds), (own, 0, 2), (own, 5, 5)):
        found = methods.measurements("train-methods", group, case, asked, Path("w"), 1)
        assert [m.seed for m in found] == [*range(count)]


def test_rows_that_there_are_not_are_refused(suite: Any) -> None:
    with pytest.raises(InputError, match=r"no row of robust-compression-quick\.toml begins with 'adverfiine'"):
        suite.load_suite("robust-compression", "quick", ["adverfiine"])


@pytest.mark.parametrize("judge", ["pgdd", "pgd:many", "pgd:-1"])
def test_judges_that_there_are_not_are_refused(suite: Any, judge: str) -> None:
    judges = importlib.import_module("_judges")
    with pytest.raises(InputError, match="no judge is called"):
        judges.parsed(judge)


def test_rows_share_what_a_transform_draws(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = importlib.import_module("_judges")
    (plain,) = transforms("brightness")
    x = np.random.default_rng(0).random((2, 3, 3, 1))
    (kept,) = judges._kept("brightness")
    first = [kept.draw(one, 4, (0.0, 1.0), np.random.default_rng(seed)) for one in x for seed in (0, 1)]
    made: list[object] = []
    monkeypatch.setattr(Semantic, "changed", lambda *a: made.append(a))
    again = [kept.draw(one, 4, (0.0, 1.0), np.random.default_rng(seed)) for one in x for seed in (0, 1)]
    monkeypatch.undo()
    expected = [plain.draw(one, 4, (0.0, 1.0), np.random.default_rng(seed)) for one in x for seed in (0, 1)]
    assert not made and all(np.array_equal(a, b) for a, b in zip(first, expected, strict=True))
    assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip(again, expected, strict=True))


def test_a_row_is_held_against_another_or_against_a_figure_from_elsewhere(suite: Any) -> None:
    bench = importlib.import_module("robust_compression")
    group, *_ = suite.load_suite("robust-compression", "full", ["adverfine/best", "adverfine/ptq-robust-none"])
    best, none = sorted(group.cases, key=lambda case: case.key)
    expects = (
        {"column": "pgd", "row": "best", "above": "elsewhere", "at": 82.8},
        {"column": "pgd", "row": "best", "above": "ptq-robust-none", "by": 0.5},
        {"column": "pgd", "row": "best", "above": "not measured"},
    )
    rows = {best: [{"pgd": 0.83}], none: [{"pgd": 0.82}]}
    found = bench.comparisons(replace(group, expects=expects), rows)
    assert [(t.value, t.limit) for t in found] == [(pytest.approx(0.2), 0), (pytest.approx(1.0), 0.5)]


def test_seeds_are_compared_one_by_one(suite: Any) -> None:
    """Differences 1, 2 and 3 points: mean 2, deviation 1; a seed that one row alone has does not count."""
    bench = importlib.import_module("robust_compression")
    group, *_ = suite.load_suite("robust-compression", "quick", ["csam-small/csam-style-50", "csam-small/sam-mag"])
    of = {case.key.split("/", 1)[1]: case for case in group.cases}
    ours = [{"pca": {"blur": share, "rotation": share + 0.2}} for share in (0.41, 0.62, 0.53)]
    other = [{"pca": {"blur": share, "rotation": share + 0.2}} for share in (0.40, 0.60, 0.50, 0.90)]
    rows = {of["csam-style-50"]: ours, of["sam-magnitude-50"]: other}
    (line,) = bench.paired(group, rows)
    assert line == "by seed, csam-style-50 less sam-magnitude-50: +2.00 points, standard error 0.58, above in 3 of 3"
    assert not bench.paired(group, {case: found[:1] for case, found in rows.items()})


def test_where_classes_count_alike_balanced_figures_are_compared(
    suite: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that always says the common class is nowhere ahead."""
    bench = importlib.import_module("train_methods")
    group, *_ = suite.load_suite("train-methods", "full", ["har/cactus", "har/posthoc-l1"])
    ours, rival, *_ = group.cases
    plain = {"clean": 0.9, "attacked": 0.9, "certified": 0.9, "float_certified": 0.9}
    better = {"clean": 0.8, "attacked": 0.7, "certified": 0.6, "float_certified": 0.6}
    rest = {"samples": 100, "eps": "1", "samples_seen": 5, "bytes": 9, "macs": 9, "training_cpu_s": 1.0}

    def row(figures: dict[str, float], by_class: dict[str, float]) -> dict[str, Any]:
        return rest | figures | {f"{name}_balanced": value for name, value in by_class.items()}

    always = row(plain, dict.fromkeys(plain, 0.25))
    assert rival.role == "baseline"
    for balance, ahead in ((0.0, -30), (1.0, 35)):
        cases = [
            replace(c, recipe=replace(c.recipe, quantise=replace(c.recipe.quantise, class_balance=balance)))
            for c in (ours, rival)
        ]
        rows = dict(zip(cases, ([row(better, better)], [always]), strict=True))
        found = {t.what: t.value for t in bench.report(replace(group, cases=tuple(cases)), rows)}
        assert found[f"{group.title}: certified ahead of every baseline, points"] == pytest.approx(ahead)
        assert ("balanced" in capsys.readouterr().out) == (balance == 1)
