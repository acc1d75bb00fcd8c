"""What `make demo` does after installation, from nothing, timed step by step.

    python bench/demo.py

The compilers' caches are empty too: the build runs with a fresh home folder, as on a machine that never built before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import Results, Row, Target, percent, run, table, verdict

from cactus_edge.recipe import load_recipe
from cactus_edge.report.results import BuildResults


def measure(folder: Path) -> Row:
    """Runs `cactus-edge build --target mcu` in a process of its own; seconds in all, per step, and the key figures."""
    home = folder / "home"
    home.mkdir()
    caches = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "ZIG_GLOBAL_CACHE_DIR": str(home / "zig")}
    command = [
        sys.executable,
        "-m",
        "cactus_edge",
        "build",
        "--target",
        "mcu",
        "--out",
        str(folder / "bundle"),
        "--quiet",
    ]
    start = time.perf_counter()
    subprocess.run(command, env=os.environ | caches, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    results = BuildResults.from_json((folder / "bundle" / "results.json").read_text())
    a, device = results.accuracy, results.device
    assert a.int8_attacked is not None
    assert device is not None
    return {
        "seconds": seconds,
        "steps": {step.name: round(step.seconds, 2) for step in results.steps},
        "clean": a.int8_clean.fraction,
        "attacked": a.int8_attacked.fraction,
        "certified": a.int8_certified.fraction,
        "bytes": results.model.bytes,
        "device_equal": device.equal,
        "device_compared": device.compared,
        "flash_bytes": device.flash_bytes,
        "ram_bytes": device.ram_bytes,
        "emulated_instructions": device.instructions.median if device.instructions else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    inputs = hashlib.sha256(load_recipe("digits").digest().encode()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="cactus-edge-demo-") as temporary:
        row = Results("demo", fresh=True).row("digits on mcu", inputs, lambda: measure(Path(temporary)))
    print(table([["step", "s"], *([name, f"{s:.1f}"] for name, s in row["steps"].items())]))
    shares = ", ".join(f"{name} {percent(row[name])}" for name in ("clean", "attacked", "certified"))
    print(f"{row['seconds']:.1f} s in all; {shares}; {row['bytes']:,} bytes")
    return verdict(
        [
            Target("the whole demo, s", row["seconds"], 180, at_most=True),
            Target("of which training, s", row["steps"]["train"], 60, at_most=True),
            Target("outputs equal on the emulated board, %", 100 * row["device_equal"] / row["device_compared"], 100),
        ]
    )


if __name__ == "__main__":
    run(main)
