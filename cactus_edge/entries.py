"""What `compare` compares: one entry for each run or build, from what lies in its folder and from nowhere else.

A build has its int8 file and its certificates. A run has none: its network is exported for no target in particular, certified
and attacked under profile `tflm`, into the folder `tflm` of the run, once. What nobody measured stays None and is said.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from cactus_edge.board import Options
from cactus_edge.bundle import data_record, region_record
from cactus_edge.catalogue import trained_by
from cactus_edge.errors import CertificateError, InputError, MismatchError
from cactus_edge.formats.read import read_model
from cactus_edge.inspection import macs
from cactus_edge.ir.arithmetic import profile as named_profile
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.profile import Profile
from cactus_edge.pipeline import Chain, verdict_in_words
from cactus_edge.progress import SILENT, Progress
from cactus_edge.recipe import Recipe
from cactus_edge.report import html
from cactus_edge.report.compare import Entry, Question
from cactus_edge.report.results import BuildResults, Score
from cactus_edge.resources import sha256
from cactus_edge.runs import Run, find_run, read_run, require_unchanged
from cactus_edge.samples import read_samples
from cactus_edge.steps import Result, Steps
from cactus_edge.verify import certificate as verify
from cactus_edge.verify.regions import data_digest
from cactus_edge.version import __version__

NEUTRAL = "tflm"
"""The profile under which a run is compared, and the folder of its export."""


def entry(folder: Path, *, threads: int = 0, progress: Progress = SILENT) -> Entry:
    """The run or build in `folder`. Raises InputError where there is neither, or one that is not whole or another version's.

    MismatchError where a build contradicts its own certificate.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="a folder that `train` or `build` made")
    if find_run(folder) is not None:
        return _of_run(read_run(folder), threads, progress)
    if (folder / "results.json").is_file():
        return _of_build(folder)
    half = (folder / ".steps").is_dir()
    what = "is a build that was not finished" if half else "is neither a run nor a build"
    raise InputError(f"{folder} {what}", hint="run its command again" if half else "a folder of `train` or `build`")


class NeutralChain(Chain):
    """The steps of a build that need no target: a run's network as `model.tflite`, certified and attacked under `NEUTRAL`."""

    images: tuple[str, ...] = ()

    def __init__(self, run: Run, recipe: Recipe, threads: int) -> None:
        super().__init__(recipe, run.folder / NEUTRAL, Options(target="", threads=threads, trained=run.folder))

    @cached_property
    def profile(self) -> Profile:
        """The arithmetic of `NEUTRAL`."""
        return named_profile(NEUTRAL)

    def export(self, progress: Progress) -> Result:
        """The verdict on the file."""
        steps = Steps(self.folder, 2, progress)
        models = (self.model_name, "test.npz")
        file = steps.run(
            "compress",
            self.identity,
            models,
            self.compress,
            summary=lambda f: f"{self.folder / self.model_name}, {f['bytes']:,} bytes",
        )
        return steps.run("certify", self.identity | file, self.certificates, self.certify, summary=verdict_in_words)


def _of_run(run: Run, threads: int, progress: Progress) -> Entry:
    recipe = run.recipe
    require_unchanged(run, recipe)
    chain = NeutralChain(run, recipe, threads)
    verdict = chain.export(progress)
    source, total = chain.program.quantize, verdict["total"]
    best, engine = _best(chain.folder, sha256(chain.model_bytes), NEUTRAL, verdict["certified"])
    data, region = data_record(chain.dataset), region_record(chain, source.scale, source.zero_point)
    return Entry(
        name=str(run.folder),
        recipe=recipe.name,
        trained_by=f"{trained_by(recipe)}, {'+'.join(recipe.train.members)}",
        seed=recipe.train.seed,
        target="",
        profile=NEUTRAL,
        conditional=False,
        question=Question(data.name, data.sha256, f"{region.eps} {region.unit}", *_inputs(chain.folder / "test.npz")),
        float_clean=Score(verdict["float"]["correct"], total),
        clean=Score(verdict["correct"], total),
        attacked=Score(verdict["attacked"], total),
        float_certified=Score(verdict["float"]["certified"], total),
        certified=Score(best, total),
        engine=engine,
        bytes=len(chain.model_bytes),
        macs=_macs(chain.program.graph),
        latency_us=None,
        instructions=None,
        notes=("latency: a run has no target; build --run measures on one",),
    )


