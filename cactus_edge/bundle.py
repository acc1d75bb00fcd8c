"""What a build leaves behind: results, report, manifest, and the key figures in words."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.catalogue import trained_by
from cactus_edge.certify import attack
from cactus_edge.errors import InputError, MismatchError
from cactus_edge.formats.nibbles import constant_bytes
from cactus_edge.formats.zeros import zeros
from cactus_edge.gains import gains
from cactus_edge.ir import ops
from cactus_edge.report import html
from cactus_edge.report import results as r
from cactus_edge.resources import sha256, write_atomic
from cactus_edge.version import __version__

if TYPE_CHECKING:
    from cactus_edge.chain import Chain
    from cactus_edge.steps import Steps
    from cactus_edge.train.data import Dataset

PACKAGES = (
    "numpy",
    "torch",
    "scikit-learn",
    "tflite-micro",
    "ai-edge-litert",
    "flatbuffers",
    "ziglang",
    "unicorn",
    "pyserial",
)
"""Packages whose versions a manifest records, where they are installed."""

MANIFEST = "manifest.json"

Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Built:
    """A finished bundle."""

    folder: Path
    results: r.BuildResults

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / "report.html"

    def _balanced(self) -> str:
        clean, certified = (html.percent(self.results.balanced(name)) for name in ("clean", "certified"))
        return f"{clean} clean, {certified} certified: means over the classes"

    def summary(self) -> list[tuple[str, str]]:
        """The key figures in words, for the terminal."""
        a, device = self.results.accuracy, self.results.device
        rows = [
            ("clean", f"{html.score(a.int8_clean)} (float network: {html.score(a.float_clean)})"),
            ("attacked", f"{html.score(a.int8_attacked)} survive the attack"),
            ("certified", f"{html.score(a.int8_certified)} within {self.results.region.words}"),
            ("", f"(float network: {html.score(a.float_certified)}, measured, not proved)"),
            ("balanced", self._balanced()),
            ("profile", self.results.certificate.profile),
            ("file", f"{self.results.model.path}, {self.results.model.bytes:,} bytes, sha256 {self.results.model.sha256[:16]}..."),
        ]  # fmt: skip
        if condition := self.results.certificate.conditional_on:
            rows.append(("conditional on", condition))
        rows += [(row.name, row.value) for row in (*self.results.twins, *self.results.semantics)]
        rows += [(row.name.lower(), row.value) for row in (*self.results.deck, *self.results.gains)]
        if self.results.remote:
            rows += [(row.name.lower(), row.value) for row in self.results.remote]
        elif device is None:
            rows.append(("device", "not measured; see the report for how to measure it"))
        else:
            per = device.instructions or device.latency_us
            unit = "emulated instructions" if device.instructions else "us"
            cost = "cost not measured" if per is None else f"{per.median:,.0f} {unit} per inference"
            rows.append(("device", f"{device.equal} of {device.compared} outputs equal on {device.target}; {cost}"))
            rows.append(("firmware", f"{device.flash_bytes:,} bytes of flash, {device.ram_bytes:,} of RAM"))
        return [*rows, ("report", str(self.report))]


def write_bundle(chain: Chain, found: Found, steps: Steps) -> Built:
    """Writes results.json, report.html and manifest.json. Raises MismatchError where something contradicts the certificate."""
    results = collect(chain, found, steps)
    folder = chain.folder
    write_atomic(folder / "results.json", results.to_json())
    write_atomic(folder / "report.html", html.render(results))
    write_atomic(
        folder / MANIFEST,
        json.dumps(manifest(chain, results, found["compress"]), sort_keys=True, indent=2) + "\n",
    )
    if contradictions := html.problems(results):
        raise MismatchError("; ".join(contradictions), hint=f"see {folder / 'report.html'}")
    return Built(folder, results)


def collect(chain: Chain, found: Found, steps: Steps) -> r.BuildResults:
    """The steps' results as one record."""
    verdict, built, file = found["certify"], found["lower"], found["compress"]
    recipe, data, program = chain.recipe, chain.dataset, chain.program
    source, total = program.quantize, verdict["total"]
    return r.BuildResults(
        tool_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=chain.options.command,
        recipe=recipe.name,
        recipe_sha256=recipe.digest(),
        seeds=(recipe.train.seed,),
        machine=machine(),
        data=data_record(data),
        region=region_record(chain, source.scale, source.zero_point),
        training=_training(chain, found["train"]),
        accuracy=r.Accuracy(
            r.Score(verdict["float"]["correct"], total),
            r.Score(verdict["correct"], total),
            r.Score(verdict["attacked"], total),
            r.Score(verdict["float"]["certified"], total),
            r.Score(verdict["certified"], total),
            attack.WORDS,
            "exact integer intervals, last layer fused with the margin",
        ),
        classes=tuple(
            r.ClassScore(data.labels[c], r.Score(right, n), r.Score(certified, n))
            for c, n, right, certified in verdict["classes"]
        ),
        curve=tuple(r.CurvePoint(p["eps"], p["float"], p["int8"]) for p in verdict["curve"]),
        curve_inputs=verdict["curve_inputs"],
        layers=_layers(chain, found),
        model=r.Model(chain.model_name, file["bytes"], file["sha256"], built["blob"]),
        certificate=r.Certificate(
            "certificate.json",
            verdict["sha256"],
            chain.profile.name,
            chain.profile.runtime,
            "strict win",
            "test.npz",
            chain.profile.assumption,
            chain.form.trusted,
        ),
        agreement=tuple(r.Agreement(a["name"], a["inputs"], a["mismatches"]) for a in found["agree"]["runtimes"]),
        device=_device(chain, found),
        target=chain.target.name,
        steps=tuple(r.Step(d.name, d.seconds, d.cached) for d in steps.finished),
        versions=versions(),
        files=tuple(_file(chain.folder, name) for name in steps.files),
        remote=tuple(r.Row(name, value) for name, value in found["run"].get("rows", [])),
        findings=tuple(found["run"].get("findings", [])),
        twins=tuple(r.Row(name, value) for name, value in verdict.get("twins", [])),
        semantics=tuple(r.Row(name, value) for name, value in found["judge"]["rows"]),
        gains=(
            *gains(recipe, chain.target, program.graph, sum(found["train"]["weights_before"])),
            *bits_rows(file.get("weight_bits")),
        ),
        latency_us=found["run"].get("latency_us"),
        deck=deck_rows(file.get("deck"), file["bytes"]),
    )


