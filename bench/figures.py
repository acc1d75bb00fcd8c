"""The table of figures in README.md, generated from bench/results: nothing in it is typed.

python bench/figures.py            prints it
python bench/figures.py --write    puts it between the markers in README.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from _common import RESULTS, ROOT, mean_pca, median, run

from cactus_edge.errors import InputError
from cactus_edge.resources import write_atomic

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
Values = dict[str, dict[str, Any]]
Line = tuple[str, str, str]


def demo(rows: Values) -> Iterator[Line]:
    row = rows["digits on mcu"]
    yield (
        "`make demo` after installation",
        f"{row['seconds']:.0f} s, of which training {row['steps']['train']:.0f} s",
        "180 s, 60 s",
    )
    yield "outputs equal on the emulated board", f"{row['device_equal']} of {row['device_compared']}", "all of 100"


def startup(rows: Values) -> Iterator[Line]:
    yield "`cactus-edge --help`, warm", f"{rows['cactus-edge --help']['median_s']:.2f} s", "0.4 s"


def by_method(rows: Values, method: str) -> list[dict[str, Any]]:
    return [row for key, row in sorted(rows.items()) if key.startswith(method)]


def share(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * row[key] for row in rows]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def trained(title: str, goal: str) -> Callable[[Values], Iterator[Line]]:
    def lines(rows: Values) -> Iterator[Line]:
        seeds = "{} seed" if len(by_method(rows, "cactus")) == 1 else "{} seeds"
        for method, name in (("cactus", "integer file"), ("small", "trained small, integer file")):
            found = by_method(rows, method)
            if found:
                figures = (
                    f"{share(found, 'clean')} / {share(found, 'certified')} %, {max(r['bytes'] for r in found):,} bytes"
                )
                yield (
                    f"{title}, {seeds.format(len(found))}, {name}: clean / certified",
                    figures,
                    goal if method == "cactus" else "",
                )
        found = by_method(rows, "cactus")
        figures = f"{share(found, 'float_clean')} / {share(found, 'float_certified')} %"
        yield f"{title}, its float network (measured, not proved)", figures, "at most the file's"

    return lines


def calibration(rows: Values) -> Iterator[Line]:
    for key, ours in rows.items():
        network, _, criterion = key.rpartition("/")
        others = [row for other, row in rows.items() if other.startswith(f"{network}/") and other != key]
        if criterion == "certified" and others:
            best = max(others, key=lambda row: float(row["certified"]))
            found = [f"{share([row], 'clean')} / {share([row], 'certified')} %" for row in (ours, best)]
            name = network.replace("/", ", ", 1).replace("/", ", seed ")
            what = (
                f"calibration of {name}: clean / certified, against the most certified of {len(others)} usual criteria"
            )
            yield what, " against ".join(found), "no less certified"


def weight_bits(rows: Values) -> Iterator[Line]:
    whole = max(row["blob_bytes"] for row in by_method(rows, "digits/8/"))
    for name in dict.fromkeys(key.split("/")[1] for key in sorted(rows)):
        found = by_method(rows, f"digits/{name}/")
        chosen = [", ".join(map(str, row["weight_bits"]["weight_bits"])) for row in found if "weight_bits" in row]
        bits = f"at most {name} ({' or '.join(dict.fromkeys(chosen))} bits chosen)" if chosen else f"{name} bits"
        size, part = (max(row[key] for row in found) for key in ("bytes", "blob_bytes"))
        of = "" if part == whole else f", {100 * part / whole:.0f} % of the blob in 8 bits"
        figures = f"{share(found, 'clean')} / {share(found, 'certified')} %, {size:,} bytes{of}"
        yield f"digits, weights of {bits}, {len(found)} seeds: clean / certified", figures, ""


def train_speed(rows: Values) -> Iterator[Line]:
    for key, row in rows.items():
        network, step, threads = key.split("/")
        yield (
            f"a certified training step ({step}, {network}, {threads}) against plain PyTorch in float32",
            f"{row['of_plain_ms']:.2f} times; {row['of_settled_ms']:.2f} times where plain code keeps freed memory as ours does",
            "1.5 times",
        )


def engine_speed(rows: Values) -> Iterator[Line]:
    for key, row in rows.items():
        kind, _, what = key.partition(", ")
        if kind == "intervals":
            yield f"intervals against a float32 forward pass ({what})", f"{row['of_forward']:.2f} times", "3 times"
            lirpa, goal = "throughput of intervals against auto_LiRPA's IBP", "1.3 times"
        else:
            lirpa, goal = "throughput of linear bounds against auto_LiRPA's CROWN", "1 time"
        if "of_lirpa" in row:
            yield f"{lirpa} ({what})", f"{row['of_lirpa']:.1f} times", goal
        if "share_of_crown" in row:
            figures = f"{row['certified']} against {row['crown']} of {row['samples']}"
            yield f"certified on the integer file against CROWN's on its float network ({what})", figures, "95 %"


def soundness(rows: Values) -> Iterator[Line]:
    for kind, goal in (("random", "0, 10,000 networks"), ("tiny", "0, 500 networks")):
        found = [row for key, row in rows.items() if key.startswith(kind)]
        networks, regions, violations = (sum(row[k] for row in found) for k in ("networks", "regions", "violations"))
        what = "every point of each region" if kind == "tiny" else "random points, corners, an attack"
        figures = f"{violations} in {regions:,} regions of {networks:,} networks"
        yield f"{kind} networks under random profiles, {what}: violations", figures, goal
    faults = [row["noticed_at"] for key, row in rows.items() if key.startswith("fault")]
    yield "rules broken on purpose that are noticed", f"{sum(f is not None for f in faults)} of {len(faults)}", "all"


def completeness(rows: Values) -> Iterator[Line]:
    for key, row in rows.items():
        figures = f"{row['decided']:.0%} ({row['robust']} robust, {row['refuted']} not)"
        yield f"decided within {row['budget']} a sample, first {row['samples']} of MNIST ({key})", figures, "95 %"
    yield "of them contradicted by a long attack", str(sum(row["contradictions"] for row in rows.values())), "0"


def qnn_robustness(rows: Values) -> Iterator[Line]:
    for name in sorted({key.split()[0] for key in rows}):
        found = [row for key, row in rows.items() if key.split()[0] == name]
        total = {
            c: sum(row[c] for row in found)
            for c in ("samples", "open", "timeouts", "timeouts_decided", "contradictions")
        }
        what = f"published 6-bit network ({name}), {total['samples']} regions of Henzinger et al. 2021, {found[0]['budget']} a sample"
        figures = (
            f"{1 - total['open'] / total['samples']:.1%} decided, {total['timeouts_decided']} of the {total['timeouts']} that were not; "
            f"{total['contradictions']} verdicts differ"
        )
        yield what, figures, "95 %, 0 differ"


def gap(rows: Values) -> Iterator[Line]:
    for key, row in rows.items():
        what = f"{key}, eps {row['eps']}, first {row['samples']}: certified by intervals / by all means / attacked"
        figures = f"{row['intervals']:.1%} / {row['complete']:.1%} / {row['attacked']:.1%}"
        yield what, f"{figures}, {row['share']:.0%} of the gap left", "33 %"


def checking(rows: Values) -> Iterator[Line]:
    for kind, words in (("slopes", "optimised slopes"), ("branching", "trees")):
        found = [row[kind] for row in rows.values() if kind in row]
        if found:
            finding, by_verify = (sum(f[k] for f in found) for k in ("finding_s", "checking_s"))
            in_c = [f["in_c_s"] for f in found]
            figures = f"{by_verify / finding:.1%}"
            figures += "" if None in in_c else f", in C {sum(in_c) / finding:.1%}"
            yield f"checking {sum(f['proofs'] for f in found)} proofs with {words}, of finding", figures, "20 %"


def agreement(rows: Values) -> Iterator[Line]:
    inputs = sum(row["inputs"] for row in rows.values())
    different = sum(row["mismatches"] for row in rows.values())
    yield (
        f"agreement with TFLM, LiteRT, the host C and ONNX Runtime, {inputs:,} comparisons",
        f"{different} mismatches",
        "0",
    )


def device_agree(rows: Values) -> Iterator[Line]:
    compared, equal = (sum(row[k] for row in rows.values()) for k in ("inputs", "equal"))
    yield (
        "outputs on emulated Cortex-M4 boards, every model, compiler and emulator",
        f"{equal:,} of {compared:,} equal",
        "all",
    )


def pi_emulator(rows: Values) -> Iterator[Line]:
    inputs, different = (sum(row[k] for row in rows.values()) for k in ("inputs", "different"))
    yield (
        "LiteRT-XNNPACK and ONNX Runtime for aarch64, emulated as a Raspberry Pi 4 and 5, random and built networks",
        f"{different:,} differ in {inputs:,} inputs",
        "0",
    )


def fuzz(rows: Values) -> Iterator[Line]:
    files = sum(row["mutants"] for name, row in rows.items() if name in ("tflite", "onnx"))
    theirs = {name: rows[name] for name in ("runtimes", "onnx-runtime") if name in rows}
    ours = {name: row for name, row in rows.items() if name not in theirs}
    others = sum(row["mutants"] for name, row in ours.items() if name not in ("tflite", "onnx"))
    slowest, memory = (max(row[key] for row in ours.values()) for key in ("slowest_s", "memory_mib"))
    yield (
        f"hostile files: {files:,} mutated .tflite and .onnx, {others:,} data files, certificates, firmwares and recipes",
        f"{sum(row['defects'] for row in ours.values())} defects, at most {slowest:.2f} s and {memory:.0f} MiB",
        "0 of 100,000; 1 s, 256 MiB",
    )
    compared = sum(n for row in theirs.values() for text, n in row["outcomes"].items() if text.startswith("equal"))
    differ = sum(row["defects"] for row in theirs.values())
    yield f"accepted mutants in real runtimes ({compared:,})", f"{differ} differ", "0"


def proof_mutants(rows: Values) -> Iterator[Line]:
    outcomes: Counter[str] = Counter()
    for row in rows.values():
        for kind in row["kinds"].values():
            outcomes.update(kind)
    refused, right = outcomes["refused by both"], sum(n for what, n in outcomes.items() if "proof of" in what)
    yield (
        f"corrupted proofs and models ({outcomes.total():,}), by `verify` and by the checker in C",
        f"{refused:,} refused by both, {right:,} still right, confirmed by runs; "
        f"{sum(row['defects'] for row in rows.values())} of which they say different things",
        "1,000 refused, 0",
    )


def run_speed(rows: Values) -> Iterator[Line]:
    for key, row in rows.items():
        where = f"({key}, {row['inputs']:,} inputs, one thread; LiteRT's optimised kernels, one Invoke each)"
        yield f"exact run against LiteRT {where}", f"{row['run_ratio']:.1f} times", "10 times"
        yield f"interval certification against LiteRT {where}", f"{row['certify_ratio']:.1f} times", "25 times"


def live_inputs(rows: Values) -> Iterator[Line]:
    for key, row in rows.items():
        yield (
            f"live inputs on the emulated Cortex-M4 ({key}, {row['radius']} codes around {row['inputs']} inputs)",
            f"{row['bounds_median'] / 1e6:.2f} million instructions beside an inference's {row['inference_median'] / 1e6:.2f}; "
            f"{row['equal']} of {row['inputs']} verdicts as verify's",
            "all equal",
        )


def train_methods(rows: Values) -> Iterator[Line]:
    """A line for each group of rows and method, but for the quick suite's group."""
    suite = tomllib.loads((ROOT / "bench" / "suites" / "train-methods-full.toml").read_text())
    for group in suite["group"]:
        for row in group["row"]:
            found = by_method(rows, f"{group['key']}/{row['key']}/")
            if not found:
                continue
            best = [r["best"] for r in found if "best" in r]
            more = f", by all engines {share(best, 'certified')} % of the first {best[0]['samples']}" if best else ""
            names = ("clean", "certified")
            if "attacked_balanced" in found[0]:  # the recipe counts classes
                more += f", of all samples {' / '.join(share(found, name) for name in names)} %"
                names = ("clean_balanced", "certified_balanced")
            yield (
                f"{group['title']}, {row['key']} ({row['role']}), {len(found)} {'seed' if len(found) == 1 else 'seeds'}: clean / certified",
                f"{' / '.join(share(found, name) for name in names)} %{more}, {max(r['bytes'] for r in found):,} bytes",
                in_words(group.get("goal", {})) if row["role"] == "ours" else "",
            )


