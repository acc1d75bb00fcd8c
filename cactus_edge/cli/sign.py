"""`cactus-edge sign`: an in-toto statement about a certificate, signed, in a DSSE envelope beside it.

`openssl genpkey -algorithm ed25519 -out private.pem` and `openssl pkey -in private.pem -pubout -out public.pem` make keys as
well as --new-key does. A passphrase is read from $CACTUS_EDGE_PASSPHRASE, else asked for.
"""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path
from cactus_edge.errors import GOOD, InputError

VARIABLE = "CACTUS_EDGE_PASSPHRASE"


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("sign", help="sign a certificate, or make a key", description=__doc__)
    p.add_argument("certificate", type=path, nargs="?", metavar="cert.json")
    p.add_argument("--key", type=path, metavar="private.pem", help="Ed25519, ECDSA or RSA, encrypted or not")
    p.add_argument("--model", type=path, metavar="MODEL", help="the certified file")
    p.add_argument(
        "--firmware", type=path, action="append", default=[], metavar="FW.elf", help="an image that it lists"
    )
    p.add_argument("--proof", type=path, metavar="PROOF", help="the proof file, where the certificate has one")
    p.add_argument("--out", type=path, metavar="cert.dsse.json", help="default: beside the certificate")
    p.add_argument("--new-key", type=path, metavar="FOLDER", help="make private.pem and public.pem there, and stop")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Signs and prints what was signed, or makes a key."""
    from cactus_edge import api_signing
    from cactus_edge.report.table import pairs

    if arguments.new_key is not None:
        private, public = api_signing.new_key(
            arguments.new_key, passphrase("Passphrase of the new key, empty for none: ")
        )
        print(pairs([("keep secret", str(private)), ("give away", str(public))]))
        return GOOD
    for name in ("certificate", "model", "key"):
        if getattr(arguments, name) is None:
            raise InputError(f"no {name} is given", hint="cactus-edge sign cert.json --key private.pem --model MODEL")
    signed = api_signing.sign(
        arguments.certificate,
        arguments.model,
        key=arguments.key,
        firmware=arguments.firmware,
        proof=arguments.proof,
        passphrase=lambda: passphrase(f"Passphrase of {arguments.key}: "),
        out=arguments.out,
    )
    print(pairs(signed.summary()))
    return GOOD


def passphrase(prompt: str) -> bytes:
    """From the environment, else asked for at the terminal; empty where there is neither."""
    import os
    import sys
    from getpass import getpass

    if (known := os.environ.get(VARIABLE)) is not None:
        return known.encode()
    return getpass(prompt).encode() if sys.stdin is not None and sys.stdin.isatty() else b""
