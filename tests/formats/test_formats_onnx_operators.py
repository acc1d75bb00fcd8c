"""Each operator between QuantizeLinear and DequantizeLinear, or on codes, computes in ONNX Runtime what the graph says, bit for bit."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from onnx_kit import mismatches
from onnx_models import Codes, File, one, one_on_codes, two

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.onnx.runtime import OrtSession, has_vnni
from cactus_edge.formats.read import read_for
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Isotone
from cactus_edge.ir.binary import UnsignedMulRule
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.interval import step_bounds

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not has_vnni(), reason="the profile is that of x86-64 with VNNI"
)

SHAPE = (4, 6, 8)
"""Of the file's input; the graph's is (6, 8, 4)."""

CODES = np.arange(-128, 128, dtype=np.float32)


def kinds(data: bytes) -> list[str]:
    """The ops between QUANTIZE and DEQUANTIZE."""
    return [type(n.op).__name__ for n in read_onnx(data).graph.nodes[1:-1]]


def images(count: int = 20) -> Any:
    return np.random.default_rng(0).normal(0, 4, (count, 6, 8, 4)).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


FACTORS = np.array([1, 1, 2, 3], np.float32)

MOVES: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("to-channel-last", "Transpose", (), {"perm": [0, 2, 3, 1]}),
    ("to-channel-first", "Transpose", (), {"perm": [0, 3, 1, 2]}),
    ("slice-from-the-end", "Slice", (ints(1, -5), ints(99, -1), ints(2, -1), ints(2, 1)), {}),
    ("slice-channels", "Slice", (ints(1), ints(3), ints(1)), {}),
    ("pad", "Pad", (ints(0, 1, 2, 0, 0, 0, 1, 3),), {}),
    ("pad-stated", "Pad", (ints(0, 0, 2, 0, 0, 0, 1, 3), np.float32(0)), {"mode": "constant"}),
    (
        "resize-floor",
        "Resize",
        (None, FACTORS),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    ("resize-half-pixel", "Resize", (None, FACTORS), {"mode": "nearest"}),
    ("pool-same-upper", "MaxPool", (), {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    ("pool-same-lower", "MaxPool", (), {"kernel_shape": [3, 2], "strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    ("pool-valid", "MaxPool", (), {"kernel_shape": [3, 2], "strides": [2, 1], "auto_pad": "VALID"}),
    ("pool-up-where-it-fits", "MaxPool", (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("global-pool", "GlobalMaxPool", (), {}),
    ("identity", "Identity", (), {}),
    ("cast", "Cast", (), {"to": 1}),
    ("dropout", "Dropout", (), {}),
]


@pytest.mark.parametrize("codes", [np.int8, np.uint8], ids=["int8", "uint8"])
@pytest.mark.parametrize(("kind", "constants", "attributes"), [m[1:] for m in MOVES], ids=[m[0] for m in MOVES])
def test_moves_agree(kind: str, constants: tuple[Any, ...], attributes: dict[str, Any], codes: Codes) -> None:
    data = one(kind, SHAPE, (0.05, -7), constants=constants, codes=codes, **attributes)
    assert mismatches(data, images()) == 0


ON_CODES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("MaxPool", (), {"kernel_shape": [2, 2]}),
    ("Transpose", (), {"perm": [0, 2, 3, 1]}),
    ("Pad", (ints(0, 1, 2, 0, 0, 0, 1, 3), np.uint8(121)), {}),
    ("Resize", (np.zeros(0, np.float32), FACTORS), {}),
    ("Slice", (ints(1), ints(3), ints(2)), {}),
]


@pytest.mark.parametrize(("kind", "constants", "attributes"), ON_CODES, ids=[m[0] for m in ON_CODES])
def test_moves_on_codes_agree(kind: str, constants: tuple[Any, ...], attributes: dict[str, Any]) -> None:
    assert mismatches(one_on_codes(kind, SHAPE, (0.05, -7), constants=constants, **attributes), images()) == 0


def test_padding_codes_by_another_code_than_the_zero_point_is_refused() -> None:
    data = one_on_codes("Pad", SHAPE, (0.05, -7), constants=(ints(0, 1, 2, 0, 0, 0, 1, 3), np.uint8(120)))
    with pytest.raises(UnsupportedError, match=r"Pad .*padding by 120\.0, other than by real zero \(121\)"):
        read_onnx(data)


@pytest.mark.parametrize("codes", [np.int8, np.uint8], ids=["int8", "uint8"])
def test_reshapes_agree(codes: Codes) -> None:
    """Pixels of one channel, squeezed, stretched and given back: only where the order of the elements is ours."""
    f = File((1, 6, 8), codes)
    value = f.rounded("input", (0.05, 3), "x")
    value = f.rounded(f.node("Reshape", [value, f.constant("s0", ints(-1, 48, 1, 1))], "r0"), (0.05, 3), "a")
    value = f.rounded(f.node("Squeeze", [value, f.constant("s1", ints(-1, 2))], "r1"), (0.05, 3), "b")
    value = f.rounded(f.node("Unsqueeze", [value, f.constant("s2", ints(2, 3))], "r2"), (0.05, 3), "c")
    value = f.node("Flatten", [value], "r3", axis=-3)
    assert mismatches(f.bytes(value), images()[..., :1]) == 0


@pytest.mark.parametrize("codes", [np.int8, np.uint8], ids=["int8", "uint8"])
@pytest.mark.parametrize("kind", ["LeakyRelu", "Sigmoid", "Tanh", "HardSwish"])
def test_functions_of_a_code_agree_on_all_codes(kind: str, codes: Codes) -> None:
    """Whatever the scales, or the table is refused because an entry is too near a tie."""
    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(30):
        scale, zero_point = float(np.float32(np.exp(rng.uniform(-5, -1)))), int(rng.integers(-128, 128))
        after = {"Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)}.get(
            kind, (float(np.float32(scale * np.exp(rng.uniform(-1, 1)))), int(rng.integers(-128, 128)))
        )
        attributes = {"alpha": float(rng.uniform(-0.5, 1.5))} if kind == "LeakyRelu" else {}
        x = (np.float32(scale) * (CODES - zero_point))[np.newaxis]
        files = [one(kind, (256,), (scale, zero_point), after, codes=codes, **attributes)]
        if kind in ("LeakyRelu", "Sigmoid"):
            files.append(
                one_on_codes(
                    f"QLinear{kind}",
                    *((256,), (scale, zero_point), after, codes, "com.microsoft"),
                    **attributes,
                )
            )
        try:
            assert [mismatches(data, x) for data in files] == [0] * len(files)
        except UnsupportedError as error:
            assert "so near a tie" in error.message or "rounded once" in error.message
            continue
        compared += 1
    assert compared > 20


def test_a_table_of_another_function_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the slope below zero in double."""
    data = one("LeakyRelu", (256,), (0.05, 3), (0.03, -9), alpha=0.3)
    x = (np.float32(0.05) * (CODES - 3))[np.newaxis]
    assert mismatches(data, x) == 0
    op = read_onnx(data).graph.nodes[1].op
    assert op == ops.LeakyRelu(float(np.float32(0.3)))
    monkeypatch.setattr(
        "cactus_edge.ir.tables._dequantised", lambda x: 0.05 * (np.arange(-128, 128) - x.zero_point - 0.3)
    )
    assert mismatches(data, x) > 0


