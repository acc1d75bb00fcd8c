"""One build: what was asked for, and what each of its steps does. `pipeline` puts the steps in order.

From `compress` on, the network *is* the file: every later step reads `model.tflite` back from its bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cactus_edge import assess, networks, semantic_report
from cactus_edge.board import Options, device_result, run_on_board
from cactus_edge.formats.c.certified import TFLITE
from cactus_edge.ir.arithmetic import profile as named_profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Float32
from cactus_edge.ir.profile import Profile
from cactus_edge.recipe import Recipe
from cactus_edge.resources import sha256, write_atomic
from cactus_edge.samples import write_samples
from cactus_edge.steps import Advance, Result
from cactus_edge.verify.regions import data_digest
from cactus_edge.verify.tflite_read import read_tflite
from cactus_edge.version import __version__

if TYPE_CHECKING:
    from cactus_edge.device.targets import Target
    from cactus_edge.ir.graph import Graph
    from cactus_edge.train.data import Dataset, Split
    from cactus_edge.train.deck.cards import TrainedDeck
    from cactus_edge.train.trained import TrainedModel
    from cactus_edge.verify.certificate import Certificate
    from cactus_edge.verify.runtimes import FileFormat

METADATA = "cactus_edge"
"""Name of the .tflite metadata entry that says what the file's numbers mean (JSON)."""


