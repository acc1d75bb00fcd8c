"""Where a data set's files come from: the user's folder, the user's cache, the canonical download; checked by SHA-256."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cactus_edge.errors import DataError
from cactus_edge.resources import cache_folder, write_atomic

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
    except (OSError, urllib.error.URLError, ValueError) as error:
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


def missing(set_name: str, name: str, failures: list[str]) -> DataError:
    """The error about a file that none of the places has."""
    return DataError(
        f"the data set {set_name!r} lacks {name}; looked at\n  " + "\n  ".join(failures),
        hint=f"put it at {cached(set_name, name)}, or set {ENVIRONMENT} to a folder that holds {set_name}/{name}",
    )
