"""How long `cactus-edge --help` takes when warm: a process from start to exit, median of several.

python bench/startup.py
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import time

from _common import Results, Row, Target, positive, run, verdict

from cactus_edge.version import __version__

RUNS = 15


def measure(runs: int) -> Row:
    """Wall seconds of `python -m cactus_edge --help`; two runs before are not counted."""
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cactus_edge", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    counted = seconds[2:]
    return {"median_s": statistics.median(counted), "least_s": min(counted), "most_s": max(counted), "runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=positive, default=RUNS)
    options = parser.parse_args()
    inputs = hashlib.sha256(f"{__version__} {options.runs}".encode()).hexdigest()
    row = Results("startup", fresh=True).row("cactus-edge --help", inputs, lambda: measure(options.runs))
    print(
        f"cactus-edge --help, warm: median {row['median_s']:.3f} s of {row['runs']} ({row['least_s']:.3f} to {row['most_s']:.3f})"
    )
    return verdict([Target("cactus-edge --help, warm, s", row["median_s"], 0.4, at_most=True)])


if __name__ == "__main__":
    run(main)
