"""Single checks of the checker in C, each with what it would take for a proof or a model if it were left out."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from proof_cases import program_of
from test_tflite_read import BROKEN, FILE, MALFORMED, REFUSED
from test_tflite_read_checks import FIELDS
from test_verify_proof import diamond
from tflite_edit import edited, operand, operator

from cactus_edge.certify.linear import default_slopes
from cactus_edge.errors import InternalError
from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.proof import Leaf, Multiplier, Proof, Record, Robust, Row, Split, Tighten, Tree, encode

Change = Callable[[bytearray], Any]

MODEL = write_tflite(diamond().graph)
PROGRAM = program_of(MODEL)
SLOPES = default_slopes(PROGRAM)
SHEET = np.full((2, 6), 128, np.uint8)
HIDDEN, RELU, LAST = 1, 2, 3
"""The accumulators of the first layer, its result, and the accumulators of the last."""

M = Multiplier(HIDDEN, 0, 5, 20)
ROW = Row(1, 1, 1, 0, (M, replace(M, element=3, mu=2**24 - 1), Multiplier(LAST, 1, 1 - 2**24, 60)))
ENDS = np.array([-9, -9], np.int8), np.array([9, 9], np.int8)

SAMPLES, INPUTS, CLASSES, RULES = 53, 57, 61, 63
"""Where these stand in a proof of `proved`; its records come last."""


def proved(*records: Record, slopes: Any = SLOPES, model: bytes = MODEL, profile: str = "tflm") -> bytes:
    digest = hashlib.sha256(model).digest()
    return encode(program_of(model), Proof(digest, profile, 2, slopes, records))


def opened(sample: int = 0, label: int = 0) -> Record:
    return Record(sample, label, *ENDS, None)


def robust(tree: Tree, *tighten: Tighten) -> Record:
    return Record(0, 0, *ENDS, Robust((SHEET,), tighten, tree))


def row(**changes: Any) -> Record:
    return robust(Leaf((replace(ROW, **changes),)))


def split(value: int, element: int, times: int = 1) -> Record:
    tree: Tree = Leaf(())
    for _ in range(times):
        tree = Split(value, element, 0, Leaf(()), tree)
    return robust(tree)


def test_the_forms_are_right_as_they_stand(c_checker: CChecker) -> None:
    """What `FORMS` spoils, at the ends of what is allowed."""
    both = (Tighten(HIDDEN, 0), Tighten(LAST, 0))
    for record in (
        row(),
        row(p=4096, q=4096, sheet=None),
        robust(Leaf((), both), *both),
        split(0, 1),
        split(HIDDEN, 3),
        split(0, 0, times=200),
        opened(1, 1),
        Record(0, 1, *ENDS, ENDS[0]),
        Record(0, 1, *ENDS, ENDS[1]),
    ):
        answer = c_checker.check(MODEL, proved(record))
        assert answer.state == "accepted", answer.words


FORMS: dict[str, tuple[Record, str]] = {
    "a tightening of the input": (robust(Leaf(()), Tighten(0, 0)), "tightenings"),
    "a tightening of a result": (robust(Leaf((), (Tighten(RELU, 0),))), "tightenings"),
    "a tightening of no value": (robust(Leaf(()), Tighten(5, 0)), "tightenings"),
    "a tightening by no sheet": (robust(Leaf(()), Tighten(HIDDEN, 1)), "tightenings"),
    "a tightening twice": (robust(Leaf(()), Tighten(HIDDEN, 0), Tighten(HIDDEN, 0)), "tightenings"),
    "a multiplier behind the value": (row(multipliers=(replace(M, element=4),)), "multipliers"),
    "a multiplier of a result": (row(multipliers=(replace(M, value=RELU),)), "multipliers"),
    "mu beyond": (row(multipliers=(replace(M, mu=2**24),)), "multipliers"),
    "mu below": (row(multipliers=(replace(M, mu=-(2**24)),)), "multipliers"),
    "s beyond": (row(multipliers=(replace(M, s=61),)), "multipliers"),
    "a place twice": (row(multipliers=(M, M)), "multipliers"),
    "places out of order": (row(multipliers=(replace(M, element=1), M)), "multipliers"),
    "values out of order": (row(multipliers=(replace(M, value=LAST), replace(M, element=1))), "multipliers"),
    "a row of no class": (row(other=2), "class 2"),
    "a row of the label": (row(other=0), "class 0"),
    "two rows of a class": (robust(Leaf((ROW, ROW))), "named twice"),
    "p is 0": (row(p=0, sheet=None), "factors 0 and 1"),
    "q is 0": (row(q=0, sheet=None), "factors 1 and 0"),
    "p beyond": (row(p=4097, sheet=None), "factors 4097 and 1"),
    "q beyond": (row(q=4097, sheet=None), "factors 1 and 4097"),
    "a row by no sheet": (row(sheet=1), "sheet 1"),
    "a split behind the input": (split(0, 2), "a split of element 2 of value 0"),
    "a split of a result": (split(RELU, 0), "a split of element 0 of value 2"),
    "201 splits on a path": (split(0, 0, times=201), "too deep"),
    "a counterexample below its box": (Record(0, 1, *ENDS, ENDS[0] - np.int8([0, 1])), "outside its box"),
    "a counterexample above its box": (Record(0, 1, *ENDS, ENDS[1] + np.int8([0, 1])), "outside its box"),
    "a label of no class": (opened(label=2), "label 2 of 2"),
    "a box upside down": (Record(0, 0, ENDS[1], ENDS[0], None), "above its upper end"),
    "a sample of none": (opened(sample=2), "sample 2 of 2"),
}
"""A record, and what is said of it."""


@pytest.mark.parametrize("name", FORMS)
def test_a_record_beyond_the_form_is_rejected(name: str, c_checker: CChecker) -> None:
    record, why = FORMS[name]
    answer = c_checker.check(MODEL, proved(record))
    assert answer.state == "rejected" and why in answer.words, answer.words


def test_samples_do_not_go_back(c_checker: CChecker) -> None:
    assert c_checker.check(MODEL, proved(opened(0), opened(1))).state == "accepted"
    assert c_checker.check(MODEL, proved(opened(1), opened(0))).state == "rejected"


def word(at: int, form: str, value: int) -> Change:
    return lambda data: struct.pack_into(f"<{form}", data, at, value)


BYTES: dict[str, tuple[Change, str]] = {
    "three inputs": (word(INPUTS, "I", 3), "3 inputs"),
    "three classes": (word(CLASSES, "H", 3), "3 classes"),
    "an unknown verdict": (word(-5, "B", 3), "verdict 3"),
    "a byte that is 0": (word(RULES + 5, "B", 1), "of another form"),
    "a value twice": (word(RULES + 14, "H", RELU), "out of order"),
    "a name that is not printed": (word(49, "B", 7), "not printable"),
}
"""A change of the bytes of a proof of one open record with the slopes of two values, and what is said of it."""


@pytest.mark.parametrize("name", BYTES)
def test_bytes_beyond_the_form_are_rejected(name: str, c_checker: CChecker) -> None:
    data = bytearray(proved(opened()))
    assert struct.unpack_from("<IIHHHBBI", data, SAMPLES) == (2, 2, 2, 2, RELU, SLOPES[RELU].q, 0, 1)
    assert struct.unpack_from("<H", data, RULES + 14) == (4,) and data[-5] == 0
    change, why = BYTES[name]
    change(data)
    answer = c_checker.check(MODEL, bytes(data), None if name.startswith("a name") else "tflm")
    assert answer.state == "rejected" and why in answer.words, answer.words


SLOPED: dict[str, tuple[dict[int, Slope], str]] = {
    "of the input": ({0: Slope(20, (1,))}, "value 0, which no step writes"),
    "of no value": ({5: Slope(20, (1,))}, "value 5, which no step writes"),
    "of accumulators": ({HIDDEN: Slope(20, (1,))}, "do not fit its rule"),
    "Q beyond": ({RELU: Slope(41, (1,))}, "of Q = 41"),
    "p beyond": ({RELU: Slope(20, (2**20,))}, "do not fit its rule"),
    "p below": ({RELU: Slope(20, (-1,))}, "do not fit its rule"),
    "two of four channels": ({RELU: Slope(20, (1, 1))}, "do not fit its rule"),
}


@pytest.mark.parametrize("name", SLOPED)
def test_slopes_that_no_rule_has_are_rejected(name: str, c_checker: CChecker) -> None:
    for good in ({RELU: Slope(40, (2**20 - 1,))}, {RELU: Slope(20, (0, 1, 2, 3))}):
        assert c_checker.check(MODEL, proved(opened(), slopes=good)).state == "accepted"
    slopes, why = SLOPED[name]
    answer = c_checker.check(MODEL, proved(opened(), slopes=slopes))
    assert answer.state == "rejected" and why in answer.words, answer.words


def test_a_proof_ends_before_the_next_one(c_checker: CChecker) -> None:
    """The byte behind the first proof, a C, would do for the last end of its last box."""
    first, second = proved(opened()), proved(opened(), profile="else")
    assert c_checker.check(MODEL, first + second, "tflm").state == "accepted"
    cut = first[:8] + struct.pack("<Q", len(first) - 1) + first[16:-1]
    answer = c_checker.check(MODEL, cut + second, "tflm")
    assert answer.state == "rejected" and "ends inside of something" in answer.words


@pytest.mark.parametrize("beyond", [1, 60])
def test_no_proof_goes_on_behind_its_file(beyond: int, c_checker: CChecker) -> None:
    first, second = proved(opened()), proved(opened(), profile="else")
    longer = second[:8] + struct.pack("<Q", len(second) + beyond) + second[16:]
    for data in (longer, first + longer):
        answer = c_checker.check(MODEL, data, "tflm")
        assert answer.state == "rejected" and "longer than its file" in answer.words


@pytest.mark.parametrize("length", [0, 8, 15])
def test_a_proof_is_as_long_as_its_head(length: int, c_checker: CChecker) -> None:
    answer = c_checker.check(MODEL, proved()[:8] + struct.pack("<Q", length), "tflm")
    assert answer.state == "rejected" and f"a proof of {length} bytes" in answer.words


@pytest.mark.parametrize("last", [False, True])
def test_a_sample_is_robust_where_all_its_boxes_are(last: bool, c_checker: CChecker) -> None:
    boxes = [row(), row(), row()]
    boxes[2 if last else 0] = opened()
    assert "samples: 0 of 2 robust" in c_checker.check(MODEL, proved(*boxes)).words
    assert "samples: 1 of 2 robust" in c_checker.check(MODEL, proved(row(), row())).words
    assert "samples: 1 of 2 robust" in c_checker.check(MODEL, proved(*boxes, replace(row(), sample=1))).words


@pytest.mark.parametrize("changes", [{"p": 2}, {"q": 2}, {"sheet": None}])
def test_factors_need_a_layer_of_weights_to_weigh(changes: dict[str, Any], c_checker: CChecker) -> None:
    """The logits are the input, 5 or 10 apart: twice the label's own, or twice the other's, is no margin."""
    build = GraphBuilder()
    x = build.input(Tensor("x", (2,), "int8", 1.0, 0))
    model = write_tflite(build.finish(build.node(ops.Requantize(), [x], Tensor("y", (2,), "int8", 1.0, 0))))
    label, other = (-30, -20) if "q" in changes else (20, 25)
    point = np.array([label, other], np.int8)
    sheet = np.full((2, 2), 128, np.uint8)

    def said(record: Record, **more: Any) -> Any:
        verdict = Robust((sheet,), (), Leaf((Row(1, **{"p": 1, "q": 1, "sheet": 0, **more}),)))
        return c_checker.check(
            model, proved(replace(record, verdict=verdict), slopes={1: Slope(20, (2**19,))}, model=model)
        )

    won = Record(0, 0, point[::-1].copy(), point[::-1].copy(), None) if "q" not in changes else None
    if won is not None:
        assert said(won).state == "accepted"
    answer = said(Record(0, 0, point, point, None), **changes)
    assert answer.state == "rejected" and "ends in a layer of weights" in answer.words, answer.words


# Margins


def layer(weight: Any, bias: Any, scales: Any) -> bytes:
    """One dense layer without activation on codes of scale 1, to outputs of scale 1."""
    build = GraphBuilder()
    op = ops.Dense(ops.freeze(weight, np.int8), ops.freeze(bias, np.int32), ops.freeze(scales, np.float32))
    x = build.input(Tensor("x", (len(weight[0]),), "int8", 1.0, 0))
    return write_tflite(build.finish(build.node(op, [x], Tensor("out", (len(weight),), "int8", 1.0, 0))))


def about(model: bytes, low: int, high: int, *rows: Row, label: int = 0) -> bytes:
    """A proof that this label is robust where every input is from low to high."""
    shape = program_of(model).values[0].shape
    ends = np.full(shape, low, np.int8), np.full(shape, high, np.int8)
    return proved(Record(0, label, *ends, Robust((), (), Leaf(rows))), slopes={}, model=model)


def test_a_class_may_be_at_its_least_accumulator(c_checker: CChecker) -> None:
    """out_0 - out_1 = 40 - 2 x, where both of them move."""
    model = layer([[-1], [1]], [40, 0], [1.0])
    for high in range(-9, 40):
        answer = c_checker.check(model, about(model, -10, high, Row(1, 1, 1, None)))
        assert (answer.state == "accepted") == (40 - 2 * high >= 1), high


def test_the_largest_accumulator_gives_the_labels_own_level(c_checker: CChecker) -> None:
    """At x = 127, the end of all inputs, out_0 is 64 and out_1 is 70; out_2, at -127 there, goes as far as any output."""
    model = layer([[1], [0], [-1]], [0, 70, 0], [0.5, 1.0, 1.0])
    assert c_checker.check(model, about(model, 127, 127, Row(1, 1, 1, None))).state == "rejected"
    assert c_checker.check(model, about(model, 127, 127, Row(0, 1, 1, None), label=1)).state == "accepted"


def test_a_row_may_put_the_label_far_below_its_range(c_checker: CChecker) -> None:
    """q of 4096 times what the accumulator of class 1 varies by, 2^21: no number of the margin leaves its range."""
    model = layer([[0] * 64, [127] * 64], [100, 0], [1.0, 2.0**-30])
    assert c_checker.check(model, about(model, -128, 127, Row(1, 1, 4096, None))).state == "accepted"


def test_a_decision_needs_two_classes(c_checker: CChecker) -> None:
    model = layer([[1]], [0], [1.0])
    answer = c_checker.check(model, about(model, 5, 9))
    assert answer.state == "not checked" and "two classes" in answer.words


@pytest.mark.parametrize("axes", [(4,), (2, 2)])
def test_a_softmax_over_rows_is_no_decision(axes: tuple[int, ...], c_checker: CChecker) -> None:
    build = GraphBuilder()
    x = build.input(Tensor("x", axes, "int8", 0.25, 0))
    model = write_tflite(build.finish(build.node(ops.Softmax(), [x], Tensor("p", axes, "int8", 1 / 256, -128))))
    codes = np.array([100, -100, -100, -100], np.int8).reshape(axes)
    data = proved(Record(0, 0, codes, codes, Robust((), (), Leaf(()))), slopes={}, model=model)
    answer = c_checker.check(model, data)
    assert answer.state == ("accepted" if axes == (4,) else "not checked"), answer.words


@pytest.mark.parametrize(("largest", "zero", "ties"), [(127, 0, True), (128, 0, False), (254, -128, True)])
def test_codes_of_one_float_are_refused(largest: int, zero: int, ties: bool, c_checker: CChecker) -> None:
    """Codes `largest` steps and more from the zero point dequantise to infinity."""
    scale = float(np.nextafter(np.float32(2.0**128 / largest), np.float32(np.inf)))
    build = GraphBuilder()
    x = build.input(Tensor("x", (2,), "int8", scale, zero))
    y = build.node(ops.Requantize(), [x], Tensor("y", (2,), "int8", scale, zero))
    model = write_tflite(build.finish(build.node(ops.Dequantize(), [y], Tensor("z", (2,), "float32"))))
    codes = np.zeros(2, np.int8)
    answer = c_checker.check(model, proved(Record(0, 0, codes, codes, None), slopes={}, model=model))
    assert answer.state == ("not checked" if ties else "accepted") and ("equal floats" in answer.words) == ties


# Models


def _other_code(model: Any) -> None:
    operator(model, "RELU").opcodeIndex = len(model.operatorCodes)


def _other_tensor(model: Any) -> None:
    operator(model, "RELU").inputs[0] = len(model.subgraphs[0].tensors)


def _other_buffer(model: Any) -> None:
    operand(model, "RELU", 0).buffer = len(model.buffers)


def _three_scales(model: Any) -> None:
    """No scale of a bias stands against it."""
    q = operand(model, "CONV_2D", 1).quantization
    q.scale, q.zeroPoint = q.scale[:3], q.zeroPoint[:3]
    operand(model, "CONV_2D", 2).quantization = None


def _short(model: Any, name: str, index: int, shape: tuple[int, ...], size: int) -> None:
    t = operand(model, name, index)
    t.shape, t.shapeSignature = np.int32(shape), None
    model.buffers[t.buffer].data = model.buffers[t.buffer].data[:size]


def _short_bias(model: Any) -> None:
    operand(model, "CONV_2D", 2).quantization = None
    _short(model, "CONV_2D", 2, (3,), 12)


def _short_rows(model: Any) -> None:
    _short(model, "FULLY_CONNECTED", 1, (5, 31), 5 * 31)


SHORT = {
    "operator code beyond": _other_code,
    "tensor beyond": _other_tensor,
    "buffer beyond": _other_buffer,
    "three scales of four": _three_scales,
    "three biases of four": _short_bias,
    "31 weights of 32": _short_rows,
}


def spoiled() -> dict[str, bytes]:
    tables = {**REFUSED, **MALFORMED, **FIELDS}
    changes = {**{name: change for name, (change, _) in tables.items()}, **SHORT}
    found = {name: edited(FILE, change) for name, change in changes.items()}
    return {**found, **{name: build() for name, (build, _) in BROKEN.items()}}


SPOILED = spoiled()


@pytest.mark.parametrize("sin", SPOILED)
def test_a_file_that_verify_refuses_is_not_checked(sin: str, c_checker: CChecker) -> None:
    box = np.zeros((1, 6, 7, 2), np.int8)
    assert len(c_checker.bounds(FILE, box, box)[0]) == 1
    with pytest.raises(InternalError, match="gives no bounds: not checked: "):
        c_checker.bounds(SPOILED[sin], box, box)


def test_a_file_that_ends_early_is_not_checked(c_checker: CChecker) -> None:
    box = np.zeros((1, 6, 7, 2), np.int8)
    for size in (*range(0, len(FILE), 61), *range(len(FILE) - 24, len(FILE))):
        with pytest.raises(InternalError, match="gives no bounds: not checked: "):
            c_checker.bounds(FILE[:size], box, box)
