"""Everything one build found out, as plain records: the pipeline fills them, the report and the benches read them.

Counts are kept instead of percentages wherever something was counted, so that a reader can redo every fraction, and
`None` always means "not measured", never zero. Paths are relative to the bundle, so that a bundle can be moved. The
records refuse combinations that would let a report claim more than was found: a certified count above the attacked one,
a latency from an emulator. `strict_json` turns them into text and back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import log2

from cactus_edge.errors import InputError, InternalError
from cactus_edge.report import strict_json

FORMAT = "cactus-edge results"
VERSION = 1
INT32_MAX = 2**31 - 1
"""Largest accumulator magnitude that cannot overflow int32 in any order of summation."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise InternalError(what)


def _sha256(text: str, field: str) -> None:
    _require(
        re.fullmatch(r"[0-9a-f]{64}", text) is not None, f"{field}: expected 64 lower-case hex digits, got {text!r}"
    )


@dataclass(frozen=True)
class Score:
    """`count` of `total` inputs; fraction = count / total."""

    count: int
    total: int

    def __post_init__(self) -> None:
        _require(0 <= self.count <= self.total and self.total > 0, f"a score of {self.count} out of {self.total}")

    @property
    def fraction(self) -> float:
        """count / total, in [0, 1]."""
        return self.count / self.total


@dataclass(frozen=True)
class Data:
    """The data set of the build and what happened to it before the file."""

    name: str
    sha256: str
    """Digest of the arrays as they were used."""
    train: int
    validation: int
    test: int
    input_shape: tuple[int, ...]
    labels: tuple[str, ...]
    """One a class, in the order of the network's outputs."""
    preprocessing: str
    """What happened to a sensor reading before it reached the file, in words. Not covered by the certificate."""

    def __post_init__(self) -> None:
        _sha256(self.sha256, "data.sha256")
        _require(len(self.labels) > 1, "data.labels: at least two classes")


@dataclass(frozen=True)
class Region:
    """The inputs x' covered around a listed x: |x'_i - x_i| <= eps and low <= x'_i <= high for every i."""

    eps: str
    """Exact radius in sensor units: a rational or a decimal, such as "1/16" or "0.1"."""
    low: float
    high: float
    """Ends of the sensor's domain."""
    unit: str
    """What one sensor unit is, such as "of the pixel range [0, 1]", perhaps followed by ", which is 1/50 mV"; where channels have
    radii of their own eps is 1, and this lists them: "times 1/50 g (acc) and 1/20 rad/s (gyro)"."""
    input_scale: float
    input_zero_point: int
    """The file's own input quantisation: real = input_scale * (q - input_zero_point)."""

    def __post_init__(self) -> None:
        try:
            radius = Fraction(self.eps)
        except (ValueError, ZeroDivisionError) as error:
            raise InternalError(f"region.eps: expected a rational such as 1/16, got {self.eps!r}") from error
        _require(radius >= 0, f"region.eps: expected at least 0, got {self.eps}")
        _require(self.low < self.high, f"region: expected low < high, got [{self.low}, {self.high}]")

    @property
    def radius(self) -> float:
        """eps rounded to the nearest float, for axes and sorting only."""
        return float(Fraction(self.eps))

    @property
    def reach(self) -> tuple[float, float] | None:
        """Where the file's int8 input saturates, if that is more than a step inside the sensor's domain."""
        least, most = (self.input_scale * (code - self.input_zero_point) for code in (-128, 127))
        inside = least > self.low + self.input_scale or most < self.high - self.input_scale
        return (least, most) if inside else None

    @property
    def words(self) -> str:
        """The radius in the user's own words."""
        if self.unit.startswith("times "):
            return self.unit.removeprefix("times ")
        return self.unit.partition(", which is ")[2] or f"eps {self.eps}"

    @property
    def axis(self) -> str:
        """What an axis of radii shows."""
        return "eps, in multiples of the certificate's" if self.unit.startswith("times ") else "eps, in sensor units"


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data. Fractions in [0, 1] on the validation split; None where not evaluated."""

    epoch: int
    seconds: float
    eps: float
    loss: float
    clean: float | None
    certified: float | None


@dataclass(frozen=True)
class Training:
    """How the float network came to be."""

    objective: str
    members: tuple[str, ...]
    """The CACTUS network set, such as ("full", "pruned", "quantised")."""
    eps: float
    """Training radius in sensor units."""
    seed: int
    parameters: int
    """Parameters of the network before channels were removed."""
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True)
class Accuracy:
    """On the listed test inputs. `int8_*` is the exported file under the certified profile; None is "not measured"."""

    float_clean: Score | None
    int8_clean: Score
    int8_attacked: Score | None
    """Inputs that an attack on the integer file, within the region, did not turn: an upper bound on any certificate."""
    float_certified: Score | None
    int8_certified: Score
    attack: str
    """What attacked, in words; "" where nothing did."""
    bound: str
    """How the certified counts were bounded, such as "interval propagation, last layer fused with the margin"."""

    def __post_init__(self) -> None:
        _require(self.int8_certified.total == self.int8_clean.total, "certified and clean speak of different inputs")
        ceiling = self.int8_clean.count
        if self.int8_attacked is not None:
            _require(self.int8_attacked.total == self.int8_clean.total, "attacked and clean speak of different inputs")
            _require(self.int8_attacked.count <= ceiling, "more inputs survive the attack than are right without it")
            ceiling = self.int8_attacked.count
        _require(self.int8_certified.count <= ceiling, "more inputs are certified than survive the attack")


@dataclass(frozen=True)
class ClassScore:
    """The integer file on the listed inputs of one class."""

    label: str
    clean: Score
    certified: Score

    def __post_init__(self) -> None:
        _require(self.clean.total == self.certified.total, f"class {self.label}: two numbers of inputs")
        _require(self.certified.count <= self.clean.count, f"class {self.label}: more certified than right")


@dataclass(frozen=True)
class CurvePoint:
    """Certified accuracy at one radius; fractions in [0, 1] of `BuildResults.curve_inputs` inputs."""

    eps: float
    float_certified: float | None
    int8_certified: float


@dataclass(frozen=True)
class Layer:
    """One op of the exported file."""

    name: str
    kind: str
    """Class name of the op, such as "Conv2d"."""
    output_shape: tuple[int, ...]
    weight_shape: tuple[int, ...] | None
    weights_before: int | None
    """Weight elements of this layer as trained, before channels were removed; None for an op without weights."""
    weights_after: int | None
    bytes: int
    """Weights and biases as the file stores them."""
    scale: float
    zero_point: int
    low: int
    high: int
    """Bounds of the output's int8 values over the regions of all listed inputs."""
    accumulator: int | None
    """Largest magnitude of any partial sum, in any order, over all int8 inputs; None for an op that sums nothing."""

    def __post_init__(self) -> None:
        _require(self.low <= self.high, f"layer {self.name}: low {self.low} above high {self.high}")
        _require(
            (self.weights_before is None) == (self.weights_after is None), f"layer {self.name}: weights half given"
        )

    @property
    def headroom_bits(self) -> float | None:
        """log2((2^31 - 1) / accumulator): the bits left before int32 could overflow; negative where it could."""
        return None if self.accumulator is None else log2(INT32_MAX / max(self.accumulator, 1))


