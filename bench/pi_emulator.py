"""The aarch64 wheels of LiteRT and ONNX Runtime, emulated as a Raspberry Pi 4 and 5, against the interpreter.

    python bench/pi_emulator.py --prepare          unpack the emulation into the user's cache (once; 120 MB)
    python bench/pi_emulator.py [--graphs 40] [--inputs 100] [--build build] [--fresh]
    python bench/pi_emulator.py --record           write tests/formats/vectors/xnnpack_arm64.npz anew

Networks: `--graphs` of each op with scales whose products tie, and 3 times as many of several ops; chains and branches for ONNX. They run
in one emulated process a board. Files: each build/*/model.tflite and the ONNX made of it, over ssh, as `cactus-edge bench` does it. Under
emulation nothing is timed. Writes bench/results/pi_emulator.json. Exit code 1 where an output differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from _common import ROOT, Results, Row, agreed, code, existing, positive, run

sys.path.insert(0, str(ROOT / "tests" / "formats"))
sys.path.insert(0, str(ROOT / "tests"))

import pi_kit
import strategies
from onnx_kit import chain, live, real_inputs
from ssh_kit import Behaviour, Server
from strategies import MIDDLE, random_graph, random_inputs

from cactus_edge.computer import Host, channel_first, run_on_computer
from cactus_edge.device.targets import SshTarget, load_target
from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.read import read_for, read_model
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor

Array = npt.NDArray[Any]
Case = tuple[str, bytes, Array, Array]
"""A name, the file, its inputs and what must come out, all as the file itself has them."""

VECTORS = ROOT / "tests" / "formats" / "vectors" / "xnnpack_arm64.npz"
JOINED = ("conv2d", "depthwise_conv2d", "dense", "max_pool", "concat", "concat", "avg_pool", "mean")
RECORDED = 60
PER_NETWORK = 6


def target() -> SshTarget:
    found = load_target("raspberry-pi")
    assert isinstance(found, SshTarget)
    return found


def cases(form: str, count: int) -> Iterator[Case]:
    """Networks that the board's profile for `form` admits."""
    name = target().engines[form].profile
    rules = profile(name)
    made = tflite_networks(count) if form == "tflite" else onnx_networks(25 * count)
    for label, graph in made:
        x = random_inputs(np.random.default_rng(len(label)), graph, PER_NETWORK)
        try:
            if form == "tflite":
                data = write_tflite(graph)
                yield label, data, x, evaluate(graph, x, rules)
            else:
                data, values = write_onnx(graph), real_inputs(graph, x)
                read_for(data, rules)
                values[::3] += np.float32(graph.input.scale / 2)
                yield label, data, channel_first(values), channel_first(evaluate(read_model(data).graph, values, rules))
        except UnsupportedError:
            continue


def tflite_networks(count: int) -> Iterator[tuple[str, Graph]]:
    with strategies.ties():
        for kind in MIDDLE:
            for seed in range(count):
                yield f"{kind} {seed}", random_graph(np.random.default_rng(seed), 1, (kind,), ends=("",))
    for seed in range(3 * count):
        yield f"network {seed}", random_graph(np.random.default_rng(1000 + seed), 6)


def onnx_networks(count: int) -> Iterator[tuple[str, Graph]]:
    """Chains of int8 codes, and branches that join, which `write_onnx` gives uint8 codes."""
    for seed in range(count):
        yield f"chain {seed}", chain(np.random.default_rng(seed))
    for seed in range(count):
        with strategies.ties() if seed % 2 else contextlib.nullcontext():
            made = random_graph(np.random.default_rng(seed), 6, JOINED, ends=("",))
        yield f"branches {seed}", live(made)


