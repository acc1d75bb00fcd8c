"""What is done to hostile files of each kind: good files to start from, how they are spoiled, and what must survive them.

An `Attack` turns (number, seed) into bytes and examines them: it returns a word for the outcome, and every exception
that is not one of ours is a defect.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mutate import OnnxMutator, TfliteMutator, blind, integer
from strategies import MIDDLE, random_graph, random_inputs
from tflite_edit import every_op_file

from cactus_edge.errors import CertificateError, InputError, ModelError
from cactus_edge.formats.c.plan import plan
from cactus_edge.formats.read import read_model
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import BUILT_IN, parse_recipe
from cactus_edge.samples import read_inputs
from cactus_edge.verify.certificate import certify_file, seal
from cactus_edge.verify.elf import find_blob
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.tflite_read import read_tflite

SMALL = 1 << 16
"""Elements of all tensors, and weights, up to which an accepted mutant is also executed."""

SEED = 20261122


@dataclass(frozen=True)
class Attack:
    """`mutants`: one maker of mutants per good file, used in turn."""

    name: str
    mutants: Sequence[Callable[[random.Random], bytes]]
    examine: Callable[[bytes], str]

    def mutant(self, number: int) -> bytes:
        """Mutant `number`: the same bytes on every machine."""
        return self.mutants[number % len(self.mutants)](random.Random(SEED << 32 | number))


def examine_graph(graph: Graph, reads: str) -> str:
    """Everything that is done with a graph without being asked to compute: lowered, proved, planned; run where it is small."""
    outcome = "read"
    plan(graph)
    for rules in PROFILES.values():
        if rules.reads != reads:
            continue
        try:
            program = lower(graph, rules)
            prove(program)
        except ModelError:
            continue
        if rules.name in ("tflm", "ort-x86") and sum(t.size for t in graph.tensors) + graph.weights() < SMALL:
            run(program, np.zeros((1, *program.values[program.input].shape), np.int8))
            outcome = "run"
    return outcome


def examine_tflite(data: bytes) -> str:
    try:
        graph = read_tflite(data).graph
    except ModelError as error:
        return type(error).__name__
    return examine_graph(graph, "tflite")


def examine_onnx(data: bytes) -> str:
    from cactus_edge.formats.onnx.read.model import read_onnx

    try:
        graph = read_onnx(data).graph
    except ModelError as error:
        return type(error).__name__
    return examine_graph(graph, "onnx")


def tflite_attack(files: Sequence[bytes]) -> Attack:
    return Attack("tflite", [TfliteMutator(f) for f in files], examine_tflite)


def onnx_attack(files: Sequence[bytes]) -> Attack:
    return Attack("onnx", [OnnxMutator(f) for f in files], examine_onnx)


def tflite_files(count: int, nodes: int = 8) -> list[bytes]:
    """The file in which every op occurs, and random networks."""
    rng = np.random.default_rng(SEED)
    return [every_op_file()] + [write_tflite(random_graph(rng, nodes), metadata={"m": b"x"}) for _ in range(count)]


def onnx_files(count: int, nodes: int = 5) -> list[bytes]:
    """QDQ and QOperator files: chains, every kind of op that the writer takes, networks of ONNX Runtime's own quantiser."""
    from onnx_kit import chain, residual

    from cactus_edge.formats.onnx.read.model import read_onnx
    from cactus_edge.formats.onnx.write import write_onnx

    def readable(make: Callable[[], bytes]) -> list[bytes]:
        try:
            data = make()
            read_onnx(data)
        except ModelError:
            return []
        return [data]

    files = [write_onnx(chain(np.random.default_rng((SEED, k)), nodes)) for k in range(count)]
    for kind in MIDDLE:
        for k in range(max(1, count // 6)):
            rng = np.random.default_rng((SEED, zlib.crc32(kind.encode()), k))
            files += readable(lambda rng=rng, kind=kind: write_onnx(random_graph(rng, 3, (kind, "conv2d"))))
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
        for form in ("QDQ", "QOperator"):
            for codes in ("QInt8", "QUInt8"):
                for join in (False, True):
                    files += readable(
                        lambda form=form, codes=codes, join=join: residual(Path(folder), form, codes, join)
                    )
    return files


# what `certify` and `verify` read besides the model


def little_model() -> bytes:
    """3 x 3 images, five classes."""
    rng = np.random.default_rng(1)
    while True:
        graph = random_graph(rng, 2, ("dense",), ends=("",))
        if graph.input.size < 30 and len(graph.nodes) > 1:
            return write_tflite(graph)


def data_attack(model: bytes) -> Attack:
    """.npz files: blind mutations, headers that lie, kinds of numbers that no model takes, bombs."""
    shape = read_tflite(model).graph.input.shape
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-1, 1, (3, *shape)).astype(np.float32), np.zeros(3, np.int64)
    good = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, x=x, y=y)
        good.append(stream.getvalue())
    folder = Path(tempfile.mkdtemp(prefix="cactus-edge-"))
    path = folder / "x.npz"

    def mutant(data: bytes) -> Callable[[random.Random], bytes]:
        def make(rng: random.Random) -> bytes:
            return blind(data, rng, rng.randrange(1, 4)) if rng.random() < 0.5 else archive(x, y, rng)

        return make

    def examine(data: bytes) -> str:
        path.write_bytes(data)
        try:
            found, labels = read_inputs(path)
            if labels is None:
                return "no labels"
            certify_file(model, found, labels, eps="1/8", domain=("-1", "1"), profile="tflm", created="now")
        except InputError as error:
            return type(error).__name__
        return "certified"

    weakref.finalize(examine, shutil.rmtree, folder, ignore_errors=True)
    return Attack("data", [mutant(data) for data in good], examine)