@dataclass(frozen=True)
class Agreement:
    """One real execution compared bit for bit with the interpreter."""

    runtime: str
    """Which, with its version: "TFLM 0.dev20261023", "C99, host, zig cc 0.17.1"."""
    inputs: int
    mismatches: int

    def __post_init__(self) -> None:
        _require(0 <= self.mismatches <= self.inputs, f"{self.runtime}: {self.mismatches} mismatches in {self.inputs}")


@dataclass(frozen=True)
class Spread:
    """Median and interquartile range of `runs` repetitions."""

    median: float
    iqr: float
    runs: int


@dataclass(frozen=True)
class Device:
    """What ran on the board, or on its emulation."""

    target: str
    core: str
    emulated: bool
    reached_by: str
    """How: "unicorn 2.1.4", "qemu-system-arm 7.2", or the serial port."""
    compiler: str
    flash_bytes: int
    flash_limit_bytes: int
    ram_bytes: int
    """Static RAM and the tensors' arena, without the stack unless it was measured."""
    ram_limit_bytes: int
    instructions: Spread | None
    """Instructions per inference."""
    latency_us: Spread | None
    """Microseconds per inference: real boards only."""
    compared: int
    equal: int
    """Inputs whose int8 outputs were compared with the interpreter's, and those that were equal in every byte."""
    firmware_path: str
    firmware_sha256: str
    blob_sha256: str
    """Digest of the model blob as the board itself reported it (possibly shortened by the protocol)."""
    first_difference: str = ""
    """The first input whose output differs and, where it could be traced, the first layer, in words; "" where none does."""

    def __post_init__(self) -> None:
        _sha256(self.firmware_sha256, "device.firmware_sha256")
        _require(
            re.fullmatch(r"[0-9a-f]{16,64}", self.blob_sha256) is not None, "device.blob_sha256: 16 to 64 hex digits"
        )
        _require(0 <= self.equal <= self.compared, f"{self.equal} equal outputs out of {self.compared} compared")
        _require(
            not (self.emulated and self.latency_us), "an emulator counts instructions: it has no latency to report"
        )


