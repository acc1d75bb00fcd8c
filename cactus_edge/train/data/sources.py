"""Where a data set's files come from: the user's folder, the user's cache, the canonical download; checked by SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.resources import cache_folder, write_atomic
from cactus_edge.samples import read_arrays
from cactus_edge.train.data.dataset import digest

ENVIRONMENT = "CACTUS_EDGE_DATA"
"""Environment variable with the folder that holds one folder per data set."""


@dataclass(frozen=True)
class Files:
    """The files of one data set: SHA-256 of each, and the address that they are below; "" where none serves them."""

    name: str
    sha256: dict[str, str]
    url: str = ""


def locate(files: Files, name: str) -> bytes:
    """The bytes with the right checksum of one of `files`, from the three places in this order. Raises DataError."""
    content, failures = find(files, name)
    if content is None:
        raise missing(files.name, name, failures)
    return content


def find(files: Files, name: str) -> tuple[bytes | None, list[str]]:
    """As `locate`; None with what was wrong at each place where there is none."""
    want, failures = files.sha256[name], []
    if not os.environ.get(ENVIRONMENT):
        failures.append(f"{ENVIRONMENT}: not set")
    for path in places(files.name, name):
        try:
            content = path.read_bytes()
        except OSError as error:
            failures.append(f"{path}: {error.strerror or error}")
            continue
        if hashlib.sha256(content).hexdigest() == want:
            return content, failures
        failures.append(f"{path}: wrong checksum (damaged, or another version)")
    if not files.url:
        return None, failures
    url = files.url + name
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            content = bytes(reply.read())
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        failures.append(f"{url}: {getattr(error, 'reason', error)}")
        return None, failures
    if hashlib.sha256(content).hexdigest() != want:
        failures.append(f"{url}: wrong checksum")
        return None, failures
    write_atomic(cached(files.name, name), content)
    return content, failures


def places(set_name: str, name: str) -> Iterator[Path]:
    """Where the file may lie on this computer: below CACTUS_EDGE_DATA, if that is set, then in the cache."""
    if folder := os.environ.get(ENVIRONMENT):
        yield Path(folder) / set_name / name
    yield cached(set_name, name)


def cached(set_name: str, name: str) -> Path:
    """Where the user's cache keeps the file."""
    return cache_folder() / set_name / name


def keep(set_name: str, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes the arrays to the cache, as an .npz that says no time: equal arrays give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.save(member, np.ascontiguousarray(array))
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), member.getvalue())
    write_atomic(cached(set_name, name), stream.getvalue())


def kept(
    set_name: str, name: str, fields: Sequence[str], want: str
) -> tuple[dict[str, npt.NDArray[Any]] | None, list[str]]:
    """The arrays `fields` that `keep` left, in this order, if `want` is their `dataset.digest`; None with what was wrong at each place."""
    failures = []
    for path in places(set_name, name):
        if not path.is_file():
            failures.append(f"{path}: No such file")
            continue
        try:
            held = read_arrays(path, fields)
        except DataError as error:
            failures.append(f"{path}: {error.message}")
            continue
        if digest(*held.values()) == want:
            return held, []
        failures.append(f"{path}: wrong checksum (damaged, or another version)")
    return None, failures


def arrays_of(content: bytes, name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz whose checksum was right."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read as .npz: {error}", hint="fetch it again") from error


def missing(set_name: str, name: str, failures: list[str], hint: str = "") -> DataError:
    """The error about a file that none of the places has; each of them is listed once."""
    return DataError(
        f"the data set {set_name!r} lacks {name}; looked at\n  " + "\n  ".join(dict.fromkeys(failures)),
        hint=hint
        or f"put it at {cached(set_name, name)}, or set {ENVIRONMENT} to a folder that holds {set_name}/{name}",
    )