def archive(x: np.ndarray, y: np.ndarray, rng: random.Random) -> bytes:
    """An .npz whose members have headers and bytes that need not fit each other."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as out:
        for name, array in (("x", x), ("y", y)):
            shape = rng.choice(
                (array.shape, array.shape, (10**12,), (2**62, 4), (-1, 4), (0, 10**18), (3,), (), (1.5,), (True, 4))
            )
            kinds = (
                "<f4",
                "<i8",
                "|O",
                "<U5",
                "<c8",
                "<f8",
                "<f2",
                ">f4",
                "|V4",
                "|S0",
                "<m8[s]",
                [("a", "<f4")],
                "nonsense",
                7,
            )
            kind = array.dtype.str if rng.random() < 0.8 else rng.choice(kinds)
            header = repr({"descr": kind, "fortran_order": rng.choice((False, False, True, 3)), "shape": shape})
            header = header if rng.random() < 0.9 else rng.choice((header[:-5], "-" * 9000 + "1", "(" * 5000, "é"))
            body = (
                array.tobytes()
                if rng.random() < 0.8
                else rng.choice((b"", bytes(1 << 22), array.tobytes()[:-1], bytes(100)))
            )
            if rng.random() < 0.2:
                bad = array.copy().ravel()
                bad[rng.randrange(bad.size)] = (
                    rng.choice((-1, 5, 127))
                    if bad.dtype.kind == "i"
                    else rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))
                )
                body = bad.tobytes()
            encoded = header.encode("latin1", "replace")
            length = len(encoded) if rng.random() < 0.9 else integer(rng, len(encoded), 100) % (1 << 16)
            version = bytes((1, 0) if rng.random() < 0.9 else rng.choice(((2, 0), (3, 0), (9, 9))))
            size = (length % (1 << 16)).to_bytes(2, "little") if version[0] == 1 else length.to_bytes(4, "little")
            out.writestr(f"{name}.npy", b"\x93NUMPY" + version + size + encoded + body)
    return stream.getvalue()


def certificate_attack(model: bytes) -> Attack:
    """Certificates: blind mutations, and records whose fields were exchanged and that were sealed again."""
    shape = read_tflite(model).graph.input.shape
    x, y = np.zeros((2, *shape), np.float32), np.zeros(2, np.int64)
    made = certify_file(model, x, y, eps="1/8", domain=("-1", "1"), profile="tflm", created="now")
    good = made.to_bytes()
    values = [None, True, 0, -1, 10**400, "", "1e99", "-1", "nan", "1/0", "1" * 390, "é", [], {}, [["x"]], ["1/8"] * 9, {"a": {}}, "tflm",
              "litert-ref", "1e-99", "inf", [{}], [None]]  # fmt: skip

    def mutant(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return blind(good, rng, rng.randrange(1, 3))
        if rng.random() < 0.05:
            return rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b'"\\ud800"', b"NaN", b""))
        record = json.loads(good)
        for _ in range(rng.choice((1, 1, 2))):
            holder = rng.choice([record, *(v for v in record.values() if isinstance(v, dict))])
            key = rng.choice([*holder, "new", "region.eps"])
            holder[key] = rng.choice(values)
        return (json.dumps(seal(record), sort_keys=True, indent=1) + "\n").encode("ascii")

    def examine(data: bytes) -> str:
        try:
            report = recheck(data, model, x, y)
        except CertificateError as error:
            return type(error).__name__
        if report.accepted:
            claims = ("model", "profile", "region", "data", "verdict", "overflow", "rule")
            assert all(report.record[k] == json.loads(good)[k] for k in claims), "another claim is accepted"
        return "accepted" if report.accepted else "rejected"

    return Attack("certificate", [mutant], examine)


def firmware_attack(elf: bytes, blob: bytes) -> Attack:
    """ELF files: the headers are hit as often as the rest."""

    def mutant(rng: random.Random) -> bytes:
        a = bytearray(elf)
        if rng.random() < 0.3:
            return blind(elf, rng, 2)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, width = rng.randrange(0, 52 + 32 * 4), rng.choice((1, 2, 4))
            value = integer(rng, int.from_bytes(a[at : at + width], "little"), len(a))
            a[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        return bytes(a)

    def examine(data: bytes) -> str:
        try:
            return "holds the blob" if find_blob(data, blob) is not None else "does not"
        except ModelError as error:
            return type(error).__name__

    return Attack("firmware", [mutant], examine)


def recipe_attack() -> Attack:
    """Recipes: values exchanged, lines moved, blind mutations."""
    texts = [p.read_text(encoding="utf-8") for p in sorted(BUILT_IN.glob("*.toml"))]
    values = ["-1", "0", "1e999999999", '"1e999999999"', "9" * 5000, "0x" + "f" * 5000, "nan", "-inf", "[]", "{}", '"x"', "true",
              "[" * 3000, "[[1]]", "1979-05-27", '""', '"""', "1_0", '"1/0"', '"-1/16"', "{a.b = 1}", '"\\u0000"']  # fmt: skip

    def mutant(text: str) -> Callable[[random.Random], bytes]:
        def make(rng: random.Random) -> bytes:
            if rng.random() < 0.3:
                return blind(text.encode(), rng, rng.randrange(1, 4))
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            if "=" in lines[at] and rng.random() < 0.8:
                lines[at] = re.sub(r"=.*", lambda _: "= " + rng.choice(values), lines[at])
            else:
                lines.insert(rng.randrange(len(lines)), lines.pop(at) if rng.random() < 0.5 else lines[at])
            return "\n".join(lines).encode()

        return make

    def examine(data: bytes) -> str:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return "not UTF-8"
        try:
            parse_recipe(text, "hostile.toml")
        except InputError as error:
            return type(error).__name__
        return "read"

    return Attack("recipe", [mutant(text) for text in texts], examine)


