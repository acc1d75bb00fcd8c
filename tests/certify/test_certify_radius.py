"""Brackets of radii: both ends are shown, the truth by enumeration lies between them, and a contradiction is never silent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_kit import GRAPH, MODEL, TFLM, X, Y, violations

import cactus_edge as ce
from cactus_edge.api_radius import Radii
from cactus_edge.certify import radius
from cactus_edge.certify.radius import NONE, Scale, Search
from cactus_edge.cli import main
from cactus_edge.errors import CertificateError, InputError, InternalError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.samples import write_samples
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.regions import Bools, Index, box

PROGRAM = lower(GRAPH, TFLM)
SCALE = Scale(Fraction(1, 255), (Fraction(0), Fraction(1)))
STEP = float(np.float32(1 / 255))


def planar() -> bytes:
    """Two inputs, whose 65,536 pairs of codes can all be tried."""
    rng = np.random.default_rng(5)
    build = GraphBuilder()
    last = build.input(Tensor("x", (2,), "int8", STEP, -128))
    for name, inputs, outputs in (("hidden", 2, 8), ("logits", 8, 3)):
        op = ops.Dense(
            ops.freeze(rng.integers(-127, 128, (outputs, inputs)), np.int8),
            ops.freeze(rng.integers(-3000, 3000, outputs), np.int32),
            ops.freeze(np.array([0.004], np.float32), np.float32),
        )
        last = build.node(op, [last], Tensor(name, (outputs,), "int8", STEP, -10))
    return write_tflite(build.finish(last), metadata={})


PLANAR = planar()


@pytest.fixture(scope="module")
def truth() -> tuple[Any, Any, Int64]:
    """(x, y, the smallest refuted radius in steps by enumeration) of 40 samples on the sensor's grid; 256 for none."""
    program = ce.inspect(PLANAR) and lower(_graph(), TFLM)
    every = np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)), -1).reshape(-1, 2)
    out = run(program, every.astype(np.int8)).reshape(-1, 3).astype(np.int64)
    codes = np.random.default_rng(1).integers(-128, 128, (40, 2))
    y = run(program, codes.astype(np.int8)).reshape(-1, 3).argmax(1)
    y[:3] = (y[:3] + 1) % 3
    others = out[None].repeat(40, 0)
    own = np.take_along_axis(others, y[:, None, None], 2)[:, :, 0]
    np.put_along_axis(others, np.broadcast_to(y[:, None, None], (40, len(out), 1)), -999, 2)
    lost = own <= others.max(2)
    away = np.abs(every[None] - codes[:, None]).max(2)
    return ((codes + 128) * STEP).astype(np.float32), y, np.where(lost, away, 256).min(1)


def _graph() -> Any:
    from cactus_edge.verify.read import graph_for
    from cactus_edge.verify.tflite_read import read_tflite

    return graph_for(read_tflite(PLANAR), TFLM)


def steps(radii: tuple[Fraction | None, ...], unit: Fraction) -> Int64:
    return np.array([NONE if r is None else r / unit for r in radii], np.int64)


@pytest.mark.parametrize("bounds", ["interval", "linear"])
def test_the_truth_lies_between(truth: tuple[Any, Any, Int64], bounds: str) -> None:
    x, y, smallest = truth
    found = ce.max_eps(PLANAR, x, y, bounds=bounds, domain=(0, STEP * 255))
    certified, refuted = steps(found.certified, found.step), steps(found.refuted, found.step)
    assert (certified < smallest).all() and (smallest <= refuted).all()
    assert (certified[:3] == NONE).all() and (refuted[:3] == 0).all()
    assert (refuted - smallest).max() <= 2
    assert (smallest - certified).max() <= (40 if bounds == "interval" else 6)


