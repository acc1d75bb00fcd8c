"""The verbs of the chain as functions: build, certify, verify. `api_boards` and `api_files` hold the others.

Each function imports what it needs when it is called: `verify` runs on numpy alone, and importing this imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cactus_edge.api_boards import CompilerName, Emulator, host_at
from cactus_edge.api_files import Pairs, content
from cactus_edge.api_regions import Channel, Exact, Flags, Unit, asked, described, two_ends
from cactus_edge.errors import InputError
from cactus_edge.progress import SILENT, Progress
from cactus_edge.resources import require_file, require_folder, write_atomic

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cactus_edge.bundle import Built
    from cactus_edge.certify.complete import Effort
    from cactus_edge.recipe import Recipe
    from cactus_edge.verify.certificate import Certificate
    from cactus_edge.verify.decide import Decision
    from cactus_edge.verify.recheck import Report
    from cactus_edge.verify.regions import Family

Bounds = Literal["interval", "linear"]
Ties = Literal["strict", "first-maximum"]


def build(
    recipe: Recipe | str | Path = "digits",
    *,
    run: Path | str | None = None,
    target: str = "mcu",
    out: Path | str | None = None,
    seed: int | None = None,
    port: str = "",
    host: str = "",
    emulator: Emulator = "unicorn",
    compiler: CompilerName = "zig",
    device_inputs: int = 100,
    threads: int = 0,
    live: bool = False,
    progress: Progress = SILENT,
) -> Built:
    """Trains, compresses, lowers, compares, certifies and runs `recipe` on `target`; returns the bundle.

    run: the folder of a finished training, whose recipe and network are taken instead. out: the bundle's folder, build/RECIPE-TARGET
    by default, RUN-TARGET of a run; finished steps found there are kept. host: user@host of a target
    that is reached by ssh. live: firmware that can bound the decision around an input. Raises CactusError for what the user can
    fix, MismatchError where a runtime or the board contradicts the interpreter.
    """
    from cactus_edge.board import Options
    from cactus_edge.bundle import require_target
    from cactus_edge.device.targets import JetsonTarget, SshTarget, Target, load_target
    from cactus_edge.gains import for_target, require_gain
    from cactus_edge.recipe import Recipe, load_recipe
    from cactus_edge.runs import command_line, read_run, require_unchanged

    for name, value, least, most in (
        ("seed", seed or 0, 0, 2**31 - 1),
        ("threads", threads, 0, 4096),
        ("device_inputs", device_inputs, 1, 10**9),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}, expected an integer in [{least}, {most}]")
    board = load_target(target)  # refuses an unknown board before anything is trained
    if host and isinstance(board, Target):
        raise InputError(f"{board.title} is not reached by ssh", hint="--port for a real board")
    if live and not (isinstance(board, Target) and board.firmware == "bare-metal"):
        raise InputError(f"{board.title} has no firmware of ours, which live inputs need", hint="leave it out")
    if port and not isinstance(board, Target):
        raise InputError(f"{board.title} is reached by ssh, not by a serial port", hint="--host user@host")
    trained = None if run is None else read_run(Path(run))
    if trained is not None and seed is not None:
        raise InputError("a run has its seed", hint="leave --seed out, or train another run")
    chosen = trained.recipe if trained else recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if seed is not None:
        chosen = replace(chosen, train=replace(chosen.train, seed=seed))
    if trained is not None:
        require_unchanged(trained, chosen)
        require_gain(chosen, board)
    else:
        chosen = for_target(chosen, board)
    name = trained.folder.resolve().name if trained else chosen.name
    folder = require_folder(Path(out) if out is not None else Path("build") / f"{name}-{target}", "--out")
    require_target(folder, target)
    options = Options(
        target,
        emulator,
        compiler,
        port,
        device_inputs,
        threads,
        command_line("cactus_edge.build"),
        host,
        live,
        trained.folder if trained else None,
    )
    if isinstance(board, SshTarget):
        from cactus_edge import linux

        return linux.build(chosen, folder, options, progress, host_at(host))
    if isinstance(board, JetsonTarget):
        from cactus_edge import jetson

        return jetson.build(chosen, folder, options, progress, host_at(host))
    from cactus_edge import pipeline

    return pipeline.build(chosen, folder, options, progress)


def certify(
    model: bytes | str | Path,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    *,
    eps: Exact | Sequence[Exact] | None = None,
    unit: Unit = "data",
    region: Family | None = None,
    noise: Sequence[Channel] = (),
    profile: str = "",
    domain: tuple[Exact, Exact] | None = None,
    firmware: Sequence[tuple[str, bytes]] = (),
    bounds: str = "interval",
    attack: bool = False,
    budget: str = "",
    hear: Callable[[Effort], None] = lambda one: None,
    universal: bool = False,
    ties: str = "strict",
    threads: int = 0,
    workers: int = 0,
    cluster: str = "",
    keep: Path | None = None,
) -> Certificate:
    """Certifies the file `model`, .tflite or .onnx, around every row of x [N, *shape] with labels y [N].

    eps: radius of the l-inf ball, exact ("1/16"), or one per channel or per feature; in the units of x, or with unit "lsb" in
    steps of the model's input quantisation: n steps are n * S, S the input's float32 scale, as a fraction, also for float x.
    region: what changes the sample as a whole, eps (then 0 by default) on top of it: `verify.families.Patch(3, 3)`, or
    `tone(brightness=("-0.1", "0.1"), contrast=("0.8", "1.2"))`. noise: floors of the sensor's channels, added to eps
    (`api_regions.noise_floors`). domain: what the sensor can deliver; by default the one in the file's own metadata, else
    everything its input can represent.
    profile: by default "tflm" for .tflite, "ort-x86" for .onnx; several joined by commas, or "all" that can run the file and
    assume nothing. Of several, what is certified holds for any mixture of them, from one element of a layer to the next;
    `Certificate.each` has what holds under each alone, which is more. bounds: "interval", or "linear", which also bounds by
    lines what intervals leave open: slower, and it certifies far more of a network that was not trained for intervals.
    attack: also look for counterexamples around what is not certified, under one profile that is no envelope. budget: "60s" or "500n",
    of seconds or of parts of a region: each is searched by all means until it is decided or that is used up; `hear` is told what
    did it, or what was reached. Needs torch, and OR-tools for the last of the means. With any of these the
    certificate rests on a proof file, `Certificate.proof`; counterexamples of a `region` stand in the certificate itself.
    universal: also look for the one perturbation of the ball under which the fewest of all labels still win; the certificate
    holds it with what is left under it, at most, and under any one of them, at least.
    ties: "strict", a label wins where its output is above every other, so that every argmax agrees; or "first-maximum": also
    where classes behind it have an output equal to its own, as for an argmax that takes the first.
    workers: processes that decide slices of the samples, 0 for threads of
    this one; cluster: dask://HOST:PORT, an existing Dask cluster that does so. keep: the folder where their finished slices lie,
    found there by the same call after an interruption. None of these changes the result.
    """
    import os

    from cactus_edge.api_files import default_profile, file_formats
    from cactus_edge.certify.complete import Budget
    from cactus_edge.certify.crew import crew, decider, finder
    from cactus_edge.certify.members import told
    from cactus_edge.verify.certificate import certify_file
    from cactus_edge.verify.read import format_of

    if universal and region is not None:
        raise InputError("a universal perturbation is one of a ball: eps, without a region")
    if bounds not in get_args(Bounds):
        raise InputError(f"unknown bounds {bounds!r}", hint=" or ".join(get_args(Bounds)))
    if ties not in get_args(Ties):
        raise InputError(f"unknown ties {ties!r}", hint=" or ".join(get_args(Ties)))
    first = ties == "first-maximum"
    data = content(model, "model")
    profile = profile or default_profile(data)
    by, lines = crew(workers, cluster), bounds != "interval"
    limit = Budget.parse(budget) if budget else None
    deciding = decider(threads or os.cpu_count() or 1, by, keep)
    proving = lines or limit is not None or (attack and region is None)
    around = asked(data, x, y, eps, unit, region, noise, domain, profile, deciding, first)
    return certify_file(
        data,
        x,
        y,
        eps=around.eps,
        domain=around.domain,
        family=around.family,
        first_maximum=first,
        profile=profile,
        form=file_formats()[format_of(data)],
        notes=around.notes,
        firmware=firmware,
        decide=deciding,
        find=finder(by, keep, lines=lines, falsify=attack and region is None, budget=limit, hear=hear)
        if proving
        else None,
        tell=partial(told, members=attack and region is not None, delta=universal) if attack or universal else None,
    )


@dataclass(frozen=True)
class CertifyResult:
    """A certificate on disk: what was decided, for several profiles for any mixture of them; each: under that one alone."""

    path: Path
    decision: Decision
    each: Mapping[str, Decision]
    within: str
    profile: str
    conditional_on: str = ""
    excluded: Mapping[str, str] = field(default_factory=dict)
    proof: Path | None = None
    universal: tuple[int, int] | None = None
    refuted: npt.NDArray[np.bool_] | None = None
    searched: Sequence[tuple[str, str]] = ()

    @property
    def certified(self) -> int:
        """Inputs whose region is certified."""
        return int(self.decision.certified.sum())

    @property
    def total(self) -> int:
        """Inputs."""
        return len(self.decision.certified)

    def summary(self) -> Pairs:
        """In words."""
        import numpy as np

        certified, clean = self._counted(self.decision.certified), self._counted(self.decision.correct)
        if not self.each:
            rows = [("certified", f"{certified} within {self.within}"), ("clean", clean), ("profile", self.profile)]
        else:
            everywhere = np.logical_and.reduce([own.certified for own in self.each.values()])
            right = np.logical_and.reduce([own.correct for own in self.each.values()])
            rows = [
                (
                    "certified",
                    f"{self._counted(everywhere)} within {self.within}, under each profile",
                ),
                ("", f"{certified} whatever mixture of them computes"),
                ("clean", f"{self._counted(right)} under each"),
                ("", f"{clean} whatever mixture"),
                ("profile", self.profile),
                *(
                    (f"  {name}", f"certified {own.certified.sum()}, clean {own.correct.sum()}")
                    for name, own in self.each.items()
                ),
                *((f"  not {name}", why) for name, why in self.excluded.items()),
            ]
        if self.refuted is not None:
            left = self.decision.correct & ~self.decision.certified & ~self.refuted
            against = self.decision.correct & self.refuted
            at = 2 if self.each else 1  # "certified" has a second line then
            rows.insert(at, ("refuted", f"{self._counted(against)} of those right, by a counterexample, replayed"))
            rows.insert(at + 1, ("open", self._counted(left)))
        if self.universal is not None:
            least, most = self.universal
            rows.append(("universal", f"{least} labels at least win under any one perturbation added to all of them"))
            rows.append(("", f"{most} at most: under the one that was found"))
        rows += self.searched
        if self.conditional_on:
            rows.append(("conditional on", self.conditional_on))
        if self.proof is not None:
            rows.append(("proof", str(self.proof)))
        return [*rows, ("certificate", str(self.path))]

    def _counted(self, flags: npt.NDArray[Any]) -> str:
        from cactus_edge.report.table import counted

        return f"{flags.sum()} of {self.total} ({counted(flags.sum(), self.total)})"


def certify_files(
    model: Path,
    data: Path,
    *,
    region: Flags,
    domain: str,
    profile: str,
    firmware: Sequence[Path],
    out: Path,
    bounds: str = "interval",
    attack: bool = False,
    budget: str = "",
    universal: bool = False,
    ties: str = "strict",
    workers: int = 0,
    cluster: str = "",
) -> CertifyResult:
    """`certify` from files to a file. region: what may change; firmware: ELF images to bind; domain: "LO,HI" or ""."""
    import shutil

    from cactus_edge.certify.complete import summary
    from cactus_edge.samples import read_samples

    require_certificate(out, (model, data, *firmware))
    x, y = read_samples(data)
    images = [(path.name, content(path, "firmware")) for path in firmware]
    keep = out.with_name(f"{out.name}.parts")
    efforts: list[Effort] = []
    certificate = certify(
        model,
        x,
        y,
        eps=region.radii(),
        unit=region.unit,
        region=region.family(),
        noise=region.floors(),
        profile=profile,
        domain=two_ends(domain, "domain", "--domain 0,1") if domain else None,
        firmware=images,
        bounds=bounds,
        attack=attack,
        budget=budget,
        hear=efforts.append,
        universal=universal,
        ties=ties,
        workers=workers,
        cluster=cluster,
        keep=keep,
    )
    proof = None if certificate.proof is None else proof_beside(out)
    if proof is not None and certificate.proof is not None:
        write_atomic(proof, certificate.proof)
    write_atomic(out, certificate.to_bytes())
    shutil.rmtree(keep, ignore_errors=True)
    d, counted = certificate.decision, certificate.record.get("universal")
    row = certificate.record["profile"]
    return CertifyResult(
        out,
        d,
        certificate.each,
        described(certificate.record),
        row["name"],
        row.get("conditional_on", ""),
        row.get("excluded", {}),
        proof,
        None if counted is None else (counted["at_least"], counted["at_most"]),
        certificate.refuted if attack or budget else None,
        summary(efforts) if efforts else (),
    )


def verify(
    certificate: bytes | str | Path,
    model: bytes | str | Path,
    data: str | Path,
    *,
    proof: bytes | str | Path | None = None,
    firmware: bytes | str | Path | None = None,
    key: str | Path | Sequence[str | Path] = (),
    signature: bytes | str | Path | None = None,
    with_c: bool = False,
) -> Report:
    """Re-checks a certificate against the bytes of the model, the samples and the firmware. numpy alone; onnxruntime, where
    it is installed, is asked whether it computes an .onnx file in integers.

    Everything that can be recomputed is; `Report.accepted` is the verdict. proof: the proof file of a certificate that has one, by
    default the one beside it. key: PEM files of public keys, each of which has to have signed the certificate in the envelope
    `signature`, by default the one beside it; that needs `cactus-edge[sign]`. with_c: the proof file is also checked by the
    independent checker in C, which a compiler is needed for. Raises CertificateError and ModelError for input that cannot be
    read at all, InstallError for what is missing.
    """
    from cactus_edge.api_files import file_formats
    from cactus_edge.api_signing import signatures
    from cactus_edge.samples import read_samples
    from cactus_edge.verify.recheck import recheck

    x, y = read_samples(Path(data))
    formats = tuple(file_formats().values())
    elf = None if firmware is None else content(firmware, "firmware")
    if proof is None and not isinstance(certificate, bytes) and proof_beside(Path(certificate)).is_file():
        proof = proof_beside(Path(certificate))
    shown = None if proof is None else content(proof, "proof")
    source = content(certificate, "certificate")
    keys = [key] if isinstance(key, str | Path) else list(key)
    signed = signatures(certificate, source, keys, signature)
    read = content(model, "model")
    report = recheck(source, read, x, y, proof=shown, firmware=elf, formats=formats)
    if with_c:
        from cactus_edge.formats.c.checker import second_check
        from cactus_edge.verify.decide import RULES

        ties = report.record.get("rule") == RULES[True]
        signed = (second_check(read, shown, ties), *signed)
    return replace(report, checks=(*report.checks, *signed))


def require_certificate(out: Path, inputs: Iterable[object]) -> None:
    """As `resources.require_file`, for a certificate and the proof file beside it, which are two files."""
    if out == proof_beside(out):
        raise InputError(f"--out {out} is the name of the proof file", hint=f"--out {out.with_suffix('.json')}")
    for path in (out, proof_beside(out)):
        require_file(path, "--out", inputs)


def proof_beside(certificate: Path) -> Path:
    """Where the proof file of a certificate stands: beside it, under its name with .proof."""
    return certificate.with_suffix(".proof")
