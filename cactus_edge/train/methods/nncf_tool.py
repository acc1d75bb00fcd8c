"""NNCF, imported on demand: without telemetry and without noise."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

from cactus_edge.errors import InstallError

HINT = "pip install 'cactus-edge[baselines]'"


def require() -> None:
    """Raises InstallError where NNCF is not installed; imports nothing, which takes seconds."""
    if find_spec("nncf") is None:
        raise InstallError("this needs NNCF, which is not installed", hint=HINT)


@contextmanager
def quiet() -> Iterator[Any]:
    """The nncf package, imported without telemetry; its progress and its warnings go nowhere meanwhile.

    Its limit of a minute for compiling is off: a busy machine takes longer.
    """
    switches = {"NNCF_CI": "1", "CI": "true", "NNCF_EXTENSION_LOAD_TIMEOUT": "0"}
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update(switches)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                import nncf
            except ImportError as error:
                raise InstallError("this needs NNCF, which is not installed", hint=HINT) from error
            silenced = logging.root.manager.disable
            logging.disable(logging.WARNING)  # torchao, which it imports, says which GPU kernels it has not got
            try:
                yield nncf
            finally:
                logging.disable(silenced)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