@pytest.mark.parametrize("bounds", ["interval", "linear"])
@pytest.mark.parametrize("profile", ["tflm", "litert-ref,tflm"])
def test_both_ends_are_certificates(bounds: str, profile: str) -> None:
    found = ce.max_eps(MODEL, X, Y, bounds=bounds, profile=profile, domain=(0, 1), step="1/255")
    certificates = [(found.certificate, found.certified)]
    if profile == "tflm":
        assert found.refutation is not None
        assert found.refuted[0] == 0 and found.certified[0] is None
        assert found.refutation.refuted is not None
        assert found.refutation.refuted.tolist() == [r is not None for r in found.refuted]
        certificates.append((found.refutation, found.refuted))
    else:
        assert found.refutation is None and set(found.refuted) == {None}
    for certificate, ends in certificates:
        assert recheck(certificate.to_bytes(), MODEL, X, Y, proof=certificate.proof).accepted
        assert certificate.record["region"]["eps"] == [str(r or 0) for r in ends]
    assert found.certificate.decision.certified.tolist() == [r is not None for r in found.certified]
    report = json.loads(found.to_json())
    assert violations(report, "radii") == []
    assert report["bounds"] == found.certificate.record["bounds"] == ("interval" if bounds == "interval" else "proof")


def test_a_search_ends_with_the_truth(truth: tuple[Any, Any, Int64]) -> None:
    """Complete search leaves brackets of one step, and each is the one that enumeration finds."""
    pytest.importorskip("torch")
    x, y, smallest = (part[[0, 14]] for part in truth)
    found = ce.max_eps(PLANAR, x, y, budget="20n", domain=(0, STEP * 255))
    assert steps(found.certified, found.step).tolist() == (smallest - 1).tolist()
    assert steps(found.refuted, found.step).tolist() == smallest.tolist()
    certificate = found.certificate
    assert recheck(certificate.to_bytes(), PLANAR, x, y, proof=certificate.proof).accepted


def test_lines_reach_further_than_intervals() -> None:
    near, far = (ce.max_eps(MODEL, X, Y, bounds=b, domain=(0, 1), step="1/255") for b in ("interval", "linear"))
    assert all((a or 0) <= (b or 0) for a, b in zip(near.certified, far.certified, strict=True))
    assert near.certified != far.certified


class Told:
    """Asks for what a table says: proved exactly at `proved`, refuted from `lost` on by the corner of the box."""

    def __init__(self, proved: list[set[int]], lost: list[int], x: Any = X) -> None:
        self.proved, self.lost, self.x = proved, lost, x
        self.asked: list[tuple[int, int]] = []

    def __call__(self, index: Index, steps: Int64) -> tuple[Bools, Mapping[int, Codes]]:
        self.asked += list(zip(index.tolist(), steps.tolist(), strict=True))
        good = [n in self.proved[i] for i, n in zip(index, steps, strict=True)]
        corner, _ = box(PROGRAM, SCALE.region(np.minimum(steps, [self.lost[i] for i in index])), self.x[index])
        return np.array(good), {
            p: corner[p] for p, (i, n) in enumerate(zip(index, steps, strict=True)) if n >= self.lost[i]
        }


def test_what_is_reported_was_shown_itself() -> None:
    """Proofs need not be monotone: only radii that were asked and proved are reported, each with its reason."""
    rng = np.random.default_rng(2)
    proved = [{int(n) for n in np.flatnonzero(rng.random(40) < 0.7)} for _ in range(40)]
    told = Told(proved, [400] * 40)
    search = Search(PROGRAM, SCALE, X)
    search.prove(told)
    for i, n in enumerate(search.certified.tolist()):
        assert (n == NONE and 0 not in proved[i]) or (n in proved[i] and (i, n) in told.asked)


def test_a_bisection_asks_little_and_ends_next_to_the_end() -> None:
    ends, middle = np.random.default_rng(3).integers(0, 120, 40), np.full_like(X, 0.5)
    told = Told([set(range(n)) for n in ends.tolist()], ends.tolist(), middle)
    search = Search(PROGRAM, SCALE, middle)
    search.prove(told)
    search.refute(told)
    assert (search.certified == ends - 1).all() and (search.refuted == ends).all()
    assert len(told.asked) < 40 * 16


