"""Graph -> a folder of C99 sources: the blob as a constant array, the kernels that it uses, an example.

    model.c, model.h    the blob, the arena, the kernel table, `int ce_run(const int8_t *in, int8_t *out)`
    live.c, live.h      `int ce_run_certified(...)`: runs it and bounds its decision; a second arena, only where it is called
    ce_*.c, ce_*.h      the portable runtime: only the kernels that the model uses
    example/            main.c, sample.h (one input and the interpreter's output for it), Makefile

No malloc, no float and no libc in any of it except example/ and ce_quantize.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cactus_edge.errors import InputError
from cactus_edge.formats.c.blob import build
from cactus_edge.formats.c.blob_format import PACKED, Blob, Kind
from cactus_edge.ir.evaluate import quantised, run
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Int8
from cactus_edge.ir.profile import Profile
from cactus_edge.resources import data_path, write_atomic

KERNELS = {kind: f"ce_{kind.name.lower()}_s8" for kind in Kind} | {
    packed: f"ce_{packed.name.lower()}" for packed in PACKED.values()
}
"""The C function, and the file without its ending, of each op kind."""

BOUNDS = {either: f"ce_{kind.name.lower()}_bounds_s8" for kind, packed in PACKED.items() for either in (kind, packed)}
"""The same of the kinds that bound a box otherwise than by the plain kernel at each end."""

SUPPORT = ("ce_model_run", "ce_certify", "ce_sha256", "ce_crc32")
"""Sources that every model brings: the walker, what bounds a decision, and what firmware needs to say which blob it runs."""


@dataclass(frozen=True)
class CSources:
    """What was written. `sources`: every .c file of the model and its runtime, example excluded; `folder` is the include path.

    `files`: all of it, relative to the folder.
    """

    folder: Path
    sources: tuple[Path, ...]
    blob: Blob
    files: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the blob."""
        return self.blob.digest


def c_name(text: str) -> str:
    """A name that `write_c` takes: other characters than its own are '-', of more than 32 the first stay."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:32] or "model"


def write_c(
    graph: Graph,
    profile: Profile,
    folder: Path,
    *,
    name: str = "model",
    labels: Sequence[str] = (),
    sample: Int8 | None = None,
) -> CSources:
    """Writes the sources into `folder` and says what they are.

    name: what a board calls the model: letters, digits, '.', '_' and '-'. labels: the classes by output index, for the
    example; none, or one per output. sample int8 [*input.shape]: the example's input, zero points where it is not given.
    Raises InputError for a name, labels or a sample that do not fit, UnsupportedError and ModelError as `to_blob` does.
    """
    blob = build(graph, profile)
    program = lower(graph, profile)
    outputs = blob.header["out_bytes"]
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", name):
        raise InputError(f"model name {name!r}: expected 1 to 32 letters, digits, '.', '_' or '-'")
    if labels and len(labels) != outputs:
        raise InputError(f"{len(labels)} labels for {outputs} outputs")
    shape = program.values[program.input].shape
    given = np.full(shape, blob.header["in_zero"], np.int8) if sample is None else sample
    x = quantised(program, given[np.newaxis])
    used = sorted({record.kind for record in blob.records})
    kernels = [table[kind] for table in (KERNELS, BOUNDS) for kind in used if kind in table]
    files = [*dict.fromkeys(kernels), *SUPPORT]
    for source in data_path("export", "c", "src").glob("*.c"):
        if (
            source.stem not in files
        ):  # of another model that was written here: a firmware takes every source of the folder
            (folder / source.name).unlink(missing_ok=True)
    headers = sorted(data_path("export", "c", "include").glob("*.h"))
    written: dict[str, str | bytes] = {
        **{f"{file}.c": data_path("export", "c", "src", f"{file}.c").read_bytes() for file in files},
        **{header.name: header.read_bytes() for header in headers},
        "model.h": _header(blob, name, shape, program.values[program.output].shape, profile.name),
        "model.c": _source(blob, used),
        "live.h": _live_header(blob),
        "live.c": _live_source(used),
        "example/sample.h": _sample(x[0], run(program, x)[0], labels),
        **{f"example/{f}": data_path("export", "c", "example", f).read_bytes() for f in ("main.c", "Makefile")},
    }
    for file, content in written.items():
        write_atomic(folder / file, content)
    sources = tuple(folder / f"{file}.c" for file in ("model", "live", *files))
    return CSources(folder, sources, blob, tuple(written))


def _header(blob: Blob, name: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...], profile: str) -> str:
    h = blob.header
    return f"""/* SPDX-License-Identifier: CC0-1.0
 * The model, generated: do not edit. Digest of its blob (SHA-256): {blob.digest}
 * Computes what profile "{profile}" computes, bit for bit. */
#ifndef CE_MODEL_H
#define CE_MODEL_H

#include <stdint.h>

#include "ce_runtime.h"

