"""The portable C equals the interpreter bit for bit on this machine, and the comparison sees every planted fault."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import IN_C, graphs, inputs, random_graph, random_inputs

from cactus_edge.errors import InternalError, MismatchError, UnsupportedError
from cactus_edge.formats.c.blob import build
from cactus_edge.formats.c.compiler import STRICT, compile_c, zig
from cactus_edge.formats.c.host import CHECKED, HostRuntime, blob_program, compare
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.resources import data_path

TFLM = profile("tflm")


def differing(runtime: HostRuntime, graph: Graph, x: np.ndarray) -> str | None:
    """The first layer that differs, None where all outputs agree or the profile refuses the graph."""
    try:
        program = blob_program(runtime, graph, TFLM)
    except UnsupportedError:
        return None
    result = compare(graph, x, TFLM, program)
    return None if result.exact else str(result.first_layer)


@settings(max_examples=300)
@given(st.data())
def test_random_graphs_agree(host_runtime: HostRuntime, data: st.DataObject) -> None:
    graph = data.draw(graphs(max_nodes=6, ops=IN_C))
    assert differing(host_runtime, graph, data.draw(inputs(graph, 12))) is None


@pytest.mark.parametrize("kind", IN_C)
def test_each_kind_agrees(host_runtime: HostRuntime, kind: str) -> None:
    """Forty graphs of this kind alone, so that none depends on luck in the mixed ones."""
    rng = np.random.default_rng(list(IN_C).index(kind))
    for _ in range(40):
        graph = random_graph(rng, 2, (kind,))
        assert differing(host_runtime, graph, random_inputs(rng, graph, 12)) is None


def pair(op: ops.Op, out: Tensor, x: Tensor) -> Graph:
    builder = GraphBuilder()
    return builder.finish(builder.node(op, [builder.input(x)], out))


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**-6, 2.0**-4, 0.125, 0.3, 1.0, 4.0, 15.0])
@pytest.mark.parametrize("depth", [1, 2, 10, 100, 511])
def test_softmax_agrees_at_every_depth(host_runtime: HostRuntime, scale: float, depth: int) -> None:
    scale = float(np.float32(scale))
    rng = np.random.default_rng(depth)
    graph = pair(ops.Softmax(), Tensor("y", (depth,), "int8", 1 / 256, -128), Tensor("x", (depth,), "int8", scale, 3))
    assert differing(host_runtime, graph, random_inputs(rng, graph, 24)) is None


def test_add_agrees_on_every_pair_of_codes(host_runtime: HostRuntime) -> None:
    every = np.stack(np.meshgrid(*[np.arange(-128, 128)] * 2, indexing="ij"), -1).reshape(-1, 1, 1, 2).astype(np.int8)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        s = [float(np.float32(v)) for v in np.exp(rng.uniform(-5, 1, 3))]
        z = [int(v) for v in rng.integers(-128, 128, 3)]
        builder = GraphBuilder()
        x = builder.input(Tensor("x", (1, 1, 2), "int8", s[0], z[0]))
        # Two channels of one tensor, told apart by two convolutions that each copy one.
        picked = [
            builder.node(
                ops.Conv2d(ops.freeze([[[row]]], np.int8), ops.freeze([0], np.int32), ops.freeze([1.0], np.float32)),
                [x],
                Tensor(f"p{i}", (1, 1, 1), "int8", s[0], z[0]),
            )
            for i, row in enumerate(([1, 0], [0, 1]))
        ]
        scaled = builder.node(ops.Requantize(), [picked[1]], Tensor("r", (1, 1, 1), "int8", s[1], z[1]))
        out = builder.node(
            ops.Add(ops.Activation.RELU if seed % 2 else ops.Activation.NONE),
            [picked[0], scaled],
            Tensor("y", (1, 1, 1), "int8", max(s), z[2]),
        )
        assert differing(host_runtime, builder.finish(out), every) is None


def test_real_models_agree(host_runtime: HostRuntime, models_folder: Path) -> None:
    from cactus_edge.verify.tflite_read import read_tflite

    for path in sorted((models_folder / "mlperf-tiny").glob("*.tflite")):
        graph = read_tflite(path.read_bytes()).graph
        x = random_inputs(np.random.default_rng(0), graph, 24)
        assert differing(host_runtime, graph, x) is None, path.name


def test_the_primitives(tmp_path: Path) -> None:
    c = data_path("export", "c")
    files = [c / "test" / "ce_test.c", c / "src" / "ce_sha256.c", c / "src" / "ce_crc32.c"]
    for flags in (CHECKED, ("-DCE_PORTABLE",)):
        program = tmp_path / "test"
        compile_c(zig(), [*STRICT, "-O2", *flags, f"-I{c / 'include'}", *files, "-o", program])
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


FAULTS = [
    ("ce_conv2d_s8.c", "p = o + 1 < end", "p = o + 2 < end"),
    ("ce_conv2d_s8.c", "scratch + n)", "scratch)"),
    ("ce_conv2d_s8.c", "x += r.group_in", "x += 0"),
    ("ce_depthwise_conv2d_s8.c", "w += r->out_c, x += t.step", "w += r->out_c, x += t.step + 1"),
    ("ce_depthwise_conv2d_s8.c", "left = r.group_out;\n", "left = 1;\n"),
    ("ce_dense_s8.c", "o + k : 0", "o : 0"),
    ("ce_add_s8.c", "x2[i] - r.zero2", "x2[i] - r.zero1"),
    ("ce_avg_pool_s8.c", "-(count / 2)", "count / 2"),
    ("ce_max_pool_s8.c", "*p > best", "*p < best"),
    ("ce_mean_s8.c", "a * r.summed0 + i", "a + i"),
    ("ce_pad_s8.c", "ce_fill(y, r->before_2,", "ce_fill(y, r->after_2,"),
    ("ce_concat_s8.c", "row * parts[k].chunk", "row"),
    ("ce_requantize_s8.c", "x[i] - r.zero_in", "x[i] + r.zero_in"),
    ("ce_softmax_s8.c", "12 - zeros + 23", "12 - zeros + 24"),
    ("ce_softmax_s8.c", "k < 3; k++", "k < 1; k++"),
    ("ce_arith.h", "threshold = (mask >> 1) + (x < 0 ? 1 : 0)", "threshold = mask >> 1"),
    ("ce_arith.h", "shifted * m + (INT64_C(1) << 30)", "shifted * m"),
    ("ce_patch.h", "(int8_t)r->zero_in", "(int8_t)0"),
]
"""(file, what stands there, what a slip of the pen makes of it)."""


@pytest.fixture(scope="module")
def corpus() -> list[tuple[Graph, np.ndarray]]:
    """Graphs in which every kind occurs often, with inputs; each fault must show in at least one."""
    rng = np.random.default_rng(5)
    made = [random_graph(rng, 2, (kind,)) for kind in IN_C for _ in range(25)]
    return [(graph, random_inputs(rng, graph, 12)) for graph in made]


@pytest.mark.parametrize(("file", "right", "wrong"), FAULTS)
def test_planted_fault_is_seen(
    file: str, right: str, wrong: str, corpus: list[tuple[Graph, np.ndarray]], tmp_path: Path
) -> None:
    folder = data_path("export", "c", "include" if file.endswith(".h") else "src")
    text = (folder / file).read_text()
    assert right in text
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / file).write_text(text.replace(right, wrong, 1))
    runtime = HostRuntime(tmp_path, overlay=overlay)
    seen = (differing(runtime, graph, x) for graph, x in corpus)
    named = next((layer for layer in seen if layer is not None), None)
    assert named is not None, "no graph of the corpus shows the fault"
    assert "op " in named


def test_undefined_behaviour_ends_the_program_and_is_reported(tmp_path: Path) -> None:
    text = (data_path("export", "c", "src") / "ce_requantize_s8.c").read_text()
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "ce_requantize_s8.c").write_text(text.replace("x[i] - r.zero_in", "INT32_MAX + x[i]"))
    runtime = HostRuntime(tmp_path, CHECKED, overlay=overlay)
    graph = pair(ops.Requantize(), Tensor("y", (2,), "int8", 0.5, 0), Tensor("x", (2,), "int8", 0.5, 0))
    with pytest.raises(MismatchError, match="ended with code -"):
        compare(graph, np.full((1, 2), 100, np.int8), TFLM, blob_program(runtime, graph, TFLM))


def test_a_refused_blob_is_reported(host_runtime: HostRuntime, tmp_path: Path) -> None:
    graph = pair(ops.Relu(), Tensor("y", (2,), "int8", 0.5, 0), Tensor("x", (2,), "int8", 0.5, 0))
    program = host_runtime.open(build(graph, TFLM))
    broken = bytearray(Path(program.argument).read_bytes())
    broken[64] = 99  # the kind of the first record
    Path(program.argument).write_bytes(bytes(broken))
    with pytest.raises(MismatchError, match="ce_model_run: -1"):
        program.run(np.zeros((1, 2), np.int8))


def test_an_input_of_the_wrong_size_is_our_defect(host_runtime: HostRuntime) -> None:
    graph = pair(ops.Relu(), Tensor("y", (2,), "int8", 0.5, 0), Tensor("x", (2,), "int8", 0.5, 0))
    with pytest.raises(InternalError, match="3 bytes an input"):
        blob_program(host_runtime, graph, TFLM).run(np.zeros((1, 3), np.int8))


def test_no_input_gives_no_output(host_runtime: HostRuntime) -> None:
    graph = pair(ops.Relu(), Tensor("y", (2,), "int8", 0.5, 0), Tensor("x", (2,), "int8", 0.5, 0))
    assert blob_program(host_runtime, graph, TFLM).run(np.zeros((0, 2), np.int8)).shape == (0, 2)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine")
def test_gcc_compiles_without_a_word_and_agrees(tmp_path: Path) -> None:
    from cactus_edge.formats.c.compiler import Compiler, first_line

    gcc = Compiler("gcc", ("gcc",), first_line(["gcc", "-dumpfullversion"]))
    runtime = HostRuntime(tmp_path, ("-O3", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"), gcc)
    rng = np.random.default_rng(1)
    for _ in range(60):
        graph = random_graph(rng, 5, IN_C)
        assert differing(runtime, graph, random_inputs(rng, graph, 12)) is None
