"""trtexec's command lines and answers. The answers here are written for the tests, in the forms that public logs and the tool's
own source show (named at each): none is a measurement of ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cactus_edge.device.tensorrt import (
    Model,
    build_command,
    check_envelope,
    codes_of,
    outputs_command,
    parse_layers,
    parse_output,
    parse_sparse,
    parse_summary,
    parse_times,
    parse_version,
    precision,
    require_version,
    times_command,
)
from cactus_edge.errors import DeviceError, DeviceLacksError, InputError

MODEL = Model("folder/model.onnx", "input", (1, 28, 28))

AT = "[11/22/2026-08:00:00] [I] "


def figures(name: str, scale: float, percentiles: tuple[int, ...]) -> str:
    """A line of the summary: sampleReporting.cpp printEpilog."""
    tail = "".join(f", percentile({p}%) = {scale * p / 100:g} ms" for p in percentiles)
    return f"{AT}{name}: min = {scale / 4:g} ms, max = {2 * scale:g} ms, mean = {scale:g} ms, median = {scale / 2:g} ms{tail}\n"


# NVIDIA/TensorRT issue 4177 (10.x); 8.4 and older print one percentile, and the latency end to end: meta-tegra pull request 952.
SUMMARY_10 = (
    "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b32] # trtexec --loadEngine=model.engine\n"
    f"{AT}=== Performance summary ===\n{AT}Throughput: 2500.5 qps\n"
    + "".join(
        figures(name, scale, (90, 99))
        for name, scale in {
            "Latency": 0.5,
            "Enqueue Time": 0.125,
            "H2D Latency": 0.00001,
            "GPU Compute Time": 0.25,
            "D2H Latency": 0.002,
        }.items()
    )
    + f"{AT}Total Host Walltime: 3.0001 s\n{AT}Total GPU Compute Time: 2.7 s\n"
    "[11/22/2026-08:00:00] [W] * GPU compute time is unstable, with coefficient of variance = 5.5%.\n"
)
SUMMARY_84 = (
    "&&&& RUNNING TensorRT.trtexec [TensorRT v8401] # trtexec --onnx=model.onnx\n"
    f"{AT}=== Performance summary ===\n"
    + "".join(
        figures(name, scale, (99,))
        for name, scale in {"Latency": 0.5, "End-to-End Host Latency": 0.75, "GPU Compute Time": 0.25}.items()
    )
)


def time_row(compute: float, latency: float, **more: float) -> dict[str, float]:
    """A row of --exportTimes: samples/common/sampleReporting.cpp exportJSONTrace."""
    keys = (
        "startEnqMs",
        "endEnqMs",
        "startH2dMs",
        "endH2dMs",
        "startComputeMs",
        "endComputeMs",
        "startD2hMs",
        "endD2hMs",
    )
    return {
        **dict.fromkeys(keys, 1.0),
        "h2dMs": 0.01,
        "computeMs": compute,
        "d2hMs": 0.01,
        "latencyMs": latency,
        **more,
    }


def tensor(name: str, form: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 8, 28, 28], "Format/Datatype": form}


INT8 = "Thirty-two wide channel vectorized row major Int8 format"


def conv(name: str = "conv", form: str = INT8, weights: str = "Int8", out: str = INT8, **more: Any) -> dict[str, Any]:
    """A convolution in an engine's report: NVIDIA/TensorRT issues 3737 (8.6) and 4020 (10)."""
    return {
        "Name": f"{name}_sum/Conv + {name}_relu/Relu",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("x", form)],
        "Outputs": [tensor(name, out)],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 72},
        "Bias": {"Type": "Float", "Count": 8},
        "Activation": "RELU",
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32",
        "Metadata": f"[ONNX Layer: {name}_sum/Conv]\x1e[ONNX Layer: {name}_relu/Relu]",
        **more,
    }


def report(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["input", "logits_real"]})


def test_the_commands_are_lists_of_words() -> None:
    build = build_command("trtexec", MODEL, "folder/e", 100)
    assert build[:4] == ["trtexec", "--onnx=folder/model.onnx", "--saveEngine=folder/e", "--stronglyTyped"]
    assert "--noTF32" in build and "--fp16" not in build and "--int8" not in build
    assert "--optShapes=input:1x1x28x28" in build and "--maxShapes=input:100x1x28x28" in build
    run = outputs_command("trtexec", MODEL, "folder/e", "folder/in", 100, "folder/out")
    assert "--loadInputs=input:folder/in" in run and "--shapes=input:100x1x28x28" in run
    times = times_command("trtexec", MODEL, "folder/e", "folder/t", "folder/l")
    assert "--shapes=input:1x1x28x28" in times and "--exportLayerInfo=folder/l" in times