def robust_compression(rows: Values) -> Iterator[Line]:
    """A line for each group of rows that was measured, with what it is of, and one for each of its rows."""
    for suite in ("quick", "full"):
        text = (ROOT / "bench" / "suites" / f"robust-compression-{suite}.toml").read_text()
        for group in tomllib.loads(text)["group"]:
            found = by_method(rows, f"{group['key']}/")
            judged = sorted({row["samples"] for row in found})
            if found:
                counts = " or ".join(map(str, judged))
                yield f"**{group['title']}**", f"{counts} test samples, eps {found[0]['eps']}", ""
            for name in dict.fromkeys(key.split("/")[1] for key in rows if key.startswith(f"{group['key']}/")):
                seeds = by_method(rows, f"{group['key']}/{name}/")
                said = [f"clean {share(seeds, 'clean')} %"]
                said += [f"{words} {share(seeds, key)} %" for key, words in JUDGED.items() if key in seeds[0]]
                if "pca" in seeds[0]:
                    parts = (
                        f"{of} {100 * median([r['pca'] for r in seeds], of):.1f}" for of in sorted(seeds[0]["pca"])
                    )
                    said.append(f"CC-Cert {mean_pca(seeds)[1]} % ({', '.join(parts)})")
                count = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
                count += f", {seeds[0]['samples']} samples" if len(judged) > 1 else ""
                yield f"{name}{count}", f"{', '.join(said)}, {max(r['bytes'] for r in seeds):,} bytes", ""


