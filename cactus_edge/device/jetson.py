"""What a Jetson says about itself: JetPack, power mode, clocks, temperature. Parsers of its own tools' words.

Nothing is changed on the device: a power mode or locked clocks are the user's to choose (`nvpmodel -m`, `jetson_clocks`, both as
root); a report names the state a latency was measured in. Formats: /etc/nv_tegra_release, `nvpmodel -q`, `jetson_clocks
--show` and `tegrastats` of Jetson Linux 35 and 36, as public logs show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cactus_edge.errors import DeviceError

RELEASE_FILE = "/etc/nv_tegra_release"

JETPACK = {
    (35, 1): "5.0.2",
    (35, 2): "5.1",
    (35, 3): "5.1.1",
    (35, 4): "5.1.2",
    (35, 5): "5.1.3",
    (35, 6): "5.1.4",
    (36, 2): "6.0 DP",
    (36, 3): "6.0",
    (36, 4): "6.1",
}
"""(release, major revision) of Jetson Linux -> JetPack; `jetpack` knows the two that share R36.4."""

_RELEASE = re.compile(r"^# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", re.MULTILINE)
_MODE = re.compile(r"^NV Power Mode: ?(\S+)\s*$(?:\s*^(\d+)\s*$)?", re.MULTILINE)
_GPU = re.compile(r"^GPU MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class JetsonLinux:
    """Jetson Linux (L4T) release and revision, 36 and (4, 3) for R36.4.3; jetpack "" where it is not known."""

    release: int
    revision: tuple[int, ...]
    jetpack: str

    def __str__(self) -> str:
        version = ".".join(map(str, (self.release, *self.revision)))
        return f"JetPack {self.jetpack} (L4T {version})" if self.jetpack else f"L4T {version}"


def parse_release(text: str) -> JetsonLinux:
    """The content of /etc/nv_tegra_release. DeviceError where it is no Jetson's."""
    match = _RELEASE.search(text)
    if match is None:
        raise DeviceError("this computer is no Jetson: it has no /etc/nv_tegra_release", hint="--target raspberry-pi?")
    release, revision = int(match[1]), tuple(int(n) for n in match[2].split("."))
    return JetsonLinux(release, revision, _jetpack(release, revision))


def _jetpack(release: int, revision: tuple[int, ...]) -> str:
    if (release, *revision[:2]) == (36, 4, 3):
        return "6.2"
    if (release, *revision[:2]) == (36, 4, 4):
        return "6.2.1"
    if (release, revision[0]) == (36, 4) and revision[1:2] > (4,):
        return ""
    return JETPACK.get((release, revision[0]), "")


def parse_power_mode(text: str) -> str:
    """The mode in `nvpmodel -q`: its name, and its number where one follows; "unknown" without one."""
    match = _MODE.search(text)
    if match is None:
        return "unknown"
    return f"{match[1]} ({match[2]})" if match[2] else match[1]


@dataclass(frozen=True)
class GpuClock:
    """The GPU's clock in Hz: the range it may move in, and where it is."""

    min_hz: int
    max_hz: int
    current_hz: int

    @property
    def locked(self) -> bool:
        """Whether it cannot move, as after `jetson_clocks`."""
        return self.min_hz == self.max_hz


def parse_clocks(text: str) -> GpuClock | None:
    """The GPU's line in `jetson_clocks --show` (root only); None without one."""
    match = _GPU.search(text)
    return GpuClock(*(int(n) for n in match.groups())) if match else None


@dataclass(frozen=True)
class Tegrastats:
    """One line of tegrastats. Unknown parts are None or empty.

    gpu_percent: load of the GPU; ram_mb: used and total; temperatures_c by sensor; power_mw by rail, the momentary value.
    """

    gpu_percent: int | None
    gpu_mhz: tuple[int, ...]
    ram_mb: tuple[int, int] | None
    temperatures_c: dict[str, float]
    power_mw: dict[str, int]


def parse_tegrastats(line: str) -> Tegrastats:
    """A line of tegrastats, of any of the three spellings of its clocks (99%, 99%@921, 99%@[918,918])."""
    gpu = re.search(r"GR3D_FREQ (?:(\d+)%)?(?:@?\[?([\d,]+)\]?)?", line)
    ram = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    degrees = {k.lower(): float(v) for k, v in re.findall(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C\b", line)}
    rails = {k: int(v) for k, v in re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/\d+mW", line)}
    return Tegrastats(
        int(gpu[1]) if gpu and gpu[1] else None,
        tuple(int(n) for n in gpu[2].split(",") if n) if gpu and gpu[2] else (),
        (int(ram[1]), int(ram[2])) if ram else None,
        degrees,
        rails,
    )


@dataclass(frozen=True)
class Load:
    """What tegrastats said while figures were taken; None and empty where it did not say.

    gpu_percent, gpu_mhz: largest; gpu_least_mhz: smallest, which a throttled GPU shows; ram_mb: largest used, and total; hottest:
    (sensor, degrees Celsius); power_mw: mean and largest per rail. VDD_IN is what the module takes in.
    """

    samples: int
    gpu_percent: int | None
    gpu_least_mhz: int | None
    gpu_mhz: int | None
    ram_mb: tuple[int, int] | None
    hottest: tuple[str, float] | None
    power_mw: dict[str, tuple[float, int]]

    def words(self) -> str:
        """In words."""
        parts = []
        if self.gpu_percent is not None:
            parts.append(f"GPU at most {self.gpu_percent} %")
        if self.gpu_mhz is not None:
            least = "" if self.gpu_least_mhz == self.gpu_mhz else f"{self.gpu_least_mhz} to "
            parts.append(f"its clock {least}{self.gpu_mhz} MHz")
        if self.ram_mb is not None:
            parts.append(f"RAM at most {self.ram_mb[0]:,} of {self.ram_mb[1]:,} MB")
        if self.hottest is not None:
            parts.append(f"hottest {self.hottest[0]} with {self.hottest[1]:.1f} °C")
        parts += [
            f"{rail} {mean / 1000:.2f} W mean, {most / 1000:.2f} W at most"
            for rail, (mean, most) in self.power_mw.items()
        ]
        return f"{'; '.join(parts)} ({self.samples} samples)"


def load_of(lines: Iterable[str]) -> Load | None:
    """What lines of tegrastats say together; None where none of them is one. Sensors that are switched off say -256 degrees."""
    seen = [s for s in map(parse_tegrastats, lines) if s.ram_mb is not None or s.gpu_percent is not None or s.gpu_mhz]
    if not seen:
        return None
    clocks = [mhz for s in seen for mhz in s.gpu_mhz]
    degrees = [(c, sensor) for s in seen for sensor, c in s.temperatures_c.items() if c > -100]
    rails = {rail: [s.power_mw[rail] for s in seen if rail in s.power_mw] for s in seen for rail in s.power_mw}
    hottest = max(degrees, default=None)
    return Load(
        len(seen),
        max((s.gpu_percent for s in seen if s.gpu_percent is not None), default=None),
        min(clocks, default=None),
        max(clocks, default=None),
        max((s.ram_mb for s in seen if s.ram_mb is not None), default=None),
        None if hottest is None else (hottest[1], hottest[0]),
        {rail: (sum(mw) / len(mw), max(mw)) for rail, mw in rails.items()},
    )
