"""What a .tflite or .onnx file holds: its ops, what they cost, how large its sums get, which profiles can run it. numpy alone.

Nothing is executed. Every number comes from the graph read back from the bytes (`formats.read`), the memory plan
(`formats.c.plan`) and the overflow proof (`verify.overflow`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from cactus_edge.comparison import C_PROFILE, Table
from cactus_edge.errors import InstallError, ModelError
from cactus_edge.formats.agree import RUNTIMES, Runtime
from cactus_edge.formats.c.blob import build
from cactus_edge.formats.c.plan import plan
from cactus_edge.formats.nibbles import constant_bytes
from cactus_edge.formats.onnx.tensorrt import read_tensorrt
from cactus_edge.formats.read import AnyModel, graph_for, read_model
from cactus_edge.formats.zeros import Zeros, narrow, stored_bits, zeros
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.tensorrt import TENSORRT
from cactus_edge.report.table import Column
from cactus_edge.verify.overflow import Fact, prove
from cactus_edge.verify.read import format_of

Pairs = list[tuple[str, str]]

NAME = 38
"""Characters of an op's name that its row shows."""


@dataclass(frozen=True)
class OpFacts:
    """One op. `reads`: the ops whose outputs it reads, -1 for the model's input.

    macs: multiply-accumulates of one inference, taps that fall outside the image included. constant_bytes: weights and bias as the
    file stores them, two weights of 4 bits to a byte. bound: no integer quantity of the op exceeds it in magnitude, for any input, under
    any profile that can run the file; None where no profile can. zeros: among its weights, None where it has none.
    """

    index: int
    kind: str
    detail: str
    reads: tuple[int, ...]
    output: Tensor
    macs: int
    constant_bytes: int
    bound: int | None
    zeros: Zeros | None

    @property
    def bits(self) -> int | None:
        """Bits of the two's complement integer that holds every value up to `bound`; 32 are there, 64 for int16 with a 64-bit bias."""
        return None if self.bound is None else self.bound.bit_length() + 1


@dataclass(frozen=True)
class RuntimeFacts:
    """A runtime that `agree` can compare with: the installed version, "" for none; why it refuses the model, "" if it does not."""

    name: str
    version: str
    refusal: str