JUDGED = {"robust": "robust", "corrupted": "corrupted", "batched": "corrupted, in batches of 100,"}
"""What judges leave in a row, and what it is called."""


def in_words(goal: dict[str, float]) -> str:
    """A group's goal of clean and certified accuracy, size, and distances to its rivals."""
    words = {
        "clean": "clean {:g} %",
        "certified": "certified {:g} %",
        "bytes": "{:,} bytes",
        "ahead": "{:g} point above every baseline",
        "behind": "at most {:g} below uncompressed",
    }
    return ", ".join(text.format(goal[key]) for key, text in words.items() if key in goal)


SECTIONS: dict[str, Callable[[Values], Iterator[Line]]] = {
    "demo": demo,
    "startup": startup,
    "digits": trained("digits, eps 1/16", "98 / 87 %, 40 kB"),
    "mnist": trained("MNIST, eps 0.1, 10,000 images", "97 / 94 %, 150 kB"),
    "fashion_mnist": trained("Fashion-MNIST, eps 0.1, 10,000 images", ""),
    "train_methods": train_methods,
    "robust_compression": robust_compression,
    "train_speed": train_speed,
    "calibration": calibration,
    "weight_bits": weight_bits,
    "soundness": soundness,
    "completeness": completeness,
    "qnn_robustness": qnn_robustness,
    "gap": gap,
    "checking": checking,
    "engine_speed": engine_speed,
    "agreement": agreement,
    "device_agree": device_agree,
    "live_inputs": live_inputs,
    "pi_emulator": pi_emulator,
    "fuzz": fuzz,
    "proof_mutants": proof_mutants,
    "run_speed": run_speed,
}


def markdown() -> str:
    """The table; a line per figure, with the file it comes from. Medians, with the least and the greatest in brackets."""
    lines = ["| what | measured | goal | recorded in |", "|---|---|---|---|"]
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            lines.append(f"| {name} | not measured | | `python bench/{name}.py` |")
            continue
        values = {key: row["values"] for key, row in json.loads(path.read_text())["rows"].items()}
        lines += [
            f"| {what} | {figure} | {goal} | `bench/results/{name}.json` |" for what, figure, goal in section(values)
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    table = markdown()
    print(table)
    if parser.parse_args().write:
        path = ROOT / "README.md"
        before, begin, rest = path.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise InputError(f"README.md lacks {BEGIN} or {END}")
        write_atomic(path, f"{before}{BEGIN}\n{table}\n{END}{after}")
    return 0


if __name__ == "__main__":
    run(main)
