"""What is installed, what is missing, and the exact command that fixes it.

The doctor reads package metadata and looks for modules without importing them, so it answers at once and cannot be
brought down by the very package that is broken. The required versions come from this package's own metadata, which is
pyproject.toml as it was installed: no second list to keep in step.
"""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cactus_edge.errors import InternalError
from cactus_edge.report.table import pairs, table
from cactus_edge.resources import cache_folder, nearest_existing

DISTRIBUTION = "cactus-edge"
TOOL_TIMEOUT_S = 10


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is a command to paste, "" where nothing is wrong; `optional` things have a built-in substitute."""

    name: str
    ok: bool
    found: str
    needed_for: str
    fix: str = ""
    optional: bool = False


@dataclass(frozen=True)
class _Package:
    distribution: str
    module: str
    extra: str
    needed_for: str


_PACKAGES = (
    _Package("numpy", "numpy", "", "everything"),
    _Package("torch", "torch", "build", "build: training"),
    _Package("scikit-learn", "sklearn", "build", "build: the digits data set"),
    _Package("tflite-micro", "tflite_micro", "build", "build: agreement with TensorFlow Lite Micro"),
    _Package("ai-edge-litert", "ai_edge_litert", "build", "build: agreement with LiteRT"),
    _Package("onnx", "onnx", "build", "build, convert: writing .onnx files"),
    _Package("onnxruntime", "onnxruntime", "build", "build, agree: ONNX Runtime"),
    _Package("ortools", "ortools", "build", "certify --budget: the integer solver"),
    _Package("scipy", "scipy", "build", "build: corrupted images"),
    _Package("pillow", "PIL", "build", "build: folders of images"),
    _Package("flatbuffers", "flatbuffers", "build", "build: writing the .tflite file"),
    _Package("matplotlib", "matplotlib", "build", "build: the report's plots"),
    _Package("jinja2", "jinja2", "build", "build: the report's page"),
    _Package("rich", "rich", "build", "build, bench: progress bars"),
    _Package("platformdirs", "platformdirs", "build", "build: finding the user's cache folder"),
    _Package("pyserial", "serial", "device", "bench, flash: talking to boards"),
    _Package("ziglang", "ziglang", "device", "build, bench: cross-compiling the firmware"),
    _Package("asyncssh", "asyncssh", "device", "build, bench: computers reached by ssh"),
    _Package("unicorn", "unicorn", "device", "build, bench: the emulated Cortex-M4 board"),
)


SETS = ("mnist", "fashion-mnist", "cifar10", "har", "ecg")
"""Data sets that are looked up in the user's folder."""


def examine() -> list[Check]:
    """Every check, in the order in which a new user meets the need. Reads files and runs two `--version` commands."""
    needs = _requirements()
    return [
        _python(needs),
        _installation(needs),
        *(_package(package, needs) for package in _PACKAGES),
        _tool("qemu-system-arm", "--emulator qemu: other emulated boards", ("qemu-system-arm",)),
        _tool(
            "arm-none-eabi-gcc",
            "--emulator qemu: the second compiler",
            ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi"),
        ),
        _data_folder(os.environ),
        _cache_folder(),
    ]


def text(checks: list[Check], *, width: int | None = None) -> str:
    """The checks as a table, then the commands that fix what is not well, on lines of their own to be pasted."""
    rows = [[_state(check), check.name, check.found, check.needed_for] for check in checks]
    parts = [table(["", "what", "found", "needed for"], rows, width=width)]
    for heading, wanted in (("To fix:", False), ("Optional:", True)):
        todo = [check for check in checks if not check.ok and check.optional == wanted]
        # One command often mends several findings; it is printed once, with the names of all of them.
        commands: dict[str, list[str]] = {}
        for check in todo:
            commands.setdefault(check.fix, []).append(check.name)
        if commands:
            lines = [f"  {command}    # {', '.join(names)}" for command, names in commands.items()]
            parts.append("\n".join([heading, *lines]))
    if all(check.ok or check.optional for check in checks):
        parts.append(pairs([("Ready:", "everything that the built-in build needs is here")], width=width))
    return "\n\n".join(parts)


