"""The written folder: complete, minimal, deterministic, free of float and libc, and its example runs."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_kit import asked, classifier
from strategies import IN_C, random_graph, random_inputs

from cactus_edge.errors import InputError
from cactus_edge.formats.c.blob import blob_digest
from cactus_edge.formats.c.compiler import STRICT, compile_c, zig
from cactus_edge.formats.c.host import CHECKED, agree_c, compare, compiled
from cactus_edge.formats.c.write import KERNELS, CSources, write_c
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.inputs import QuantizeRule
from cactus_edge.resources import data_path

TFLM = profile("tflm")


def small_graph() -> Graph:
    """float -> QUANTIZE -> MAX_POOL -> DENSE -> SOFTMAX -> DEQUANTIZE."""
    rng = np.random.default_rng(3)
    builder = GraphBuilder()
    f = builder.input(Tensor("f", (4, 4, 2), "float32"))
    x = builder.node(ops.Quantize(), [f], Tensor("x", (4, 4, 2), "int8", 0.125, -3))
    p = builder.node(ops.MaxPool((2, 2), (2, 2)), [x], Tensor("p", (2, 2, 2), "int8", 0.125, -3))
    dense = ops.Dense(
        ops.freeze(rng.integers(-127, 128, (3, 8)), np.int8),
        ops.freeze(rng.integers(-500, 500, 3), np.int32),
        ops.freeze([2.0**-6], np.float32),
    )
    y = builder.node(dense, [p], Tensor("y", (3,), "int8", 0.25, 7))
    z = builder.node(ops.Softmax(), [y], Tensor("z", (3,), "int8", 1 / 256, -128))
    return builder.finish(builder.node(ops.Dequantize(), [z], Tensor("g", (3,), "float32")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> CSources:
    x = np.arange(-16, 16, dtype=np.int8).reshape(4, 4, 2)
    folder = tmp_path_factory.mktemp("c")
    return write_c(small_graph(), TFLM, folder, name="small-1", labels=["null", 'ei"ns', "zwölf"], sample=x)


def test_folder_holds_the_used_kernels_and_no_other(written: CSources) -> None:
    used = {"ce_max_pool_s8", "ce_dense_s8", "ce_softmax_s8"}
    present = {path.stem for path in written.folder.glob("ce_*_s8.c")}
    assert present == used | {"ce_dense_bounds_s8"} and used < set(KERNELS.values())
    assert set(written.sources) == set(written.folder.glob("*.c"))
    assert written.digest == blob_digest(small_graph(), TFLM)
    assert written.digest in (written.folder / "model.h").read_text()


def test_same_graph_same_files(written: CSources, tmp_path: Path) -> None:
    again = write_c(small_graph(), TFLM, tmp_path, name="small-1")
    for path in again.sources:
        assert path.read_bytes() == (written.folder / path.name).read_bytes()
    assert (tmp_path / "model.h").read_bytes() == (written.folder / "model.h").read_bytes()


def test_agreement(written: CSources) -> None:
    graph = small_graph()
    x = random_inputs(np.random.default_rng(0), graph, 200)
    result = agree_c(graph, x, TFLM, written)
    result.require()
    assert (result.inputs, result.elements, result.mismatches) == (200, 600, 0)
    assert result.model_sha256 == written.digest


def test_agreement_names_the_layer_of_another_model(written: CSources) -> None:
    """A blob whose bias is off by enough to see: the comparison names DENSE, not what follows."""
    source = (written.folder / "model.c").read_text()
    record = next(r for r in written.blob.records if r.kind.name == "DENSE")
    at = record.fields["bias"]
    words = re.findall(r"0x[0-9a-f]{8}u", source)
    words[at] = f"0x{(int(words[at][:-1], 16) + 2000) & 0xFFFFFFFF:08x}u"
    it = iter(words)
    (written.folder / "model.c").write_text(re.sub(r"0x[0-9a-f]{8}u", lambda _: next(it), source))
    try:
        graph = small_graph()
        with compiled(written) as program:
            result = compare(graph, random_inputs(np.random.default_rng(0), graph, 50), TFLM, program)
    finally:
        (written.folder / "model.c").write_text(source)
    assert not result.exact and result.first_layer is not None
    assert "Dense" in result.first_layer.label


def test_example_runs_and_compares_itself(written: CSources, tmp_path: Path) -> None:
    program = tmp_path / "example"
    main = written.folder / "example" / "main.c"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror"]
    compile_c(zig(), [*flags, f"-I{written.folder}", main, *written.sources, "-o", program])
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "0 of 3 outputs differ" in done.stdout
    assert "zwölf" in done.stdout and 'ei"ns' in done.stdout
    assert "certified within one code" in done.stdout


def test_the_written_model_bounds_its_decisions(written: CSources) -> None:
    """The generated tables and arenas: the same answers as with every kernel there is."""
    questions = asked(np.random.default_rng(1), small_graph(), 40, 3, (-120, 120))
    assert questions is not None
    with compiled(written, CHECKED) as program:
        got = program.certify(questions.x, questions.radius, questions.ends, questions.labels)
    assert np.array_equal(got, questions.decided()) and 0 < got[:, 1].sum() < 40


BOTH_PLACES = """
#include <stdio.h>
#include "live.h"
#include "model.h"
int main(void)
{
    static int8_t in[CE_INPUT_BYTES];
    const uint8_t radius = 3;
    const ce_region region = {&radius, 0, -128, 127};
    while (fread(in, 1, sizeof in, stdin) == sizeof in) {
        for (int place = 0; place < 2; place++) {
            int8_t *const at = place ? ce_model_input(&ce_model_object) : in;
            for (int i = 0; i < CE_INPUT_BYTES; i++) {
                at[i] = in[i];
            }
            int8_t out[CE_OUTPUT_BYTES];
            int32_t label;
            ce_verdict verdict;
            const int status = ce_run_certified(at, &region, out, &label, &verdict);
            const int32_t found[4] = {status, label, verdict.certified, verdict.margin};
            fwrite(found, sizeof found, 1, stdout);
        }
    }
    return 0;
}
"""
"""Bounds each input's decision twice: from memory of its own, and written in place."""