def test_nothing_is_refuted_where_nothing_is_found() -> None:
    search = Search(PROGRAM, SCALE, X)
    search.refute(Told([set()] * 40, [400] * 40))
    assert (radius.refuted_steps(search) == NONE).all() and search.witnesses == {}


@pytest.mark.parametrize("order", ["proof-first", "witness-first"])
def test_a_contradiction_is_an_error_of_ours(order: str) -> None:
    """Planted: a proof at 9 steps, and a counterexample at 4."""
    liar, honest = Told([set(range(10))] * 40, [400] * 40), Told([set()] * 40, [4] * 40)
    search = Search(PROGRAM, SCALE, X)
    first, second = (search.prove, search.refute) if order == "proof-first" else (search.refute, search.prove)
    with pytest.raises(InternalError, match=r"certified within . steps and has a counterexample within"):
        if order == "proof-first":
            first(liar)
            search._learn(honest, np.arange(40), np.full(40, 9))
        else:
            first(honest)
            search._learn(liar, np.arange(40), np.full(40, 9))
        second(honest)


def test_one_radius_is_not_both_certified_and_refuted() -> None:
    middle = np.full_like(X, 0.5)
    search, told = Search(PROGRAM, SCALE, middle), Told([set(range(10))] * 40, [4] * 40, middle)
    with pytest.raises(InternalError, match="certified within 4 steps and has a counterexample within 4"):
        search._learn(told, np.arange(40), np.full(40, 4))


def test_the_last_radius_is_the_whole_domain() -> None:
    assert SCALE.most == 255 and SCALE.radius(SCALE.most) == 1
    search = Search(PROGRAM, SCALE, X)
    search.prove(Told([set(range(256))] * 40, [400] * 40))
    assert (search.certified == 255).all() and (radius.refuted_steps(search) == NONE).all()
    only_there = Search(PROGRAM, SCALE, np.zeros_like(X))
    only_there.refuted[:] = 255
    assert (radius.refuted_steps(only_there) == 255).all()


def test_a_counterexample_counts_at_the_smallest_radius_that_holds_it() -> None:
    search = Search(PROGRAM, SCALE, X)
    far = np.full(40, 60)
    corner, _ = box(PROGRAM, SCALE.region(np.full(40, 7)), X)
    found = search._held(np.arange(40), corner, far)
    assert found.max() == 7 and (found <= 7).all()
    low, high = box(PROGRAM, SCALE.region(found), X)
    assert ((corner >= low) & (corner <= high)).all()
    smaller = found > 0
    low, _ = box(PROGRAM, SCALE.region(found - 1), X)
    assert (corner < low)[smaller].any(1).all()


