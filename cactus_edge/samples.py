"""Samples on disk: an .npz with `x` [N, ...] and `y` [N]."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.resources import write_atomic

Array = npt.NDArray[Any]


def read_samples(path: Path) -> tuple[Array, Array]:
    """(x, y) from `path`, as they are. Raises DataError where the file is missing, is no .npz or lacks an array."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array", hint="save it with np.savez(path, x=..., y=...)")
            missing = [name for name in ("x", "y") if name not in archive]
            if missing:
                raise DataError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'}; expected the arrays x and y",
                    hint="save it with np.savez(path, x=..., y=...)",
                )
            return archive["x"], archive["y"]
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", hint="check the path given to --data") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}", hint="write it again with np.savez") from error


def write_samples(path: Path, x: Array, y: Array) -> None:
    """Writes x and y to `path`, compressed; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, x=x, y=y)
    write_atomic(path, stream.getvalue())
