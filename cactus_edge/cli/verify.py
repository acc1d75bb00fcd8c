"""`cactus-edge verify`: re-check a certificate against the model, the data and the firmware. Needs numpy alone.

Everything that can be recomputed is recomputed from the bytes; what is not is listed as "not checked".
Exit code 0: accepted, 1: rejected, 2: unusable input.
"""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path
from cactus_edge.errors import GOOD, NEGATIVE


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("verify", help="re-check a certificate (numpy alone)", description=__doc__)
    p.add_argument("certificate", type=path, metavar="cert.json")
    p.add_argument("--model", type=path, required=True, metavar="MODEL")
    p.add_argument("--data", type=path, required=True, metavar="X.npz")
    p.add_argument(
        "--proof",
        type=path,
        metavar="cert.proof",
        help="the proof file of a certificate that has one (default: beside it)",
    )
    p.add_argument("--firmware", type=path, metavar="FW.elf", help="also check the firmware that is flashed")
    p.add_argument(
        "--key",
        type=path,
        action="append",
        default=[],
        metavar="public.pem",
        help="a public key that has to have signed the certificate; several: every one of them",
    )
    p.add_argument(
        "--signature", type=path, metavar="cert.dsse.json", help="the envelope (default: beside the certificate)"
    )
    p.add_argument(
        "--with-c",
        action="store_true",
        help="also check the proof file with the independent checker in C99, compiled here (profile tflm)",
    )
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Re-checks and prints every check."""
    from cactus_edge import api
    from cactus_edge.report.table import table

    report = api.verify(
        arguments.certificate,
        arguments.model,
        arguments.data,
        proof=arguments.proof,
        firmware=arguments.firmware,
        key=arguments.key,
        signature=arguments.signature,
        with_c=arguments.with_c,
    )
    print(table(("check", "result", "detail"), [(c.name, c.state, c.detail) for c in report.checks]))
    print("accepted" if report.accepted else "REJECTED")
    if report.accepted and (condition := report.condition):
        print(f"on the condition that {condition}")
    return GOOD if report.accepted else NEGATIVE
