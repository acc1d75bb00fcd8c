"""Where shipped data lives, and the one way files are written.

`targets/` and `export/` lie beside the package in a checkout and inside it, under `_data/`, in a wheel.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from cactus_edge.errors import InputError, InternalError


def data_path(*parts: str) -> Path:
    """The shipped file or folder `parts`, for example `data_path("export", "c")`. Raises InternalError where it is absent."""
    package = Path(__file__).resolve().parent
    for root in (package / "_data", package.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise InternalError(f"the installation lacks {'/'.join(parts)}", hint="reinstall cactus-edge")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes `content` to `path` so that readers see the old file or the whole new one. Creates the parent folders.

    Raises InputError where the folder cannot be written or the disk is full; nothing half-written stays behind.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}", hint="free space or choose another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(data: bytes) -> str:
    """SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def cache_folder() -> Path:
    """The user's cache folder of cactus-edge: $XDG_CACHE_HOME or ~/.cache, or what the platform uses instead."""
    from importlib.util import find_spec

    if find_spec("platformdirs") is not None:
        from platformdirs import user_cache_path

        return user_cache_path("cactus-edge", appauthor=False)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cactus-edge"