#ifdef __cplusplus
extern "C" {{
#endif

#define CE_MODEL_NAME "{name}"
#define CE_MODEL_DIGEST "{blob.digest}"
#define CE_MODEL_WORDS {h["words"]}   /* of 4 bytes, constant */
#define CE_MODEL_OPS {h["ops"]}
#define CE_ARENA_BYTES {h["arena"]}   /* of RAM; the only RAM besides the stack */

/* int8, row-major; real = scale * (code - zero). */
#define CE_INPUT_BYTES {h["in_bytes"]}   /* {_shape(in_shape)} */
#define CE_INPUT_SCALE {_float(blob.input_scale)}
#define CE_INPUT_ZERO ({h["in_zero"]})
#define CE_OUTPUT_BYTES {h["out_bytes"]}   /* {_shape(out_shape)} */
#define CE_OUTPUT_SCALE {_float(blob.output_scale)}
#define CE_OUTPUT_ZERO ({h["out_zero"]})

extern const uint32_t ce_model_blob[CE_MODEL_WORDS];
extern const ce_model ce_model_object;

/* Runs the model once: in int8 [CE_INPUT_BYTES], out int8 [CE_OUTPUT_BYTES]. Returns CE_OK (0). Not reentrant. */
int ce_run(const int8_t *in, int8_t *out);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(blob: Blob, used: Sequence[Kind]) -> str:
    words = [f"0x{w:08x}u" for w in struct.unpack(f"<{len(blob.data) // 4}I", blob.data)]
    return f"""/* SPDX-License-Identifier: CC0-1.0
 * The model, generated: do not edit. Changing a word changes the digest that the certificate names. */
#include "model.h"

const uint32_t ce_model_blob[CE_MODEL_WORDS] = {{
{_rows(words, 8)}
}};

static int8_t arena[CE_ARENA_BYTES];

static const ce_kernel kernels[CE_KINDS] = {{
{_table(KERNELS, used)}
}};

const ce_model ce_model_object = {{ce_model_blob, kernels, arena, CE_MODEL_DIGEST}};

int ce_run(const int8_t *in, int8_t *out)
{{
    return ce_model_run(&ce_model_object, in, out, 0, 0);
}}
"""


def _live_header(blob: Blob) -> str:
    return f"""/* SPDX-License-Identifier: CC0-1.0
 * Live inputs, generated: do not edit. A linker that drops what is not called keeps none of it where none is called. */
#ifndef CE_LIVE_H
#define CE_LIVE_H

#include <stdint.h>

#include "ce_certify.h"

#ifdef __cplusplus
extern "C" {{
#endif

#define CE_LIVE_BYTES {blob.header["arena"]}   /* of RAM, besides the model's: the arena of the upper ends */

extern const ce_certifier ce_model_certifier;

/* Runs the model on `in`, int8 [CE_INPUT_BYTES] anywhere, also at ce_model_input(), and bounds its decision over the
 * region: out int8 [CE_OUTPUT_BYTES], *label the first of its largest outputs, *verdict whether it wins strictly
 * throughout (ce_certify.h). One radius for every input:
 *     const uint8_t radius = 4;
 *     const ce_region region = {{&radius, 0, -128, 127}};
 * Returns CE_OK, or what ce_model_run and ce_certify return. Not reentrant. */
int ce_run_certified(const int8_t *in, const ce_region *region, int8_t *out, int32_t *label, ce_verdict *verdict);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _live_source(used: Sequence[Kind]) -> str:
    return f"""/* SPDX-License-Identifier: CC0-1.0
 * Live inputs, generated: do not edit. */
#include "live.h"

#include "model.h"

static int8_t high[CE_LIVE_BYTES];

static const ce_bounds_kernel kernels[CE_KINDS] = {{
{_table(BOUNDS, used)}
}};

const ce_certifier ce_model_certifier = {{&ce_model_object, kernels, high}};

int ce_run_certified(const int8_t *in, const ce_region *region, int8_t *out, int32_t *label, ce_verdict *verdict)
{{
    /* `in` may lie in the model's arena, which the run overwrites. */
    int8_t *const seen = high + ce_model_header(&ce_model_object)->in;
    for (int32_t i = 0; i < CE_INPUT_BYTES; i++) {{
        seen[i] = in[i];
    }}
    const int status = ce_run(seen, out);
    if (status != CE_OK) {{
        return status;
    }}
    *label = 0;
    for (int32_t k = 1; k < CE_OUTPUT_BYTES; k++) {{
        *label = out[k] > out[*label] ? k : *label;
    }}
    return ce_certify(&ce_model_certifier, seen, region, *label, verdict);
}}
"""


def _table(functions: Mapping[Kind, str], used: Sequence[Kind]) -> str:
    """The rows of a table by kind; the null of CE_KINDS 0 where there is none, since C has no empty initialiser."""
    rows = [f"    [CE_{kind.name}] = {functions[kind]}," for kind in used if kind in functions]
    return "\n".join(rows or ["    0,"])


def _sample(x: Int8, y: Int8, labels: Sequence[str]) -> str:
    names = labels or [str(i) for i in range(y.size)]
    return f"""/* One input, and what the interpreter computes for it. */
static const int8_t SAMPLE_INPUT[CE_INPUT_BYTES] = {{
{_rows([str(v) for v in x.ravel()], 24)}
}};

static const int8_t SAMPLE_OUTPUT[CE_OUTPUT_BYTES] = {{
{_rows([str(v) for v in y.ravel()], 24)}
}};

static const char *const LABELS[CE_OUTPUT_BYTES] = {{
{_rows([_string(name) for name in names], 4)}
}};
"""


def _rows(values: Sequence[str], width: int) -> str:
    return "\n".join("    " + ", ".join(values[i : i + width]) + "," for i in range(0, len(values), width))


def _shape(shape: tuple[int, ...]) -> str:
    return "".join(f"[{n}]" for n in shape)


def _float(value: float) -> str:
    """A C literal that every compiler reads back as this float32."""
    text = np.format_float_scientific(np.float32(value), unique=True, trim="0")
    return f"{text}f"


def _string(text: str) -> str:
    """A C string literal: printable ASCII as it is, every other UTF-8 byte as a three-digit octal escape."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode()) + '"'