@dataclass(frozen=True)
class ProfileFacts:
    """Whether a profile can run the model; `reason` names the op where it cannot. facts: the proof that nothing overflows."""

    profile: Profile
    reason: str
    facts: tuple[Fact, ...]
    runtimes: tuple[RuntimeFacts, ...]

    @property
    def runs(self) -> bool:
        """Whether it can."""
        return not self.reason


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Sizes in bytes.

    live_bytes: the largest sum of integer activations, and of the portable C's scratch, alive at one op: no memory plan with
    the in-place rules of `formats.c.plan` can do with less. arena_bytes: what that plan takes. c_bytes: constants of the portable C,
    0 where `c_refusal` says why there is none.
    """

    file_bytes: int
    sha256: str
    graph_sha256: str
    input: Tensor
    output: Tensor
    metadata: tuple[str, ...]
    ops: tuple[OpFacts, ...]
    live_bytes: int
    arena_bytes: int
    c_bytes: int
    c_refusal: str
    profiles: tuple[ProfileFacts, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(op.macs for op in self.ops)

    @property
    def constant_bytes(self) -> int:
        """Weights and biases."""
        return sum(op.constant_bytes for op in self.ops)

    @property
    def runnable(self) -> bool:
        """Whether at least one profile can run the model."""
        return any(p.runs for p in self.profiles)

    def summary(self) -> Pairs:
        """In words."""
        c = (
            f"no: {self.c_refusal}"
            if self.c_refusal
            else f"{self.c_bytes:,} bytes of constants, computes profile {C_PROFILE}"
        )
        return [
            ("file", f"{self.file_bytes:,} bytes"),
            ("sha256", self.sha256),
            ("input", _tensor(self.input)),
            ("output", _tensor(self.output)),
            ("constants", f"{self.constant_bytes:,} bytes of weights and biases in {len(self.ops)} ops"),
            ("zeros", self._zeros()),
            ("weight bits", self._bits()),
            ("work", f"{self.macs:,} MACs per inference"),
            (
                "RAM",
                f"{self.live_bytes:,} bytes alive at once, scratch included; {self.arena_bytes:,} bytes of arena",
            ),
            ("as C", c),
        ]

    def _zeros(self) -> str:
        found = [op.zeros for op in self.ops if op.zeros is not None]
        zero, weights = sum(z.zeros for z in found), sum(z.weights for z in found)
        sparse = ", ".join(f"#{z.index}" for z in found if z.two_of_four)
        return f"{zero:,} of {weights:,} weights; " + (f"2:4 holds in {sparse}" if sparse else "2:4 holds in no op")

    def _bits(self) -> str:
        found = [op.zeros for op in self.ops if op.zeros is not None]
        return narrow(found) or stored_bits(found)

    def op_table(self, *, wide: bool) -> Table:
        """Heading and rows, one an op; `wide` adds zeros, the bound on its int32 quantities, whole scales and its output's name."""
        more = ("zeros", "|integer| <=") if wide else ()
        titles = ("scale", "zero", "bytes", "MACs", *more, "bits")
        numbers = [Column(title, right=True) for title in titles]
        head: list[str | Column] = [Column("#", right=True), "op", Column("reads", right=True), "output", *numbers]
        if wide:
            head.append("name")
        return head, [_cells(op, wide) for op in self.ops]

    def profile_table(self) -> Table:
        """Heading and rows, one a profile."""
        rows = []
        for p in self.profiles:
            named = [f"{r.name} {r.version or '(not installed)'}" for r in p.runtimes]
            why = p.reason or self._headroom(p.facts)
            runs = ("conditionally" if p.profile.assumption else "yes") if p.runs else "no"
            rows.append((p.profile.name, runs, ", ".join(named) or "-", why))
        return ["profile", "runs it", "compare with", "why"], rows

    def _headroom(self, facts: Sequence[Fact]) -> str:
        largest = max(facts, key=lambda fact: fact.bound, default=None)
        if largest is None:
            return "no op computes with int32"
        return f"nothing overflows: at most {largest.bound:,}, in op {largest.node} {largest.op}"


def inspect_model(data: bytes) -> Inspection:
    """Reads the file `data`, .tflite or .onnx, and says what is in it. Raises ModelError where it cannot be read, naming the operator."""
    model, kind = read_model(data), format_of(data)
    graph, layout = model.graph, plan(model.graph)
    profiles = tuple(_profile(model, p, data) for p in PROFILES.values() if p.reads == kind)
    facts = [fact for p in profiles for fact in p.facts]
    try:
        c_bytes, c_refusal = len(build(graph, profile(C_PROFILE)).data), ""
    except ModelError as error:
        c_bytes, c_refusal = 0, error.message
    writers = {node.output: index for index, node in enumerate(graph.nodes)}
    sparse = {z.index: z for z in zeros(graph)}
    return Inspection(
        len(data),
        model.sha256,
        graph.digest(),
        graph.input,
        graph.output,
        tuple(sorted(model.metadata)),
        tuple(_op(graph, index, node, writers, facts, sparse.get(index)) for index, node in enumerate(graph.nodes)),
        layout.live_bytes,
        layout.arena_bytes,
        c_bytes,
        c_refusal,
        profiles,
    )


def total_macs(graph: Graph) -> int:
    """Multiply-accumulates of one inference."""
    return sum(macs(node, graph.tensors[node.output]) for node in graph.nodes)


def macs(node: Node, out: Tensor) -> int:
    """Elements of the output times taps per element for convolutions and dense layers, 0 for every other op."""
    match node.op:
        case ops.Conv2d(weight=weight) | ops.Dense(weight=weight):
            return out.size * math.prod(weight.shape[1:])
        case ops.DepthwiseConv2d(weight=weight):
            return out.size * math.prod(weight.shape[:2])
        case _:
            return 0