def _state(check: Check) -> str:
    if check.ok:
        return "ok"
    return "optional" if check.optional else "MISSING"


def _requirements() -> Mapping[str, str] | None:
    """Distribution name -> version specifier such as ">=2.1,<3"; None where this package has no metadata."""
    try:
        own = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    needs = {"python": own.metadata["Requires-Python"] or ""}
    for line in own.requires or []:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)", line)
        if match is None:
            raise InternalError(f"the package's metadata has a requirement that cannot be read: {line!r}")
        needs[_normal(match[1])] = match[2].replace(" ", "").strip("()")
    return needs


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version_key(version: str) -> tuple[tuple[int, ...], int, int] | None:
    """Sort key (release, stage, number): development, a, b, rc, final, post, as in PEP 440; None where it is no version."""
    match = re.fullmatch(
        r"v?(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?(?:\+[a-z0-9.]+)?", version.strip().lower()
    )
    if match is None:
        return None
    release = tuple(int(part) for part in match[1].split("."))
    while release and release[-1] == 0:
        release = release[:-1]
    if match[2]:
        return release, {"a": 1, "b": 2, "rc": 3}[match[2]], int(match[3])
    if match[4]:
        return release, 5, int(match[4])
    return (release, 0, int(match[5])) if match[5] else (release, 4, 0)


def satisfies(version: str, specifier: str) -> bool | None:
    """Whether `version` meets every clause of `specifier` (such as ">=2.1,<3"); None where it cannot be told."""
    got = _version_key(version)
    for clause in filter(None, specifier.split(",")):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<)(.+)", clause)
        bound = _version_key(match[2]) if match else None
        if match is None or bound is None or got is None:
            return None
        order = (got > bound) - (got < bound)
        allowed = {">=": (0, 1), "<=": (-1, 0), "==": (0,), "!=": (-1, 1), ">": (1,), "<": (-1,)}[match[1]]
        if order not in allowed:
            return False
    return True


def _judge(version: str, specifier: str) -> tuple[bool, str]:
    verdict = satisfies(version, specifier)
    if verdict is None:
        return False, f"{version}, which cannot be compared with {specifier}"
    return verdict, version if verdict else f"{version}, needs {specifier}"


def _python(needs: Mapping[str, str] | None) -> Check:
    version = platform.python_version()
    if needs is None:
        return Check("python", True, f"{version} (requirement unknown)", "everything")
    ok, found = _judge(version, needs["python"])
    minimum = needs["python"].lstrip(">=~ ").split(",")[0]
    return Check(
        "python", ok, found, "everything", "" if ok else _apt_or_brew((f"python{minimum}",), f"python@{minimum}")
    )


def _installation(needs: Mapping[str, str] | None) -> Check:
    if needs is None:
        fix = f"{_interpreter()} -m pip install {shlex.quote(DISTRIBUTION + '[build]')}"
        return Check(
            DISTRIBUTION, False, "no package metadata: run from a folder, not installed", "doctor, versions", fix
        )
    return Check(DISTRIBUTION, True, metadata.version(DISTRIBUTION), "everything")


def _package(package: _Package, needs: Mapping[str, str] | None) -> Check:
    name, purpose = package.distribution, package.needed_for
    fix = _pip(package.extra)
    try:
        version: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", purpose, fix)
    # A half-removed package keeps its metadata folder: the version is then None, or the module is gone.
    if version is None or importlib.util.find_spec(package.module) is None:
        return Check(name, False, f"{version or 'no version'}, but its files are gone", purpose, fix)
    if needs is None:
        return Check(name, True, f"{version} (requirement unknown)", purpose)
    if name not in needs:
        raise InternalError(f"pyproject.toml no longer asks for {name}, the doctor does")
    ok, found = _judge(version, needs[name])
    if package.module == "torch":
        found += f", {_torch_build()}"
    return Check(name, ok, found, purpose, "" if ok else fix)


