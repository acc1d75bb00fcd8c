"""Corrupted proofs and models: what `verify` and the checker in C, which share no code, say of them.

    python bench/proof_mutants.py [--mutants 4000] [--cases 40] [--fresh]
    python bench/proof_mutants.py --reproduce 1234          # what becomes of one mutant

Mutants are bit flips, truncations and moved bytes; records swapped, relabelled, with a larger box or another's verdict; slopes,
thresholds, factors and multipliers changed; trees cut; and models with changed bytes or weights under a digest that fits again. A
defect is a mutant of which the two say different things, or that both accept though an execution contradicts it. What both accept
is either another proof of the same claims or a proof of other ones that are true too: those a certificate refuses, since it names the
model, the regions and the verdicts. The same number is the same mutant everywhere.
Writes bench/results/proof_mutants.json. Exit code 1 where a defect was found, or fewer than 1,000 were refused by both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from _common import ROOT, Results, Row, Target, code, natural, positive, run, table, verdict

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "verify"))

from proof_cases import cases
from proof_mutants import examine, mutant

from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.c.host import CHECKED


def kinds(count: int, networks: int) -> Row:
    """Outcomes by kind of mutant."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    defects: list[str] = []
    found = cases(networks)
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
        checker = CChecker(Path(folder), CHECKED)
        for number in range(count):
            case, spoiled = mutant(found, number)
            outcome = examine(checker, case, spoiled, number)
            if outcome.startswith("DEFECT"):
                defects.append(f"{number}: {outcome[7:]}")
                print(defects[-1], file=sys.stderr)
                outcome = "defect"
            seen[spoiled.kind][outcome] += 1
    return {
        "kinds": {kind: dict(sorted(outcomes.items())) for kind, outcomes in sorted(seen.items())},
        "proofs": sum(len(case.proof.records) for case in found),
        "defects": len(defects),
        "first_defects": defects[:10],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=positive, default=4_000)
    parser.add_argument("--cases", type=positive, default=40, help="networks with a right proof each")
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    parser.add_argument("--reproduce", type=natural, metavar="NUMBER")
    given = parser.parse_args()
    if given.reproduce is not None:
        case, spoiled = mutant(cases(given.cases), given.reproduce)
        with tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
            print(spoiled.kind, examine(CChecker(Path(folder), CHECKED), case, spoiled, given.reproduce), sep=": ")
        return 0
    kits = [f"tests/{name}.py" for name in ("verify/proof_cases", "verify/proof_mutants", "mutate")]
    used = code(*kits, "cactus_edge/ir", "cactus_edge/verify", "cactus_edge/certify", "export/c/verify")
    results = Results("proof_mutants", fresh=given.fresh)
    row = results.row("mutants", f"{given.mutants} {given.cases} {used}", lambda: kinds(given.mutants, given.cases))
    names = sorted({name for outcomes in row["kinds"].values() for name in outcomes})
    lines = [[kind, *(str(outcomes.get(name, 0)) for name in names)] for kind, outcomes in row["kinds"].items()]
    total = [sum(outcomes.get(name, 0) for outcomes in row["kinds"].values()) for name in names]
    print(table([["kind", *names], *lines, ["all", *map(str, total)]]))
    return verdict(
        [
            Target(
                "corruptions refused by both", dict(zip(names, total, strict=True)).get("refused by both", 0), 1_000
            ),
            Target("defects", row["defects"], 0, at_most=True),
        ]
    )


if __name__ == "__main__":
    run(main)
