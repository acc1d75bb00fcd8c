"""The built-in recipes as a catalogue: what each trains by, where that is published, on what, and for how long.

Nothing here imports torch: the table is there at once. Times come from `bench/results`, where that folder is at hand, and only
from rows that were measured with the very recipe.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cactus_edge.errors import InternalError
from cactus_edge.recipe import BUILT_IN, Recipe, load_recipe, names
from cactus_edge.resources import data_path


@dataclass(frozen=True)
class Paper:
    """title: the short name; source: authors, year and arXiv number; optimises: what training minimises, or what is removed how."""

    title: str
    source: str
    optimises: str


OBJECTIVES = {
    "ibp": Paper("IBP", "Gowal et al. 2018, arXiv 1810.12715; Shi et al. 2021, arXiv 2103.17268", "loss over interval bounds"),
    "sabr": Paper("SABR", "Mueller et al. 2023, arXiv 2210.04871", "loss over a small box around an adversarial point"),
    "crown-ibp": Paper("CROWN-IBP", "Zhang et al. 2020, arXiv 1906.06316", "loss over linear bounds, then interval bounds"),
    "mtl-ibp": Paper("MTL-IBP", "De Palma et al. 2024, arXiv 2305.13991", "mean of adversarial and interval loss"),
    "cc-ibp": Paper("CC-IBP", "De Palma et al. 2024, arXiv 2305.13991", "loss of adversarial and interval logits, mixed"),
    "exp-ibp": Paper("Exp-IBP", "De Palma et al. 2024, arXiv 2305.13991", "geometric mean of adversarial and interval loss"),
    "qa-ibp": Paper("QA-IBP", "Lechner et al. 2023, arXiv 2211.16187", "interval bounds through int8 weights and activations"),
    "standard": Paper("standard", "", "loss of the samples as they are"),
    "pgd": Paper("PGD", "Madry et al. 2018, arXiv 1706.06083", "loss at adversarial points"),
    "semantic": Paper("mutations", "", "loss of the samples and of their random semantic mutations"),
}  # fmt: skip
"""By name in recipes: the loss of a network."""

_REMOVED = "certified training; channels removed afterwards by "
_ADVERFINE = "Thorsteinsson et al. 2024, arXiv 2403.09441"
_NNCF = "Kozlov et al. 2020, arXiv 2002.08679"
METHODS = {
    "cactus": Paper("CACTUS", "Xu and Singh 2025, arXiv 2506.11992", "certified loss, mean over a set of compressed networks"),
    "small": Paper("small network", "", "certified loss of the final shape from the start"),
    "uncompressed": Paper("uncompressed", "", "certified loss of the whole network; nothing is removed"),
    "posthoc-l1": Paper("post-hoc, L1", "Li et al. 2017, arXiv 1608.08710", _REMOVED + "the L1 norm of their weights"),
    "posthoc-gamma": Paper("post-hoc, gamma", "Liu et al. 2017, arXiv 1708.06519", _REMOVED + "the scale of their normalisation"),
    "posthoc-random": Paper("post-hoc, random", "", _REMOVED + "chance"),
    "hydra": Paper("HYDRA", "Sehwag et al. 2020, arXiv 2002.10509", "certified loss of the mask, at fixed weights"),
    "hydra-weights": Paper("HYDRA, weights", "Sehwag et al. 2020, arXiv 2002.10509", "certified loss of a mask of single weights"),
    "nrs": Paper("NRSLoss", "Li et al. 2023, arXiv 2206.07311", "certified loss and stable neurons; unstable channels go"),
    "ft": Paper("FT", "Han et al. 2015, 1506.02626", "loss of the whole network; its smallest weights go, the rest is fine-tuned"),
    "gmp": Paper("GMP", "Zhu and Gupta 2017, 1710.01878", "loss while the smallest weights go, epoch by epoch"),
    "lth": Paper("LTH", "Frankle and Carbin 2019, 1803.03635", "loss in rounds; the smallest weights go, the rest is rewound"),
    "lrr": Paper("LRR", "Renda et al. 2020, 2003.02389", "loss in rounds; the smallest weights go, the learning rate is rewound"),
    "edge-popup": Paper("edge-popup", "Ramanujan et al. 2020, 1911.13299", "loss of a choice among random weights"),
    "biprop": Paper("biprop", "Diffenderfer and Kailkhura 2021, 2103.09377", "loss of a choice among the signs of random weights"),
    "sam": Paper("SAM + magnitude", "Foret et al. 2021, arXiv 2010.01412", "loss at the worst weights nearby; the smallest go"),
    "cram": Paper("CrAM+", "Peste et al. 2023, arXiv 2207.14200", "loss of the network, and of it after a step up and pruning"),
    "flying-bird": Paper("Flying Bird", "Chen et al. 2022, arXiv 2202.09844", "loss of a sparse network whose mask moves"),
    "csam": Paper("C-SAM-style", "after He and Chen 2026, arXiv 2601.20301", "loss at the worst soft mask nearby; reconstructed"),
    "csam-channels": Paper("C-SAM-style, channels", "after He and Chen 2026, arXiv 2601.20301", "the same, one value a channel"),
    "nncf": Paper("NNCF", _NNCF, "certified loss, then NNCF's own compression"),
    "nncf-magnitude": Paper("NNCF, magnitude", _NNCF, "certified loss; NNCF's smallest weights go, the rest is fine-tuned"),
    "nncf-regularised": Paper("NNCF, regularised", _NNCF, "certified loss, then of NNCF's trained masks of single weights"),
    "adverfine": Paper("AdverFine", _ADVERFINE, "training; filters of least L1 norm go; fine-tuning, adversarial or not"),
    "adverfine-whole": Paper("AdverFine, whole", _ADVERFINE, "training; fine-tuning, adversarial or not; no channel goes"),
    "adverfine-scratch": Paper("AdverFine, scratch", _ADVERFINE, "the fine-tuning alone, of the compressed shape from scratch"),
} | {
    f"torch-pruning-{name}": Paper(f"torch-pruning, {what}", "Fang et al. 2023, arXiv 2301.12900", _REMOVED + what)
    for name, what in (
        ("magnitude", "magnitude"), ("bn-scale", "normalisation scale"), ("lamp", "LAMP scores"), ("taylor", "Taylor scores"),
    )
}  # fmt: skip
"""By name in recipes: the stages, and what is removed when."""

SIZES = {"digits": 1797, "mnist": 60_000, "fashion-mnist": 60_000, "cifar10": 50_000}
"""Samples that a built-in set brings for training and validation; of the digits those for the test are split off too."""


def trained_by(recipe: Recipe) -> str:
    """Method and objective by their short names, and the objective of fine-tuning where it is another."""
    return _in_words(recipe.train.method, recipe.train.objective, recipe.finetuning().train.objective)


def _in_words(method: str, objective: str, finetuned_by: str) -> str:
    titles = [OBJECTIVES[name].title for name in dict.fromkeys([objective, finetuned_by])]
    return f"{METHODS[method].title}, {' then '.join(titles)}"


def text(name: str) -> str:
    """The TOML of the recipe of that name, or in that file, as it was written. Raises InputError where it cannot be read."""
    load_recipe(name)
    return (BUILT_IN / f"{name}.toml" if name in names() else Path(name)).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Row:
    """One recipe. samples: trained on in each epoch, None where only the data tell. minutes: of a processor, the median measured."""

    name: str
    description: str
    method: str
    objective: str
    finetuned_by: str
    papers: tuple[str, ...]
    optimises: str
    members: tuple[str, ...]
    data: str
    eps: str
    epochs: int
    samples: int | None
    minutes: float | None

    def cells(self) -> tuple[str, ...]:
        """As a row of text."""
        samples = "" if self.samples is None else f" x {self.samples:,} samples"
        minutes = "not measured" if self.minutes is None else f"{max(self.minutes, 0.1):.2g} min"
        return (
            self.name,
            _in_words(self.method, self.objective, self.finetuned_by),
            f"{self.data}, eps {self.eps}",
            f"{self.epochs} epochs{samples}",
            minutes,
        )


HEADS = ("name", "method", "data", "budget", "one processor")


def legend(found: list[Row]) -> list[tuple[str, str]]:
    """Each method and objective of the rows once: what it optimises, and the paper with its arXiv number."""
    objectives = [OBJECTIVES[name] for row in found for name in (row.objective, row.finetuned_by)]
    used = dict.fromkeys([METHODS[row.method] for row in found] + objectives)
    return [(p.title, f"{p.optimises} ({p.source})" if p.source else p.optimises) for p in used]


def row(recipe: Recipe) -> Row:
    """The recipe in the catalogue."""
    t = recipe.train
    method, objective = METHODS[t.method], OBJECTIVES[t.objective]
    tuned = OBJECTIVES[recipe.finetuning().train.objective]
    size = SIZES.get(recipe.data.set)
    out = recipe.data.validation_samples + recipe.data.test_samples
    return Row(
        recipe.name,
        recipe.description,
        t.method,
        t.objective,
        recipe.finetuning().train.objective,
        tuple(source for source in dict.fromkeys([method.source, objective.source, tuned.source]) if source),
        f"{method.optimises}: {'; then '.join(dict.fromkeys([objective.optimises, tuned.optimises]))}",
        t.members,
        recipe.data.set or recipe.data.file or recipe.data.folder,
        str(recipe.certify.eps),
        t.epochs * (1 + recipe.compress.rounds if t.method in ("lth", "lrr") else 1) + _others(recipe),
        recipe.data.train_samples or (None if size is None else size - out),
        _minutes(recipe),
    )


def _others(recipe: Recipe) -> int:
    """Epochs outside of those of [train], each round of which takes as many."""
    return recipe.compress.finetune_epochs + (recipe.compress.rewind_epochs if recipe.train.method == "lth" else 0)


def rows() -> list[Row]:
    """Every built-in recipe."""
    return [row(load_recipe(name)) for name in names()]


def to_json(found: list[Row]) -> list[dict[str, Any]]:
    """Plain values; what is not known is null."""
    return [asdict(one) for one in found]


def _minutes(recipe: Recipe) -> float | None:
    """The median processor time of training with this very recipe and method, from `bench/results`."""
    seconds = []
    for path in sorted(_results().glob("*.json")):
        measured = json.loads(path.read_text()).get("rows", {})
        for name, one in measured.items():
            if one.get("provenance", {}).get("digests", {}).get("recipe") == recipe.digest():
                values = one["values"]
                method, cost = values.get("method", name.partition("/")[0]), values.get("training_cpu_s")
                if method == recipe.train.method and cost:
                    seconds.append(cost)
    return statistics.median(seconds) / 60 if seconds else None


def _results() -> Path:
    """bench/results of a checkout; a wheel does not hold it, and an empty folder stands for none."""
    try:
        return data_path("bench", "results")
    except InternalError:
        return Path(__file__).parent / "no-results"