def test_a_false_counterexample_is_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the attack returns points that the label wins; the checker refuses the proof that would carry them."""
    from cactus_edge.certify import find

    honest = find.attack

    def lying(*arguments: Any, **options: Any) -> Any:
        tried = honest(*arguments, **options)
        return type(tried)(np.ones_like(tried.found), options["start"])

    monkeypatch.setattr(find, "attack", lying)
    with pytest.raises((CertificateError, InternalError)):
        ce.max_eps(MODEL, X[5:9], Y[5:9], domain=(0, 1), step="1/255")


def test_a_radius_that_is_not_certified_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: bisection believes proofs of one sample that were never made."""
    asked = radius.by_intervals

    def believing(*arguments: Any) -> Any:
        ask = asked(*arguments)
        return lambda index, n: (ask(index, n)[0] | ((n < 90) & (index == 5)), {})

    monkeypatch.setattr(radius, "by_intervals", believing)
    with pytest.raises(InternalError):
        ce.max_eps(MODEL, X, Y, domain=(0, 1), step="1/255", profile="litert-ref,tflm")


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"domain": (0, 1), "step": "1/255", "bounds": "linear", "keep": tmp_path / "parts"}
    learn, calls = Search._learn, []

    def interrupted(self: Search, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ce.max_eps(MODEL, X, Y, **options)
    kept = set((tmp_path / "parts").glob("*/*.npz"))
    again = ce.max_eps(MODEL, X, Y, **options)
    assert kept < set((tmp_path / "parts").glob("*/*.npz"))
    assert again.certificate.proof == ce.max_eps(MODEL, X, Y, **(options | {"keep": None})).certificate.proof


@pytest.mark.parametrize("step", ["0", "-1/255", "2", "1/1000000"])
def test_a_step_that_makes_no_sense(step: str) -> None:
    with pytest.raises(InputError, match="step"):
        ce.max_eps(MODEL, X, Y, domain=(0, 1), step=step)


def test_quantiles_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = ce.max_eps(MODEL, X[:2], Y[:2], domain=(0, 1)).certificate
    low = tuple(None if i == 0 else Fraction(i) for i in range(10))
    high = (Fraction(0), *(Fraction(i + 1) for i in range(1, 9)), None)
    rows = Radii(Fraction(1), low, high, certificate, certificate).quantiles()
    # Nine of ten are certified within 1; beyond 2 no nine are left; one in ten is certified within 9, and is refuted nowhere.
    assert rows[-1] == (90, Fraction(1), Fraction(2)) and rows[0] == (10, Fraction(9), None)
    assert rows[2] == (50, Fraction(5), Fraction(6))
    # The first is wrong, the last is refuted nowhere, and of one more the counterexample is two steps away.
    apart = Radii(Fraction(1), (*low, Fraction(1)), (*high, Fraction(3)), certificate, certificate)
    assert ("exact to a step", "8 of 10 that are right") in apart.summary()
    assert ("50 % of samples", "certified within 4, and not beyond 5") in apart.summary()
    # A quarter of ten are three: two would be said to reach further than three do.
    assert rows[1] == (25, Fraction(7), Fraction(8))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.tflite").write_bytes(MODEL)
    write_samples(tmp_path / "x.npz", X, Y)
    files = [f"{tmp_path}/m.tflite", f"--data={tmp_path}/x.npz"]
    command = ["certify", *files, "--domain=0,1", "--max-eps", "--bounds=linear", f"--out={tmp_path}/c.json"]
    for kind, head in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert main([*command, f"--plot={tmp_path}/p.{kind}", "--require=90"]) == 0
        assert (tmp_path / f"p.{kind}").read_bytes().startswith(head)
    shown = capsys.readouterr().out
    assert "50 % of samples" in shown and "exact to a step" in shown
    names = {
        "c.json",
        "c.proof",
        "c.radii.json",
        "c.refuted.json",
        "c.refuted.proof",
        "m.tflite",
        "x.npz",
        "p.png",
        "p.svg",
    }
    assert {p.name for p in tmp_path.iterdir()} == names
    for name in ("c.json", "c.refuted.json"):
        assert main(["verify", f"{tmp_path}/{name}", "--model", *files]) == 0
    report = json.loads((tmp_path / "c.radii.json").read_text())
    assert violations(report, "radii") == []
    for key, name in (("certificate", "c.json"), ("refutation", "c.refuted.json")):
        assert report[key] == json.loads((tmp_path / name).read_text())["sha256"]
    certified = [low for low, _ in report["radii"]]
    assert json.loads((tmp_path / "c.json").read_text())["region"]["eps"] == [e or "0" for e in certified]
    assert main([*command, "--require=99"]) == 1
    for option, words in (
        (["--eps=1/16"], "--eps"),
        ([f"--plot={tmp_path}/p.gif"], ".png"),
        (["--budget=soon"], "60s or 500n"),
        ([f"--out={tmp_path}"], "--out"),
    ):
        assert main([*command, *option]) == 2
        assert words in capsys.readouterr().err
    assert main(["certify", *files, "--eps=1/16", f"--plot={tmp_path}/p.png", f"--out={tmp_path}/d.json"]) == 2
    assert "--max-eps" in capsys.readouterr().err