def all_pairs() -> Any:
    return np.stack(np.meshgrid(CODES, CODES, indexing="ij"), -1)[np.newaxis]


def products(rng: np.random.Generator) -> tuple[tuple[float, int], tuple[float, int], tuple[float, int]]:
    a, b = (float(np.float32(np.exp(v))) for v in rng.uniform(-4, 0, 2))
    out = float(np.float32(a * b * np.exp(rng.uniform(0, 5))))
    z = [int(v) for v in rng.integers(-128, 128, 3)]
    return (a, z[0]), (b, z[1]), (out, z[2])


def test_products_agree_on_all_pairs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        data = two("Mul", products(rng))
        assert kinds(data) == ["Conv2d", "Conv2d", "Mul"]
        assert mismatches(data, all_pairs()) == 0


def test_products_that_add_the_zero_point_after_rounding_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault, on a multiplier just below 1/2: half of the products are almost ties, and ties once the sum is rounded."""
    data = two("Mul", ((1.0, 3), (1.0, -5), (float(np.nextafter(np.float32(2), np.float32(3))), 7)))
    assert mismatches(data, all_pairs()) == 0

    def after(self: UnsignedMulRule, x1: Any, x2: Any) -> Any:
        product = (self.factor(0, x1) * self.factor(1, x2)).astype(np.float32) * np.float32(self.multiplier)
        return np.clip(np.rint(product).astype(np.int64) + self.zero_point, self.lo, self.hi)

    monkeypatch.setattr(UnsignedMulRule, "apply", after)
    assert mismatches(data, all_pairs()) > 100


def test_a_product_with_one_pixel_per_channel_agrees() -> None:
    data = two("Mul", ((0.05, 3), (0.03, -5), (0.02, 7)), shape=(6, 8), second=(1, 1))
    assert kinds(data) == ["Conv2d", "Conv2d", "Mean", "Mul"]
    assert mismatches(data, np.random.default_rng(0).normal(0, 60, (30, 6, 8, 2)).astype(np.float32)) == 0


def test_bounds_of_products_hold_and_are_attained() -> None:
    """On boxes of codes, by trying all pairs in them."""
    rng = np.random.default_rng(5)
    for _ in range(6):
        program = lower(read_onnx(two("Mul", products(rng))).graph, profile("ort-x86"))
        atom = program.steps[-1].atom
        assert isinstance(atom, Isotone) and isinstance(atom.rule, UnsignedMulRule)
        for _ in range(60):
            (a, b), (c, d) = np.sort(rng.integers(-128, 128, (2, 2)), axis=1)
            found = atom.apply(*np.meshgrid(np.arange(a, b + 1), np.arange(c, d + 1), indexing="ij"))
            bounds = step_bounds(atom, [(np.array([[v]]), np.array([[w]])) for v, w in ((a, b), (c, d))])
            assert (bounds[0].item(), bounds[1].item()) == (found.min(), found.max())


def test_a_product_on_int8_codes_is_refused() -> None:
    """ONNX Runtime leaves its convolutions in float; the QOperator form rounds it in another way."""
    data = two("Mul", ((0.05, 3), (0.03, -5), (0.02, 7)), codes=np.int8)
    with pytest.raises(UnsupportedError, match="in integers: Conv"):
        OrtSession(data, read_onnx(data).graph, False)


def test_codes_of_both_signs_in_one_file_agree() -> None:
    """int8 in front and uint8 behind a convolution, as NNCF writes a ReLU."""
    f = File(SHAPE)
    value = f.rounded("input", (0.05, 3), "x", np.int8)
    weight = np.random.default_rng(0).integers(-127, 128, (5, 4, 3, 3))
    value = f.node("Conv", [value, f.weight("w", weight, np.full(5, 0.01))], "c")
    value = f.rounded(f.node("Relu", [value], "r"), (0.2, -128), "a", np.uint8)
    value = f.node("MaxPool", [value], "p", kernel_shape=[2, 2])
    weight = np.random.default_rng(1).integers(-127, 128, (3, 5, 1, 1))
    value = f.node("Conv", [value, f.weight("v", weight, 0.02)], "d")
    data = f.bytes(f.rounded(value, (0.3, 5), "y", np.int8))
    model = read_onnx(data)
    assert kinds(data) == ["Conv2d", "MaxPool", "Conv2d"]
    assert [model.names[t] for t in sorted(model.uint8)] == ["a_codes"]
    assert mismatches(data, images(200)) == 0
    session = OrtSession(data, model.graph, True)
    session.run_batch(images(4))
    assert session.tensor(3) is None, "the pool's result has no name of its own"
    assert session.tensor(2) is not None


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_both_domains_of_quantize_linear_agree(domain: str) -> None:
    f = File(SHAPE, np.uint8)
    value = f.rounded("input", (0.05, 3), "x", domain=domain)
    value = f.node("MaxPool", [value], "p", kernel_shape=[2, 2])
    assert mismatches(f.bytes(f.rounded(value, (0.05, 3), "y", domain=domain)), images()) == 0


def test_names_that_exporters_leave_behind() -> None:
    """Weights behind an Identity, a Dropout and an Identity in front of the rounding."""
    f = File((7,))
    value = f.rounded("input", (0.05, 3), "x")
    f.node("Identity", [f.constant("shared", np.arange(-14, 14, dtype=np.int8).reshape(4, 7))], "codes")
    f.node("Constant", [], "scale", value=_tensor(np.float32(0.01)))
    weight = f.node("DequantizeLinear", ["codes", "scale", f.constant("zero", np.int8(0))], "w")
    value = f.node("Gemm", [f.node("Dropout", [value], "d"), weight], "g", transB=1)
    data = f.bytes(f.rounded(f.node("Identity", [value], "i"), (0.01, 4), "y"))
    assert kinds(data) == ["Dense"]
    assert mismatches(data, np.random.default_rng(0).normal(0, 4, (50, 7)).astype(np.float32)) == 0


@pytest.mark.parametrize("at", ["codes", "value"])
def test_a_reader_behind_another_name_keeps_what_it_reads(at: str) -> None:
    """A ReLU on codes is fused with the convolution only where nothing else reads the codes, under any name."""
    f = File((2, 6, 6))
    weight = f.weight("w", np.random.default_rng(0).integers(-127, 128, (3, 2, 3, 3)), 0.02)
    value = f.node("Conv", [f.rounded("input", (0.05, 3), "x"), weight], "c")
    plain = f.rounded(value, (0.1, 3), "a")
    if at == "codes":
        again = f.node("DequantizeLinear", [f.node("Identity", ["a_codes"], "i"), "a_scale", "a_zero"], "again")
    else:
        again = f.node("Identity", [plain], "again")
    clamped = f.rounded(f.node("Relu", [again], "r"), (0.1, 3), "b")
    data = f.bytes(f.rounded(f.node("Add", [plain, clamped], "s"), (0.2, 3), "y"))
    want = evaluate(read_onnx(data).graph, images()[:, :, :6, :2], profile("ort-x86"))
    session = _unoptimised(data)
    got = session.run(None, {"input": np.ascontiguousarray(images()[:, :, :6, :2].transpose(0, 3, 1, 2))})[0]
    assert np.abs(got.transpose(0, 2, 3, 1) - want).max() <= 0.41, "at most two steps, of roundings in float"
    assert (want < 0).any()


def _unoptimised(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _tensor(values: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values), "value")


GEOMETRIES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("same-upper", (5, 4, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("same-lower", (5, 4, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ("valid", (5, 4, 3, 2), {"auto_pad": "VALID", "strides": [2, 1]}),
    ("dilated", (5, 4, 3, 2), {"dilations": [2, 3], "pads": [1, 0, 2, 1]}),
    ("grouped", (6, 2, 3, 3), {"group": 2}),
    ("depthwise-twice", (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
]


@pytest.mark.parametrize(("shape", "attributes"), [g[1:] for g in GEOMETRIES], ids=[g[0] for g in GEOMETRIES])
def test_geometries_of_convolutions_agree(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    f = File(SHAPE, np.int8)
    value = f.rounded("input", (0.05, 3), "x")
    weight = np.random.default_rng(0).integers(-127, 128, shape)
    value = f.node("Conv", [value, f.weight("w", weight, np.linspace(0.01, 0.03, shape[0]))], "c", **attributes)
    assert mismatches(f.bytes(f.rounded(value, (0.5, -3), "y")), images(50)) == 0


@pytest.mark.parametrize("scale", [0.02, [0.01, 0.02, 0.03]], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("codes", [np.int8, np.uint8], ids=["int8", "uint8"])
def test_weights_around_another_zero_point_agree(codes: Codes, scale: Any) -> None:
    """As long as they are 8 bits around it."""
    zero = 128 if codes is np.uint8 else -20
    f = File(SHAPE)
    value = f.rounded("input", (0.05, 3), "x")
    weight = zero + np.random.default_rng(0).integers(-100, 100, (3, 4, 3, 3))
    value = f.node("Conv", [value, f.weight("w", weight, scale, zero, codes)], "c")
    value = f.node("Flatten", [f.rounded(value, (0.3, -3), "a")], "f")
    value = f.rounded(value, (0.3, -3), "b")
    dense = f.weight("v", zero + np.random.default_rng(1).integers(-100, 100, (5, 72)), 0.01, zero, codes)
    data = f.bytes(f.rounded(f.node("Gemm", [value, dense], "g", transB=1), (0.7, 9), "y"))
    assert mismatches(data, images(200)) == 0


def test_weights_around_another_zero_point_are_refused_where_nothing_was_shown() -> None:
    f = File(SHAPE, np.int8)
    weight = f.weight("w", np.zeros((3, 4, 3, 3)), 0.02, -7)
    value = f.node("Conv", [f.rounded("input", (0.05, 3), "x"), weight], "c")
    data = f.bytes(f.rounded(value, (0.3, -3), "y"))
    assert read_for(data, profile("ort-x86")).digest() == read_onnx(data).graph.digest()
    with pytest.raises(UnsupportedError, match="weights are uint8, or around a zero point, which were not shown"):
        read_for(data, profile("ort-arm64"))


def test_weights_of_nine_bits_are_refused() -> None:
    f = File(SHAPE)
    weight = f.weight("w", np.arange(0, 144).reshape(4, 4, 3, 3), 0.02, 7, np.uint8)
    value = f.node("Conv", [f.rounded("input", (0.05, 3), "x"), weight], "c")
    with pytest.raises(UnsupportedError, match="weights from -7 to 136 around their zero point"):
        read_onnx(f.bytes(f.rounded(value, (0.3, -3), "y")))