def require_target(folder: Path, target: str) -> None:
    """Raises InputError where `folder` holds a build for another target: its firmware would pass for a file of this one."""
    try:
        held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["target"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no manifest, or none that names a target
    if held != target:
        raise InputError(f"{folder} holds a build for {str(held)[:40]}", hint="another --out, or delete that folder")


def deck_rows(deck: dict[str, Any] | None, size: int) -> tuple[r.Row, ...]:
    """A deck in words; nothing of a single network. size: bytes of the file."""
    if deck is None:
        return ()
    cards, gate, whole = deck["cards"], deck["gate"], deck["float_bytes"]
    rows = [
        r.Row(
            "Deck",
            f"{len(cards)} cards in one file of {size:,} bytes, {size / whole:.0%} of the weights of one uncompressed card in "
            f"float32 ({whole:,} bytes)",
        ),
        *(
            r.Row(f"Card {i}", f"{card['scheme']}: {card['method']}, seed {card['seed']}, {card['bytes']:,} bytes")
            for i, card in enumerate(cards)
        ),
    ]
    if gate is not None:
        counts = zip(gate["schemes"], gate["answer"], gate["validation"], strict=True)
        chosen = ", ".join(f"{name} (cards {', '.join(map(str, who))}) for {n:,}" for name, who, n in counts)
        total = sum(gate["validation"]) + gate["undecided"]
        rest = f"; undecided on {gate['undecided']:,}" if gate["undecided"] else ""
        rows.append(
            r.Row(
                "Gate", f"{gate['bytes']:,} bytes; of {total:,} validation inputs it takes {chosen}{rest}, one by one"
            )
        )
    return tuple(rows)


def bits_rows(chosen: dict[str, Any] | None) -> tuple[r.Row, ...]:
    """Which widths of weights were chosen and why, in words; nothing where none were."""
    if chosen is None:
        return ()
    (certified, of_8), (clean, clean_of_8) = chosen["certified"], chosen["clean"]
    return (
        r.Row(
            "Widths of weights",
            f"{', '.join(map(str, chosen['weight_bits']))} bits: {chosen['bytes']:,} of {chosen['budget']:,} bytes of weights and "
            f"biases, chosen for the least certified loss of the validation split before fine-tuning ({certified:.1%} certified, "
            f"{clean:.1%} right; with 8 bits everywhere {of_8:.1%} and {clean_of_8:.1%})",
        ),
    )


def region_record(chain: Chain, scale: float, zero_point: int) -> r.Region:
    """In the unit of the data; where channels have radii of their own, in multiples of those, which the unit then lists."""
    data, eps = chain.dataset, chain.recipe.certify.eps
    low, high = data.domain
    radii, said = data.radii(eps), data.said(eps)
    unit = f"of the sensor range [{low}, {high}]"
    if said:
        unit = f"times {said}" if len(radii) > 1 else f"{unit}, which is {said}"
    text = "1" if len(radii) > 1 else str(radii[0])
    return r.Region(text, float(low), float(high), unit, scale, zero_point)


def data_record(data: Dataset) -> r.Data:
    """The data set as a record."""
    return r.Data(
        data.name,
        data.digest(),
        len(data.train.y),
        len(data.validation.y),
        len(data.test.y),
        data.shape,
        tuple(data.labels),
        data.preprocessing,
    )


def _training(chain: Chain, trained: dict[str, Any]) -> r.Training:
    recipe, data = chain.recipe, chain.dataset
    certified, radii = data.radii(recipe.certify.eps), data.radii(recipe.train.eps)
    if len(certified) > 1:  # as the region: in multiples of what is certified, the largest among the channels
        count = len(certified)
        pairs = zip(radii * (count // len(radii)), certified, strict=True)
        radii = (max((t / c for t, c in pairs if c), default=Fraction(0)),)
    epochs = tuple(
        r.Epoch(i + 1, e["seconds"], float(e["eps"]), e["loss"], e["val_clean"], e["val_certified"])
        for i, e in enumerate(trained["epochs"])
    )
    return r.Training(
        trained_by(recipe),
        tuple(recipe.train.members),
        float(max(radii)),
        recipe.train.seed,
        sum(trained["weights_before"]),
        epochs,
    )


def _layers(chain: Chain, found: Found) -> tuple[r.Layer, ...]:
    """One row an op; the weight counts before compression follow the order of the layers with weights."""
    graph, verdict = chain.program.graph, found["certify"]
    before = iter(found["train"]["weights_before"])
    rows = []
    for index, node in enumerate(graph.nodes):
        out = graph.tensors[node.output]
        if out.dtype != "int8":
            continue
        weight = ops.constants(node.op).get("weight")
        low, high = verdict["ranges"][str(node.output)]
        sums = [f["bound"] for f in verdict["overflow"] if f["node"] == index]
        rows.append(
            r.Layer(
                out.name,
                type(node.op).__name__,
                out.shape,
                None if weight is None else tuple(weight.shape),
                None if weight is None else next(before, int(weight.size)),  # a deck's gate and means are not trained
                None if weight is None else int(weight.size),
                constant_bytes(node.op),
                out.scale,
                out.zero_point,
                low,
                high,
                max(sums) if sums else None,
            )
        )
    return tuple(rows)


def _device(chain: Chain, found: Found) -> r.Device | None:
    run, firmware = found["run"], found["lower"].get("firmware")
    if not run["measured"] or firmware is None:
        return None
    spread = r.Spread(**run["cost"]) if run["cost"] else None
    emulated = bool(run["emulated"])
    return r.Device(
        chain.target.name,
        chain.target.cpu,
        emulated,
        run["reached_by"],
        firmware["compiler"],
        firmware["flash_bytes"],
        firmware["flash_limit_bytes"],
        firmware["ram_bytes"],
        firmware["ram_limit_bytes"],
        spread if emulated else None,
        None if emulated else spread,
        run["compared"],
        run["equal"],
        "firmware.elf",
        firmware["sha256"],
        run["blob"],
        run["first_difference"],
    )


def manifest(chain: Chain, results: r.BuildResults, file: dict[str, Any]) -> dict[str, Any]:
    """What a machine needs to know about the bundle; hashes of every file, versions, seeds, command, labels, preprocessing.

    file: the result of `compress`: of a deck it has the cards and the gate, and the widths of weights that were chosen.
    """
    return {
        "format": "cactus-edge manifest",
        "version": 1,
        "tool": f"cactus-edge {__version__}",
        "created": results.created,
        "command": results.command,
        "recipe": chain.recipe.to_json(),
        "target": chain.target.name,
        "profile": {"name": chain.profile.name, "sha256": chain.profile.digest()},
        "seeds": list(results.seeds),
        "labels": list(results.data.labels),
        "preprocessing": results.data.preprocessing,
        "input": {
            "shape": list(results.data.input_shape),
            "scale": results.region.input_scale,
            "zero_point": results.region.input_zero_point,
        },
        "sparsity": {
            z.name: {"zeros": z.zeros, "weights": z.weights, "2:4": z.two_of_four, "bits": z.bits}
            for z in zeros(chain.program.graph)
        },
        "gains": {row.name: row.value for row in results.gains},
        **{key: file[key] for key in ("deck", "weight_bits") if key in file},
        "data_sha256": results.data.sha256,
        "blob_sha256": results.model.blob_sha256,
        "files": {f.path: f.sha256 for f in (*results.files, _file(chain.folder, "results.json"), _file(chain.folder, "report.html"))},
        "versions": {v.name: v.version for v in results.versions},
        "machine": results.machine,
    }  # fmt: skip


def machine() -> str:
    """Processor, cores and system in words, without names of hosts or users."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def versions() -> tuple[r.Version, ...]:
    """Python's and the packages' versions."""
    found = [r.Version("python", sys.version.split()[0])]
    for package in PACKAGES:
        try:
            found.append(r.Version(package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _file(folder: Path, name: str) -> r.File:
    data = (folder / name).read_bytes()
    return r.File(name, len(data), sha256(data))
