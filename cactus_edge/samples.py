"""Samples on disk: an .npz with `x` [N, ...] and `y` [N]."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.resources import write_atomic

Array = npt.NDArray[Any]


def read_inputs(path: Path) -> tuple[Array, Array | None]:
    """(x, y) from the .npz `path`, as they are; None for y where there is none. Raises DataError for anything else."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array", hint="save it with np.savez(path, x=..., y=...)")
        with loaded as archive:
            if "x" not in archive:
                held = ", ".join(archive.files) or "nothing"
                raise DataError(
                    f"{path} holds {held}; expected x, and y for labels", hint="np.savez(path, x=..., y=...)"
                )
            return archive["x"], archive.get("y")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", hint="check the path given to --data") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}", hint="write it again with np.savez") from error


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
