"""Live inputs: `ce_certify` decides what `verify` decides on the same box, bit for bit, and sees every planted fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortex_m import CortexM
from live_kit import ENDINGS, NO_RULE, Questions, asked, classifier, corpus

from cactus_edge.device.toolchain import GCC, CompilerName, compiler
from cactus_edge.errors import MismatchError
from cactus_edge.formats.c.blob_format import HEADER
from cactus_edge.formats.c.host import HostRuntime
from cactus_edge.resources import data_path


def on_host(runtime: HostRuntime) -> Callable[..., Any]:
    return lambda blob, *question: runtime.open(blob).certify(*question)


def classified(seed: int, count: int = 40) -> list[Questions]:
    """Questions of which some are certified by the ends, some only by the fused margin, and some not at all."""
    rng = np.random.default_rng(seed)
    graphs = [classifier(rng, k < len(ENDINGS), ENDINGS[k % len(ENDINGS)]) for k in range(2 * len(ENDINGS))]
    found = [asked(rng, graph, count, most, (-100, 110)) for graph in graphs for most in (2, 5, 9)]
    graphs = [classifier(rng, per_channel, "softmax, reshaped") for per_channel in (True, False)]
    found += [asked(rng, graph, count, most, (-100, 110)) for graph in graphs for most in (2, 5, 9)]
    return [questions for questions in found if questions is not None]


def test_random_programs_are_decided_as_verify_does(host_runtime: HostRuntime) -> None:
    answers = np.concatenate([_same(q, on_host(host_runtime)) for q in corpus(1, 150)])
    assert (answers[:, 0] == NO_RULE).any()
    decided = answers[answers[:, 0] == 0]
    assert 0.1 < decided[:, 1].mean() < 0.9


def test_classifiers_are_decided_as_verify_does(host_runtime: HostRuntime) -> None:
    answers = np.concatenate([_same(q, on_host(host_runtime)) for q in classified(3)])
    assert (answers[:, 0] == 0).all() and 0.1 < answers[:, 1].mean() < 0.9


def _same(questions: Questions, answer: Callable[..., Any]) -> np.ndarray:
    got = questions.answered(answer)
    assert np.array_equal(got, questions.decided())
    return got


def test_what_is_certified_holds_for_every_input_of_a_small_box(host_runtime: HostRuntime) -> None:
    """By enumeration on the compiled kernels: nothing of `verify` takes part."""
    rng = np.random.default_rng(5)
    certified = 0
    for questions in classified(5, 40):
        program = host_runtime.open(questions.blob)
        few = replace(questions, radius=np.zeros_like(questions.radius))
        for row in few.radius.reshape(len(few.x), -1):
            row[rng.choice(row.size, 3, replace=False)] = 2
        answers = few.answered(on_host(host_runtime))
        low, high = (b.reshape(len(few.x), -1).astype(np.int64) for b in few.boxes)
        for i in np.flatnonzero(answers[:, 1]):
            axes = [np.arange(a, b + 1) for a, b in zip(low[i], high[i], strict=True)]
            free = [k for k, axis in enumerate(axes) if len(axis) > 1]
            grid = np.stack(np.meshgrid(*(axes[k] for k in free), indexing="ij"), -1).reshape(-1, len(free))
            points = np.repeat(few.x[i].reshape(1, -1), len(grid), 0)
            points[:, free] = grid
            y = program.run(points).astype(np.int64)
            assert ((y < y[:, few.labels[i], None]).sum(1) == y.shape[1] - 1).all()
            certified += 1
    assert certified > 20


@pytest.mark.parametrize("behind", [3, 4, 5, 6])
def test_requantisations_behind_the_last_layer(behind: int, host_runtime: HostRuntime) -> None:
    """The margin is fused with the weights behind few of them, as far as the C looks; behind more the ends decide."""
    rng = np.random.default_rng(3)
    for _ in range(3):
        questions = asked(rng, classifier(rng, True, f"requantised {behind} times"), 40, 4, (-128, 127))
        assert questions is not None
        _same(questions, on_host(host_runtime))


@pytest.mark.parametrize("ops_said", [1, 0, -5, 3])
def test_another_number_of_operations_is_refused(ops_said: int, host_runtime: HostRuntime) -> None:
    questions = classified(3, 3)[0]
    blob = questions.blob
    assert blob.header["ops"] == 2
    words = np.frombuffer(blob.data, "<i4").copy()
    words[HEADER.index("ops")] = ops_said
    with pytest.raises(MismatchError):
        host_runtime.open(replace(blob, data=words.tobytes())).run(questions.x)


def test_wrong_questions_are_refused(host_runtime: HostRuntime) -> None:
    questions = classified(3, 3)[0]
    for label in (-1, 4, 1 << 30):
        answers = host_runtime.open(questions.blob).certify(
            questions.x, questions.radius, questions.ends, np.full(len(questions.x), label)
        )
        assert (answers == (-4, 0, 0)).all()


@pytest.mark.parametrize(
    ("cpu", "used"),
    [
        ("cortex-m4", "zig"),
        ("cortex-m0", "zig"),
        pytest.param(
            "cortex-m4", "gcc", marks=pytest.mark.skipif(shutil.which(GCC) is None, reason=f"{GCC} is not installed")
        ),
    ],
)
def test_an_emulated_core_decides_as_verify_does(cpu: str, used: CompilerName, tmp_path: Path) -> None:
    machine = CortexM(tmp_path, cpu, compiler(used))
    for questions in [*corpus(2, 40), *classified(4, 12)]:
        _same(questions, machine.certify)


FAULTS = [
    ("ce_certify.c", "x + radius, INT8_MIN, x > region->most ? x : region->most", "x, INT8_MIN, INT8_MAX"),
    ("ce_certify.c", "x < region->least ? x : region->least", "region->least"),
    ("ce_certify.c", "c->model->kernels[r->kind](e->blob, record, high);", ""),
    ("ce_certify.c", "low[r->out + i] = INT8_MIN;", "low[r->out + i] = INT8_MAX;"),
    ("ce_certify.c", "e->count - 1; k >= 0; k--", "0; k < e->count; k++"),
    ("ce_certify.c", "own * wy - other * wj", "wy - wj"),
    ("ce_certify.c", "(w < 0 ? high[i] : low[i])", "(w < 0 ? low[i] : high[i])"),
    ("ce_certify.c", "ce_logit(e, j, middle) >= level", "ce_logit(e, j, middle) > level"),
    ("ce_certify.c", "level < last; level++", "level < first; level++"),
    ("ce_certify.c", "(INT64_C(1) << 30) * total", "(INT64_C(1) << 29) * total"),
    ("ce_interval.h", "(w < 0 ? high : low)", "(w < 0 ? low : high)"),
    ("ce_interval.h", "(w < 0 ? low : high)", "high"),
    ("ce_dense_bounds_s8.c", "ce_output(acc.most, multiplier[c]", "ce_output(acc.most - 1, multiplier[c]"),
    ("ce_conv2d_bounds_s8.c", "high[at] = ce_output(acc.most", "high[at] = ce_output(acc.most - 1"),
    ("ce_conv2d_bounds_s8.c", "high + r.scratch", "low + r.scratch"),
    ("ce_depthwise_conv2d_bounds_s8.c", "o / r.group_out", "o"),
    ("ce_depthwise_conv2d_bounds_s8.c", "high + r.in, iy, ix, r.in_c, high", "low + r.in, iy, ix, r.in_c, high"),
]
"""(file, what stands there, what a slip of the pen makes of it)."""


@pytest.fixture(scope="module")
def known() -> list[tuple[Questions, np.ndarray]]:
    kinds = [("conv2d",), ("depthwise_conv2d",), ("softmax", "dense")]
    made = [*classified(9, 25), *(q for kind in kinds for q in corpus(7, 20, 2, kind)), *corpus(8, 10)]
    return [(questions, questions.decided()) for questions in made]


@pytest.mark.parametrize(("file", "right", "wrong"), FAULTS)
def test_planted_fault_is_seen(
    file: str, right: str, wrong: str, known: list[tuple[Questions, np.ndarray]], tmp_path: Path
) -> None:
    source = data_path("export", "c", "src" if file.endswith(".c") else "include", file)
    text = source.read_text()
    assert text.count(right) == 1
    (tmp_path / file).write_text(text.replace(right, wrong))
    faulty = on_host(HostRuntime(tmp_path, overlay=tmp_path))
    assert any(not np.array_equal(questions.answered(faulty), wanted) for questions, wanted in known)


def test_planted_fault_in_the_simd_path_is_seen(tmp_path: Path) -> None:
    """Only the M4 compiles this line, so only its comparison can see it."""
    text = (data_path("export", "c", "include") / "ce_interval.h").read_text()
    assert text.count("sel %0, %3, %4") == 1
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "ce_interval.h").write_text(text.replace("sel %0, %3, %4", "sel %0, %4, %3"))
    machine = CortexM(tmp_path, "cortex-m4", overlay=[tmp_path / "overlay"])
    assert any(not np.array_equal(q.answered(machine.certify), q.decided()) for q in classified(4, 12))
