"""Hostile files: mutations of .tflite and .onnx files that know the format, and blind ones of anything.

A mutator is made from one good file and turns a `random.Random` into a mutant: the same generator gives the same bytes.
The spots of a .tflite file are what the trusted reader looks at while it reads the good file, so that a byte that means
something is hit as often as its meaning deserves, however many weights there are.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from cactus_edge.verify import tflite_read
from cactus_edge.verify.flatbuffer import Reader

INTEGERS = (0, 1, 2, 3, 4, 8, 16, -1, -2, 127, 128, -128, -129, 255, 256, 32767, 32768, 65535, 65536, 1 << 20, 1 << 24,
            (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63)  # fmt: skip
FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-40, 1.1754944e-38, -1.0, 3.4e38, 1e20, 1e-20, 1.0, 0.5)


def integer(rng: random.Random, present: int, length: int) -> int:
    """A value that is near a border, near the present one, small, a size of the file, or anything."""
    return rng.choice((
        rng.choice(INTEGERS), rng.choice(INTEGERS), present + rng.choice((-1, 1)), present ^ 1 << rng.randrange(8),
        rng.randrange(160), length - rng.randrange(64), rng.getrandbits(32),
    ))  # fmt: skip


def real(rng: random.Random, present: float) -> float:
    """A float32 that is special, near the present one, or another power of two of it."""
    scaled = present * 2.0 ** rng.randrange(-20, 21)
    near = present * (1 + rng.choice((-1, 1)) * 2.0**-23)
    found = rng.choice((rng.choice(FLOATS), rng.choice(FLOATS), scaled, near, -present))
    return found if math.isfinite(found) and abs(found) < 3.4e38 else rng.choice(FLOATS)


# blind


def flip(a: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 4)):
        a[rng.randrange(len(a))] ^= 1 << rng.randrange(8)


def overwrite(a: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(a))
    width = rng.choice((1, 1, 2, 4, 8))
    a[at : at + width] = (rng.choice(INTEGERS) % (1 << 8 * width)).to_bytes(width, "little")[: len(a) - at]


def truncate(a: bytearray, rng: random.Random) -> None:
    del a[rng.randrange(len(a)) :]


def insert(a: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(a))
    a[at:at] = rng.choice(
        (rng.randbytes(rng.randrange(1, 17)), bytes(rng.randrange(1, 65)), b"\xff" * rng.randrange(1, 17))
    )


def remove(a: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(a))
    del a[at : at + rng.randrange(1, 33)]


def repeat(a: bytearray, rng: random.Random) -> None:
    """Copies a piece of the file over another."""
    source, to, count = rng.randrange(len(a)), rng.randrange(len(a)), rng.randrange(1, 65)
    piece = a[source : source + count]
    a[to : to + len(piece)] = piece


BLIND = (flip, flip, overwrite, truncate, insert, remove, repeat)


def blind(data: bytes, rng: random.Random, times: int = 1) -> bytes:
    """The file after some mutations that know nothing of it."""
    a = bytearray(data)
    for _ in range(times):
        if a:
            rng.choice(BLIND)(a, rng)
    return bytes(a)


# .tflite


class Spot(NamedTuple):
    """What the reader looked at: a `struct` code, "reference", "vtable" or "elements"; its first byte and how many."""

    kind: str
    at: int
    count: int


class _Recorder(Reader):
    """A reader that notes what it is asked for."""

    spots: list[Spot]

    def claim(self, at: int, count: int, what: str) -> int:
        found = super().claim(at, count, what)
        for end in ("(vtable)", "elements"):
            if what.endswith(end) and count > 2:
                self.spots.append(Spot(end.strip("()"), at, count))
        return found

    def number(self, code: str, at: int, what: str) -> Any:
        self.spots.append(Spot(code, at, struct.calcsize(code)))
        return super().number(code, at, what)

    def follow(self, at: int, what: str) -> int:
        found = super().follow(at, what)
        self.spots.append(Spot("reference", at, 4))
        return found


class TfliteMutator:
    """Mutants of one good .tflite file."""

    def __init__(self, data: bytes) -> None:
        recorder = type("Recorder", (_Recorder,), {"spots": []})
        with mock.patch.object(tflite_read, "Reader", recorder):
            tflite_read.read_tflite(data)
        self.data = data
        self.spots = sorted(set(recorder.spots))  # type: ignore[attr-defined]
        self.targets = [s.at + self._u32(data, s.at) for s in self.spots if s.kind == "reference"]
        by_kind: dict[str, list[Spot]] = {}
        for spot in self.spots:
            by_kind.setdefault(spot.kind, []).append(spot)
        self._kinds = list(by_kind.values())

    def __call__(self, rng: random.Random) -> bytes:
        a = bytearray(self.data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if not a or rng.random() < 0.15:
                return blind(bytes(a), rng)
            # Kinds first: there are far more references than scales.
            self._mutate(a, rng.choice(rng.choice(self._kinds)) if rng.random() < 0.7 else rng.choice(self.spots), rng)
        return bytes(a)

    def _mutate(self, a: bytearray, spot: Spot, rng: random.Random) -> None:
        match spot.kind:
            case "reference":
                target = rng.choice(self.targets) if rng.random() < 0.6 else integer(rng, self._u32(a, spot.at), len(a))
                self._put(a, spot.at, 4, target - spot.at if rng.random() < 0.9 else target)
            case "vtable":
                slots = [struct.unpack_from("<H", a, spot.at + i)[0] for i in range(0, spot.count, 2)]
                at = spot.at + 2 * rng.randrange(len(slots))
                self._put(a, at, 2, rng.choice((rng.choice(slots), integer(rng, slots[0], len(a)), 0)))
            case "elements":
                self._elements(a, spot, rng)
            case "f":
                struct.pack_into("<f", a, spot.at, real(rng, struct.unpack_from("<f", a, spot.at)[0]))
            case _:
                present = int.from_bytes(a[spot.at : spot.at + spot.count], "little")
                self._put(a, spot.at, spot.count, integer(rng, present, len(a)))

    def _elements(self, a: bytearray, spot: Spot, rng: random.Random) -> None:
        codes = [c for c in ("f", "f", "i", "i", "q", "q", "b") if struct.calcsize(c) <= spot.count]
        code = rng.choice(codes)
        width = struct.calcsize(code)
        count = spot.count // width
        chosen = range(count) if rng.random() < 0.1 and count < 4096 else [rng.randrange(count)]
        for i in chosen:
            at = spot.at + width * i
            if code == "f":
                struct.pack_into("<f", a, at, real(rng, struct.unpack_from("<f", a, at)[0]))
            else:
                self._put(a, at, width, integer(rng, int.from_bytes(a[at : at + width], "little"), len(a)))

    @staticmethod
    def _u32(a: bytes | bytearray, at: int) -> int:
        return int.from_bytes(a[at : at + 4], "little")

    @staticmethod
    def _put(a: bytearray, at: int, width: int, value: int) -> None:
        a[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


# .onnx


class OnnxMutator:
    """Mutants of one good .onnx file: through the messages of onnx.proto, through the wire format, and blind ones."""

    def __init__(self, data: bytes) -> None:
        import onnx

        self.data, self._onnx = data, onnx
        model = onnx.load_from_string(data)
        self.fields = list(_fields(model, ()))
        self.names = sorted({n for node in model.graph.node for n in (*node.input, *node.output)})
        self.varints = list(_varints(data))

    def __call__(self, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.15:
            return blind(self.data, rng, rng.randrange(1, 4))
        if kind < 0.3:
            return self._wire(rng)
        model = self._onnx.load_from_string(self.data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            self._message(model, rng)
        found: bytes = model.SerializePartialToString()
        return found

    def _message(self, model: Any, rng: random.Random) -> None:
        if rng.random() < 0.1:
            self._planned(model, rng)
            return
        path, name = rng.choice(self.fields)
        owner = model
        for step, index in path:
            owner = getattr(owner, step)
            if index is not None:
                if index >= len(owner):
                    return
                owner = owner[index]
        field = owner.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            self._list(getattr(owner, name), field, rng)
        elif field.message_type is not None or rng.random() < 0.1:
            owner.ClearField(name)
        else:
            setattr(owner, name, self._value(field, getattr(owner, name), rng))

    def _list(self, values: Any, field: Any, rng: random.Random) -> None:
        at = rng.randrange(len(values)) if len(values) else 0
        match rng.choice(("delete", "double", "swap", "set", "set", "clear")):
            case "delete" if len(values):
                del values[at]
            case "double" if len(values):
                values.extend([values[at]] * rng.choice((1, 1, 30)))
            case "swap" if len(values) > 1:
                other, order = rng.randrange(len(values)), list(values)
                order[at], order[other] = order[other], order[at]
                del values[:]
                values.extend(order)
            case "set" if len(values) and field.message_type is None:
                values[at] = self._value(field, values[at], rng)
            case "clear":
                del values[:]

    def _value(self, field: Any, present: Any, rng: random.Random) -> Any:
        if isinstance(present, str):
            return rng.choice(
                (rng.choice(self.names), rng.choice(self.names), "", "../weights", "é" * rng.randrange(1, 5000))
            )
        if isinstance(present, bytes):
            return rng.choice((blind(present or b"\0", rng), present[:-1], present + b"\0", b""))
        if isinstance(present, float):
            return real(rng, present)
        if field.cpp_type == field.CPPTYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        value = integer(rng, int(present), len(self.data))
        if field.cpp_type == field.CPPTYPE_INT32:
            return (value + (1 << 31)) % (1 << 32) - (1 << 31)
        if field.cpp_type == field.CPPTYPE_UINT64:
            return value % (1 << 64)
        return (value + (1 << 63)) % (1 << 64) - (1 << 63)

    def _planned(self, model: Any, rng: random.Random) -> None:
        """What no single change reaches: data outside the file, graphs in graphs, a loop, a shape beyond all memory."""
        graph = model.graph
        match rng.choice(("external", "nested", "loop", "giant", "many")):
            case "external" if len(graph.initializer):
                t = rng.choice(graph.initializer)
                t.data_location = 1
                entry = t.external_data.add()
                entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../x", "/dev/zero", "x"))
            case "nested" if len(graph.node):
                inner = rng.choice(graph.node)
                for _ in range(rng.choice((3, 30, 60))):
                    a = inner.attribute.add()
                    a.name, a.type = "body", 5
                    inner = a.g.node.add()
            case "loop" if len(graph.node) > 1:
                node = rng.choice(graph.node)
                if len(node.input) and len(node.output):
                    node.input[0] = node.output[0]
            case "giant" if len(graph.initializer):
                t = rng.choice(graph.initializer)
                del t.dims[:]
                t.dims.extend(
                    rng.choice(([1 << 40], [1 << 32, 1 << 32], [-1, 4], [1 << 62, 4], [0, 1 << 60], [65536] * 4))
                )
            case "many" if len(graph.node):
                graph.node.extend([rng.choice(graph.node)] * rng.choice((10, 300)))

    def _wire(self, rng: random.Random) -> bytes:
        """A tag, a length or a number of the wire format replaced by another, by an overlong one or by groups without end."""
        a = bytearray(self.data)
        at, size = rng.choice(self.varints)
        a[at : at + size] = rng.choice((
            varint(rng.choice(INTEGERS) % (1 << 64)), varint(rng.randrange(1 << 20)), b"\xff" * 9 + b"\x01",
            b"\xff" * rng.randrange(1, 20), b"\x80" * 9 + b"\0", b"\x0b" * rng.choice((10, 1000)), b"",
        ))  # fmt: skip
        return bytes(a)


def _fields(
    message: Any, path: tuple[tuple[str, int | None], ...]
) -> Iterator[tuple[tuple[tuple[str, int | None], ...], str]]:
    """Every field of every message that is set, as a path to its owner and its name."""
    for field, value in message.ListFields():
        yield path, field.name
        if field.message_type is not None:
            inner = enumerate(value) if field.is_repeated else [(None, value)]
            for index, item in inner:
                yield from _fields(item, (*path, (field.name, index)))


def _varints(data: bytes) -> Iterator[tuple[int, int]]:
    """Position and width of the tags, lengths and numbers of the outer three levels."""
    todo = [(0, len(data), 0)]
    while todo:
        at, end, level = todo.pop()
        while at < end:
            tag, start = read_varint(data, at), at
            at += tag[1]
            yield start, tag[1]
            if tag[0] & 7 == 1 or tag[0] & 7 == 5:
                at += 8 if tag[0] & 7 == 1 else 4
                continue
            value, size = read_varint(data, at)
            yield at, size
            at += size
            if tag[0] & 7 == 2:
                # 7: the graph in the model; 1 and 5: nodes and initializers in it.
                if (level, tag[0] >> 3) in ((0, 7), (1, 1), (1, 5)):
                    todo.append((at, at + value, level + 1))
                at += value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for size in range(1, 11):
        byte = data[at + size - 1]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, size
    raise ValueError(f"a varint without end at {at}")


def varint(value: int) -> bytes:
    """`value` >= 0 in groups of seven bits, lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


MUTATORS: dict[str, Callable[[bytes], Callable[[random.Random], bytes]]] = {
    "tflite": TfliteMutator,
    "onnx": OnnxMutator,
}