@dataclass(frozen=True)
class Model:
    """The exported file."""

    path: str
    bytes: int
    sha256: str
    blob_sha256: str
    """Digest of the canonical blob that the file, the C sources and the firmware carry; empty where there are no such sources."""

    def __post_init__(self) -> None:
        _sha256(self.sha256, "model.sha256")
        if self.blob_sha256:
            _sha256(self.blob_sha256, "model.blob_sha256")


@dataclass(frozen=True)
class Certificate:
    """The certificate file and the terms on which it holds."""

    path: str
    sha256: str
    profile: str
    """Name of the runtime profile, such as "tflm"."""
    runtime: str
    """What the profile stands for, in words: runtime, versions, CPU class."""
    rule: str
    """Decision rule, such as "strict win"."""
    data_path: str
    """The inputs that it lists, as a file of the bundle."""
    conditional_on: str = ""
    """What has to be true of a run for the verdicts to hold for it, in words; empty where they hold without conditions."""
    trusted_reader: str = ""
    """What beside numpy has to be trusted for reading the model; empty for nothing."""

    def __post_init__(self) -> None:
        _sha256(self.sha256, "certificate.sha256")


@dataclass(frozen=True)
class Step:
    """One step of the build; `cached` means that its result was there already, with the same content hash."""

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Version:
    """One program or package that took part."""

    name: str
    version: str


@dataclass(frozen=True)
class File:
    """One file of the bundle."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _sha256(self.sha256, f"files[{self.path}].sha256")


@dataclass(frozen=True)
class Row:
    """A line about a run on a computer, in words."""

    name: str
    value: str


@dataclass(frozen=True)
class BuildResults:
    """One build. `created` is UTC in ISO 8601; `machine` says CPU, cores and system in words."""

    tool_version: str
    created: str
    command: str
    recipe: str
    recipe_sha256: str
    seeds: tuple[int, ...]
    machine: str
    data: Data
    region: Region
    training: Training
    accuracy: Accuracy
    classes: tuple[ClassScore, ...]
    """Those that the listed inputs have, in the order of the outputs."""
    curve: tuple[CurvePoint, ...]
    curve_inputs: int
    """Test inputs behind every point of the curve."""
    layers: tuple[Layer, ...]
    model: Model
    certificate: Certificate
    agreement: tuple[Agreement, ...]
    device: Device | None
    target: str
    """The target that was asked for, run or not."""
    steps: tuple[Step, ...]
    versions: tuple[Version, ...]
    files: tuple[File, ...]
    remote: tuple[Row, ...] = ()
    """What a run on a computer showed; empty where there was none."""
    findings: tuple[str, ...] = ()
    """What such a run showed against the certificate or against what it assumes, one sentence each."""
    twins: tuple[Row, ...] = ()
    """Files beside the model that hold the same network, and what was certified of them."""
    semantics: tuple[Row, ...] = ()
    """Transforms of the inputs by name, and what was found out under each; every value says what is probabilistic and what is proved."""
    gains: tuple[Row, ...] = ()
    """What the target gains from what was compressed."""
    latency_us: float | None = None
    """Median of single inferences of the model on a computer reached by ssh; a board's is the device's."""
    deck: tuple[Row, ...] = ()
    """The cards that the file joins, and its gate; empty for a single network."""

    def __post_init__(self) -> None:
        _sha256(self.recipe_sha256, "recipe_sha256")
        for name in ("clean", "certified"):
            scores = [getattr(c, name) for c in self.classes]
            both = sum(s.count for s in scores), sum(s.total for s in scores)
            whole = getattr(self.accuracy, f"int8_{name}")
            _require(not scores or both == (whole.count, whole.total), f"classes: {name} adds up to something else")
        radii = [point.eps for point in self.curve]
        _require(radii == sorted(set(radii)), "curve: radii must ascend")

    def balanced(self, name: str) -> float | None:
        """The mean over classes of the share that is "clean" or "certified": what a rare class weighs as much in as a common one."""
        scores = [getattr(c, name) for c in self.classes]
        return sum(s.count / s.total for s in scores) / len(scores) if scores else None

    def to_json(self) -> str:
        """Canonical text: sorted keys, two spaces, shortest round-trip floats, one newline at the end."""
        return strict_json.dump(self, FORMAT, VERSION)

    @staticmethod
    def from_json(text: str, *, source: str = "results.json") -> BuildResults:
        """Inverse of `to_json`. InputError: a missing, unknown or repeated key, another type, NaN, a contradiction."""
        try:
            return strict_json.load(text, BuildResults, FORMAT, VERSION)
        except (strict_json.Malformed, InternalError) as error:
            raise InputError(f"{source}: {error}", hint="rebuild it with `cactus-edge build`") from error
