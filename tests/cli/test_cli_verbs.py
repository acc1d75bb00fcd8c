"""Exit codes and messages of every verb, as a user meets them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_kit import Shown, refused

import cactus_edge as ce
from cactus_edge.cli import main
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.samples import read_samples, write_samples


def verify(bundle: Path, **changes: Path) -> list[str]:
    paths = {"certificate": "certificate.json", "model": "model.tflite", "data": "test.npz"}
    given = {name: str(changes.get(name, bundle / default)) for name, default in paths.items()}
    firmware = ["--firmware", str(changes["firmware"])] if "firmware" in changes else []
    return ["verify", given["certificate"], "--model", given["model"], "--data", given["data"], *firmware]


def test_verify_accepts_what_build_left(bundle: Path, capsys: Shown) -> None:
    assert main(verify(bundle, firmware=bundle / "firmware.elf")) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("accepted")
    assert "not checked" in shown


def test_verify_needs_numpy_alone(bundle: Path) -> None:
    """With every other package of the environment out of reach, the certificate is still accepted."""
    arguments = verify(bundle, firmware=bundle / "firmware.elf")
    code = f"""
import sys
from importlib.abc import MetaPathFinder
class Only(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "cactus_edge"):
            raise ModuleNotFoundError(f"{{name}} is not numpy")
