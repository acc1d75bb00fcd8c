"""A whole run on a Jetson from the answers of its tools, replayed: what is asked, what is concluded, what is refused.

The answers are written for the tests, in the forms that `test_device_tensorrt` names; no device was asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from test_device_tensorrt import SUMMARY_10, conv, output, report, tensor, time_row

from cactus_edge.device.agent import MARK
from cactus_edge.device.jetson_run import find_trtexec, run_trtexec
from cactus_edge.device.jetson_work import TEGRASTATS, JetsonReport, Work
from cactus_edge.device.ssh import SAFE, Finished
from cactus_edge.device.targets import JetsonTarget, load_target
from cactus_edge.errors import CactusError, DeviceError, DeviceLacksError, DeviceModelError
from cactus_edge.jetson import device_rows

BANNER = SUMMARY_10.splitlines()[0] + "\n"
WORK = Work(
    b"onnx",
    "input",
    "logits",
    np.zeros((2, 1, 4, 4), np.float32),
    0.25,
    np.array([[0, 5], [1, 1]]),
    np.array([[0, 6], [1, 1]]),
    ("conv_sum/Conv",),
)


@dataclass
class Replay:
    """A shell that answers each program with what was recorded for it, and keeps what it was asked."""

    answers: dict[str, str]
    files: dict[str, str]
    status: dict[str, int] = field(default_factory=dict)
    there: str = "/usr/src/tensorrt/bin/trtexec"
    folder: str = "/tmp/cactus-edge-0"
    sent: dict[str, bytes] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)

    async def put(self, name: str, data: bytes) -> None:
        self.sent[name] = data

    async def get(self, name: str) -> bytes:
        return self.files[name].encode()

    async def exists(self, path: str) -> bool:
        return path == self.there

    async def run(self, words: Sequence[str], timeout_s: float) -> Finished:
        assert all(SAFE.fullmatch(word) for word in words) and timeout_s > 0
        self.asked.append(list(words))
        key = next((w for w in words[1:] if w in self.answers), words[0].rsplit("/", 1)[-1])
        return Finished(self.status.get(key, 0), "", self.answers.get(key, ""), "")

    @asynccontextmanager
    async def watch(self, words: Sequence[str]) -> AsyncIterator[list[str]]:
        assert all(SAFE.fullmatch(word) for word in words) and tuple(words) == TEGRASTATS
        yield self.answers["tegrastats"].splitlines(keepends=True)


def replay(**changes: Any) -> Replay:
    """A Jetson on which everything is as it should be; changes: other answers or files."""
    answers = {
        "uname": "aarch64\n",
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "trtexec": BANNER,
        "nvpmodel": "NV Power Mode: MAXN_SUPER\n2\n",
        "jetson_clocks": "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000\n",
        "python3": f'{MARK}{{"event": "device", "throttled": "no"}}\n',
        "tegrastats": "RAM 3308/7607MB (lfb 32x4MB) GR3D_FREQ 97% gpu@62.3C tj@62.4C VDD_IN 12517mW/10898mW\n",
    }
    files = {
        "out.json": output("logits", "2x2", [0, 1.5, 0.25, 0.25]),
        "times.json": json.dumps([time_row(0.25 + k / 100, 0.5 + k / 100) for k in range(11)]),
        "layers.json": report(
            {"Name": "copy", "LayerType": "Reformat", "Inputs": [tensor("x", "Row major linear FP32")]}, conv()
        ),
    }
    for key, value in changes.items():
        name = key.replace("__", ".") if key.replace("__", ".") in files else key
        (files if name in files else answers)[name] = value
    return Replay(answers, files)


def done(shell: Replay, work: Work = WORK) -> JetsonReport:
    target = load_target("jetson")
    assert isinstance(target, JetsonTarget)
    trtexec = asyncio.run(find_trtexec(shell))
    return asyncio.run(run_trtexec(shell, target, work, trtexec, lambda at, total, text: None))


def test_a_run_in_which_nothing_contradicts() -> None:
    shell = replay()
    found = done(shell)
    assert found.envelope.holds and found.problems == found.unknown == ()
    assert (found.int8_layers, found.weighted_layers, found.runs) == (1, 1, 11)
    assert found.compute_ms["median"] == pytest.approx(0.3) and found.latency_ms["p99"] == pytest.approx(0.599)
    assert found.device == {
        "model": "NVIDIA Jetson Orin Nano",
        "system": "JetPack 6.2 (L4T 36.4.3)",
        "throttled_before": "no",
        "throttled_after": "no",
        "power_mode": "MAXN_SUPER (2)",
        "gpu_clock": "1,020,000,000 Hz, locked",
    }
    assert found.runtime == "TensorRT 10.3.0 by trtexec" and found.load is not None
    assert found.load.power_mw == {"VDD_IN": (12517, 12517)} and found.load.hottest == ("tj", 62.4)
    assert shell.sent["model.onnx"] == b"onnx" and len(shell.sent["inputs.bin"]) == 2 * 16 * 4
    tools = [words for words in shell.asked if words[0].endswith("trtexec")]
    assert [
        any(w.startswith(option) for w in words)
        for words, option in zip(tools, ("--onnx", "--loadInputs", "--exportTimes"), strict=True)
    ] == [True] * 3
    rows = device_rows(found)
    assert rows["findings"] == [] and dict(rows["rows"])["Outputs"].startswith("2 of 2 inputs in their envelopes; 1 of")
    json.dumps(found.to_json())


def test_what_sparse_kernels_ran_is_told() -> None:
    log = "[I] [TRT] (Sparsity) Layers eligible for sparse math: conv\n"
    shell = replay(trtexec=BANNER + log)
    found = done(shell, replace(WORK, sparse=True))
    assert dict(device_rows(found)["rows"])["Sparse kernels"] == "taken for 0 of 1 eligible layers: none"
    tools = [words for words in shell.asked if words[0].endswith("trtexec")]
    assert ["--sparsity=enable" in words for words in tools] == [True, False, False]
    assert "Sparse kernels" not in dict(device_rows(done(replay()))["rows"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"out__json": output("logits", "2x2", [0, 1.5, 0.25, 0.5])},
            "1 of 2 outputs lie outside their envelopes: input 1, output 1",
        ),
        (
            {"layers__json": report(conv(form="Row major linear FP32 format", weights="Float"))},
            "conv_sum/Conv: runs on float32",
        ),
        ({"layers__json": report(conv(out="Row major FP16 format"))}, "holds float16"),
    ],
    ids=["outside", "float layer", "half"],
)
def test_what_breaks_the_condition_is_a_finding(changes: dict[str, str], problem: str) -> None:
    found = done(replay(**changes))
    assert len(found.problems) == 1 and problem in found.problems[0]
    assert "breaks the certificate's condition" in device_rows(found)["findings"][0]


def test_what_the_engine_does_not_tell_is_no_finding_and_is_said() -> None:
    found = done(replay(layers__json=report(conv(form="N/A due to dynamic shapes"))))
    assert found.problems == () and len(found.unknown) == 1
    assert "not told: conv_sum/Conv" in dict(device_rows(found)["rows"])["Layers"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"uname": "x86_64\n"}, DeviceError, "processor is x86_64"),
        ({"/etc/nv_tegra_release": ""}, DeviceError, "no Jetson"),
        ({"trtexec": BANNER.replace("v100300", "v8502")}, DeviceLacksError, r"TensorRT 8\.5\.2"),
        ({"trtexec": ""}, DeviceError, "names no version"),
        ({"out__json": output("logits", "2x2", [0, 1.6, 0, 0])}, DeviceError, "no multiple of the output's scale"),
        ({"layers__json": report("conv")}, DeviceError, "names of layers only"),
        ({"times__json": "[]"}, DeviceError, "times are empty"),
    ],
    ids=["machine", "release", "version", "banner", "float output", "names", "times"],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, str], error: type[CactusError], message: str) -> None:
    with pytest.raises(error, match=message):
        done(replay(**changes))


def test_a_refused_file_shows_the_tools_own_words() -> None:
    shell = replay(trtexec=BANNER + "[11/22/2026-08:00:00] [E] [TRT] ModelImporter.cpp:138: no\n")
    shell.status["trtexec"] = 1
    with pytest.raises(DeviceModelError, match="ModelImporter"):
        done(shell)


def test_tools_that_want_root_leave_the_state_unknown() -> None:
    found = done(replay(nvpmodel="", jetson_clocks="Error: Please run with sudo\n", python3="", tegrastats=""))
    assert {found.device[k] for k in ("power_mode", "gpu_clock", "throttled_before", "throttled_after")} == {"unknown"}
    assert found.load is None and "tegrastats said nothing" in dict(device_rows(found)["rows"])["Meanwhile"]