def both_places(sources: CSources, x: np.ndarray, folder: Path) -> np.ndarray:
    """[N, 2, 4]: status, label, certified and margin of each input int8 [N, ...], by where it lies."""
    main, program = folder / "both.c", folder / "both"
    main.write_text(BOTH_PLACES)
    compile_c(zig(), ["-std=c99", "-O2", *CHECKED, f"-I{sources.folder}", main, *sources.sources, "-o", program])
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, "<i4").reshape(len(x), 2, 4)


def live_in_place(sources: CSources, graph: Graph, folder: Path) -> None:
    questions = asked(np.random.default_rng(7), graph, 300, 3, (-128, 127))
    assert questions is not None
    found = both_places(sources, questions.x, folder)
    wanted = replace(questions, radius=np.full_like(questions.radius, 3)).decided()
    for place in range(2):
        assert np.array_equal(found[:, place, 1], questions.labels)
        assert np.array_equal(found[:, place, [0, 2, 3]], wanted)
    assert 0 < wanted[:, 1].sum() < len(wanted)


def test_an_input_in_place_is_bounded_as_one_that_is_not(tmp_path: Path) -> None:
    """The run overwrites the arena that the input lies in."""
    graph = classifier(np.random.default_rng(1), True, "logits")
    live_in_place(write_c(graph, TFLM, tmp_path), graph, tmp_path)


def test_bounds_around_what_the_run_left_are_seen(tmp_path: Path) -> None:
    """The planted fault: the box around the bytes that lie there after the run."""
    graph = classifier(np.random.default_rng(1), True, "logits")
    sources = write_c(graph, TFLM, tmp_path)
    source = (tmp_path / "live.c").read_text()
    faulty = source.replace("ce_run(seen, out)", "ce_run(in, out)").replace("certifier, seen,", "certifier, in,")
    assert faulty != source
    (tmp_path / "live.c").write_text(faulty)
    with pytest.raises(AssertionError):
        live_in_place(sources, graph, tmp_path)


