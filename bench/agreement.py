"""The interpreter against TFLM, LiteRT, the compiled C and ONNX Runtime, bit for bit: how many output elements differ.

    python bench/agreement.py [--graphs 200] [--inputs 10000] [--onnx-inputs 1000] [--runtime NAME ...] [--build build] [--fresh]

Sources: `--graphs` random networks over every op that the profile runs (together `--inputs` inputs, those that it refuses
replaced and counted; for ONNX Runtime `--onnx-inputs` each), each build/*/model.tflite and build/*/*.onnx (`--inputs` random
inputs each: uniform, constant, two-valued, at both ends), and the reference models where they are at hand (CACTUS_EDGE_MODELS;
the keyword model on its 1,000 real inputs from CACTUS_EDGE_DATA). Writes bench/results/agreement.json.
Exit code 1 where anything differs. A row that was measured with the same file, inputs and versions is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _common import ROOT, Results, Row, agreed, code, existing, positive, run

sys.path.insert(0, str(ROOT / "tests"))

from onnx_kit import branched, real_inputs
from strategies import IN_C, MIDDLE, random_graph, random_inputs

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.agree import Agreement, agree
from cactus_edge.formats.c.host import HostRuntime, blob_program, compare
from cactus_edge.formats.onnx.read.model import read_onnx
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.graph import Graph

Array = npt.NDArray[Any]
Comparison = Callable[[bytes, Graph, Array], Agreement]

SEED = 20260101

WHEELS = ("TFLM", "litert-ref", "litert-builtin", "litert-xnnpack")
RUNTIMES = ("C", *WHEELS, "ONNX")
KINDS = {"C": IN_C, "litert-builtin": [k for k in MIDDLE if k not in ("add", "requantize", "concat")]}
"""Ops of the random networks, all of them elsewhere: few networks with those three have tensors of whole blocks of 16 only."""


def total(found: Sequence[Agreement]) -> Row:
    """The sum over several comparisons with one runtime, and the first layer that differed anywhere."""
    first = next((str(a.first_layer) for a in found if a.first_layer is not None), "")
    return {
        "runtime": f"{found[0].runtime} {found[0].version}",
        "networks": len(found),
        "inputs": sum(a.inputs for a in found),
        "elements": sum(a.elements for a in found),
        "mismatches": sum(a.mismatches for a in found),
        "max_difference": max(a.max_difference for a in found),
        "argmax_flips": sum(a.argmax_flips for a in found),
        "first_layer": first,
    }


def random_networks(count: int, inputs: int, compare_one: Comparison, kinds: Sequence[str]) -> Row:
    """`count` random networks of `kinds` with `inputs` inputs in all. "refused": networks passed over until there were as many."""
    found: list[Agreement] = []
    number = 0
    while len(found) < count:
        rng = np.random.default_rng([SEED, number])
        number += 1
        graph = random_graph(rng, 6, kinds)
        x = random_inputs(rng, graph, -(-inputs // count))
        data = write_tflite(graph)
        try:
            found.append(compare_one(data, read_tflite(data).graph, x))
        except UnsupportedError:
            continue
    return total(found) | {"refused": number - count}


def onnx_networks(count: int, inputs: int) -> Row:
    """`count` random networks in ONNX Runtime, with `inputs` inputs each: codes, ties between them, and values out of range."""
    networks = enumerate(branched(SEED, count))
    return total([agree(data, onnx_inputs(graph, [SEED, k], inputs), "onnxruntime") for k, (graph, data) in networks])


def onnx_inputs(graph: Graph, seed: Sequence[int], count: int) -> Array:
    """float32 inputs: codes, ties between them, and values out of range."""
    x = random_inputs(np.random.default_rng(seed), graph, count)
    if graph.input.dtype == "int8":
        x = real_inputs(graph, x)
        x[::3] += np.float32(graph.input.scale / 2)
    return x


def files(build: Path, inputs: int) -> dict[str, tuple[bytes, Array]]:
    """Source -> (the file, its inputs)."""
    found: dict[str, tuple[bytes, Array]] = {}
    for path in sorted(build.glob("*/model.tflite")):
        data = path.read_bytes()
        found[f"build/{path.parent.name}"] = (
            data,
            random_inputs(np.random.default_rng(SEED), read_tflite(data).graph, inputs),
        )
    data_folder = Path(os.environ.get("CACTUS_EDGE_DATA", ROOT.parent / "shared" / "data"))
    models = Path(os.environ.get("CACTUS_EDGE_MODELS", data_folder.parent / "models"))
    for path in sorted(models.glob("*/*.tflite")):
        data = path.read_bytes()
        real = data_folder / "mlperf-tiny-kws" / "kws01_test.npz"
        if path.stem == "kws_ref_model" and real.is_file():
            with np.load(real) as stored:
                found[f"{path.stem} (real inputs)"] = data, stored["x"]
        else:
            found[path.stem] = data, random_inputs(np.random.default_rng(SEED), read_tflite(data).graph, 200)
    return found


def digest(*parts: object) -> str:
    """What a row depends on."""
    h = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else repr(part).encode()
        h.update(len(raw).to_bytes(8, "little") + raw)
    return h.hexdigest()


def in_wheel(runtime: str) -> Comparison:
    """The file in a runtime of `formats.agree`."""
    return lambda data, _, x: agree(data, x, runtime)


def compared(
    results: Results, name: str, one: Comparison, kinds: Sequence[str], options: argparse.Namespace
) -> dict[str, Row]:
    """Every source in one runtime; key -> row."""
    wheels = [metadata.version(wheel) for wheel in ("tflite-micro", "ai-edge-litert")]
    versions = digest(*wheels, code("tests/strategies.py", "cactus_edge/ir", "cactus_edge/formats", "export/c"))
    count, inputs = options.graphs, options.inputs
    key = f"{count} random networks, {name}"
    rows = {key: results.row(key, digest(versions, count, inputs), lambda: random_networks(count, inputs, one, kinds))}
    for source, (data, x) in files(options.build, inputs).items():
        measure = partial(one_file, one, data, x)
        digests = {"model": hashlib.sha256(data).hexdigest()}
        key = f"{source}, {name}"
        try:
            rows[key] = results.row(key, digest(versions, data, x.tobytes()), measure, digests)
        except UnsupportedError as error:
            print(f"{key}: {error.message}")
    return rows


def in_onnx_runtime(results: Results, options: argparse.Namespace) -> dict[str, Row]:
    """Random networks and built files in ONNX Runtime; key -> row."""
    key = f"{options.graphs} random networks, ONNX Runtime"
    used = code("tests/onnx_kit.py", "cactus_edge/ir", "cactus_edge/formats/onnx", "cactus_edge/verify")
    versions = digest(metadata.version("onnxruntime"), used, options.graphs, options.onnx_inputs)
    rows = {key: results.row(key, versions, partial(onnx_networks, options.graphs, options.onnx_inputs))}
    for path in sorted(options.build.glob("*/*.onnx")):
        data = path.read_bytes()
        x = onnx_inputs(read_onnx(data).graph, [SEED], options.inputs)
        key = f"build/{path.parent.name}/{path.name}, ONNX Runtime"
        measure = partial(one_onnx_file, data, x)
        try:
            rows[key] = results.row(key, digest(versions, data), measure, {"model": hashlib.sha256(data).hexdigest()})
        except ModelError as error:
            print(f"{key}: {error.message}")
    return rows


def one_onnx_file(data: bytes, x: Array) -> Row:
    """One .onnx file on its inputs."""
    return total([agree(data, x, "onnxruntime")])


def one_file(compare_one: Comparison, data: bytes, x: Array) -> Row:
    """One file on its inputs."""
    return total([compare_one(data, read_tflite(data).graph, x)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Agreement of the interpreter with TFLM, LiteRT, the compiled C and ONNX Runtime."
    )
    parser.add_argument("--graphs", type=positive, default=200, help="random networks")
    parser.add_argument(
        "--inputs", type=positive, default=10_000, help="inputs over all random networks, and for each file"
    )
    parser.add_argument(
        "--onnx-inputs", type=positive, default=1000, help="inputs for each random network in ONNX Runtime"
    )
    parser.add_argument("--runtime", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="compare with these only")
    parser.add_argument("--build", type=existing, default=ROOT / "build", help="folder of finished builds")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    options = parser.parse_args()
    tflm = profile("tflm")
    results = Results("agreement", fresh=options.fresh)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
        host = HostRuntime(Path(folder))

        def in_c(_: bytes, graph: Graph, x: Array) -> Agreement:
            return compare(graph, x, tflm, blob_program(host, graph, tflm))

        runtimes: dict[str, Comparison] = {"C": in_c} | {n: in_wheel(n.lower()) for n in WHEELS}
        for name, one in runtimes.items():
            if name in options.runtime:
                rows |= compared(results, name, one, KINDS.get(name, MIDDLE), options)
    if "ONNX" in options.runtime:
        rows |= in_onnx_runtime(results, options)
    columns = ("networks", "refused", "inputs", "elements", "mismatches", "argmax_flips")
    return agreed(rows, columns, "mismatches", "first_layer", "output elements")


if __name__ == "__main__":
    run(main)
