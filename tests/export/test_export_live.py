"""Live inputs: `ce_certify` decides what `verify` decides on the same box, bit for bit, and sees every planted fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
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
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
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


def behind_softmax(weight: Sequence[int], zero: int, bias: int) -> Graph:
    """Class 0 is at the code 127, class 1 at `zero` + `bias` + a weighted sum of three codes, counted from -128, of a softmax."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (3,), scale=0.125))
    x = b.node(ops.Softmax(), [x], Tensor("p", (3,), scale=1 / 256, zero_point=-128))
    weights = ops.freeze([[0, 0, 0], weight], np.int8), ops.freeze([127 - zero, bias], np.int32)
    x = b.node(
        ops.Dense(*weights, ops.freeze([1.0], np.float32)), [x], Tensor("y", (2,), scale=1 / 256, zero_point=zero)
    )
    return b.finish(x)


@pytest.mark.parametrize("element", range(3))
@pytest.mark.parametrize(("sign", "zero"), [(1, -128), (-1, 127)])
def test_a_softmax_inside_may_give_each_of_its_codes(
    element: int, sign: int, zero: int, host_runtime: HostRuntime
) -> None:
    """At its largest, or at its least where it is subtracted, one output makes the classes tie; one code less, and none does."""
    for spare in (0, 1):
        weight = [sign * (i == element) for i in range(3)]
        questions = asked(np.random.default_rng(0), behind_softmax(weight, zero, -spare), 4, 2, (-128, 127))
        assert questions is not None
        answers = _same(replace(questions, labels=np.zeros_like(questions.labels)), on_host(host_runtime))
        assert (answers[:, 0] == 0).all() and (answers[:, 1] == spare).all()


def stepped(rng: np.random.Generator, steps: Sequence[float], scale: float, most: int) -> Questions:
    """About one dense layer: classes that have much in common, in steps of their own."""
    b, n = GraphBuilder(), len(steps)
    weight = rng.integers(-3, 4, 4) + rng.integers(-1, 2, (n, 4))
    weights = ops.freeze(weight, np.int8), ops.freeze(rng.integers(-6, 7, n), np.int32)
    x = b.input(Tensor("x", (4,), scale=1.0))
    x = b.node(ops.Dense(*weights, ops.freeze(steps, np.float32)), [x], Tensor("y", (n,), scale=scale))
    found = asked(rng, b.finish(x), 40, most, (-128, 127))
    assert found is not None
    return found


APART = [
    *((2.0**-d, 1.0, 2.0 ** (6 - d)) for d in (12, 13, 14, 20, 21, 22)),
    (4.0, 2.0**-29, 1.0),
    (4.0, 2.0**-32, 1.0),
]
"""The steps of the label's accumulator and of the other's, and of the outputs."""


@pytest.mark.parametrize(("own", "other", "out"), APART)
def test_classes_of_very_different_steps(own: float, other: float, out: float, host_runtime: HostRuntime) -> None:
    """The factors that make accumulators comparable stay between 1 and 4096, and in range while they are computed."""
    b = GraphBuilder()
    weights = ops.freeze([[1, 0], [0, 127]], np.int8), ops.freeze([-1, 0], np.int32)
    x = b.input(Tensor("x", (2,), scale=1.0))
    op = ops.Dense(*weights, ops.freeze([other, own], np.float32))
    questions = asked(
        np.random.default_rng(0), b.finish(b.node(op, [x], Tensor("y", (2,), scale=out))), 4, 1, (-128, 127)
    )
    assert questions is not None
    x_ = np.array([[0, 1], [-1, 1], [-1, 2], [-9, 9]], np.int8)
    _same(replace(questions, x=x_, radius=np.ones_like(x_, np.uint8), labels=np.ones(4, int)), on_host(host_runtime))


