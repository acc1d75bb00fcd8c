"""Exact runs and certification against LiteRT: the keyword model over its 1,000 real inputs, one thread each.

    python bench/run_speed.py [--rounds 5] [--eps 2]

LiteRT: its optimised kernels without a delegate, opened once, one Invoke per input, as an application feeds a sensor (reading the
file is not counted). Ours: `ce.run` and `ce.certify` by intervals under profile tflm from the file's bytes, reading included.
The three are timed in turn in one process; each figure is the median of the rounds. Needs the reference model and its
inputs (CACTUS_EDGE_MODELS, CACTUS_EDGE_DATA). Writes bench/results/run_speed.json.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from _common import ROOT, Results, Row, Target, positive, run, table, verdict

from cactus_edge.errors import InputError
from cactus_edge.process import settle

RUN_LIMIT, CERTIFY_LIMIT = 10, 25


def shared(variable: str, *relative: str) -> Path:
    """A file below the folder that an environment variable names, or beside the checkout."""
    folder, *rest = relative
    path = (Path(os.environ[variable]) if os.environ.get(variable) else ROOT.parent / "shared" / folder).joinpath(*rest)
    if not path.is_file():
        raise InputError(f"there is no {path}", hint=f"set {variable}")
    return path


def measure(model: bytes, data: Path, rounds: int, eps: str) -> Row:
    import numpy as np

    import cactus_edge as ce
    from cactus_edge.formats.agree import RUNTIMES
    from cactus_edge.samples import read_samples
    from cactus_edge.verify.tflite_read import read_tflite

    x, y = read_samples(data)
    session = RUNTIMES["litert-builtin"].open(model, read_tflite(model).graph, False)
    actions: dict[str, Callable[[], object]] = {
        "litert": lambda: [session.run(sample) for sample in x],
        "run": lambda: ce.run(model, x, y, profile="tflm"),
        "certify": lambda: ce.certify(model, x, y, eps=eps, unit="lsb", profile="tflm", threads=1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "inputs": len(np.asarray(x)),
        "eps_lsb": eps,
        "rounds": rounds,
        **{f"{name}_s": round(value, 4) for name, value in medians.items()},
        "run_ratio": medians["run"] / medians["litert"],
        "certify_ratio": medians["certify"] / medians["litert"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--eps", default="2", help="radius in steps of the input (default 2)")
    given = parser.parse_args()
    settle()
    model = shared("CACTUS_EDGE_MODELS", "models", "mlperf-tiny", "kws_ref_model.tflite").read_bytes()
    data = shared("CACTUS_EDGE_DATA", "data", "mlperf-tiny-kws", "kws01_test.npz")
    digests = {"model": hashlib.sha256(model).hexdigest(), "data": hashlib.sha256(data.read_bytes()).hexdigest()}
    row = Results("run_speed", fresh=True).row(
        "keyword spotting", f"{given}", lambda: measure(model, data, given.rounds, given.eps), digests
    )
    print(table([["", "s", "times LiteRT"], ["litert", f"{row['litert_s']:.3f}", ""],
                 ["run", f"{row['run_s']:.3f}", f"{row['run_ratio']:.2f}"],
                 ["certify", f"{row['certify_s']:.3f}", f"{row['certify_ratio']:.2f}"]]))  # fmt: skip
    return verdict(
        [
            Target("exact run, times LiteRT", row["run_ratio"], RUN_LIMIT, at_most=True),
            Target("certify by intervals, times LiteRT", row["certify_ratio"], CERTIFY_LIMIT, at_most=True),
        ]
    )


if __name__ == "__main__":
    run(main)
