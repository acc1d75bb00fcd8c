"""The chain for a Linux computer, such as a Raspberry Pi: .tflite and ONNX, certified under the arithmetic of its processor.

Two files hold one integer network: `model.tflite` for LiteRT with XNNPACK, `model.onnx` for ONNX Runtime. Both are run here, bit for
bit against the interpreter under the profiles of this machine, certified under those of the computer, and, where there is one,
run there.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.board import Options
from cactus_edge.chain import METADATA, Chain
from cactus_edge.computer import Host, computer_rows, rows, run_on_computer
from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.read import read_for, read_model
from cactus_edge.ir.arithmetic import profile as named_profile
from cactus_edge.ir.lowering import lower
from cactus_edge.pipeline import build_chain
from cactus_edge.progress import SILENT, Progress
from cactus_edge.recipe import Recipe
from cactus_edge.resources import sha256, write_atomic
from cactus_edge.steps import Advance, Result

if TYPE_CHECKING:
    from cactus_edge.bundle import Built
    from cactus_edge.device.remote import RemoteReport
    from cactus_edge.device.targets import SshTarget

TWIN = "model.onnx"


def build(
    recipe: Recipe, folder: Path, options: Options, progress: Progress = SILENT, host: Host | None = None
) -> Built:
    """Builds `recipe` for the computer `options.target`; runs it at `host`, where there is one."""
    return build_chain(LinuxChain(recipe, folder, options, host), progress)


class LinuxChain(Chain):
    """`Chain` for a computer."""

    twins = (TWIN,)
    images: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe, folder: Path, options: Options, host: Host | None) -> None:
        super().__init__(recipe, folder, options)
        self.host = host

    @cached_property
    def target(self) -> SshTarget:  # type: ignore[override]
        """The computer."""
        from cactus_edge.device.targets import SshTarget, load_target

        target = load_target(self.options.target)
        assert isinstance(target, SshTarget)
        return target

    @property
    def files(self) -> dict[str, bytes]:
        """The model files by name, the main one first."""
        return {name: (self.folder / name).read_bytes() for name in (self.model_name, *self.twins)}

    @cached_property
    def twin_refused(self) -> str:
        """Why the twin was not shown to be what runs it there computes, or ""; then it is no more than a file."""
        rules = named_profile(self.target.engines["onnx"].profile)
        try:
            lower(read_for(self.files[TWIN], rules), rules)
        except UnsupportedError as error:
            return error.message
        return ""

    @property
    def certificates(self) -> tuple[str, ...]:  # type: ignore[override]
        """The main file's, and the twin's where it has one."""
        return ("certificate.json",) if self.twin_refused else ("certificate.json", self.twin_certificate)

    @property
    def twin_certificate(self) -> str:
        """The name of the twin's certificate."""
        return f"certificate-{self.target.engines['onnx'].profile}.json"

    @cached_property
    def board(self) -> Result:
        """What a run depends on besides the model; who and where the computer is stays out of the bundle."""
        address = self.host.address if self.host else ""
        target = json.loads(json.dumps(asdict(self.target)))
        return {"target": target, "host": sha256(address.encode()), "n": self.options.device_inputs}

    def compress(self, advance: Advance) -> Result:
        """As `Chain.compress`, and the same network as ONNX."""
        from cactus_edge.formats.onnx import write_onnx

        result = super().compress(advance)
        graph = read_model(self.model_bytes).graph
        write_atomic(self.folder / TWIN, write_onnx(graph, metadata={METADATA: self._metadata()}))
        return result

    def lower(self, advance: Advance) -> Result:
        """Checks that both files are the same integer network."""
        from cactus_edge.formats.onnx import onnx_form

        graphs = {name: read_model(data).graph for name, data in self.files.items()}
        written, read = onnx_form(graphs[self.model_name]).digest(), graphs[TWIN].digest()
        if written != read:
            raise UnsupportedError(f"{self.model_name} holds the network {written}, {TWIN} another one: {read}")
        digests = {name: sha256(data) for name, data in self.files.items()}
        return {"blob": "", "model": digests[self.model_name], "same": digests, "graph": read}

    def lowered(self, result: Result) -> str:
        """The result of `lower` in words."""
        return f"network {result['graph'][:16]}..., the same in {' and '.join(result['same'])}"

    def agree(self, advance: Advance) -> Result:
        """Compares both files in their runtimes on this machine with the interpreter, bit for bit."""
        from cactus_edge.formats.agree import agree

        x, runtimes = self.real_inputs, []
        for done, (name, data) in enumerate(self.files.items(), start=1):
            engine = self.target.engines[Path(name).suffix[1:]]
            found = agree(data, x, engine.host)
            found.require()
            label = f"{name} in {found.runtime} {found.version}, profile {found.profile}"
            runtimes.append({"name": label, "inputs": found.inputs, "mismatches": found.differing_inputs})
            advance(done, len(self.files), name)
        return {"runtimes": runtimes}

    def certify(self, advance: Advance) -> Result:
        """As `Chain.certify`, and the twin under the profile of what runs it there."""
        from cactus_edge.formats.onnx.certified import ONNX

        result = super().certify(advance)
        if self.twin_refused:
            return result | {"twins": [(TWIN, f"no certificate: {self.twin_refused}")]}
        name = self.target.engines["onnx"].profile
        certificate = self.certificate(self.files[TWIN], named_profile(name).name, ONNX)
        write_atomic(self.folder / self.twin_certificate, certificate.to_bytes())
        count = f"{int(certificate.decision.certified.sum()):,} of {len(self.test.y):,} certified"
        result["twins"] = [(TWIN, f"{count} under profile {name}: {self.twin_certificate}")]
        return result

    def run(self, advance: Advance) -> Result:
        """Runs the files that are certified for the computer at `host` there; nothing without one."""
        if self.host is None:
            return {"measured": False}
        count = min(self.options.device_inputs, len(self.test.y))
        files = {name: data for name, data in self.files.items() if name != TWIN or not self.twin_refused}
        reports = {
            name: run_on_computer(
                data, self.test.x[:count], self.target, self.host, self.folder / "device",
                lambda done, total, name=name: advance(done, total, name),  # type: ignore[misc]
            )
            for name, data in files.items()
        }  # fmt: skip
        return run_result(reports) | {"files": self.left(*(report.session for report in reports.values()))}


def run_result(reports: dict[str, RemoteReport]) -> dict[str, Any]:
    """The runs by file name as the JSON values of a step: lines for people, and what contradicts the interpreter."""
    first = next(iter(reports.values()))
    findings = [
        f"{name}: {r.compared - r.equal:,} of {r.compared:,} outputs of {r.runtime} on the computer differ from the "
        f"interpreter's; {r.first_difference}"
        for name, r in reports.items()
        if r.equal != r.compared
    ]
    lines = computer_rows(first) + [line for name, r in reports.items() for line in rows(name, r)]
    equal, compared = (sum(getattr(r, key) for r in reports.values()) for key in ("equal", "compared"))
    text = f"{equal} of {compared} outputs equal{', emulated' if first.emulated else ''}"
    result = {"measured": True, "rows": lines, "findings": findings, "text": text, "equal": equal, "compared": compared}
    return result | ({"latency_us": first.latency.median_us} if first.latency else {})
