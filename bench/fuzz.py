"""Hostile files: mutants of .tflite, .onnx, .npz, certificates, firmware and recipes, and what was done to them.

    python bench/fuzz.py [--tflite 75000] [--onnx 27000] [--others 3000] [--runtimes 4000] [--onnx-runtime 4000] [--fresh]
    python bench/fuzz.py --reproduce tflite 1234          # one mutant, with its traceback

Model files are read, checked, lowered for every profile, planned and, where small, run; accepted mutants of the rows
"runtimes" and "onnx-runtime" are compared with the real runtimes bit for bit. The good files come from the tests' kits, so that
what can be read or written next is spoiled too. A defect is an exception that is not one of ours, a crash, more
than a second of processor time, memory beyond 4 times the file + 256 MiB (a limit on the worker's address space, set anew for
each file), or an output that a real runtime computes otherwise. The same number is the same mutant everywhere.
Writes bench/results/fuzz.json. Exit code 1 where a defect was found.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _common import ROOT, Results, Row, Target, code, natural, run, table, verdict

sys.path.insert(0, str(ROOT / "tests"))

import hostile_kit
from hostile_kit import Attack

MEMORY_FACTOR, MEMORY_BYTES, SECONDS = 4, 256 << 20, 1.0
STALLED_S = 120
"""Wall time without news after which a worker is given up: its mutant hangs."""

THEIRS = ("runtimes", "onnx-runtime")
"""Attacks in which other people's code runs: limits of time and memory are not ours to keep there."""

WARM_UP = 200
"""Mutants that are examined before the address space is measured: imports, caches and arenas are there then."""


def model_files() -> list[bytes]:
    """The real models, where they are at hand."""
    folder = Path(os.environ.get("CACTUS_EDGE_MODELS") or ROOT.parent / "shared" / "models")
    return [path.read_bytes() for path in sorted(folder.glob("*/*.tflite"))]


def tflite() -> Attack:
    return hostile_kit.tflite_attack([*hostile_kit.tflite_files(120), *model_files()])


def onnx() -> Attack:
    return hostile_kit.onnx_attack(hostile_kit.onnx_files(60))


def runtimes() -> Attack:
    return hostile_kit.runtime_attack([*hostile_kit.tflite_files(120, nodes=3), *hostile_kit.tflite_files(20)])


def onnx_runtime() -> Attack:
    return hostile_kit.onnx_runtime_attack([*hostile_kit.onnx_files(60, nodes=3), *hostile_kit.onnx_files(12)])


def firmware() -> Attack:
    import tempfile

    from cactus_edge.device.firmware import build_firmware
    from cactus_edge.device.targets import load_target
    from cactus_edge.formats.c.write import write_c
    from cactus_edge.ir.arithmetic import profile
    from cactus_edge.verify.tflite_read import read_tflite

    model = hostile_kit.little_model()
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as name:
        folder = Path(name)
        sources = write_c(read_tflite(model).graph, profile("tflm"), folder / "c")
        build_firmware(sources.folder, load_target("mcu"), folder / "fw.elf")
        return hostile_kit.firmware_attack((folder / "fw.elf").read_bytes(), hostile_kit.tflm_blob(model))


ATTACKS: dict[str, Callable[[], Attack]] = {
    "tflite": tflite,
    "onnx": onnx,
    "runtimes": runtimes,
    "onnx-runtime": onnx_runtime,
    "data": lambda: hostile_kit.data_attack(hostile_kit.little_model()),
    "certificate": lambda: hostile_kit.certificate_attack(hostile_kit.little_model()),
    "firmware": firmware,
    "recipe": hostile_kit.recipe_attack,
}