class Chain:
    """The state of one build: what was asked for, and what the steps share. Each step returns plain JSON values.

    model_name: the file that is built and certified, in format `form`; twins: files beside it that hold the same network.
    compared: test inputs that are compared with real runtimes, at most; a quarter as many random ones are added.
    """

    model_name = "model.tflite"
    form = TFLITE
    twins: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ("certificate.json",)
    compared = 2000

    def __init__(self, recipe: Recipe, folder: Path, options: Options) -> None:
        self.recipe, self.folder, self.options = recipe, folder, options

    @cached_property
    def target(self) -> Target:
        """The board."""
        from cactus_edge.device.targets import load_board

        return load_board(self.options.target)

    @cached_property
    def profile(self) -> Profile:
        """The arithmetic of the board's runtime."""
        return named_profile(self.target.profile)

    @cached_property
    def dataset(self) -> Dataset:
        """The recipe's data."""
        from cactus_edge.train.data import load_dataset

        return load_dataset(self.recipe.data)

    @cached_property
    def test(self) -> Split:
        """The listed inputs: the first `samples` of the test set."""
        from cactus_edge.train.data import Split

        count = self.recipe.certify.samples or len(self.dataset.test.y)
        return Split(self.dataset.test.x[:count], self.dataset.test.y[:count])

    @cached_property
    def eps(self) -> tuple[Fraction, ...]:
        """The certificate's radius in the unit of the data: one for all features, or one for each."""
        return self.dataset.features(self.recipe.certify.eps)

    @property
    def notes(self) -> dict[str, str]:
        """What a certificate says about eps where that was given in the units of sensors."""
        said = self.dataset.said(self.recipe.certify.eps)
        return {"eps": said} if said else {}

    @cached_property
    def network(self) -> TrainedModel | TrainedDeck:
        """The trained network, or the cards of a deck, from checkpoints where training is finished."""
        return self._train(lambda done, total, text: None)

    @cached_property
    def program(self) -> Program:
        """The integer program of the file, read back from its bytes."""
        return lower(read_tflite(self.model_bytes).graph, self.profile)

    @property
    def model_bytes(self) -> bytes:
        """The file that is certified."""
        return (self.folder / self.model_name).read_bytes()

    @property
    def threads(self) -> int:
        """Threads to use."""
        return self.options.threads or os.cpu_count() or 1

    @cached_property
    def identity(self) -> Result:
        """What every step depends on."""
        found = {"recipe": self.recipe.digest(), "data": self.dataset.digest(), "tool": __version__}
        return found | self._own

    @cached_property
    def _own(self) -> Result:
        """A module of the user's own: its layers, and the weights that training begins with."""
        if not self.recipe.model.module:
            return {}
        from cactus_edge.train.build import own_start

        classes = len(self.dataset.labels)
        return {"module": own_start(self.recipe.model, self.dataset.shape, classes, self.recipe.train.seed)}

    @property
    def images(self) -> tuple[str, ...]:
        """The firmware that is built here, if the target's firmware is ours to build."""
        return ("firmware.elf",) if self.target.firmware == "bare-metal" else ()

    @cached_property
    def board(self) -> Result:
        """What the firmware and its run depend on besides the model."""
        o = self.options
        target = json.loads(json.dumps(dataclasses.asdict(self.target), default=str))
        return {
            "target": target,
            "emulator": o.emulator,
            "compiler": o.compiler,
            "port": o.port,
            "n": o.device_inputs,
        } | ({"live": True} if o.live else {})

    def _train(self, advance: Advance) -> TrainedModel | TrainedDeck:
        from cactus_edge.runs import read_run, require_network

        threads = self.options.threads or None
        if self.options.trained is None:
            return networks.train(self.recipe, self.dataset, self.folder / ".train", threads, advance)
        # A run's network is the one that it trained, whatever grid this target asks for afterwards.
        run = read_run(self.options.trained)
        found = networks.train(run.recipe, self.dataset, run.folder, threads, advance)
        require_network(run, found.digest())
        return found

    def quantised(self) -> Graph:
        """The integer network that ships, calibrated on the validation split."""
        return networks.quantised(self.network, self.dataset, self.recipe)

    def described(self, graph: Graph) -> Result:
        """What a deck is, or which widths were chosen; nothing of another network."""
        return networks.described(self.network, graph, self.dataset, self.recipe)

    def train(self, advance: Advance) -> Result:
        """Trains over the network set, removes channels for good, fine-tunes the network that ships."""
        trained = self.network = self._train(advance)
        return {
            "network": trained.digest(),
            "weights_before": list(trained.weights_before),
            "weights_after": list(trained.weights_after),
            "epochs": [dataclasses.asdict(e) for e in trained.history],
        }

    def compress(self, advance: Advance) -> Result:
        """Calibrates and quantises; writes model.tflite and the samples that it is certified for."""
        from cactus_edge.formats.tflite import write_tflite

        graph = self.quantised()
        data = write_tflite(graph, metadata={METADATA: self._metadata()})
        write_atomic(self.folder / "model.tflite", data)
        return self.compressed(data, graph)

    def compressed(self, data: bytes, graph: Graph) -> Result:
        """The result of `compress`, once the listed inputs lie beside the file."""
        write_samples(self.folder / "test.npz", self.test.x, self.test.y)
        about = {"bytes": len(data), "sha256": sha256(data), "inputs": data_digest(self.test.x, self.test.y)}
        return about | self.described(graph)

    def _metadata(self) -> bytes:
        low, high = self.dataset.domain
        content: dict[str, Any] = {
            "tool": f"cactus-edge {__version__}",
            "recipe": self.recipe.name,
            "labels": list(self.dataset.labels),
            "preprocessing": self.dataset.preprocessing,
            "domain": [str(low), str(high)],
        }
        if self.dataset.channels:
            content["channels"] = [
                {"name": c.name, "unit": c.unit, "scale": str(c.scale)} for c in self.dataset.channels
            ]
        return json.dumps(content, sort_keys=True).encode()

    def lower(self, advance: Advance) -> Result:
        """Writes the C sources and the example; cross-compiles the firmware where the target has one of ours."""
        from cactus_edge.device.firmware import build_firmware
        from cactus_edge.formats.c.write import c_name, write_c

        sample = self.program.quantize.apply(self.test.x[0])
        c = write_c(
            self.program.graph,
            self.profile,
            self.folder / "c",
            name=c_name(self.recipe.name),
            labels=self.dataset.labels,
            sample=sample,
        )
        result: Result = {"blob": c.digest, "model": sha256(self.model_bytes), "c_sources": len(c.sources)}
        result["files"] = [*(f"c/{name}" for name in c.files), *self.images]
        if not self.images:
            return result
        o, elf = self.options, self.folder / "firmware.elf"
        firmware = build_firmware(c.folder, self.target, elf, o.compiler, live=o.live)
        return result | {"firmware": dataclasses.asdict(firmware) | {"elf": firmware.elf.name}}

    def lowered(self, result: Result) -> str:
        """The result of `lower` in words."""
        firmware = result.get("firmware")
        size = f"firmware of {firmware['flash_bytes']:,} bytes" if firmware else "no firmware of ours for this target"
        return f"blob {result['blob'][:16]}..., {size}"

    @property
    def real_inputs(self) -> Float32:
        """What is compared with runtimes that take real values: listed inputs, and random ones of the domain."""
        rng = np.random.default_rng(self.recipe.train.seed)
        low, high = (float(d) for d in self.dataset.domain)
        noise = rng.uniform(low, high, (self.compared // 4, *self.test.x.shape[1:])).astype(np.float32)
        return np.concatenate([self.test.x[: self.compared], noise])

    def agree(self, advance: Advance) -> Result:
        """Compares the file in the TFLM wheel, and the compiled C, with the interpreter, bit for bit."""
        from cactus_edge.formats.agree import agree
        from cactus_edge.formats.c.blob import build as build_blob
        from cactus_edge.formats.c.host import agree_c
        from cactus_edge.formats.c.write import CSources

        rng = np.random.default_rng(self.recipe.train.seed)
        noise = rng.integers(-128, 128, (self.compared // 4, *self.test.x.shape[1:])).astype(np.int8)
        x = np.concatenate([self.program.quantize.apply(self.test.x[: self.compared]), noise])
        runtime = agree(self.model_bytes, x)
        advance(1, 2, f"{runtime.runtime} {runtime.version}")
        graph, folder = self.program.graph, self.folder / "c"
        written = CSources(folder, tuple(sorted(folder.glob("*.c"))), build_blob(graph, self.profile))
        compiled = agree_c(graph, x, self.profile, written)
        for agreement in (runtime, compiled):
            agreement.require()
        return {
            "runtimes": [
                {"name": f"{a.runtime} {a.version}", "inputs": a.inputs, "mismatches": a.differing_inputs}
                for a in (runtime, compiled)
            ]
        }

    def certify(self, advance: Advance) -> Result:
        """Certifies the file from its bytes, attacks what was not certified, and measures the float network beside it."""
        from cactus_edge.verify.regions import box, points, region

        x, y = self.test.x, self.test.y
        eps, domain, threads = self.eps, self.dataset.domain, self.threads
        radii = self.dataset.radii(self.recipe.certify.eps)
        elf = self.folder / "firmware.elf"
        certificate = self.certificate(
            self.model_bytes,
            self.profile.name,
            self.form,
            firmware=[(self.target.name, elf.read_bytes())] if self.images else [],
            progress=lambda done: advance(done, len(y), "certified"),
        )
        write_atomic(self.folder / "certificate.json", certificate.to_bytes())
        decision = certificate.decision
        around = region(self.program, eps, domain)
        lower_, upper = box(self.program, around, x)
        start = points(self.program, x)
        correct, certified, seed = decision.correct, decision.certified, self.recipe.train.seed
        survived = assess.survivors(self.program, lower_, upper, start, y, correct, certified, seed, advance)
        samples = slice(0, assess.CURVE_SAMPLES)
        curve = assess.curve(self.program, self.network, x[samples], y[samples], radii, domain, threads, advance)
        return {
            "sha256": sha256(certificate.to_bytes()),
            "rule": certificate.record["rule"],
            "correct": int(correct.sum()),
            "certified": int(certified.sum()),
            "attacked": survived,
            "total": len(y),
            "classes": assess.by_class(y, correct, certified),
            "float": assess.float_scores(self.network, x, y, radii, domain),
            "curve": curve,
            "curve_inputs": min(len(y), assess.CURVE_SAMPLES),
            "overflow": [fact.as_json() for fact in certificate.facts],
            "ranges": assess.ranges(self.program, lower_, upper),
        }

    def certificate(
        self,
        model: bytes,
        profile: str,
        form: FileFormat,
        *,
        firmware: Sequence[tuple[str, bytes]] = (),
        progress: Callable[[int], None] = lambda done: None,
    ) -> Certificate:
        """What is proved of a file of this network, under a profile, for the listed inputs."""
        from cactus_edge.certify.interval import certify as decide
        from cactus_edge.verify.certificate import certify_file

        return certify_file(
            model,
            self.test.x,
            self.test.y,
            eps=self.eps,
            domain=self.dataset.domain,
            profile=profile,
            form=form,
            unit=self.dataset.preprocessing,
            notes=self.notes,
            firmware=firmware,
            decide=partial(decide, threads=self.threads, progress=progress),
        )

    @property
    def judged_file(self) -> tuple[str, FileFormat, str]:
        """What transforms are judged on: a file of the folder, its format, and a profile that is one function."""
        return self.model_name, self.form, self.profile.name

    @property
    def semantics(self) -> tuple[str, ...]:
        """What the step `judge` writes; nothing where the recipe names no transforms."""
        return semantic_report.files(self.recipe.certify.semantic, self.dataset.domain)

    def judge(self, advance: Advance) -> Result:
        """Judges the first listed inputs under the recipe's transforms, probabilistically and, where that is possible, exactly."""
        asked, (name, form, profile) = self.recipe.certify, self.judged_file
        count = asked.semantic_samples or len(self.test.y)
        return semantic_report.judge(
            self.folder,
            name,
            self.test.x[:count],
            self.test.y[:count],
            asked.semantic,
            form=form,
            profile=named_profile(profile),
            domain=self.dataset.domain,
            unit=self.dataset.preprocessing,
            threads=self.threads,
            advance=advance,
        )

    def run(self, advance: Advance) -> Result:
        """Boots the firmware, or talks to the board at `port`, and compares every output; nothing without a board."""
        if not self.images or not (self.target.emulated or self.options.port):
            return {"measured": False}
        count = min(self.options.device_inputs, len(self.test.y))
        report = run_on_board(
            self.program,
            self.program.quantize.apply(self.test.x[:count]),
            self.folder / "device",
            self.target,
            self.options,
            self.folder / "firmware.elf",
            lambda done, total: advance(done, total, "inputs"),
        )
        return device_result(report) | {"files": self.left(report.session)}

    def left(self, *sessions: str) -> list[str]:
        """The files of sessions with a device, as a step names them."""
        found = (file for name in sessions for file in (self.folder / "device" / name).iterdir())
        return sorted(file.relative_to(self.folder).as_posix() for file in found)