def _torch_build() -> str:
    """Which build of torch this is, read from its generated version.py: importing it would take seconds."""
    spec = importlib.util.find_spec("torch")
    locations = list(spec.submodule_search_locations or []) if spec else []
    try:
        tree = ast.parse((Path(locations[0]) / "version.py").read_text(encoding="utf-8"))
    except (IndexError, OSError, SyntaxError, ValueError):
        return "build unknown"
    values: dict[str, str] = {}
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if isinstance(value := getattr(node, "value", None), ast.Constant) and isinstance(value.value, str):
            values.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    for key, label in (("cuda", "CUDA"), ("hip", "ROCm"), ("xpu", "XPU")):
        if key in values:
            return f"{label} {values[key]} build"
    return "CPU build"


def _interpreter() -> str:
    """The running interpreter as a shell word, relative to the current folder where it lies below it."""
    path = Path(sys.executable or "python")
    try:
        return shlex.quote(str(path.relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(path))


def _pip(extra: str) -> str:
    """The pip command that brings this package and one of its extras up to what is required."""
    suffix = f"[{extra}]" if extra else ""
    checkout = _checkout()
    if checkout is None:
        return f"{_interpreter()} -m pip install --upgrade {shlex.quote(DISTRIBUTION + suffix)}"
    where = "." if checkout == Path.cwd() else str(checkout)
    tested = checkout / ".constraints.txt"
    pins = f" -c {shlex.quote('.constraints.txt' if where == '.' else str(tested))}" if tested.is_file() else ""
    return f"{_interpreter()} -m pip install{pins} -e {shlex.quote(where + suffix)}"


def _checkout() -> Path | None:
    """The source folder of an editable installation (PEP 610), else None."""
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    if record is None:
        return None
    origin = json.loads(record)
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file" or not origin.get("dir_info", {}).get("editable", False):
        return None
    return Path(unquote(url.path))


def _apt_or_brew(apt: tuple[str, ...], brew: str) -> str:
    if shutil.which("apt-get"):
        root = "" if os.geteuid() == 0 else "sudo "
        return f"{root}apt-get install --no-install-recommends {' '.join(apt)}"
    if shutil.which("brew"):
        return f"brew install {brew}"
    return f"install {brew} with this system's package manager"


def _tool(
    program: str,
    needed_for: str,
    apt: tuple[str, ...],
    which: Callable[[str], str | None] = shutil.which,
) -> Check:
    fix = _apt_or_brew(apt, "qemu" if program.startswith("qemu") else program)
    path = which(program)
    if path is None:
        return Check(program, False, "not on PATH", needed_for, fix, optional=True)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=TOOL_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(program, False, f"{path} does not run: {error}", needed_for, fix, optional=True)
    lines = done.stdout.decode(errors="replace").splitlines()
    return Check(program, True, lines[0] if lines else path, needed_for, optional=True)


def _data_folder(environ: Mapping[str, str]) -> Check:
    name, purpose = "CACTUS_EDGE_DATA", "build: data sets without a download (digits needs none)"
    folder = environ.get(name, "")
    if not folder:
        return Check(name, False, "not set", purpose, f"export {name}=FOLDER_WITH_mnist/", optional=True)
    path = Path(folder)
    if not path.is_dir():
        return Check(name, False, f"{folder} is not a folder", purpose, f"mkdir -p {shlex.quote(folder)}")
    if not os.access(path, os.R_OK | os.X_OK):
        return Check(name, False, f"{folder} cannot be read", purpose, f"chmod u+rx {shlex.quote(folder)}")
    sets = [kind for kind in SETS if (path / kind).is_dir()]
    return Check(name, True, f"{folder}: {', '.join(sets) or 'none of the data sets in it'}", purpose)


def _cache_folder() -> Check:
    """Whether the user's cache can be written, judged by its nearest existing parent: nothing is created."""
    purpose = "build: downloaded data sets, the compiler's cache"
    cache = cache_folder()
    parent = nearest_existing(cache)
    if not parent.is_dir():
        return Check("cache folder", False, f"{parent} is in the way of {cache}", purpose, _move_away(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        fix = f"chmod u+wx {shlex.quote(str(parent))}"
        return Check("cache folder", False, f"{parent} cannot be written", purpose, fix)
    free = shutil.disk_usage(parent).free / 1e9
    state = "" if cache.exists() else " (not created yet)"
    return Check("cache folder", True, f"{cache}{state}, {free:.1f} GB free", purpose)


def _move_away(path: Path) -> str:
    return f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"
