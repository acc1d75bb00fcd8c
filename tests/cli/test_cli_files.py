"""The verbs for any int8 file: what they print, their exit codes, and the same as functions, on real models and planted faults."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_kit import Shown, refused, wide_softmax

import cactus_edge as ce
from cactus_edge.api import CertifyResult
from cactus_edge.cli import main
from cactus_edge.comparison import _steps, histogram_table
from cactus_edge.formats.agree import RUNTIMES
from cactus_edge.formats.c import host
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.outputs import Outputs
from cactus_edge.samples import read_inputs
from cactus_edge.verify.decide import Decision

EVERY_OP_MACS = 6 * 7 * 4 * 3 * 3 * 2 + 6 * 7 * 4 * 3 * 3 + 5 * 32
"""Of `every_op`: its convolution, its depthwise convolution, its dense layer."""


# inspect


def test_inspect_counts_what_is_in_the_file(model: Path) -> None:
    found = ce.inspect(model)
    graph = read_tflite(model.read_bytes()).graph
    assert (found.file_bytes, found.graph_sha256) == (model.stat().st_size, graph.digest())
    assert [op.kind for op in found.ops] == [type(node.op).__name__ for node in graph.nodes]
    assert found.macs == EVERY_OP_MACS
    assert found.constant_bytes == graph.weights() + 4 * (4 + 4 + 5)
    assert found.live_bytes <= found.arena_bytes
    assert found.metadata == ("min_runtime_version", "note")
    assert found.runnable
    assert found.ops[0].reads == (-1,)
    assert found.ops[3].reads == (1, 2)


def test_inspect_bounds_the_sums_of_the_real_model(kws: Path) -> None:
    found = ce.inspect(kws)
    node = read_tflite(kws.read_bytes()).graph.nodes[0]
    assert isinstance(node.op, ops.Conv2d)
    reach = np.abs(node.op.weight.astype(np.int64)).sum((1, 2, 3)) * (83 + 128) + np.abs(node.op.bias.astype(np.int64))
    bound = found.ops[0].bound
    assert bound is not None
    assert bound >= reach.max()
    assert found.macs == 2_656_768
    assert all(op.bits is not None and op.bits <= 32 for op in found.ops)


@pytest.mark.parametrize("columns", ["80", "140"])
def test_inspect_fits_the_terminal(kws: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", str(kws)]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= int(columns)
    for word in ("DepthwiseConv2d 3x3", "2,656,768 MACs", "0.5847029", "tflm", "RAM", "2:4 holds in no op"):
        assert word in shown


def test_inspect_needs_numpy_alone(model: Path) -> None:
    code = f"""
import sys
from importlib.abc import MetaPathFinder
class Only(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "cactus_edge"):
            raise ModuleNotFoundError(f"{{name}} is not numpy")