sys.meta_path.insert(0, Only())
from cactus_edge.cli import main
sys.exit(main({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def flipped(path: Path, folder: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    copy = folder / path.name
    copy.write_bytes(bytes(data))
    return copy


@pytest.mark.parametrize("what", ["certificate", "model", "firmware"])
def test_verify_rejects_one_flipped_bit(bundle: Path, tmp_path: Path, what: str) -> None:
    name = {"certificate": "certificate.json", "model": "model.tflite", "firmware": "firmware.elf"}[what]
    size = (bundle / name).stat().st_size
    for at in np.linspace(0, size - 1, 25).astype(int):
        changed = flipped(bundle / name, tmp_path, int(at))
        changes = {"firmware": bundle / "firmware.elf"} | {what: changed}
        assert main(verify(bundle, **changes)) in (1, 2), at


def test_verify_rejects_other_data(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    x, y = read_samples(bundle / "test.npz")
    x = x.copy()
    x.flat[0] = 1 - x.flat[0]
    write_samples(tmp_path / "other.npz", x, y)
    assert main(verify(bundle, data=tmp_path / "other.npz")) == 1
    assert "REJECTED" in capsys.readouterr().out


def test_verify_rejects_another_models_certificate(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    other = tmp_path / "cert.json"
    command = [
        "certify",
        str(bundle / "model.tflite"),
        "--data",
        str(bundle / "test.npz"),
        "--eps",
        "1/64",
        "--out",
        str(other),
    ]
    assert main(command) == 0
    record = json.loads(other.read_text())
    assert record["region"]["eps"] == "1/64"
    assert record["region"]["domain"] == ["0", "1"], "the domain comes from the file's own metadata"
    assert main(verify(bundle, certificate=other)) == 0
    capsys.readouterr()
    other.write_text(other.read_text().replace('"eps": "1/64"', '"eps": "1/63"'))
    assert main(verify(bundle, certificate=other)) == 1


def test_verify_of_a_truncated_certificate(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    short = tmp_path / "short.json"
    short.write_bytes((bundle / "certificate.json").read_bytes()[:200])
    refused(verify(bundle, certificate=short), capsys, "truncated")


def certify(bundle: Path, tmp_path: Path, **changes: str) -> list[str]:
    options = {"data": str(bundle / "test.npz"), "eps": "1/64", "out": str(tmp_path / "c.json")} | changes
    return ["certify", str(bundle / "model.tflite"), *(w for k, v in options.items() for w in (f"--{k}", v))]


@pytest.mark.parametrize("eps", ["-1/16", "nan", "2", "inf", "a lot", "1/0"])
def test_certify_refuses_a_bad_eps(bundle: Path, tmp_path: Path, capsys: Shown, eps: str) -> None:
    command = certify(bundle, tmp_path)
    command[command.index("--eps") : command.index("--eps") + 2] = [f"--eps={eps}"]
    refused(command, capsys, "eps")
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("profile", "tflmm", "tflm"),
        ("domain", "0", "two numbers"),
        ("domain", "1,0", "domain"),
        ("data", "no.npz", "no file"),
    ],
)
def test_certify_refuses_bad_options(
    bundle: Path, tmp_path: Path, capsys: Shown, option: str, value: str, word: str
) -> None:
    refused(certify(bundle, tmp_path, **{option: value}), capsys, word)


def test_certify_refuses_data_of_another_model(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    write_samples(tmp_path / "x.npz", np.zeros((3, 28, 28, 1), np.float32), np.zeros(3, np.int64))
    refused(certify(bundle, tmp_path, data=str(tmp_path / "x.npz")), capsys, "28, 28, 1")


def test_certify_refuses_a_file_without_labels(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8, 8, 1), np.float32))
    refused(certify(bundle, tmp_path, data=str(tmp_path / "x.npz")), capsys, "expected the arrays x and y")


def test_certify_can_demand_a_share(bundle: Path, tmp_path: Path) -> None:
    assert main([*certify(bundle, tmp_path, eps="1/16"), "--require", "99.9"]) == 1
    assert main([*certify(bundle, tmp_path, eps="0"), "--require", "1"]) == 0


def test_certify_refuses_a_firmware_of_another_model(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "fw.elf").write_bytes((bundle / "firmware.elf").read_bytes().replace(b"CEB1", b"CEB2"))
    assert main([*certify(bundle, tmp_path), "--firmware", str(tmp_path / "fw.elf")]) in (1, 2)


def test_certificate_for_another_runtime_speaks_of_no_firmware(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    """LiteRT's kernels are another arithmetic: the certificate names no blob, and no firmware can be bound or checked."""
    command = certify(bundle, tmp_path, profile="litert-xnnpack")
    assert main(command) == 0
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["profile"]["name"] == "litert-xnnpack"
    assert "blob_sha256" not in record["model"]
    assert main(verify(bundle, certificate=tmp_path / "c.json")) == 0
    assert main(verify(bundle, certificate=tmp_path / "c.json", firmware=bundle / "firmware.elf")) == 1
    capsys.readouterr()
    assert main([*command, "--firmware", str(bundle / "firmware.elf")]) == 1
    assert "certify with --profile tflm" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive"])
def test_data_that_are_no_archive(bundle: Path, tmp_path: Path, capsys: Shown, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    refused(certify(bundle, tmp_path, data=str(tmp_path / "x.npz")), capsys, "x.npz")


def test_a_single_array_is_refused(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 1), np.float32))
    refused(certify(bundle, tmp_path, data=str(tmp_path / "x.npy")), capsys, "single array")


def test_functions_are_the_verbs(bundle: Path) -> None:
    x, y = read_samples(bundle / "test.npz")
    certificate = ce.certify(bundle / "model.tflite", x, y, eps="1/32", profile="tflm")
    written = json.loads((bundle / "certificate.json").read_text())
    assert certificate.record["verdict"] == written["verdict"]
    assert ce.verify(bundle / "certificate.json", bundle / "model.tflite", bundle / "test.npz").accepted
    assert {t.name for t in ce.targets()} >= {"mcu", "nucleo-l4r5zi"}


def test_bench_compares_every_output_and_resumes(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    command = ["bench", str(bundle / "model.tflite"), "--inputs", "4", "--out", str(tmp_path / "session")]
    assert main(command) == 0
    assert "4 of 4 equal" in capsys.readouterr().out
    assert main(command) == 0
    assert "4 of 4 equal" in capsys.readouterr().out


def test_bench_of_live_inputs(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    command = [
        "bench",
        str(bundle / "model.tflite"),
        "--inputs",
        "4",
        "--out",
        str(tmp_path / "session"),
        "--live",
        "2",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "certified within 2 codes of each" in shown and "4 of 4 equal to verify's by intervals" in shown
    refused([*command[:-1], "256"], capsys, "0 to 255")
    refused([*command, "--target", "raspberry-pi"], capsys, "no firmware of ours")


def test_bench_of_a_missing_port(bundle: Path, capsys: Shown) -> None:
    refused(["bench", str(bundle / "model.tflite"), "--port", "/dev/does-not-exist"], capsys, "/dev/does-not-exist")


def test_unknown_target_names_the_nearest(bundle: Path, capsys: Shown) -> None:
    refused(["bench", str(bundle / "model.tflite"), "--target", "nucleo-l4r5z"], capsys, "nucleo-l4r5zi")


def test_flash_without_the_tool_or_the_model(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    refused(["flash", str(bundle / "firmware.elf"), "--target", "mcu"], capsys, "not flashed")
    lonely = shutil.copy(bundle / "firmware.elf", tmp_path / "fw.elf")
    refused(["flash", str(lonely), "--target", "nucleo-l4r5zi"], capsys, "--model")


def test_missing_data_set_names_the_three_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setenv("CACTUS_EDGE_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    refused(["build", "--recipe", "mnist", "--out", str(tmp_path / "out")], capsys, "nothing", "cache", "http")


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network in this test")


@pytest.mark.parametrize("verb", ["targets", "recipes", "doctor"])
def test_tables(verb: str, capsys: Shown) -> None:
    assert main([verb]) in (0, 1)
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_profiles_lists_every_row_and_shows_one_in_full(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["profiles"]) == 0
    shown = capsys.readouterr().out
    assert all(any(line.startswith(f"{name} ") for line in shown.splitlines()) for name in PROFILES)
    for name, row in PROFILES.items():
        assert main(["profiles", name]) == 0
        shown = capsys.readouterr().out
        assert row.digest() in shown and row.source in shown
        assert all(" ".join(rule) in shown for rule in row.rules.values())
    refused(["profiles", "x-cub-ai"], capsys, "x-cube-ai")


def test_help_and_usage() -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        main(["certify"])
    assert done.value.code == 2