@pytest.mark.parametrize("name", ["a b", "x;rm", "x:0", "", "x,y", "$(id)"])
def test_a_name_that_options_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="trtexec's options cannot carry"):
        Model("m", name, (1,))


@pytest.mark.parametrize(
    ("banner", "version"),
    [("v100300", (10, 3, 0)), ("v8502", (8, 5, 2)), ("v8412", (8, 4, 12)), ("v101302", (10, 13, 2))],
)
def test_versions(banner: str, version: tuple[int, int, int]) -> None:
    assert parse_version(f"&&&& RUNNING TensorRT.trtexec [TensorRT {banner}] # trtexec") == version
    if version < (10,):
        with pytest.raises(DeviceLacksError, match=r"JetPack 6\.1"):
            require_version(version)
    else:
        require_version(version)


def test_the_summary_of_both_ages() -> None:
    new, old = parse_summary(SUMMARY_10), parse_summary(SUMMARY_84)
    assert new["GPU Compute Time"].median_ms == old["GPU Compute Time"].median_ms == 0.125
    assert new["GPU Compute Time"].percentiles == {90.0: 0.225, 99.0: 0.2475}
    assert old["Latency"].percentiles == {99.0: 0.495}
    assert new["H2D Latency"].max_ms == 2e-5
    assert set(new) == {"Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"}


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "no performance summary"),
        (SUMMARY_10.replace("median", "middle"), "has no median"),
    ],
    ids=["empty", "another word"],
)
def test_a_summary_of_another_form_is_refused(log: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        parse_summary(log)


def test_times() -> None:
    rows = [time_row(0.5, 0.6), time_row(0.25, 0.3), time_row(1.0, 1.25)]
    times = parse_times(json.dumps(rows))
    assert times.percentile("compute", 50) == 0.5 and times.percentile("latency", 50) == 0.6
    assert parse_times(json.dumps([time_row(0.5, 0.6, endToEndMs=2.0)])).compute_ms.tolist() == [0.5]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[1]", '[{"computeMs": 1}]', json.dumps([time_row(-1.0, 0.1)]), "[" * 100_000]
)
def test_times_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="trtexec's times"):
        parse_times(text)


def output(name: str, dims: str, values: list[Any]) -> str:
    """--exportOutput: samples/common/sampleReporting.cpp exportJSONOutput."""
    listed = ", ".join(map(str, values))
    return f'[\n  {{ "name" : "{name}"\n  , "dimensions" : "{dims}"\n  , "values" : [ {listed} ]\n  }}\n]\n'