def emulated(board: str, listed: list[Case], form: str) -> list[Array]:
    """The outputs of every case, from one emulated process."""
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as name:
        folder = Path(name)
        for i, (_, data, x, _) in enumerate(listed):
            (folder / f"{i:05d}.{form}").write_bytes(data)
            np.save(folder / f"{i:05d}.npy", x)
        # Beside the files, for it writes what ONNX Runtime makes of them into its own folder.
        shutil.copy(ROOT / "cactus_edge" / "device" / "agent.py", folder)
        words = [
            "/bin/sh",
            "-c",
            f'{pi_kit.python(board, folder)} "$@"',
            "sh",
            str(ROOT / "bench" / "_pi_guest.py"),
            name,
        ]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        for refused in sorted(folder.glob("*.error")):
            raise InputError(f"{listed[int(refused.stem)][0]} is refused on {board}: {refused.read_text()}")
        return [np.load(folder / f"{i:05d}.out.npy") for i in range(len(listed))]


def differing(got: Array, wanted: Array, inputs: int) -> int:
    """Of how many inputs a byte of the output is another."""
    one, other = (np.ascontiguousarray(t).view(np.uint8).reshape(inputs, -1) for t in (got, wanted))
    return inputs if one.shape != other.shape else int((one != other).any(1).sum())


def networks(board: str, form: str, count: int) -> Row:
    listed = list(cases(form, count))
    got = emulated(board, listed, form)
    wrong = [differing(g, w, len(x)) for g, (_, _, x, w) in zip(got, listed, strict=True)]
    first = next((label for (label, *_), n in zip(listed, wrong, strict=True) if n), None)
    return {
        "networks": len(listed),
        "inputs": sum(len(x) for _, _, x, _ in listed),
        "elements": sum(w.size for *_, w in listed),
        "different": sum(wrong),
        "first": first,
    }


@contextlib.contextmanager
def served(board: str) -> Iterator[Host]:
    """The emulated board behind an ssh server; this process' home is the account's meanwhile."""
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as name, Server(Path(name), Behaviour()) as server:
        server.install(pi_kit.python(board))
        with mock.patch.dict(os.environ, {"HOME": str(server.home), "SSH_AUTH_SOCK": ""}):
            yield Host(f"pi@127.0.0.1:{server.port}")


def file(board: str, data: bytes, x: Array) -> Row:
    with served(board) as host, tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
        report = run_on_computer(data, x, target(), host, Path(folder), lambda done, total: None)
    if not report.emulated or report.latency is not None:
        raise InputError(f"{board} does not say that it is emulated")
    return {
        "networks": 1,
        "inputs": report.compared,
        "elements": report.compared * read_model(data).graph.output.size,
        "different": report.compared - report.equal,
        "first": report.first_difference or None,
        "runtime": report.runtime,
        "emulated": report.emulated,
    }


def files(build: Path, inputs: int) -> Iterator[tuple[str, bytes, Array]]:
    """Built networks in both formats, and the reference keyword model, on real inputs."""
    for path in sorted(build.glob("*/model.tflite")):
        data = path.read_bytes()
        with np.load(path.parent / "test.npz") as stored:
            x = np.asarray(stored["x"][:inputs], np.float32)
        yield f"{path.parent.name}/model.tflite", data, x
        yield f"{path.parent.name}/model.onnx", write_onnx(read_model(data).graph), x
    data_folder = Path(os.environ.get("CACTUS_EDGE_DATA", ROOT.parent / "shared" / "data"))
    models = Path(os.environ.get("CACTUS_EDGE_MODELS", data_folder.parent / "models"))
    model, real = models / "mlperf-tiny" / "kws_ref_model.tflite", data_folder / "mlperf-tiny-kws" / "kws01_test.npz"
    if model.is_file() and real.is_file():
        with np.load(real) as stored:
            yield model.name, model.read_bytes(), np.asarray(stored["x"], np.int8)