def runtime_attack(files: Sequence[bytes]) -> Attack:
    """Accepted mutants in real runtimes: every output equal, or refused by one of the two sides. Needs the wheels; a crash of
    theirs takes the process with it."""
    names = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")
    return Attack("runtimes", [TfliteMutator(f) for f in files], lambda data: compared(data, names))


def onnx_runtime_attack(files: Sequence[bytes]) -> Attack:
    """The same for ONNX files in ONNX Runtime."""
    return Attack("onnx-runtime", [OnnxMutator(f) for f in files], lambda data: compared(data, ("onnxruntime",)))


def compared(data: bytes, runtimes: Sequence[str]) -> str:
    """AssertionError where a runtime that takes the file, as does its profile, computes something else."""
    from cactus_edge.formats.agree import agree

    try:
        graph = read_model(data).graph
    except ModelError:
        return "refused by the reader"
    if sum(t.size for t in graph.tensors) > SMALL:
        return "large"
    x = random_inputs(np.random.default_rng(0), graph, 6)
    equal = 0
    for name in runtimes:
        try:
            found = agree(data, x, name)
        except (ModelError, InputError, ValueError, RuntimeError):
            continue
        assert found.exact, f"{name} computes something else: {found.first_layer}"
        equal += 1
    return f"equal in {equal} runtimes" if equal else "refused by every profile or runtime"


def tflm_blob(model: bytes) -> bytes:
    """The model's canonical blob."""
    from cactus_edge.formats.c.blob import to_blob

    return to_blob(read_tflite(model).graph, profile("tflm"))
