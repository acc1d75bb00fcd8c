"""Live inputs on the emulated Cortex-M4: what bounding a decision costs beside the inference, and whether it is verify's.

    python bench/live_inputs.py [--inputs 100] [--radius 8] [--build build] [--fresh]

Each build/*/model.tflite that the portable C runs, on its own test inputs; radius: codes around each. Instructions are
emulated instructions, never a latency. Writes bench/results/live_inputs.json. Exit code 1 where a verdict differs.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from _common import ROOT, Results, Row, Target, code, existing, natural, positive, run, table, verdict
from device_agree import DECIDING

from cactus_edge.board import Options, bound_on_board, run_on_board
from cactus_edge.device.firmware import build_firmware
from cactus_edge.device.targets import load_target
from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.formats.c.blob import blob_digest
from cactus_edge.formats.c.write import write_c
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import quantised
from cactus_edge.ir.lowering import lower
from cactus_edge.resources import sha256
from cactus_edge.samples import read_inputs
from cactus_edge.verify.tflite_read import read_tflite


def measured(program: Program, x: np.ndarray, radius: int) -> Row:
    """One network: firmware with and without live inputs, the first run on the emulated board."""
    target, options = load_target("mcu"), Options()
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as name:
        folder = Path(name)
        sources = write_c(program.graph, program.profile, folder / "c")
        plain = build_firmware(sources.folder, target, folder / "plain.elf")
        live = build_firmware(sources.folder, target, folder / "live.elf", live=True)
        done = run_on_board(program, x, folder, target, options, live.elf, lambda i, n: None)
        bounds = bound_on_board(program, x, target, options, live.elf, radius, lambda i, n: None)
    done.require_agreement()
    assert done.instructions is not None
    return {
        "compiler": live.compiler,
        "inputs": bounds.inputs,
        "radius": radius,
        "certified": bounds.certified,
        "equal": bounds.equal,
        "inference_median": done.instructions.median,
        "bounds_median": bounds.units.median,
        "bounds_iqr": bounds.units.iqr,
        "times": bounds.units.median / done.instructions.median,
        "flash_bytes": live.flash_bytes - plain.flash_bytes,
        "ram_bytes": live.ram_bytes - plain.ram_bytes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Live inputs on the emulated Cortex-M4.")
    parser.add_argument("--inputs", type=positive, default=100, help="inputs for each file")
    parser.add_argument("--radius", type=natural, default=8, help="codes around each input")
    parser.add_argument("--build", type=existing, default=ROOT / "build", help="folder of finished builds")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    options = parser.parse_args()
    results, rows = Results("live_inputs", fresh=options.fresh), dict[str, Row]()
    for path in sorted(options.build.glob("*/model.tflite")):
        program = lower(read_tflite(path.read_bytes()).graph, profile("tflm"))
        x = quantised(program, read_inputs(path.with_name("test.npz"))[0][: options.inputs])
        try:
            blob = blob_digest(program.graph, program.profile)
        except UnsupportedError:
            continue
        inputs = sha256(f"{code(*DECIDING)} {blob} {options.radius}".encode() + x.tobytes())
        rows[path.parent.name] = results.row(path.parent.name, inputs, partial(measured, program, x, options.radius))
    if not rows:
        raise InputError(
            f"no build in {options.build} runs as portable C: there is nothing to compare", hint="cactus-edge build"
        )
    lines = [["model", "inputs", "certified", "equal", "inference", "bounds", "times", "flash B", "RAM B"]]
    for key, row in rows.items():
        columns = ("inputs", "certified", "equal", "inference_median", "bounds_median")
        sizes = (f"+{row['flash_bytes']:,}", f"+{row['ram_bytes']:,}")
        lines.append([key, *(f"{row[c]:,.0f}" for c in columns), f"{row['times']:.2f}", *sizes])
    print(table(lines))
    differing = sum(row["inputs"] - row["equal"] for row in rows.values())
    return verdict([Target("verdicts that differ", differing, 0, at_most=True)])


if __name__ == "__main__":
    run(main)