def _op(
    graph: Graph, index: int, node: Node, writers: dict[int, int], facts: Sequence[Fact], sparse: Zeros | None
) -> OpFacts:
    out = graph.tensors[node.output]
    bounds = [fact.bound for fact in facts if fact.node == index]
    return OpFacts(
        index,
        type(node.op).__name__,
        _detail(node.op),
        tuple(writers.get(i, -1) for i in node.inputs),
        out,
        macs(node, out),
        constant_bytes(node.op),
        max(bounds, default=0) if facts else None,
        sparse,
    )


def _detail(op: ops.Op) -> str:
    """Kernel and, where it is not 1, stride: "3x3/2x2"."""
    match op:
        case ops.Conv2d(weight=weight):
            kernel, stride = (weight.shape[1], weight.shape[2]), op.stride
        case ops.DepthwiseConv2d(weight=weight):
            kernel, stride = (weight.shape[0], weight.shape[1]), op.stride
        case ops.AvgPool() | ops.MaxPool():
            kernel, stride = op.kernel, op.stride
        case _:
            return ""
    return _times(kernel) + ("" if stride == (1, 1) else f"/{_times(stride)}")


def _profile(model: AnyModel, rules: Profile, data: bytes) -> ProfileFacts:
    """The profile's own refusal or an overflow comes first; then that of its runtimes, where all of them refuse."""
    facts: tuple[Fact, ...] = ()
    reason = ""
    graph = model.graph
    try:
        graph_for(model, rules)
        if rules.name == TENSORRT.name:
            read_tensorrt(data)
        facts = prove(lower(graph, rules))
    except ModelError as error:
        reason = error.message
    runtimes = tuple(_runtime(graph, name, r) for name, r in RUNTIMES.items() if r.profile == rules.name)
    if not reason and runtimes and all(r.refusal for r in runtimes):
        reason, facts = runtimes[0].refusal, ()
    return ProfileFacts(rules, reason, facts, runtimes)


def _runtime(graph: Graph, name: str, runtime: Runtime) -> RuntimeFacts:
    version = refusal = ""
    with suppress(InstallError):
        version = runtime.version()
    try:
        runtime.check(graph)
    except ModelError as error:
        refusal = error.message
    return RuntimeFacts(name, version, refusal)


def _cells(op: OpFacts, wide: bool) -> tuple[str, ...]:
    out = op.output
    scale = scale_text(out.scale) if wide else f"{out.scale:.3g}"
    return (
        str(op.index),
        f"{op.kind} {op.detail}".strip(),
        ", ".join("in" if i < 0 else str(i) for i in op.reads),
        _times(out.shape),
        scale if out.dtype != "float32" else "float32",
        str(out.zero_point) if out.dtype != "float32" else "",
        _count(op.constant_bytes),
        _count(op.macs),
        *([_share(op.zeros), _count(op.bound)] if wide else []),
        str(op.bits) if op.bound else "",
        *([_name(out.name)] if wide else []),
    )


def _name(joined: str) -> str:
    """Converters join the names of the ops that they fused by ";": the end of the first one, and how many follow."""
    first, *others = joined.split(";")
    end = first if len(first) <= NAME else f"...{first[-NAME + 3 :]}"
    return f"{end} +{len(others)}" if others else end


def _share(zeros: Zeros | None) -> str:
    """The share of zeros among the weights, marked where sparse kernels can skip them."""
    return "" if zeros is None else f"{zeros.share:.0%}{' 2:4' if zeros.two_of_four else ''}"


def _count(number: int | None) -> str:
    return f"{number:,}" if number else ""


def _tensor(t: Tensor) -> str:
    shape = f"{t.dtype} [{', '.join(map(str, t.shape))}]"
    return f"{shape}, scale {scale_text(t.scale)}, zero point {t.zero_point}" if t.dtype != "float32" else shape


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def scale_text(scale: float) -> str:
    """The shortest decimal that reads back as this float32."""
    return str(np.float32(scale))
