"""Counts the instructions that the emulated core executes: natively where the C compiler is installed, else in Python.

Both see every block that the core executes and count the Thumb-2 instructions in it, so they give the same numbers; the
native one is a shared library of thirty lines, compiled once and kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, Protocol

from cactus_edge.errors import CactusError, InstallError
from cactus_edge.formats.c.compiler import compile_c, zig
from cactus_edge.resources import cache_folder, sha256

CounterName = Literal["auto", "native", "python"]


class Counter(Protocol):
    """`instructions`: executed so far, the running block whole. `block`: the address at which that block begins."""

    @property
    def instructions(self) -> int: ...

    @property
    def block(self) -> int: ...


def instruction_count(code: bytes) -> int:
    """How many Thumb-2 instructions `code` holds, from its first byte on (Arm DDI 0403 A5.1)."""
    count = at = 0
    while at < len(code):
        at += 4 if code[at + 1] >> 3 in (0x1D, 0x1E, 0x1F) else 2
        count += 1
    return count


def attach(core: Any, code: bytes, origin: int, name: CounterName = "auto") -> Counter:
    """A counter of what `core` (a unicorn.Uc) executes of `code`, which lies at `origin`.

    name: "native" raises InstallError where the compiler is missing; "auto" then counts in Python and says so on stderr.
    """
    if name == "python":
        return _PythonCounter(core)
    try:
        return _NativeCounter(core, code, origin)
    except CactusError as error:
        if name == "native":
            raise
        print(
            f"note: instructions are counted in Python, which is slower: {error.message}", file=sys.stderr, flush=True
        )
        return _PythonCounter(core)


class _PythonCounter:
    def __init__(self, core: Any) -> None:
        uc: Any = importlib.import_module("unicorn")
        self.instructions = 0
        self.block = 0
        self._counts: dict[tuple[int, int], int] = {}
        core.hook_add(uc.UC_HOOK_BLOCK, self._on_block)

    def _on_block(self, core: Any, address: int, size: int, _: Any) -> None:
        count = self._counts.get((address, size))
        if count is None:
            count = self._counts[address, size] = instruction_count(bytes(core.mem_read(address, size)))
        self.block = address
        self.instructions += count


class _State(ctypes.Structure):
    _fields_ = (
        ("instructions", ctypes.c_uint64),
        ("block", ctypes.c_uint64),
        ("origin", ctypes.c_uint64),
        ("code_bytes", ctypes.c_uint64),
        ("code", ctypes.c_char_p),
    )


class _NativeCounter:
    def __init__(self, core: Any, code: bytes, origin: int) -> None:
        library = ctypes.CDLL(str(_library()))
        uc: Any = importlib.import_module("unicorn")
        # The binding wraps every callback in Python; the C interface below it takes any function.
        binding: Any = importlib.import_module("unicorn.unicorn_py3.unicorn")
        self._keep = (library, code)
        self._state = _State(0, 0, origin, len(code), code)
        handle = ctypes.c_size_t()
        status = binding.uclib.uc_hook_add(
            core._uch,
            ctypes.byref(handle),
            uc.UC_HOOK_BLOCK,
            ctypes.cast(library.ce_count_block, ctypes.c_void_p),
            ctypes.byref(self._state),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        if status != uc.UC_ERR_OK:
            raise InstallError(
                f"unicorn {uc.__version__} does not take the counter (error {status})", hint="use unicorn 2.1"
            )

    @property
    def instructions(self) -> int:
        return int(self._state.instructions)

    @property
    def block(self) -> int:
        return int(self._state.block)


def _library() -> Path:
    source = Path(__file__).with_name("block_counter.c")
    key = sha256(source.read_bytes() + f"{sys.platform} {platform.machine()}".encode())[:16]
    cache = cache_folder()
    library = cache / f"block-counter-{key}.so"
    if not library.exists():
        compiler = zig()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                built = Path(folder) / "counter.so"
                compile_c(compiler, ["-std=c99", "-O2", "-shared", "-fPIC", source, "-o", built])
                built.replace(library)
        except OSError as error:
            raise InstallError(
                f"cannot write into {cache}: {error.strerror or error}", hint="set XDG_CACHE_HOME"
            ) from error
    return library
