"""How a process of ours is set up by its entry points (the command line, the benches), never by an import."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt (malloc.h)."""

KEEP_BYTES = 1 << 30


def settle() -> None:
    """One BLAS thread unless the user says otherwise, and freed arrays stay with the process. Changes speed, no result.

    The matrix products of a proof are small: several of OpenBLAS's own threads would spin against each other and ours; the
    variable counts only before numpy is loaded. glibc gives each freed array of some 100 kB back to the system, and a proof
    would spend half its time on page faults. cuBLAS gives equal bits every time only with a workspace of fixed size.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if sys.platform == "linux" and hasattr(mallopt := ctypes.CDLL(None), "mallopt"):
        mallopt.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