def tell_apart() -> Iterator[Case]:
    """Sums, means and softmax rows, for which x86-64 and aarch64 have rules of their own."""
    rules = profile(target().engines["tflite"].profile)
    with strategies.ties():
        for seed in range(500):
            kind = ("mean", "sum")[seed % 2]
            graph = random_graph(np.random.default_rng(seed), 1, (kind,), ends=("",))
            x = random_inputs(np.random.default_rng(seed), graph, PER_NETWORK)
            yield f"{kind} {seed}", write_tflite(graph), x, evaluate(graph, x, rules)
    rng = np.random.default_rng(3)
    for scale in (0.02, 0.1, 0.37, 1.5):
        b = GraphBuilder()
        x = b.input(Tensor("x", (90, 10), "int8", float(np.float32(scale)), 3))
        graph = b.finish(b.node(ops.Softmax(), [x], Tensor("y", (90, 10), "int8", 1 / 256, -128)))
        codes = np.clip(np.rint(rng.normal(0, 25, (2, 90, 10))), -128, 127).astype(np.int8)
        yield f"softmax {scale}", write_tflite(graph), codes, evaluate(graph, codes, rules)


def record() -> None:
    """Keeps what both boards give, all alike, where LiteRT on x86-64 gives something else, and some where it does not."""
    x86 = profile("litert-xnnpack")

    def unlike(case: Case) -> bool:
        _, data, x, want = case
        return not np.array_equal(evaluate(read_model(data).graph, x, x86), want)

    chosen = [c for c in tell_apart() if unlike(c)][: RECORDED // 2]
    chosen += [c for c in cases("tflite", 6) if c[2].nbytes + c[3].nbytes < 2000][::2][: RECORDED - len(chosen)]
    outputs = [emulated(board, chosen, "tflite") for board in pi_kit.BOARDS]
    arrays: dict[str, Array] = {}
    for number, ((label, data, x, _), *got) in enumerate(zip(chosen, *outputs, strict=True)):
        if any(g.tobytes() != got[0].tobytes() for g in got):
            raise InputError(f"{label}: the boards differ among themselves")
        arrays |= {f"{number:02d}_file": np.frombuffer(data, np.uint8), f"{number:02d}_x": x, f"{number:02d}_y": got[0]}
    VECTORS.parent.mkdir(exist_ok=True)
    np.savez_compressed(VECTORS, **arrays)
    print(
        f"{VECTORS.name}: {len(chosen)} networks, {sum(map(unlike, chosen))} of them unlike x86-64, {VECTORS.stat().st_size} bytes"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="The aarch64 wheels under emulation against the interpreter.")
    parser.add_argument("--prepare", action="store_true", help="unpack the emulation")
    parser.add_argument("--record", action="store_true", help="write the vectors of the tests")
    parser.add_argument("--graphs", type=positive, default=40, help="random networks of each op")
    parser.add_argument("--inputs", type=positive, default=100, help="inputs for each file")
    parser.add_argument("--build", type=existing, default=ROOT / "build", help="folder of finished builds")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    options = parser.parse_args()
    if options.prepare:
        print(pi_kit.prepare())
        return 0
    if why := pi_kit.missing():
        raise InputError(why)
    if options.record:
        record()
        return 0
    results = Results("pi_emulator", fresh=options.fresh)
    rows: dict[str, Row] = {}
    used = code("cactus_edge/ir", "cactus_edge/device", "cactus_edge/formats", "tests/strategies.py")
    listed = list(files(options.build, options.inputs))
    for board, about in pi_kit.BOARDS.items():
        title = f"{about.model}, emulated {about.cpu}"
        for form, engine in target().engines.items():
            key = f"{title}: random networks, {engine.profile}"
            inputs = hashlib.sha256(f"{used} {board} {form} {options.graphs}".encode()).hexdigest()
            rows[key] = results.row(key, inputs, partial(networks, board, form, options.graphs))
        for name, data, x in listed:
            key = f"{title}: {name} over ssh"
            digests = {"model": hashlib.sha256(data).hexdigest(), "inputs": hashlib.sha256(x.tobytes()).hexdigest()}
            inputs = hashlib.sha256(f"{used} {board} {digests}".encode()).hexdigest()
            rows[key] = results.row(key, inputs, partial(file, board, data, x), digests)
    columns = ("networks", "inputs", "elements", "different")
    return agreed(rows, columns, "different", "first", "inputs")


if __name__ == "__main__":
    run(main)
