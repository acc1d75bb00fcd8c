"""What `compare` compares: one entry for each run or build, from what lies in its folder and from nowhere else.

A build has its int8 file and its certificates. A run has none: its network is exported for no target in particular, certified
and attacked under profile `tflm`, into the folder `tflm` of the run, once. What nobody measured stays None and is said.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cactus_edge.board import Options
from cactus_edge.bundle import data_record, region_record
from cactus_edge.catalogue import trained_by
from cactus_edge.chain import Chain
from cactus_edge.corrupted import corrupted
from cactus_edge.corruptions import SEVERITIES
from cactus_edge.errors import CertificateError, DataError, InputError, MismatchError
from cactus_edge.formats.read import read_model
from cactus_edge.inspection import total_macs
from cactus_edge.ir.arithmetic import profile as named_profile
from cactus_edge.ir.profile import Profile
from cactus_edge.pipeline import verdict_in_words
from cactus_edge.progress import SILENT, Progress
from cactus_edge.recipe import Recipe
from cactus_edge.report import html
from cactus_edge.report.compare import Entry, Question
from cactus_edge.report.results import BuildResults, Score
from cactus_edge.resources import sha256
from cactus_edge.runs import Run, find_run, read_run, require_unchanged
from cactus_edge.samples import read_samples
from cactus_edge.steps import Advance, Result, Steps, writes
from cactus_edge.verify import certificate as verify
from cactus_edge.verify.regions import data_digest
from cactus_edge.version import __version__

NEUTRAL = "tflm"
"""The profile under which a run is compared, and the folder of its export."""

CORRUPTED_INPUTS = 250
"""Listed inputs that are corrupted, at most: each is run 76 times."""


Measure = Callable[[int, Progress], Entry]
"""Threads and progress to the entry of a folder that was found whole."""


def opened(folder: Path) -> Measure:
    """What measures the run or build in `folder`, which is read here: nothing is computed for folders beside one that is refused.

    Raises InputError where there is neither, or one that is not whole or another version's; MismatchError for a build that
    contradicts its own certificate.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="a folder that `train` or `build` made")
    if find_run(folder) is not None:
        run = read_run(folder)
        require_unchanged(run, run.recipe)
        return partial(_of_run, run)
    if (folder / "results.json").is_file():
        return partial(_of_build, folder, *_whole_build(folder))
    half = (folder / ".steps").is_dir()
    what = "is a build that was not finished" if half else "is neither a run nor a build"
    raise InputError(f"{folder} {what}", hint="run its command again" if half else "a folder of `train` or `build`")


def entry(folder: Path, *, threads: int = 0, progress: Progress = SILENT) -> Entry:
    """The run or build in `folder`. Raises as `opened` does."""
    return opened(folder)(threads, progress)


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
        models = writes(self.model_name, "test.npz")
        file = steps.run(
            "compress",
            self.identity,
            models,
            self.compress,
            summary=lambda f: f"{self.folder / self.model_name}, {f['bytes']:,} bytes",
        )
        certificates = writes(*self.certificates)
        return steps.run("certify", self.identity | file, certificates, self.certify, summary=verdict_in_words)


def _of_run(run: Run, threads: int, progress: Progress) -> Entry:
    recipe = run.recipe
    chain = NeutralChain(run, recipe, threads)
    verdict = chain.export(progress)
    source, total = chain.program.quantize, verdict["total"]
    best, engine = _best(chain.folder, sha256(chain.model_bytes), NEUTRAL, verdict["certified"])
    share, why = _corrupted(chain.folder, chain.model_bytes, chain.folder / "test.npz", NEUTRAL, progress)
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
        macs=total_macs(chain.program.graph),
        latency_us=None,
        instructions=None,
        corrupted=share,
        notes=("latency: a run has no target; build --run measures on one", why),
    )


def _whole_build(folder: Path) -> tuple[BuildResults, bytes]:
    """A build's results and its model file."""
    path = folder / "results.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="build it again") from error
    results = BuildResults.from_json(text, source=str(path))
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
    if not (folder / results.certificate.data_path).is_file():
        raise InputError(f"{folder} lacks {results.certificate.data_path}", hint="build it again")
    return results, model


def _of_build(folder: Path, results: BuildResults, model: bytes, _: int, progress: Progress) -> Entry:
    a, region, certificate, device = results.accuracy, results.region, results.certificate, results.device
    best, engine = _best(folder, results.model.sha256, certificate.profile, a.int8_certified.count)
    share, why = _corrupted(folder, model, folder / certificate.data_path, certificate.profile, progress)
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
        macs=total_macs(read_model(model).graph),
        latency_us=latency,
        instructions=counted,
        corrupted=share,
        notes=(*notes, why),
    )


def _corrupted(folder: Path, model: bytes, listed: Path, profile: str, progress: Progress) -> tuple[float | None, str]:
    """Accuracy on corrupted inputs, kept in `folder`, and of what it is the mean; None where they are no images, and why."""

    def measure(advance: Advance) -> Result:
        try:
            found = corrupted(model, x, y, profile=profile, advance=advance)
        except DataError as error:
            return {"mean": None, "why": error.message}
        return {"mean": found.mean, "why": f"mean of {len(found.right)} corruptions at {SEVERITIES} severities"}

    def said(result: Result) -> str:
        return "not measured" if result["mean"] is None else f"{result['mean']:.2%} right on corrupted inputs"

    x, y = (array[:CORRUPTED_INPUTS] for array in read_samples(listed))
    asked = {"model": sha256(model), "inputs": data_digest(x, y), "profile": profile, "tool": __version__}
    result = Steps(folder / ".compare", 1, progress).run("corrupt", asked, writes(), measure, summary=said)
    of = "" if result["mean"] is None else f", on {len(y):,} of the listed inputs"
    return result["mean"], f"corrupted: {result['why']}{of}"


def _inputs(path: Path) -> tuple[int, str]:
    x, y = read_samples(path)
    return len(y), data_digest(x, y)


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
