"""Samples on disk: an .npz with `x` [N, ...] and `y` [N]."""

from __future__ import annotations

import io
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.resources import write_atomic

Array = npt.NDArray[Any]


def read_inputs(path: Path) -> tuple[Array, Array | None]:
    """(x, y) from the .npz `path`, as they are; None for y where there is none. Raises DataError as `read_arrays` does."""
    found = read_arrays(path, ("x", "y"))
    return found["x"], found.get("y")


def read_arrays(path: Path, names: Sequence[str], text: Sequence[str] = ()) -> dict[str, Array]:
    """Those of `names` that the .npz `path` holds, the first of them at least; arrays in `text` may be strings.

    Raises DataError for anything else. Nothing is unpickled, and no array is made before its header was compared with the bytes
    that the file holds for it.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                single = stream.read(6) == MAGIC
            what = "is a single array" if single else "cannot be read as .npz: it is no zip file"
            raise DataError(f"{path} {what}", hint="save it with np.savez(path, x=..., y=...)")
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            held = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
            if bare := [name for name in names if name in members and name not in held]:
                raise DataError(
                    f"{path} has a member {bare[0]}; expected {bare[0]}.npy, an array in the .npy format",
                    hint="np.savez(path, x=..., y=...)",
                )
            if names[0] not in held:
                listed = ", ".join(held[:10]) or "nothing"
                raise DataError(
                    f"{path} holds {listed}; expected {names[0]}, and y for labels", hint="np.savez(path, x=..., y=...)"
                )
            size = path.stat().st_size
            return {name: _member(archive, f"{name}.npy", size, name in text) for name in names if name in held}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", hint="check the path") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as .npz: {error}", hint="write it again with np.savez") from error


UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What pathlib and zipfile raise for files that cannot be read, and for damaged, encrypted and unknown kinds of members."""


def _member(archive: zipfile.ZipFile, name: str, file_bytes: int, text: bool) -> Array:
    """The array `name` of the archive. Raises DataError where its header is not that of plain numbers or does not fit, or UNREADABLE."""
    info = archive.getinfo(name)
    if info.file_size > LARGEST_EXPANSION * file_bytes + FREE_BYTES:
        raise DataError(f"{name} unpacks to {info.file_size} bytes from a file of {file_bytes}: a zip bomb?")
    with archive.open(info) as stream:
        magic, version = stream.read(6), stream.read(2)
        width = 2 if version == b"\x01\x00" else 4
        header_bytes = int.from_bytes(stream.read(width), "little")
        if magic != MAGIC or version not in VERSIONS or header_bytes > LONGEST_HEADER:
            raise DataError(
                f"{name} is no array in the .npy format, version 1 to 3", hint="write it again with np.savez"
            )
        header = stream.read(header_bytes).decode("latin1")
        found = HEADER.fullmatch(header)
        if found is None or (found[1][1] == "U" and not text):
            wanted = "strings or plain numbers" if text else "plain numbers"
            raise DataError(
                f"{name} has the header {header[:80]!r}, expected {wanted}", hint="write it again with np.savez"
            )
        dtype, shape = np.dtype(found[1]), tuple(int(n) for n in re.findall(r"\d+", found[3]))
        want, data = math.prod(shape) * dtype.itemsize, stream.read(info.file_size)
    if len(data) != want:
        raise DataError(f"{name} holds {len(data)} bytes, expected {want} for {dtype} {shape}")
    if dtype.kind == "U":
        data.decode("utf-32-be" if found[1][0] == ">" else "utf-32-le")  # numpy itself takes any number for a character
    return np.frombuffer(data, dtype).reshape(shape, order="F" if found[2] == "True" else "C")


MAGIC, VERSIONS, LONGEST_HEADER = b"\x93NUMPY", (b"\x01\x00", b"\x02\x00", b"\x03\x00"), 4096
HEADER = re.compile(
    r"\{'descr': '([<>|](?:b1|[iu][1248]|f[248]|U[1-9]\d{0,3}))', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,9}, ?)*(?:\d{1,9})?)\), \}\s*"
)
"""The header of an array of plain numbers or strings: dtype, order, shape. numpy evaluates it as Python instead: numpy/lib/format.py."""

LARGEST_EXPANSION, FREE_BYTES = 64, 1 << 28
"""How far a file may expand: real samples compress by 2 to 20, zeros by a thousand."""


def read_samples(path: Path) -> tuple[Array, Array]:
    """(x, y) from the .npz `path`. Raises DataError where the file is missing, is no .npz or lacks an array."""
    x, y = read_inputs(path)
    if y is None:
        raise DataError(f"{path} holds x alone; expected the arrays x and y", hint="np.savez(path, x=..., y=...)")
    return x, y


def write_samples(path: Path, x: Array, y: Array) -> None:
    """Writes x and y to `path`, compressed; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, x=x, y=y)
    write_atomic(path, stream.getvalue())
