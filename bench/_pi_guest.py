"""Runs inside the emulation: every network of a folder in the runtime there, by the engines of the agent (device/agent.py).

python _pi_guest.py FOLDER: for each i.tflite or i.onnx with i.npy [N, *input], writes i.out.npy [N, *output], or i.error.
"""

import sys
from pathlib import Path

import agent
import numpy as np

for model in sorted(Path(sys.argv[1]).glob("*.tflite")) + sorted(Path(sys.argv[1]).glob("*.onnx")):
    kind = agent.Litert if model.suffix == ".tflite" else agent.OnnxRuntime
    try:
        engine = kind(model.read_bytes(), 1)
    except agent.Failure as failure:
        model.with_suffix(".error").write_text(str(failure))
        continue
    results = []
    for sample in np.load(model.with_suffix(".npy")):
        engine.load(sample)
        engine.invoke()
        results.append(np.array(engine.output()))
    np.save(model.with_suffix(".out.npy"), np.stack(results))
