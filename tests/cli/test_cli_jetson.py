"""`build --target jetson` end to end without a device: two files of one network, two certificates, one of them conditional."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_kit import refused

from cactus_edge.cli import main
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.onnx.runtime import check_runnable, has_vnni
from cactus_edge.formats.onnx.tensorrt import violations
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.report import html
from cactus_edge.report.results import BuildResults, Row

CONDITION = PROFILES["tensorrt"].assumption


def command(recipe: Path, folder: Path, *more: str) -> list[str]:
    return ["build", "--target", "jetson", "--recipe", str(recipe), "--out", str(folder), "--threads", "1", *more]


@pytest.fixture(scope="module")
def jetson(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-jetson"
    assert main(command(recipe, folder, "--quiet")) == 0
    return folder


def test_both_files_hold_one_symmetric_network(jetson: Path) -> None:
    data, twin = ((jetson / name).read_bytes() for name in ("model.onnx", "model-ort.onnx"))
    assert data != twin and violations(data) == ()
    graph = read_onnx(data).graph
    assert graph.digest() == read_onnx(twin).graph.digest()
    assert {t.zero_point for t in graph.tensors if t.dtype == "int8"} == {0}
    if has_vnni():
        check_runnable(graph)


def test_the_condition_stands_in_certificate_report_and_summary(
    jetson: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((jetson / "certificate.json").read_text())
    assert record["profile"]["name"] == "tensorrt" and record["profile"]["conditional_on"] == CONDITION
    results = BuildResults.from_json((jetson / "results.json").read_text())
    assert results.certificate.conditional_on == CONDITION
    page = (jetson / "report.html").read_text()
    assert "listed inputs certified, conditionally" in page and "No proof covers the condition itself" in page
    assert "not measured" in page and "--host user@host" in page
    assert "with numpy as the only dependency. The command" in page
    if has_vnni():
        assert "The same command checks model-ort.onnx" in page
    assert main(command(recipe, jetson)) == 0
    shown = capsys.readouterr()
    assert f"conditional on  {CONDITION}" in shown.out and "not measured" in shown.out
    assert shown.err.count("as before") == 6


def test_the_unconditional_twin_certifies_no_less(jetson: Path) -> None:
    if not has_vnni():
        pytest.skip("this processor is not of profile ort-x86")
    mine, twin = (json.loads((jetson / f"certificate{end}.json").read_text()) for end in ("", "-ort-x86"))
    assert "conditional_on" not in twin["profile"]
    assert mine["model"]["graph_sha256"] == twin["model"]["graph_sha256"]
    assert 0 < mine["verdict"]["certified"] <= twin["verdict"]["certified"]
    results = BuildResults.from_json((jetson / "results.json").read_text())
    assert [a.mismatches for a in results.agreement] == [0]


def test_verify_accepts_on_the_condition(jetson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(jetson / "model.onnx"), "--data", str(jetson / "test.npz")]
    assert main(["verify", str(jetson / "certificate.json"), *words]) == 0
    assert f"accepted\non the condition that {CONDITION}\n" in capsys.readouterr().out
    if has_vnni():
        words[1] = str(jetson / "model-ort.onnx")
        assert main(["verify", str(jetson / "certificate-ort-x86.json"), *words]) == 0
        assert "condition" not in capsys.readouterr().out


def test_certify_says_the_condition(jetson: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "again.json"
    words = [
        "certify",
        str(jetson / "model.onnx"),
        "--data",
        str(jetson / "test.npz"),
        "--eps",
        "1/32",
        "--out",
        str(out),
    ]
    assert main([*words, "--profile", "tensorrt"]) == 0
    assert f"conditional on  {CONDITION}" in capsys.readouterr().out
    first, again = (json.loads(p.read_text())["verdict"] for p in (jetson / "certificate.json", out))
    assert first == again


def test_the_verbs_for_any_file_say_conditional(jetson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(jetson / "model.onnx")]) == 0
    assert "tensorrt   conditionally" in capsys.readouterr().out
    assert main(["inspect", str(jetson / "model-ort.onnx")]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("tensorrt"))
    assert row.split()[1] == "no" and "breaks TensorRT's rules" in row
    words = ["run", str(jetson / "model.onnx"), "--data", str(jetson / "test.npz"), "--profile", "tensorrt"]
    assert main(words) == 0
    assert "conditional: these are one of the results that it allows" in capsys.readouterr().out


def test_two_of_four_from_the_recipe_to_the_file(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first layer reads one channel; the two others have rows of four. What a Jetson gains is said everywhere."""
    path, folder = tmp_path / "sparse.toml", tmp_path / "out"
    text = recipe.read_text().replace("epochs = 3", "epochs = 2").replace('"pruned"', '"joint"')
    path.write_text(text.replace("[compress]", '[compress]\nsparsity = "2:4"'))
    assert main(command(path, folder, "--quiet")) == 0
    shown = capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["2:4"] for entry in manifest["sparsity"].values()] == [False, True, True]
    said = manifest["gains"]["Zeros, 2:4"]
    assert "sparse int8 kernels can run dense1, logits; not conv0 (rows of 1)" in said
    assert "from 256 channels on: none here" in said and "size of the .onnx is unchanged" in said
    assert "no multiple of 32" in manifest["gains"]["Channels"]
    assert said in (folder / "report.html").read_text() and "zeros, 2:4" in shown
    assert main(["inspect", str(folder / "model.onnx")]) == 0
    assert re.search(r"2:4 holds in #\d, #\d\n", capsys.readouterr().out)
    refused(["build", "--target", "mcu", "--recipe", str(path), "--out", str(folder)], capsys, "gains nothing on")


