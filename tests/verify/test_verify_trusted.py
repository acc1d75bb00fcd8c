"""The trusted base: what re-checking a certificate of a .tflite executes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from test_verify_certificate import CERTIFICATE, MODEL, X, Y

ALONE = """
import sys
from importlib.abc import MetaPathFinder

OTHERS = ("cactus_edge.formats", "cactus_edge.certify.", "cactus_edge.train", "cactus_edge.device", "cactus_edge.report")

class Only(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in (*sys.stdlib_module_names, "numpy", "cactus_edge") or name.startswith(OTHERS):
            raise ModuleNotFoundError(f"{name} is not of the trusted base")

sys.meta_path.insert(0, Only())
from pathlib import Path
import numpy as np
from cactus_edge.verify.recheck import recheck

folder = Path(sys.argv[1])
data = np.load(folder / "data.npz")
report = recheck((folder / "certificate.json").read_bytes(), (folder / "model.tflite").read_bytes(), data["x"], data["y"])
sys.exit(0 if report.accepted else 1)
"""


def test_a_recheck_needs_ir_verify_and_numpy_alone(tmp_path: Path) -> None:
    """No other layer is imported: neither another format's reader, nor the search, nor the writers."""
    (tmp_path / "certificate.json").write_bytes(CERTIFICATE)
    (tmp_path / "model.tflite").write_bytes(MODEL)
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
