"""The whole chain as one readable function: train, compress, lower, agree, certify, judge, run, bundle.

Each step is done once (`steps.Steps`): it runs again only where its inputs changed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cactus_edge import semantic_report
from cactus_edge.board import Options
from cactus_edge.chain import Chain
from cactus_edge.progress import SILENT, Progress
from cactus_edge.recipe import Recipe, load_recipe
from cactus_edge.rehearsal import rehearse
from cactus_edge.report.table import counted
from cactus_edge.steps import Advance, Result, Steps, writes

if TYPE_CHECKING:
    from cactus_edge.bundle import Built


def build(recipe: Recipe | str | Path, folder: Path, options: Options, progress: Progress = SILENT) -> Built:
    """Builds `recipe` for `options.target` into `folder`; finished steps of an earlier run are kept."""
    return build_chain(Chain(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), folder, options), progress)


def build_chain(chain: Chain, progress: Progress) -> Built:
    """The steps of any chain, in order, and the bundle that they leave."""
    from cactus_edge.bundle import write_bundle

    folder = chain.folder
    steps = Steps(folder, 8 if chain.semantics else 7, progress)
    about = chain.identity
    trained = steps.run("train", about, writes(), partial(_train, chain), summary=_trained)
    models = writes(chain.model_name, *chain.twins, "test.npz")
    file = steps.run(
        "compress", about | trained, models, chain.compress, summary=partial(_compressed, chain.model_name)
    )
    built = steps.run("lower", about | file | chain.board, _told, chain.lower, summary=chain.lowered)
    compared = built | {"inputs": file["inputs"]}
    agreed = steps.run("agree", compared, writes(), chain.agree, summary=_agreed)
    certificates = writes(*chain.certificates)
    verdict = steps.run("certify", about | built, certificates, chain.certify, summary=verdict_in_words)
    judged: Result = {"rows": []}
    if chain.semantics:
        semantics = writes(*chain.semantics)
        judged = steps.run("judge", about | built, semantics, chain.judge, summary=semantic_report.in_words)
    device = steps.run("run", compared | chain.board, _told, chain.run, summary=_ran)
    found = {"train": trained, "compress": file, "lower": built, "agree": agreed, "certify": verdict, "run": device}
    found["judge"] = judged
    return write_bundle(chain, found, steps)


def _told(result: Result) -> list[str]:
    """The files of a step whose result names them."""
    return list(result.get("files", []))


def _train(chain: Chain, advance: Advance) -> Result:
    """What cannot be built is not trained first. A run's network is trained already."""
    if chain.options.trained is None:
        rehearse(chain)
    return chain.train(advance)


def _trained(result: Result) -> str:
    last = result["epochs"][-1]
    before, after = sum(result["weights_before"]), sum(result["weights_after"])
    right, certified = last["val_clean"], last["val_certified"]
    return f"{len(result['epochs'])} epochs, validation {right:.1%} right, {certified:.1%} certified; weights {before:,} -> {after:,}"


def _compressed(name: str, result: Result) -> str:
    return f"{name}, {result['bytes']:,} bytes"


def _agreed(result: Result) -> str:
    return ", ".join(f"{a['name']}: {a['mismatches']} of {a['inputs']} inputs differ" for a in result["runtimes"])


def verdict_in_words(result: Result) -> str:
    """The result of `certify` in words."""
    return ", ".join(
        f"{word} {counted(result[key], result['total'])}"
        for word, key in (("clean", "correct"), ("attacked", "attacked"), ("certified", "certified"))
    )


def _ran(result: Result) -> str:
    if not result["measured"]:
        return "not measured"
    return str(result.get("text") or f"{result['equal']} of {result['compared']} outputs equal")