def test_a_file_that_is_spoiled_is_made_again(jetson: Path, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(jetson, folder)
    (folder / "model-ort.onnx").write_bytes(b"")
    assert main(command(recipe, folder, "--quiet")) == 0
    assert (folder / "model-ort.onnx").read_bytes() == (jetson / "model-ort.onnx").read_bytes()


def test_the_work_for_a_device_holds_its_own_member(jetson: Path, recipe: Path) -> None:
    """What a device is asked is in the file's own order and names, and the interpreter's codes lie in every envelope."""
    from cactus_edge.board import Options
    from cactus_edge.ir.evaluate import run
    from cactus_edge.jetson import JetsonChain, work_for
    from cactus_edge.recipe import load_recipe
    from cactus_edge.verify.regions import points

    chain = JetsonChain(load_recipe(recipe), jetson, Options("jetson", device_inputs=30))
    work, program = work_for(chain.model_bytes, chain.test.x[:30], chain.target), chain.program
    codes = run(program, points(program, chain.test.x[:30]))
    assert work.inputs.shape == (30, 1, 8, 8) and (work.input, work.output) == ("input_real", "logits_real")
    assert (work.low <= codes).all() and (codes <= work.high).all()
    assert (work.low == work.high).mean() > 0.9
    assert len(work.nodes) == 3 and np.all([node.split("/")[-1] in ("Conv", "Gemm") for node in work.nodes])


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_every_weighted_layer_is_looked_up(kind: str) -> None:
    from onnx_models import File

    from cactus_edge.device.targets import JetsonTarget, load_target
    from cactus_edge.jetson import work_for

    f = File((6,), np.int8)
    weight = np.random.default_rng(0).integers(-127, 128, (6, 4))
    f.node(kind, [f.rounded("input", (0.5, 0), "x"), f.weight("w", weight, 0.01)], "sums")
    target = load_target("jetson")
    assert isinstance(target, JetsonTarget)
    work = work_for(f.bytes(f.rounded("sums", (0.25, 0), "y")), np.zeros((3, 6), np.float32), target)
    assert work.nodes == (f"sums/{kind}",)


def test_a_finding_of_a_run_raises_the_alarm(jetson: Path) -> None:
    results = BuildResults.from_json((jetson / "results.json").read_text())
    rows = (Row("Outputs", "99 of 100"),)
    found = replace(results, remote=rows, findings=("An output lies outside.",))
    assert html.problems(results) == [] and html.problems(found) == ["An output lies outside."]
    page = html.render(found)
    assert "Do not rely on this build" in page and "99 of 100" in page and "<dd>contradicts</dd>" in page
    assert BuildResults.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "jetson-xavier-nx"], "TensorRT 8.5 takes no quantised file"),
        (["--target", "mcu", "--host", "user@host"], "is not reached by ssh"),
        (["--target", "jetson", "--device-inputs", "0"], "device_inputs is 0"),
    ],
    ids=["old TensorRT", "board by ssh", "no inputs"],
)
def test_what_cannot_be_built_is_refused_before_training(
    words: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["build", *words, "--recipe", str(recipe), "--out", str(tmp_path / "x")], capsys, message)