def _of_build(folder: Path) -> Entry:
    path = folder / "results.json"
    results = BuildResults.from_json(path.read_text(encoding="utf-8"), source=str(path))
    if results.tool_version != __version__:
        raise InputError(
            f"{folder} was built by cactus-edge {results.tool_version}, this is {__version__}", hint="build it again"
        )
    if contradictions := html.problems(results):
        raise MismatchError(f"{folder}: {'; '.join(contradictions)}", hint=f"see {folder / 'report.html'}")
    try:
        model = (folder / results.model.path).read_bytes()
    except OSError as error:
        raise InputError(f"{folder} lacks {results.model.path}", hint="build it again") from error
    if sha256(model) != results.model.sha256:
        raise InputError(f"{folder / results.model.path} changed since it was built", hint="build it again")
    a, region, certificate, device = results.accuracy, results.region, results.certificate, results.device
    best, engine = _best(folder, results.model.sha256, certificate.profile, a.int8_certified.count)
    latency = results.latency_us
    if device is not None and device.latency_us is not None:
        latency = device.latency_us.median
    counted = device.instructions.median if device is not None and device.instructions else None
    notes = [] if latency is not None else [f"latency: {results.target} was not measured, see its report"]
    if counted is not None:
        notes = [f"latency: {results.target} is emulated, {counted:,.0f} instructions per inference"]
    return Entry(
        name=str(folder),
        recipe=results.recipe,
        trained_by=f"{results.training.objective}, {'+'.join(results.training.members)}",
        seed=results.training.seed,
        target=results.target,
        profile=certificate.profile,
        conditional=bool(certificate.conditional_on),
        question=Question(
            results.data.name,
            results.data.sha256,
            f"{region.eps} {region.unit}",
            *_inputs(folder / certificate.data_path),
        ),
        float_clean=a.float_clean,
        clean=a.int8_clean,
        attacked=a.int8_attacked,
        float_certified=a.float_certified,
        certified=Score(best, a.int8_certified.total),
        engine=engine,
        bytes=results.model.bytes,
        macs=_macs(read_model(model).graph),
        latency_us=latency,
        instructions=counted,
        notes=tuple(notes),
    )


def _inputs(path: Path) -> tuple[int, str]:
    x, y = read_samples(path)
    return len(y), data_digest(x, y)


def _macs(graph: Graph) -> int:
    return sum(macs(node, graph.tensors[node.output]) for node in graph.nodes)


def _best(folder: Path, model_sha256: str, profile: str, certified: int) -> tuple[int, str]:
    """The most certified inputs among the folder's certificates of this file, question and profile, and how they are shown.

    Certificates are read here and not re-checked: that is `verify`'s.
    """
    own, best = _record(folder / "certificate.json"), (certified, "intervals")
    for path in sorted(folder.glob("*.json")):
        match _record(path):
            case {
                "model": {"sha256": digest},
                "profile": {"name": name},
                "bounds": verify.PROOF,
                "verdict": {"certified": int(count)},
                **rest,
            } if (digest, name) == (model_sha256, profile) and count > best[0]:
                if all(rest.get(key) == own.get(key) for key in ("region", "data", "rule")):
                    best = (count, f"proofs in {path.name}")
    return best


def _record(path: Path) -> dict[str, Any]:
    """A certificate's record; of another file nothing."""
    try:
        return verify.decode(path.read_bytes())
    except (CertificateError, OSError):
        return {}
