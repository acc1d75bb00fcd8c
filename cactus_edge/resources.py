"""Where shipped data lives, and the one way files are written.

`targets/` and `export/` lie beside the package in a checkout and inside it, under `_data/`, in a wheel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
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


SCHEMAS = ("certificate", "statement", "radii")
"""What is published as JSON Schema; `schemas/NAME-VERSION.json`, whose version is the one that the files themselves name."""


def schema(name: str, version: int = 1) -> str:
    """The JSON Schema (draft 2020-12) of a certificate, or of the statement that is signed."""
    return (Path(__file__).resolve().parent / "schemas" / f"{name}-{version}.json").read_text(encoding="utf-8")


def write_atomic(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Writes `content` to `path` so that readers see the old file or the whole new one. Creates the parent folders.

    private: only its owner may read or write the file. Raises InputError where the folder cannot be written or the disk is
    full, and where something else than a file is there; nothing half-written stays behind.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"cannot write {path}: it is no regular file", hint="choose another path")
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
        temporary.chmod(0o600 if private else 0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next((p for p in (path, *path.parents) if os.path.lexists(p)), Path(path.anchor))


def require_folder(path: Path, option: str) -> Path:
    """`path`, where files can be written into it, whether it exists or has to be made. Writes nothing that stays.

    Raises InputError, which speaks of `option`, for a path that is or runs through a file, and for what cannot be written:
    so that hours of work do not end there.
    """
    return _require(path, path, option)


def require_file(path: Path, option: str, inputs: Iterable[object] = ()) -> Path:
    """`path`, where a file can be written there. Raises InputError as `require_folder` does, for a path that is a folder or a
    device, and for one of the `inputs`, of which paths alone count: nothing of the user's is overwritten by what is made of it."""
    _require(path, path.parent, option)
    hint = f"name another file with {option}"
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder, expected a file", hint=hint)
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path} is a device, expected a file", hint=hint)
    for given in inputs:
        if isinstance(given, str | Path) and _same(path, given):
            raise InputError(f"{option} {path} is an input of this command", hint=hint)
    return path


def _same(path: Path, given: str | Path) -> bool:
    """Whether both name one file that exists."""
    try:
        return path.samefile(given)
    except (OSError, ValueError):  # one is not there, or its name is none that a file can have
        return False


def _require(path: Path, folder: Path, option: str) -> Path:
    hint = f"choose another path with {option}"
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise InputError(f"{option} {path}: {existing} is not a folder", hint=hint)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # raises OSError for a name that no file can have
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option} {path}: cannot write into {existing}: {reason}", hint=hint) from error
    return path


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