def test_no_float_and_no_libc_outside_the_helpers() -> None:
    root = data_path("export", "c")
    for path in [*(root / "src").glob("*.c"), *(root / "include").glob("*.h")]:
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
        headers = set(re.findall(r"#include <(\w+)\.h>", text))
        assert headers <= {"stdint", "stddef"}, path.name
        if path.name != "ce_quantize.h":
            assert not re.search(r"\b(float|double|malloc|free|\d+\.\d+)\b", text), path.name


def test_headers_compile_as_cpp(written: CSources, tmp_path: Path) -> None:
    unit = tmp_path / "unit.cpp"
    unit.write_text(
        '#include "model.h"\n#include "ce_quantize.h"\n#include "ce_sha256.h"\n#include "ce_crc32.h"\n#include "live.h"\n'
    )
    compile_c(
        zig(), ["-x", "c++", "-Wall", "-Wextra", "-Werror", f"-I{written.folder}", "-c", unit, "-o", tmp_path / "o"]
    )


def test_quantize_helper_is_the_profile_rule(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    scale, zero = float(np.float32(0.0123)), -17
    codes = np.arange(-150, 150, 0.5)
    x = np.concatenate(
        [codes * scale, np.nextafter((codes * scale).astype(np.float32), np.float32(0)), rng.normal(0, 2, 5000)]
    )
    # Beyond 2^31 steps the profile refuses, since C leaves the conversion undefined; the helper saturates.
    beyond = np.array([1e30, -1e30, np.inf, -np.inf], np.float32)
    x = np.concatenate([x, [0.0, -0.0, 1e-40], beyond]).astype(np.float32)
    program, source = tmp_path / "q", tmp_path / "q.c"
    source.write_text(
        '#include <stdio.h>\n#include "ce_quantize.h"\nint main(void) { float x; while (fread(&x, 4, 1, stdin) == 1) '
        f"putchar((unsigned char)ce_quantize(x, {float(scale).hex()}f, {zero})); return 0; }}\n"
    )
    compile_c(zig(), [*STRICT, "-O2", f"-I{data_path('export', 'c', 'include')}", source, "-o", program])
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
    expected = np.concatenate([QuantizeRule(scale, zero, "half_away").apply(x[:-4]), [127, -128, 127, -128]])
    assert np.array_equal(np.frombuffer(done.stdout, np.int8), expected)


@pytest.mark.parametrize("scale", [2.0**-20, 0.1, 1 / 3, 1.0, 123456.0])
def test_scales_survive_as_c_literals(scale: float, tmp_path: Path) -> None:
    value = float(np.float32(scale))
    builder = GraphBuilder()
    x = builder.input(Tensor("x", (1,), "int8", value, 0))
    graph = builder.finish(builder.node(ops.Relu(), [x], Tensor("y", (1,), "int8", value, 0)))
    sources = write_c(graph, TFLM, tmp_path)
    literal = re.search(r"CE_INPUT_SCALE (\S+)f\n", (tmp_path / "model.h").read_text())
    assert literal is not None and np.float32(literal.group(1)) == np.float32(scale)
    assert sources.blob.input_scale == value


@pytest.mark.parametrize("name", ["", "two words", 'quo"te', "x" * 33, "new\nline"])
def test_a_name_that_no_board_could_print_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model name"):
        write_c(small_graph(), TFLM, tmp_path, name=name)


def test_wrong_number_of_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 labels for 3 outputs"):
        write_c(small_graph(), TFLM, tmp_path, labels=["a", "b"])


def test_sample_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shape"):
        write_c(small_graph(), TFLM, tmp_path, sample=np.zeros((4, 4), np.int8))
    assert not list(tmp_path.iterdir())


def test_random_graphs_as_sources_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    for i in range(4):
        graph = random_graph(rng, 5, IN_C)
        agree_c(graph, random_inputs(rng, graph, 12), TFLM, write_c(graph, TFLM, tmp_path / str(i))).require()
