"""An aarch64 Linux with Python, LiteRT and ONNX Runtime in user-mode emulation, set up without any rights of root.

`prepare` unpacks Debian packages (nothing is installed, no maintainer script runs) and the real aarch64 wheels into a folder
of the user's cache; `python(folder, board)` is the shell command that runs the emulated Python there. QEMU's -L maps the guest's
paths into the board's root folder where they exist there, /proc/cpuinfo among them: ONNX Runtime chooses its kernels by it, so
it must agree with the processor that QEMU emulates.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cactus_edge.errors import InstallError
from cactus_edge.resources import cache_folder, write_atomic

COMMAND = "python bench/pi_emulator.py --prepare"
RELEASE, MIRROR = "bookworm", "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3.11", "libstdc++6", "libgomp1")
WHEELS = ("numpy==2.4.6", "ai-edge-litert==2.3.0", "onnxruntime==1.31.1")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
FORMAT = 1


@dataclass(frozen=True)
class Board:
    """An emulated board: QEMU's processor, and what the system there says about it."""

    cpu: str
    model: str
    part: str
    features: str


BOARDS = {
    "pi4": Board("cortex-a72", "Raspberry Pi 4 Model B Rev 1.4", "0xd08", "fp asimd evtstrm crc32 cpuid"),
    "pi5": Board(
        "cortex-a76",
        "Raspberry Pi 5 Model B Rev 1.0",
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}
"""The Pi 5's processor multiplies int8 vectors (asimddp); the Pi 4's does not and takes other kernels."""


def folder() -> Path:
    """Where it is, or would be."""
    named = os.environ.get("CACTUS_EDGE_PI")
    return Path(named) if named else cache_folder() / "pi-emulator"


def missing() -> str:
    """Why the emulation cannot be used, with the command that helps; "" where it is ready."""
    stamp = folder() / "ready.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != _stamp():
        return f"the aarch64 emulation is not prepared: {COMMAND}"
    return ""


def _stamp() -> dict[str, object]:
    return {"format": FORMAT, "packages": list(PACKAGES), "wheels": list(WHEELS), "boards": sorted(BOARDS)}


def python(board: str, *path: Path) -> str:
    """A shell command, to be followed by arguments: the board's Python, with `path` in its search path as well."""
    where = folder()
    words = [str(where / "qemu-aarch64-static"), "-cpu", BOARDS[board].cpu, "-L", str(where / board)]
    words.append(str(where / board / "usr" / "bin" / "python3.11"))
    environment = [
        "env",
        "-u",
        "PYTHONHOME",
        f"PYTHONPATH={':'.join(map(str, (where / 'site', *path)))}",
        "OMP_NUM_THREADS=1",
    ]
    return "exec " + shlex.join([*environment, *words])


def prepare() -> Path:
    """Downloads and unpacks everything: about 120 MB, 600 MB on disk, half a minute. Raises InstallError."""
    where = folder()
    if not missing():
        return where
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InstallError(
                f"{tool} is not here: the emulation is unpacked from Debian's packages", hint="use Debian or Ubuntu"
            )
    shutil.rmtree(where, ignore_errors=True)
    downloads = where / "downloads"
    downloads.mkdir(parents=True)
    apt = _apt(where / "apt")
    _run([*apt, "update"], where)
    _run([*apt, "install", "--download-only", "--yes", "--no-install-recommends", *PACKAGES], where)
    _run([*apt, "download", f"qemu-user-static:{_host()}"], downloads)
    (root := where / "root").mkdir()
    for package in sorted((where / "apt" / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(root)], where)
    (package,) = downloads.glob("qemu-user-static*.deb")
    _run(["dpkg-deb", "-x", str(package), str(downloads / "qemu")], where)
    shutil.move(downloads / "qemu" / "usr" / "bin" / "qemu-aarch64-static", where / "qemu-aarch64-static")
    target = [f"--platform={p}" for p in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    _run([*pip, "--python-version=3.11", *target, "--target", str(where / "site"), *WHEELS], where)
    for name, board in BOARDS.items():
        _root(root, where / name, board)
    for used in (downloads, where / "apt", root):
        shutil.rmtree(used)
    write_atomic(where / "ready.json", json.dumps(_stamp()) + "\n")
    return where


def _host() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def _apt(state: Path) -> list[str]:
    """apt-get with a state of its own, so that this machine's packages are neither read nor touched."""
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {RELEASE} main\n")
    options = {
        "Dir::State": state, "Dir::State::status": state / "status", "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": "arm64", "APT::Sandbox::User": "", "Debug::NoLocking": "1",
    }  # fmt: skip
    words = [f"-o{key}={value}" for key, value in options.items()]
    return ["apt-get", "-qq", *words, "-oAPT::Architectures::=arm64", f"-oAPT::Architectures::={_host()}"]


def _root(root: Path, to: Path, board: Board) -> None:
    """The board's root folder: hard links to what is common, and what its system says about the processor."""
    shutil.copytree(root, to, symlinks=True, copy_function=os.link)
    (to / "proc" / "device-tree").mkdir(parents=True)
    (to / "sys" / "devices" / "system" / "cpu").mkdir(parents=True)
    lines = []
    for core in range(4):
        lines += [
            f"processor\t: {core}",
            f"Features\t: {board.features}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
        ]
        lines += ["CPU variant\t: 0x0", f"CPU part\t: {board.part}", "CPU revision\t: 3", ""]
    (to / "proc" / "cpuinfo").write_text("\n".join([*lines, f"Model\t\t: {board.model}", ""]))
    (to / "proc" / "device-tree" / "model").write_text(board.model)
    for name in ("possible", "present", "online"):
        (to / "sys" / "devices" / "system" / "cpu" / name).write_text("0-3\n")
    (to / "etc" / "cactus-edge-emulated").write_text(f"{board.model}, emulated: QEMU user mode, {board.cpu}\n")


def _run(words: list[str], where: Path) -> None:
    done = subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [""]
        raise InstallError(
            f"{words[0]} failed with status {done.returncode}: {last[0]}", hint="is there a network, and room?"
        )