def work(name: str, first: int, end: int, limited: bool, out: Connection) -> None:
    """Examines mutants first..end-1 and sends (number, outcome, seconds, bytes of memory above the start) for each.

    limited: in time and memory, where no runtime but ours is at work.
    """
    logging.disable(logging.WARNING)  # ONNX Runtime's quantiser has opinions
    warnings.simplefilter("error")  # a warning is a line that no user understands
    attack = ATTACKS[name]()
    if not limited:  # the runtimes write why they refuse a file to the process's stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in range(WARM_UP if limited else 0):
        with contextlib.suppress(Exception):  # its turn comes below, or came already
            attack.examine(attack.mutant(number))
    start, peak = address_space(), peak_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    for number in range(first, end):
        data = attack.mutant(number)
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, (start + MEMORY_FACTOR * len(data) + MEMORY_BYTES, hard))
        before = time.process_time()
        try:
            outcome = attack.examine(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            outcome = "DEFECT " + traceback.format_exc(limit=-3)
        seconds = time.process_time() - before
        if limited and seconds > SECONDS:
            outcome = f"DEFECT {seconds:.1f} s of processor time"
        out.send((number, outcome, seconds, peak_bytes() - peak))
    out.send((end, "", 0.0, 0))


def address_space() -> int:
    """Bytes of virtual memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def peak_bytes() -> int:
    """The most resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(name: str, count: int) -> Row:
    """Examines `count` mutants in workers, each of which may die."""
    seen: Counter[str] = Counter()
    defects: list[str] = []
    slowest, memory, next_number = 0.0, 0, 0
    context = multiprocessing.get_context("spawn")
    while next_number < count:
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(name, next_number, count, name not in THEIRS, send), daemon=True)
        worker.start()
        send.close()
        while next_number < count:
            try:
                news = receive.recv() if receive.poll(STALLED_S) else None
            except EOFError:
                news = None
            if news is None:
                worker.kill()
                worker.join()
                # A runtime's own crash on a file that it was to refuse is no defect of ours: it is counted.
                how = "crash of the runtime" if name in THEIRS else f"DEFECT worker ended with {worker.exitcode}"
                news = (next_number, how, 0.0, 0)
            number, outcome, seconds, used = news
            if number >= count:
                break
            if outcome.startswith("DEFECT"):
                defects.append(f"{name} {number}: {outcome[7:]}")
                print(defects[-1], file=sys.stderr)
                outcome = "defect"
            seen[outcome] += 1
            slowest, memory, next_number = max(slowest, seconds), max(memory, used), number + 1
            if not worker.is_alive() and worker.exitcode:
                break
        worker.join(1)
    return {
        "mutants": count,
        "outcomes": dict(sorted(seen.items())),
        "defects": len(defects),
        "first_defects": defects[:10],
        "slowest_s": round(slowest, 3),
        "memory_mib": round(memory / (1 << 20), 1),
    }


def outcomes(row: Row) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in row["outcomes"].items())


class Reproduced(argparse.Action):
    """--reproduce NAME NUMBER as (the name of an attack, the number of a mutant)."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        name, number = values
        if name not in ATTACKS:
            raise argparse.ArgumentError(self, f"invalid choice: {name!r} (choose from {', '.join(ATTACKS)})")
        try:
            setattr(namespace, self.dest, (name, natural(number)))
        except (ValueError, argparse.ArgumentTypeError):
            raise argparse.ArgumentError(self, f"{number}: expected the number of a mutant, 0 or more") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflite", type=natural, default=75_000)
    parser.add_argument("--onnx", type=natural, default=27_000)
    parser.add_argument("--others", type=natural, default=3_000, help="each of data, certificate, firmware, recipe")
    parser.add_argument("--runtimes", type=natural, default=4_000)
    parser.add_argument("--onnx-runtime", type=natural, default=4_000)
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    parser.add_argument("--reproduce", nargs=2, metavar=("NAME", "NUMBER"), action=Reproduced)
    given = parser.parse_args()
    if given.reproduce:
        name, number = given.reproduce
        attack = ATTACKS[name]()
        print(attack.examine(attack.mutant(number)))
        return 0
    counts = {"tflite": given.tflite, "onnx": given.onnx, "runtimes": given.runtimes}
    counts["onnx-runtime"] = given.onnx_runtime
    results, rows = Results("fuzz", fresh=given.fresh), []
    kits = [f"tests/{n}.py" for n in ("hostile_kit", "mutate", "strategies", "graph_parts", "onnx_kit", "tflite_edit")]
    used = code(*kits, "cactus_edge/ir", "cactus_edge/verify", "cactus_edge/formats", "cactus_edge/recipe.py")
    for name in ATTACKS:
        count = counts.get(name, given.others)
        if count:
            row = results.row(name, f"{count} {used}", lambda name=name, count=count: fuzz(name, count))
            rows.append({"name": name, **row})
    columns = ("name", "mutants", "defects", "slowest_s", "memory_mib")
    print(table([[*columns, "outcomes"], *([*(str(r[c]) for c in columns), outcomes(r)] for r in rows)]))
    files = sum(r["mutants"] for r in rows if r["name"] in ("tflite", "onnx"))
    return verdict(
        [
            Target("mutated .tflite and .onnx files", files, 100_000),
            Target("defects", sum(r["defects"] for r in rows), 0, at_most=True),
        ]
    )


if __name__ == "__main__":
    run(main)