@pytest.mark.parametrize("quotients", [(1.0, 0.5, 0.25), tuple(np.linspace(0.2, 1.0, 40))])
def test_margins_between_classes_in_steps_of_their_own(quotients: Sequence[float], host_runtime: HostRuntime) -> None:
    """Quotients of their accumulators are often whole, or never; few levels lie in a box, and each of them counts."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        _same(stepped(rng, rng.choice(quotients, 3).tolist(), 1.0, 1), on_host(host_runtime))


def softmax_of(scale: float, x: Sequence[tuple[int, ...]]) -> Questions:
    """About points, each of which has its first class highest, in front of a softmax of logits of this scale."""
    b, n = GraphBuilder(), len(x[0])
    out = b.node(
        ops.Softmax(), [b.input(Tensor("x", (n,), scale=scale))], Tensor("p", (n,), scale=1 / 256, zero_point=-128)
    )
    found = asked(np.random.default_rng(0), b.finish(out), len(x), 1, (-128, 127))
    assert found is not None
    codes = np.array(x, np.int8)
    return replace(found, x=codes, radius=np.zeros_like(codes, np.uint8), labels=np.zeros(len(x), np.int64))


@pytest.mark.parametrize("scale", [2.0**-11, 2.0**-9, 3 * 2.0**-10, 5 * 2.0**-10, 2.0**-7, 0.125])
def test_a_softmax_needs_a_margin(scale: float, host_runtime: HostRuntime) -> None:
    """Of points, by every margin beside the one that suffices, wherever the codes lie."""
    x = [(top, top - m, top - other) for top in (-60, 0, 127) for m in range(40) for other in (m, 40, 60)]
    answers = _same(softmax_of(scale, x), on_host(host_runtime))
    assert set(answers[:, 1].tolist()) == {0, 1}


def test_no_exponential_is_read_behind_the_table(host_runtime: HostRuntime) -> None:
    """Margins as large as the table, at the end of a blob, and the largest number behind it: what is not there counts 0."""
    blob = softmax_of(0.5, [(0, 0)]).blob
    entries = blob.records[-1].fields["entries"]
    assert blob.records[-1].fields["table"] + entries == blob.header["words"] and entries < 200
    asked_ = softmax_of(0.5, [(127, 127 - m) for m in range(entries - 2, entries + 3)])
    words = np.frombuffer(blob.data, "<i4").copy()
    words[HEADER.index("words")] += 1
    longer = np.append(words, np.int32(2**31 - 1)).astype("<i4")
    answers = replace(asked_, blob=replace(blob, data=longer.tobytes())).answered(on_host(host_runtime))
    assert answers[:, :2].tolist() == [[0, 1]] * len(answers)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_depthwise_layer_is_dilated_along_each_axis(axis: int, host_runtime: HostRuntime) -> None:
    """Two of three pixels in a row or in a column, of two channels."""
    rng, b = np.random.default_rng(axis), GraphBuilder()
    side, kernel = ((3, 1), (2, 1)) if axis == 0 else ((1, 3), (1, 2))
    weights = ops.freeze(rng.integers(-99, 100, (*kernel, 2)), np.int8), ops.freeze([20, -20], np.int32)
    op = ops.DepthwiseConv2d(*weights, ops.freeze([0.02, 0.02], np.float32), dilation=(2, 2))
    x = b.node(op, [b.input(Tensor("x", (*side, 2), scale=1.0))], Tensor("y", (1, 1, 2), scale=2.0))
    questions = asked(rng, b.finish(x), 60, 5, (-128, 127))
    assert questions is not None
    assert 0 < _same(questions, on_host(host_runtime))[:, 1].sum() < 60


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("arithmetic", 2)])
def test_a_blob_of_another_kind_is_refused(field: str, value: int, host_runtime: HostRuntime) -> None:
    questions = classified(3, 3)[0]
    words = np.frombuffer(questions.blob.data, "<i4").copy()
    words[HEADER.index(field)] = value
    with pytest.raises(MismatchError, match="ce_model_run: -1"):
        host_runtime.open(replace(questions.blob, data=words.tobytes())).run(questions.x)


@pytest.mark.parametrize("first", [(15, 15), (0, 15), (-1, 15), (10, 1, 29), (10, 0), (10, 1 << 30)])
def test_records_that_do_not_add_up_are_refused(first: Sequence[int], host_runtime: HostRuntime) -> None:
    """Kinds that are none, and lengths of less than a record's head or of more than there is."""
    questions = classified(3, 3)[0]
    blob = questions.blob
    assert (blob.header["ops"], blob.header["constants"]) == (2, 16 + 2 * 15)
    words = np.frombuffer(blob.data, "<i4").copy()
    words[16 : 16 + len(first)] = first
    with pytest.raises(MismatchError, match="ce_model_run: -1"):
        host_runtime.open(replace(blob, data=words.tobytes())).run(questions.x)


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
