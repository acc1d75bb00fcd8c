"""cactus-edge: train certifiably robust, compressible networks, ship them as int8 files, prove the file that ships.

The verbs of the command line are functions here; each imports what it needs when it is called.

    import cactus_edge as ce
    run = ce.train("digits", "runs/a")
    built = ce.build(run="runs/a", target="mcu")
    certificate = ce.certify("model.tflite", x, y, eps="1/16", profile="tflm")
    from cactus_edge.verify.families import Patch, tone
    certificate = ce.certify("model.tflite", x, y, region=tone(brightness=("-0.1", "0.1")))
    report = ce.verify("certificate.json", "model.tflite", "test.npz")
    outputs = ce.run("model.tflite", x, y, profile="tflm")
"""

from __future__ import annotations

from importlib import import_module

from cactus_edge.version import __version__ as __version__

# Three verbs share their names with packages of ours. Importing a package binds its name here once, the first time; done
# now, the functions bound below keep their names whatever is imported later. `from cactus_edge.verify import regions` works as
# ever; only `import cactus_edge.verify.regions as r` would look for `regions` on the function.
import_module("cactus_edge.certify")
import_module("cactus_edge.train")
import_module("cactus_edge.verify")

from cactus_edge.api import build, certify, verify  # noqa: E402
from cactus_edge.api_boards import bench, flash, targets  # noqa: E402
from cactus_edge.api_files import agree, convert, inspect, run  # noqa: E402
from cactus_edge.api_radius import max_eps  # noqa: E402
from cactus_edge.api_runs import compare, train  # noqa: E402
from cactus_edge.api_signing import sign  # noqa: E402

__all__ = [
    "agree",
    "bench",
    "build",
    "certify",
    "compare",
    "convert",
    "flash",
    "inspect",
    "max_eps",
    "run",
    "sign",
    "targets",
    "train",
    "verify",
]