sys.meta_path.insert(0, Only())
from cactus_edge.cli import main
sys.exit(main(["inspect", {str(model)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inspect_says_why_a_profile_cannot_run_it(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    rules = {kind: rule for kind, rule in PROFILES["tflm"].rules.items() if kind != "Concat"}
    monkeypatch.setitem(PROFILES, "no-concat", replace(PROFILES["tflm"], name="no-concat", rules=rules))
    verdicts = {p.profile.name: p for p in ce.inspect(model).profiles}
    assert verdicts["tflm"].runs
    assert not verdicts["no-concat"].runs
    assert "op 6 Concat" in verdicts["no-concat"].reason
    profile_row = PROFILES["tflm"]
    for name in list(PROFILES):
        monkeypatch.delitem(PROFILES, name)
    monkeypatch.setitem(PROFILES, "tflm", replace(profile_row, rules=rules))
    assert main(["inspect", str(model)]) == 1, "no profile can run it"
    shown = capsys.readouterr().out
    assert "op 6 Concat" in shown
    assert "nothing overflows" not in shown


def test_inspect_names_the_op_that_a_runtime_refuses(tmp_path: Path) -> None:
    verdict = next(p for p in ce.inspect(wide_softmax()).profiles if p.profile.name == "tflm")
    assert not verdict.runs
    assert "op 0 Softmax" in verdict.reason


# run


def test_run_of_the_real_model_is_right_901_times(kws: Path, kws_data: Path, tmp_path: Path, capsys: Shown) -> None:
    out = tmp_path / "y.npz"
    assert main(["run", str(kws), "--data", str(kws_data), "--profile", "tflm", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "901 of 1,000" in shown
    x, y = read_inputs(kws_data)
    with np.load(out) as written:
        expected = evaluate(read_tflite(kws.read_bytes()).graph, x[:64], profile("tflm"))
        assert np.array_equal(written["output"][:64], expected)
        assert int((written["prediction"] == y).sum()) == 901


def test_run_under_another_profile(kws: Path, kws_data: Path, capsys: Shown) -> None:
    assert main(["run", str(kws), "--data", str(kws_data), "--profile", "litert-xnnpack"]) == 0
    assert "902 of 1,000" in capsys.readouterr().out


def test_run_as_a_function(model: Path, data: Path) -> None:
    x, y = read_inputs(data)
    assert y is not None
    outputs = ce.run(model, x, y)
    assert outputs.values.dtype == np.float32
    strict = [(row >= row[label]).sum() == 1 for row, label in zip(outputs.values, y, strict=True)]
    assert (outputs.right, outputs.strict) == (int((outputs.values.argmax(1) == y).sum()), sum(strict))
    assert ce.run(model.read_bytes(), x).right is None


def test_a_tie_is_right_where_it_comes_first_and_never_strictly() -> None:
    found = Outputs(np.array([[3, 3, 1], [2, 2, 1], [5, 1, 0], [0, 1, 9]]), np.array([0, 1, 0, 1]), "tflm")
    assert (found.right, found.strict) == (2, 1)


def test_run_without_labels(model: Path, tmp_path: Path, capsys: Shown) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 6, 7, 2), np.float32))
    assert main(["run", str(model), "--data", str(tmp_path / "x.npz")]) == 0
    shown = capsys.readouterr().out
    assert "3 inputs" in shown
    assert "right" not in shown


def test_equal_results_give_equal_files(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        assert main(["run", str(model), "--data", str(data), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# agree


class Faulty:
    """TFLM with one output element, and the first element of every tensor, off by one."""

    def __init__(self, *opened: Any) -> None:
        self.inner = tflm.open(*opened)

    def run(self, sample: Any) -> Any:
        return self._off(self.inner.run(sample))

    def tensor(self, index: int) -> Any:
        return self._off(self.inner.tensor(index))

    def _off(self, array: Any) -> Any:
        changed = array.copy()
        changed.ravel()[0] ^= 1
        return changed


tflm = RUNTIMES["tflm"]


def test_agree_of_the_real_model(kws: Path, kws_data: Path, capsys: Shown) -> None:
    assert main(["agree", str(kws), "--data", str(kws_data), "--runtime", "tflm", "--inputs", "50"]) == 0
    shown = capsys.readouterr().out
    assert "50 inputs, 600 output elements" in shown
    assert "equal" in shown


def test_one_file_two_meanings(kws: Path, kws_data: Path, capsys: Shown) -> None:
    """TFLM and LiteRT each compute what their profile says, and it is not the same."""
    assert main(["agree", str(kws), "--data", str(kws_data), "--runtime", "tflm,litert", "--inputs", "100"]) == 0
    assert "litert-xnnpack - tflm" in capsys.readouterr().out
    found = ce.agree(kws, read_inputs(kws_data)[0], runtime=("tflm", "litert"), inputs=100)
    (between,) = found.profiles
    assert found.exact
    assert 0 < between.differing_inputs <= between.mismatches == sum(between.histogram.values())
    assert between.first_layer is not None
    assert between.first_layer.node == 0


def test_agree_shows_what_differs(kws: Path, kws_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setitem(RUNTIMES, "faulty", replace(tflm, open=Faulty))
    assert main(["agree", str(kws), "--data", str(kws_data), "--runtime", "tflm,faulty", "--inputs", "20"]) == 1
    shown = capsys.readouterr().out
    for word in ("equal", "DIFFERS", "op 0 Conv2d", "difference  elements", "+1", "20"):
        assert word in shown
    x, _ = read_inputs(kws_data)
    found = ce.agree(kws, x[:20], runtime=["faulty"])
    assert not found.exact
    assert sum(found.runtimes[0].histogram.values()) == found.runtimes[0].found.mismatches == 20
    assert set(found.runtimes[0].histogram) <= {-1, 1}


def test_agree_compares_the_profiles_among_themselves(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown, tmp_path: Path
) -> None:
    """A runtime whose input is quantised with ties to even: seen in the first op, and in the planted profile's runtime."""
    rules = profile("tflm").rules
    even = replace(profile("tflm"), name="even", rules={**rules, "Quantize": ("half_even",)})
    monkeypatch.setitem(PROFILES, "even", even)
    monkeypatch.setitem(RUNTIMES, "even", replace(tflm, profile="even"))
    scale = read_tflite(model.read_bytes()).graph.tensors[1].scale
    ties = (np.random.default_rng(0).integers(-100, 100, (40, 6, 7, 2)) + np.float32(0.5)) * np.float32(scale)
    np.savez(tmp_path / "ties.npz", x=ties.astype(np.float32))
    assert main(["agree", str(model), "--data", str(tmp_path / "ties.npz"), "--runtime", "tflm,even"]) == 1
    shown = capsys.readouterr().out
    for word in ("the profiles among themselves", "even - tflm", "even minus tflm", "op 0 Quantize"):
        assert word in shown
    found = ce.agree(model, ties.astype(np.float32), runtime=("tflm", "even"))
    (between,) = found.profiles
    assert between.mismatches == found.runtimes[1].found.mismatches > 0
    graph = read_tflite(model.read_bytes()).graph
    want, got = (evaluate(graph, ties.astype(np.float32), profile(name)).reshape(40, -1) for name in ("tflm", "even"))
    counts = between.differing_inputs, between.mismatches, between.argmax_flips
    assert counts == ((want != got).any(1).sum(), (want != got).sum(), (want.argmax(1) != got.argmax(1)).sum())
    mirrored = {-step: count for step, count in between.histogram.items()}
    assert mirrored == found.runtimes[1].histogram, "the wheel is tflm, so it differs from `even` the other way round"


def test_agree_compiles_the_c(model: Path, data: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["agree", str(model), "--data", str(data), "--runtime", "tflm,c"]) == 0
    assert "c        tflm     equal" in capsys.readouterr().out
    honest = host.HostProgram._run

    def planted(self: host.HostProgram, x: Any, mode: str, width: int) -> Any:
        return honest(self, x, mode, width) ^ np.int8(1)

    monkeypatch.setattr(host.HostProgram, "_run", planted)
    assert main(["agree", str(model), "--data", str(data), "--runtime", "c"]) == 1
    shown = capsys.readouterr().out
    for word in ("DIFFERS", "c minus profile tflm", "first  op 1 Conv2d"):
        assert word in shown


def test_a_histogram_is_of_the_second_minus_the_first() -> None:
    assert _steps(np.array([1, 1, 3, 5]), np.array([2, 1, 1, 6])) == {-2: 1, 1: 2}


def test_histogram_gathers_its_tails() -> None:
    _, rows = histogram_table({-200: 3, -8: 1, 1: 64, 90: 2})
    assert [(row[0], row[1]) for row in rows] == [("-8 or less", "4"), ("+1", "64"), ("+8 or more", "2")]
    assert len(rows[1][2]) == 32
    assert all(row[2] for row in rows)


# convert


def test_convert_to_tflite_keeps_the_graph(model: Path, tmp_path: Path, capsys: Shown) -> None:
    assert main(["convert", str(model), "--to", "tflite", "--out", str(tmp_path / "out")]) == 0
    assert "every.tflite" in capsys.readouterr().out
    written = read_tflite((tmp_path / "out" / "every.tflite").read_bytes())
    original = read_tflite(model.read_bytes())
    assert written.graph.digest() == original.graph.digest()
    assert written.metadata["note"] == b"hello"


def test_convert_states_the_runtime_that_it_needs(model: Path, tmp_path: Path) -> None:
    """The source's own claim is replaced: operator versions are the writer's."""
    old = write_tflite(
        read_tflite(model.read_bytes()).graph, metadata={"min_runtime_version": b"0.0.1".ljust(16, b"\0")}
    )
    (path,) = ce.convert(old, to="tflite", out=tmp_path).files
    assert read_tflite(path.read_bytes()).metadata["min_runtime_version"] != b"0.0.1".ljust(16, b"\0")


def test_convert_real_models_to_c_and_tflite(models_folder: Path, tmp_path: Path) -> None:
    for path in sorted((models_folder / "mlperf-tiny").glob("*.tflite")):
        written = ce.convert(path, to="c", out=tmp_path / path.stem)
        assert all(file.is_file() for file in written.files)
        assert ce.inspect(path).c_bytes > 0
        (again,) = ce.convert(path, to="tflite", out=tmp_path).files
        assert ce.inspect(again).graph_sha256 == written.graph_sha256 == ce.inspect(path).graph_sha256


def test_convert_refuses_what_c_cannot_compute(tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "wide.tflite"
    path.write_bytes(wide_softmax())
    refused(["convert", str(path), "--to", "c", "--out", str(tmp_path / "out")], capsys, "op 0 Softmax", "512")
    assert not (tmp_path / "out").exists()
    assert "512" in ce.inspect(path).c_refusal


def test_convert_refuses_another_form(model: Path, tmp_path: Path, capsys: Shown) -> None:
    refused(["convert", str(model), "--to", "tflit", "--out", str(tmp_path)], capsys, "unknown form", "'tflite'")
    refused(["convert", str(model), "--to", "tflite", "--out", str(tmp_path), "--name", "../up"], capsys, "model name")


# certify, for several profiles


def test_certify_names_what_holds_under_each_profile(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    made = tmp_path / "cert.json"
    files = [str(model), f"--data={data}", "--eps=1", "--unit=lsb", "--profile=tflm,litert-ref", f"--out={made}"]
    assert main(["certify", *files]) == 0
    shown = capsys.readouterr().out
    assert "under each profile" in shown and "whatever mixture of them computes" in shown
    assert "litert-ref,tflm" in shown and "  tflm  " in shown and "  litert-ref  " in shown
    assert main(["verify", str(made), f"--model={model}", f"--data={data}"]) == 0
    assert "verdict.each" in capsys.readouterr().out


def test_certify_all_says_who_cannot_run_the_file(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    made = tmp_path / "cert.json"
    assert main(["certify", str(model), f"--data={data}", "--eps=0", "--profile=all", f"--out={made}"]) == 0
    shown = capsys.readouterr().out
    assert "whatever mixture" in shown and "  tflm  " in shown
    assert "not x-cube-ai" in shown and "has no rule for" in shown


def decided(correct: str, certified: str) -> Decision:
    """From one character a sample, x for yes."""
    flags = [np.array([c == "x" for c in side]) for side in (correct, certified)]
    return Decision(*flags, np.zeros(len(correct), np.int64))


def test_what_holds_under_each_is_what_holds_under_all() -> None:
    each = {"a": decided("xxx..", "xx..."), "b": decided("xx.x.", "x..x.")}
    found = CertifyResult(Path("c.json"), decided("x....", "....."), each, "eps 1", "a,b")
    assert found.summary()[:7] == [
        ("certified", "1 of 5 (20.00%) within eps 1, under each profile"),
        ("", "0 of 5 (0.00%) whatever mixture of them computes"),
        ("clean", "2 of 5 (40.00%) under each"),
        ("", "1 of 5 (20.00%) whatever mixture"),
        ("profile", "a,b"),
        ("  a", "certified 2, clean 3"),
        ("  b", "certified 2, clean 3"),
    ]
    assert (found.certified, found.total) == (0, 5)


def test_refuted_and_open_are_of_those_right_and_not_certified() -> None:
    """The last two are wrong: a counterexample to one of them, which is the sample itself, is no news."""
    refuted = np.array([c == "x" for c in ".x..x."])
    found = CertifyResult(Path("c.json"), decided("xxxx..", "x....."), {}, "eps 1", "tflm", refuted=refuted)
    assert found.summary()[:4] == [
        ("certified", "1 of 6 (16.66%) within eps 1"),
        ("refuted", "1 of 6 (16.66%) of those right, by a counterexample, replayed"),
        ("open", "2 of 6 (33.33%)"),
        ("clean", "4 of 6 (66.66%)"),
    ]


def test_another_certificate_in_the_same_place_has_its_own_proof(model: Path, data: Path, tmp_path: Path) -> None:
    made = tmp_path / "cert.json"
    for eps in ("1/4", "1/2"):
        assert main(["certify", str(model), f"--data={data}", f"--eps={eps}", "--bounds=linear", f"--out={made}"]) == 0
        assert main(["verify", str(made), f"--model={model}", f"--data={data}"]) == 0


def test_certify_tells_refuted_from_open(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    made = tmp_path / "cert.json"
    right = np.load(data)["x"]
    found = ce.run(model, right).predictions
    labelled = tmp_path / "labelled.npz"
    np.savez(labelled, x=right, y=found)
    assert main(["certify", str(model), f"--data={labelled}", "--eps=2", "--attack", f"--out={made}"]) == 0
    shown = capsys.readouterr().out
    assert "by a counterexample, replayed" in shown and "open" in shown
    assert main(["verify", str(made), f"--model={model}", f"--data={labelled}"]) == 0
    assert "verdict.refuted_bits" in capsys.readouterr().out
    refused(
        ["certify", str(model), f"--data={labelled}", "--eps=2", "--attack", "--profile=all", f"--out={made}"],
        capsys,
        "one for one arithmetic",
        "--profile",
    )


def test_certify_within_a_budget(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    """By nodes: every region is decided or says why not, the proof is accepted, and other processes write the same one."""
    pytest.importorskip("torch")
    proofs = []
    for workers in (0, 1):
        made = tmp_path / f"{workers}.json"
        files = [str(model), f"--data={data}", f"--out={made}"]
        assert main(["certify", *files, "--eps=2", "--budget=9n", f"--workers={workers}"]) == 0
        shown = capsys.readouterr().out
        assert "decided by" in shown and ("open: " in shown) == ("open         0" not in shown)
        assert main(["verify", str(made), f"--model={model}", f"--data={data}"]) == 0
        proofs.append(made.with_suffix(".proof").read_bytes())
    assert proofs[0] == proofs[1]
    refused(
        ["certify", str(model), f"--data={data}", "--eps=2", "--budget=soon", f"--out={tmp_path / 'a.json'}"],
        capsys,
        "expected seconds or nodes",
        "60s",
    )
