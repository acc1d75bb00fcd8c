"""Counterexamples in the real runtime: does it, too, give an output that the label does not win?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError
from cactus_edge.formats.agree import RUNTIMES, agree
from cactus_edge.formats.read import read_model
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import dequantize, evaluate, quantised
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.goal import wins


def lost(
    data: bytes, codes: Codes, labels: Int64, runtime: str = "tflm", first_maximum: bool = False
) -> npt.NDArray[np.bool_]:
    """[N]: whether label n does not win when `runtime` runs the file `data` on codes [N, *input shape]; first_maximum as in `Program`.

    The runtime is run, and its outputs have to be the interpreter's bit for bit. A file that takes float32 gets values that
    quantise to the codes. Raises MismatchError where a bit differs, InputError for codes that no such value becomes, and as `agree`.
    """
    x: npt.NDArray[Any] = codes
    graph = read_model(data).graph
    entry = RUNTIMES.get(runtime)
    if entry is not None and graph.input.dtype == "float32":
        program = lower(graph, profile(entry.profile))
        x = dequantize(codes, program.input_tensor.scale, program.input_tensor.zero_point)
        if not np.array_equal(quantised(program, x), codes):
            raise InputError("a counterexample's codes are not what the model makes of their own float32 values")
    agree(data, x, runtime).require()
    out = evaluate(graph, x, profile(RUNTIMES[runtime].profile)).reshape(len(x), -1)
    return ~wins(out, labels, first_maximum)
