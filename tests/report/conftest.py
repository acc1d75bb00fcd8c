"""A build that could have happened, small enough to reason about by hand."""

from __future__ import annotations

import pytest

from cactus_edge.report.results import (
    Accuracy,
    Agreement,
    BuildResults,
    Certificate,
    ClassScore,
    CurvePoint,
    Data,
    Device,
    Epoch,
    File,
    Layer,
    Model,
    Region,
    Score,
    Spread,
    Step,
    Training,
    Version,
)


def digest(letter: str) -> str:
    return letter * 64


LAYERS = (
    Layer("conv1", "Conv2d", (8, 8, 12), (12, 3, 3, 1), 288, 108, 252, 0.0235, -128, -128, 127, 150_412),
    Layer("conv2", "Conv2d", (4, 4, 20), (20, 3, 3, 12), 9216, 2160, 2400, 0.0198, -128, -128, 127, 3_514_880),
    Layer("flatten", "Reshape", (320,), None, None, None, 0, 0.0198, -128, -128, 127, None),
    Layer("hidden", "Dense", (48,), (48, 320), 65_536, 15_360, 15_936, 0.0312, -128, -128, 119, 10_223_616),
    Layer("logits", "Dense", (10,), (10, 48), 1280, 480, 600, 0.1142, 4, -121, 127, 1_474_560),
)

DEVICE = Device(
    target="mcu",
    core="Arm Cortex-M4",
    emulated=True,
    reached_by="unicorn 2.1.4 behind a pty",
    compiler="zig cc 0.17.1, -O2",
    flash_bytes=27_344,
    flash_limit_bytes=1_048_576,
    ram_bytes=6_912,
    ram_limit_bytes=131_072,
    instructions=Spread(412_380.0, 0.0, 100),
    latency_us=None,
    compared=100,
    equal=100,
    firmware_path="firmware.elf",
    firmware_sha256=digest("e"),
    blob_sha256=digest("b")[:16],
)


@pytest.fixture
def results() -> BuildResults:
    return BuildResults(
        tool_version="0.1.0",
        created="2026-01-02T03:04:05Z",
        command="cactus-edge build --target mcu --recipe digits --out build/digits-mcu",
        recipe="digits",
        recipe_sha256=digest("9"),
        seeds=(0,),
        machine="x86_64, 2 cores, Linux",
        data=Data(
            "digits", digest("d"), 1077, 360, 360, (8, 8, 1), tuple("0123456789"), "pixel counts 0 to 16 divided by 16"
        ),
        region=Region("1/16", 0.0, 1.0, "of the pixel range [0, 1]", 1 / 255, -128),
        training=Training(
            "IBP with the warm-up regulariser, averaged over the network set",
            ("full", "pruned", "quantised"),
            0.0625,
            0,
            77_410,
            tuple(
                Epoch(e, 0.52, 0.0625 * min(1.0, e / 20), 2.3 / (1 + e / 6), 1 - 0.6 / e, max(0.0, 0.9 - 1.2 / e))
                for e in range(1, 41)
            ),
        ),
        accuracy=Accuracy(
            float_clean=Score(355, 360),
            int8_clean=Score(355, 360),
            int8_attacked=Score(329, 360),
            float_certified=Score(315, 360),
            int8_certified=Score(317, 360),
            attack="40 steps of sign descent on the integer file, 4 restarts",
            bound="interval propagation in exact integers, last layer fused with the margin",
        ),
        classes=tuple(ClassScore(str(c), Score(36 - (c < 5), 36), Score(32 - (c < 3), 36)) for c in range(10)),
        curve=tuple(CurvePoint(k / 64, max(0.0, 0.986 - 0.0065 * k**2), 0.986 - 0.0064 * k**2) for k in range(9)),
        curve_inputs=360,
        layers=LAYERS,
        model=Model("model.tflite", 22_864, digest("a"), digest("b")),
        certificate=Certificate(
            "certificate.json",
            digest("c"),
            "tflm",
            "TensorFlow Lite Micro's reference kernels and CMSIS-NN, any Arm Cortex-M",
            "strict win of the labelled class",
            "test.npz",
        ),
        agreement=(
            Agreement("TFLM 0.dev20261023182759", 10_000, 0),
            Agreement("C99 on this machine, zig cc 0.17.1", 10_000, 0),
        ),
        device=DEVICE,
        target="mcu",
        steps=(
            Step("train", 31.4, False),
            Step("lower", 0.82, True),
            Step("certify", 1.9, False),
            Step("device", 75.0, False),
        ),
        versions=(Version("Python", "3.11.7"), Version("numpy", "2.4.6"), Version("torch", "2.13.0+cpu")),
        files=(
            File("model.tflite", 22_864, digest("a")),
            File("certificate.json", 412_034, digest("c")),
            File("firmware.elf", 48_112, digest("e")),
            File("test.npz", 46_410, digest("f")),
        ),
    )
