"""`.tflite` files as something to certify and to flash: the canonical blob is what firmware has to hold."""

from __future__ import annotations

from dataclasses import replace

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.c.blob import to_blob
from cactus_edge.formats.c.blob_format import PROFILE
from cactus_edge.verify import runtimes
from cactus_edge.verify.runtimes import Runtimes


def _image(asked: Runtimes) -> bytes | None:
    """What the portable runtime executes, where its profile is among those asked for and it has a kernel for every op."""
    program = asked.under(PROFILE)
    try:
        return None if program is None else to_blob(program.graph, program.profile)
    except UnsupportedError:
        return None


TFLITE = replace(runtimes.TFLITE, image=_image)
"""Read by `verify`; what it says of firmware trusts the writer of blobs as well."""
