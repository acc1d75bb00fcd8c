"""The trusted base: what re-checking a certificate of a .tflite executes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_verify_certificate import CERTIFICATE, MODEL, X, Y

from cactus_edge.certify.find import find
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.verify.certificate import certify_file
from cactus_edge.verify.proof import Leaf, Multiplier, Record, Robust, Split, Tighten, encode, parse

MOST = 2_500
"""Lines of code in the functions that a re-check runs: see `trusted_base` for what counts."""

ALONE = """
import sys
from importlib.abc import MetaPathFinder

OTHERS = ("cactus_edge.formats", "cactus_edge.certify.", "cactus_edge.train.", "cactus_edge.device", "cactus_edge.report")

class Only(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in (*sys.stdlib_module_names, "numpy", "cactus_edge") or name.startswith(OTHERS):
            raise ModuleNotFoundError(f"{name} is not of the trusted base")

sys.meta_path.insert(0, Only())
from pathlib import Path
import numpy as np
from cactus_edge.verify.recheck import recheck

folder = Path(sys.argv[1])
data = np.load(folder / "data.npz")
report = recheck((folder / "certificate.json").read_bytes(), (folder / "model.tflite").read_bytes(), data["x"], data["y"])
sys.exit(0 if report.accepted else 1)
"""


def test_a_recheck_needs_ir_verify_and_numpy_alone(tmp_path: Path) -> None:
    """No other layer is imported: neither another format's reader, nor the search, nor the writers."""
    (tmp_path / "certificate.json").write_bytes(CERTIFICATE)
    (tmp_path / "model.tflite").write_bytes(MODEL)
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def digits_like() -> Graph:
    """8x8 pixels, a convolution and two dense layers with a scale per channel: what `build --recipe digits` writes, smaller."""
    rng, b = np.random.default_rng(6), GraphBuilder()
    x = b.input(Tensor("pixels", (8, 8, 1), "int8", float(np.float32(1 / 255)), -128))

    def scales(n: int) -> Any:
        return (2.0 ** rng.uniform(-9, -8, n)).astype(np.float32)

    def bias(n: int) -> Any:
        return rng.integers(-900, 900, n, dtype=np.int32)

    padding, relu = ops.Padding2d(0, 1, 0, 1), ops.Activation.RELU
    weight = rng.integers(-127, 128, (4, 3, 3, 1), dtype=np.int8)
    conv = ops.Conv2d(weight, bias(4), scales(4), (2, 2), padding, activation=relu)
    x = b.node(conv, [x], Tensor("conv", (4, 4, 4), "int8", float(np.float32(0.006)), -128))
    x = b.node(ops.Reshape(), [x], Tensor("flat", (64,), "int8", float(np.float32(0.006)), -128))
    hidden = ops.Dense(rng.integers(-127, 128, (16, 64), dtype=np.int8), bias(16), scales(16), relu)
    x = b.node(hidden, [x], Tensor("hidden", (16,), "int8", float(np.float32(0.01)), -128))
    dense = ops.Dense(rng.integers(-127, 128, (10, 16), dtype=np.int8), bias(10), scales(10))
    return b.finish(b.node(dense, [x], Tensor("logits", (10,), "int8", float(np.float32(0.02)), -3)))


def with_trees(program: Program, *question: Any) -> bytes:
    """A proof with every kind of line: rows with multipliers, tightenings, splits of the input and of accumulators, counterexamples."""
    proof = parse(find(program, *question, falsify=True), program)
    return encode(program, replace(proof, records=[_split(program, record) for record in proof.records]))


def _split(program: Program, record: Record) -> Record:
    match record.verdict:
        case Robust(sheets, tighten, Leaf(rows, inner)):
            first, *_, last = (step.out for step in program.steps if isinstance(step.atom, Affine))
            price = (Multiplier(last, 0, 1, 60),)
            priced = tuple(row if row.sheet is None else replace(row, multipliers=price) for row in rows)
            here = inner if inner or not sheets else (Tighten(first, 0),)
            at = int(record.lower.ravel()[0]) + 1
            tree = Split(program.input, 0, at, Split(first, 0, 0, Leaf(priced, here), Leaf(rows)), Leaf(rows))
            return replace(record, verdict=Robust(sheets, tighten, tree))
        case _:
            return record


@pytest.mark.parametrize("shown", ["intervals", "proof"])
def test_what_a_recheck_runs_is_small(shown: str, tmp_path: Path) -> None:
    """The whole trusted base of a verdict: under 2,500 lines, tables and declarations apart."""
    graph, tflm = digits_like(), profile("tflm")
    x = np.random.default_rng(1).random((40, 8, 8, 1)).astype(np.float32)
    y = evaluate(graph, tflm.quantize(graph.input).apply(x), tflm).argmax(1)
    model = write_tflite(graph, metadata={})
    search = {"find": with_trees} if shown == "proof" else {}
    made = certify_file(model, x, y, eps="1/200", domain=(0, 1), profile="tflm", **search)
    assert made.decision.certified.sum() > 0
    files = [tmp_path / "certificate.json", tmp_path / "model.tflite", tmp_path / "data.npz"]
    files[0].write_bytes(made.to_bytes())
    files[1].write_bytes(model)
    np.savez(files[2], x=x, y=y)
    if made.proof is not None:
        files.append(tmp_path / "certificate.proof")
        files[-1].write_bytes(made.proof)
    command = [sys.executable, str(Path(__file__).with_name("trusted_base.py")), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"a re-check of {shown} runs functions of {found['run']} lines, of {found['all']} in ir and verify")
    assert found["accepted"]
    assert found["run"] < MOST, found["modules"]
    must = {"verify/tflite_read.py", "verify/recheck.py", "ir/lowering.py"}
    must |= {"verify/proof.py", "verify/check.py", "verify/relax.py"} if shown == "proof" else {"verify/interval.py"}
    assert all(found["modules"][name] > 20 for name in must)
