"""Rows of profiles for weights that the file stores in 4 bits: unpacked, runtimes compute them as they do int8 ones, or refuse them.

Which kernels have them differs: a runtime hands such a layer to other kernels than the same layer in 8 bits, and the shapes
that those get right are fewer. Facts, bit for bit on x86-64: the wheels (tests/formats), and the plain C
of CMSIS-NN at commit 99f736a, compared by hand.
"""

from __future__ import annotations

from collections.abc import Mapping

from cactus_edge.ir.profile import PACKED

CONVOLUTIONS = ("Conv2d", "GroupedConv2d", "DepthwiseConv2d")


def packed(rules: Mapping[str, tuple[str, ...]], *kinds: str, mark: str = "") -> dict[str, tuple[str, ...]]:
    """What `rules` say of `kinds` for 8 bits, said for 4 (`Profile.kind`), with their fused activations; marked where it holds in part."""
    fused = {f"{k}{PACKED}.activation": rules[f"{k}.activation"] for k in kinds if f"{k}.activation" in rules}
    return {k + PACKED: (*rules[k], mark) if mark else rules[k] for k in kinds} | fused
