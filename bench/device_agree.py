"""Firmware on the emulated Cortex-M4 against the interpreter: outputs that differ, instructions, flash and RAM.

    python bench/device_agree.py [--inputs 100] [--graphs 10] [--build build] [--fresh]

Sources: each build/*/model.tflite and `--graphs` random networks (random inputs), and the reference models where they are at
hand (CACTUS_EDGE_MODELS; the keyword model on real inputs from CACTUS_EDGE_DATA). Each is cross-compiled with every compiler
that is installed and run in every emulator that is installed. Instructions are emulated instructions, never a latency.
Writes bench/results/device_agree.json. Exit code 1 where an output differs or two emulators count differently.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from _common import ROOT, Results, Row, Target, code, existing, positive, run, table, verdict

sys.path.insert(0, str(ROOT / "tests"))

from strategies import IN_C, random_graph, random_inputs

from cactus_edge.device.firmware import build_firmware
from cactus_edge.device.measure import bench
from cactus_edge.device.targets import load_target
from cactus_edge.formats.c.write import write_c
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import quantised
from cactus_edge.ir.evaluate import run as interpret
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.tflite_read import read_tflite

Array = npt.NDArray[Any]
Case = tuple[Literal["zig", "gcc"], Literal["unicorn", "qemu"]]

SEED = 20260301
RESNET_INPUTS = 10
"""12.5 million multiplications each: more inputs take minutes and tell no more."""


def measured(graph: Graph, x: Array, case: Case) -> Row:
    """One network, one compiler, one emulator."""
    compiler, emulator = case
    target, tflm = load_target("mcu"), profile("tflm")
    program = lower(graph, tflm)
    codes = quantised(program, x)
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as name:
        folder = Path(name)
        sources = write_c(graph, tflm, folder / "c")
        firmware = build_firmware(sources.folder, target, folder / "fw.elf", compiler)
        report = bench(
            target,
            digest=sources.digest,
            inputs=codes,
            expected=interpret(program, codes),
            folder=folder,
            elf=firmware.elf,
            emulator=emulator,
        )
    assert report.instructions is not None
    return {
        "compiler": firmware.compiler,
        "emulator": emulator,
        "inputs": report.compared,
        "equal": report.equal,
        "first_difference": report.first_difference,
        "instructions_median": report.instructions.median,
        "instructions_iqr": report.instructions.iqr,
        "flash_bytes": firmware.flash_bytes,
        "ram_bytes": firmware.ram_bytes,
        "stack_used_bytes": report.stack_used_bytes,
        "firmware_sha256": firmware.sha256,
    }


def sources(options: argparse.Namespace) -> dict[str, tuple[Graph, Array]]:
    """Name -> (network, inputs)."""
    found: dict[str, tuple[Graph, Array]] = {}
    rng = np.random.default_rng(SEED)
    for path in sorted(options.build.glob("*/model.tflite")):
        graph = read_tflite(path.read_bytes()).graph
        found[f"build/{path.parent.name}"] = graph, random_inputs(rng, graph, options.inputs)
    data_folder = Path(os.environ.get("CACTUS_EDGE_DATA", ROOT.parent / "shared" / "data"))
    models = Path(os.environ.get("CACTUS_EDGE_MODELS", data_folder.parent / "models"))
    for path in sorted(models.glob("*/*.tflite")):
        graph = read_tflite(path.read_bytes()).graph
        real = data_folder / "mlperf-tiny-kws" / "kws01_test.npz"
        if path.stem == "kws_ref_model" and real.is_file():
            with np.load(real) as stored:
                found[f"{path.stem} (real inputs)"] = graph, np.asarray(stored["x"][: options.inputs], np.int8)
        else:
            found[path.stem] = graph, random_inputs(rng, graph, min(options.inputs, RESNET_INPUTS))
    for number in range(options.graphs):
        graph = random_graph(np.random.default_rng([SEED, number]), 5, IN_C)
        found[f"random network {number}"] = graph, random_inputs(rng, graph, 20)
    return found


DECIDING = ("cactus_edge/ir", "cactus_edge/device", "cactus_edge/formats/c", "export", "targets/mcu")
"""The sources of a count or an output."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Firmware on the emulated Cortex-M4 against the interpreter.")
    parser.add_argument("--inputs", type=positive, default=100, help="inputs for each file")
    parser.add_argument("--graphs", type=positive, default=10, help="random networks")
    parser.add_argument("--build", type=existing, default=ROOT / "build", help="folder of finished builds")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    options = parser.parse_args()
    compilers: list[Literal["zig", "gcc"]] = ["zig", *(["gcc"] if shutil.which("arm-none-eabi-gcc") else [])]  # type: ignore[list-item]
    emulators: list[Literal["unicorn", "qemu"]] = ["unicorn", *(["qemu"] if shutil.which("qemu-system-arm") else [])]  # type: ignore[list-item]
    results = Results("device_agree", fresh=options.fresh)
    used = code(*DECIDING)
    rows: dict[str, Row] = {}
    uneven = 0
    for name, (graph, x) in sources(options).items():
        digests: dict[str, Any] = {"inputs": hashlib.sha256(x.tobytes()).hexdigest()}
        for compiler in compilers:
            counts = set()
            for emulator in emulators:
                key = f"{name}, {compiler}, {emulator}"
                inputs = hashlib.sha256(f"{used} {graph.digest()} {digests} {compiler} {emulator}".encode()).hexdigest()
                rows[key] = results.row(key, inputs, partial(measured, graph, x, (compiler, emulator)), digests)
                counts.add((rows[key]["instructions_median"], rows[key]["instructions_iqr"]))
            uneven += len(counts) > 1
    lines = [["model, compiler, emulator", "inputs", "equal", "instructions", "iqr", "flash B", "RAM B", "stack B"]]
    columns = (
        "inputs",
        "equal",
        "instructions_median",
        "instructions_iqr",
        "flash_bytes",
        "ram_bytes",
        "stack_used_bytes",
    )
    lines += [[key, *(f"{row[c]:,.0f}" for c in columns)] for key, row in rows.items()]
    print(table(lines))
    for key, row in rows.items():
        if row["first_difference"]:
            print(f"{key}: {row['first_difference']}")
    return verdict(
        [
            Target("outputs that differ", sum(r["inputs"] - r["equal"] for r in rows.values()), 0, at_most=True),
            Target("networks that two emulators count differently", uneven, 0, at_most=True),
        ]
    )


if __name__ == "__main__":
    run(main)