def test_outputs_become_codes() -> None:
    values = parse_output(output("logits", "2x3", [0, 0.25, -0.5, 31.75, -32, 0.75]), "logits", 2, (3,))
    assert codes_of(values, 0.25).tolist() == [[0, 1, -2], [127, -128, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (output("other", "2x3", [0] * 6), "no output 'logits'"),
        ("null", "no output 'logits'"),
        ("5", "no output 'logits'"),
        (output("logits", "3x2", [0] * 6), "expected"),
        (output("logits", "2x3", [0] * 5), "5 values"),
        (output("logits", "2x3", ["nan"] * 6), "no JSON"),
        (output("logits", "2x3", ["NaN"] * 6), "no finite numbers"),
        ("[", "no JSON"),
    ],
)
def test_outputs_of_another_form_are_refused(text: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        parse_output(text, "logits", 2, (3,))


@pytest.mark.parametrize("value", [0.1, 64.0])
def test_an_output_that_was_not_quantised_is_refused(value: float) -> None:
    with pytest.raises(DeviceError, match="no multiple of the output's scale"):
        codes_of(np.array([[value]]), 0.25)


def test_a_report_of_int8_layers_agrees_with_the_assumption() -> None:
    reformat = {
        "Name": "Reformatting CopyNode",
        "LayerType": "Reformat",
        "Inputs": [tensor("input", "Row major linear FP32")],
    }
    dense = conv("dense", out="Row major linear FP32 format", Name="logits_sum/Gemm", Metadata="")
    layers = parse_layers(report(reformat, conv(), dense))
    assert [layer.weights for layer in layers] == [None, "int8", "int8"]
    assert layers[0].inputs == ("float32",) and layers[1].nodes == ("conv_sum/Conv", "conv_relu/Relu")
    found = precision(layers, ["conv_sum/Conv", "logits_sum/Gemm"])
    assert found.holds and found.int8 == found.weighted == 2


def datatypes(name: str, kind: str) -> dict[str, Any]:
    """The newer spelling, with the type alone."""
    return {"Name": name, "Format": "Row major linear", "Datatype": kind}


@pytest.mark.parametrize(
    ("layer", "against", "unknown"),
    [
        (conv(), 0, 0),
        (conv(Inputs=[datatypes("x", "INT8")], Outputs=[datatypes("y", "INT8")]), 0, 0),
        (conv(form="Row major linear FP32 format", weights="Float"), 1, 0),
        (conv(form="Row major linear FP16 format", weights="Half"), 2, 0),
        (conv(out="Channel major FP16 format where channel % 8 == 0"), 1, 0),
        (conv(out="Row major BF16 format"), 1, 0),
        (conv(weights="Float"), 1, 0),
        (conv(form="N/A due to dynamic shapes"), 0, 1),
        (conv(Weights=None), 0, 1),
        (conv("other"), 0, 1),
        ({"Name": "{ForeignNode[conv_sum/Conv...dense]}", "LayerType": "Myelin", "Inputs": [], "Outputs": []}, 0, 1),
    ],
    ids=[
        "int8",
        "datatype",
        "float",
        "half",
        "half out",
        "bf16 out",
        "float weights",
        "dynamic",
        "no weights",
        "other",
        "foreign",
    ],
)
def test_what_a_report_shows_of_one_convolution(layer: dict[str, Any], against: int, unknown: int) -> None:
    found = precision(parse_layers(report(layer)), ["conv_sum/Conv"])
    assert (len(found.contradictions), len(found.unknown)) == (against, unknown)
    assert found.holds == (against == unknown == 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"Layers": ["conv + relu", "dense"], "Bindings": []}), "names of layers only"),
        (json.dumps({"Layers": []}), "lists no layers"),
        (json.dumps([]), "lists no layers"),
        (json.dumps({"Layers": [{}]}), "without a name"),
        ("null", "lists no layers"),
        ("no", "no JSON"),
    ],
    ids=["names", "none", "list", "nameless", "null", "text"],
)
def test_a_report_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        parse_layers(text)


@pytest.mark.parametrize("ports", [5, "input", None, [3], {}])
def test_ports_of_another_form_are_not_told(ports: Any) -> None:
    (layer,) = parse_layers(report(conv(Inputs=ports)))
    assert layer.inputs == ()
    assert not precision([layer], ["conv_sum/Conv"]).holds


def test_a_layer_without_a_name_is_not_told() -> None:
    found = precision(parse_layers(report(conv())), ["conv_sum/Conv", ""])
    assert (found.int8, found.weighted, len(found.unknown), found.holds) == (1, 2, 1, False)


def test_an_output_outside_its_envelope_is_named() -> None:
    low, high = np.array([[0, 5], [1, 1]]), np.array([[0, 6], [1, 1]])
    inside = check_envelope(np.array([[0, 6], [1, 1]]), low, high)
    assert inside.holds and (inside.outputs, inside.open) == (2, 1)
    outside = check_envelope(np.array([[0, 6], [1, 2]]), low, high)
    assert not outside.holds and outside.outside == 1
    assert outside.first == "input 1, output 1: code 2, the envelope is 1 to 1"
    with pytest.raises(InputError, match="shape"):
        check_envelope(np.zeros((2, 3)), low, high)


# TensorRT developer guide, "Structured Sparsity"; NVIDIA/TensorRT issue 1403 for the empty list.
SPARSE = (
    "[I] [TRT] (Sparsity) Layers eligible for sparse math: conv1, conv2, dense3\n"
    "[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: conv2, dense3\n"
)


def test_sparse_kernels_are_tried_where_asked_for() -> None:
    assert "--sparsity=enable" in build_command("trtexec", MODEL, "e", 8, True)
    assert not any("sparsity" in word for word in build_command("trtexec", MODEL, "e", 8))


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (SPARSE, "taken for 2 of 3 eligible layers: conv2, dense3"),
        (SPARSE.replace("layers: conv2, dense3\n", "layers:\n"), "taken for 0 of 3 eligible layers: none"),
        (SPARSE.splitlines()[0].replace("conv1, conv2, dense3", ""), "taken for 0 of 0 eligible layers: none"),
    ],
    ids=["some", "dense is faster", "none fits"],
)
def test_which_layers_took_them(log: str, words: str) -> None:
    found = parse_sparse(SUMMARY_10 + log)
    assert found is not None and found.words() == words


def test_a_log_without_a_word_of_it() -> None:
    assert parse_sparse(SUMMARY_10) is None
