"""One operator of a .tflite file: name, options and operands, each checked before it is used. Part of `tflite_read`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from enum import IntEnum
from typing import Any

import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import graph as ir
from cactus_edge.ir import ops
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.flatbuffer import Table, Tables
from cactus_edge.verify.tflite_tensors import MAX_INDICES, Tensors, indices, refuse

FLOATS = frozenset({"FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16"})


class Operator:
    """One operator of the file: its name, options and operands, with messages that name it and its index."""

    first = 0
    """The operand that is the first activation."""
    sources: tuple[int, ...] = ()
    """The activations that its last op reads, as the graph numbers them."""
    shape: tuple[int, ...] | None = None
    """The shape of its output when it runs, where that need not be the stored one (`Tensors.define`)."""
    unsigned = False
    """Whether its output is the model's own and holds uint8 codes."""
    stands_for: ir.Tensor | None = None
    """What its input is instead of a tensor of the graph: one of the images of a dilated convolution."""

    def __init__(self, tensors: Tensors, codes: Tables, table: Table, index: int, known: Collection[str]) -> None:
        self.tensors = tensors
        code = codes[table.number(fb.Operator.OPCODE_INDEX, "I", 0)]
        # Files older than 2020 store the code in an int8; newer ones repeat it there, capped at 127.
        builtin = max(
            code.number(fb.OperatorCode.BUILTIN_CODE, "i", 0),
            code.number(fb.OperatorCode.DEPRECATED_BUILTIN_CODE, "b", 0),
        )
        named = 0 <= builtin < len(fb.BUILTIN_OPERATORS)
        self.name = fb.BUILTIN_OPERATORS[builtin] if named else f"builtin operator {builtin}"
        self.what = f"operator {index} {self.name}"
        if self.name == "CUSTOM":
            raise UnsupportedError(
                f"{self.what} {code.text(fb.OperatorCode.CUSTOM_CODE)!r}: custom operators are not supported"
            )
        self.inputs = indices(table, fb.Operator.INPUTS)
        self.outputs = indices(table, fb.Operator.OUTPUTS)
        self._refuse_floats()
        if self.name not in known:
            raise UnsupportedError(f"{self.what} is not supported", hint=f"supported: {', '.join(sorted(known))}")
        if code.number(fb.OperatorCode.VERSION, "i", 1) < 1:
            raise ModelError(f"malformed .tflite: {self.what}: expected a version of at least 1")
        refuse(table, fb.Operator.CUSTOM_OPTIONS, fb.Operator.BUILTIN_OPTIONS_2)
        mutating = table.vector(fb.Operator.MUTATING_VARIABLE_INPUTS, "u1")
        if indices(table, fb.Operator.INTERMEDIATES) or (mutating is not None and mutating.any()):
            raise self.unsupported("an operator with state or intermediate tensors")
        self.options = self._options(table)
        self.steps: list[ir.Node] = []

    def _refuse_floats(self) -> None:
        """Raises UnsupportedError, naming the operator, where it computes on floats: those are between its ends, not inside."""
        reads = [self.tensors.type_name(i) for i in self.inputs if i != -1]
        writes = [self.tensors.type_name(i) for i in self.outputs]
        found = [
            t
            for t in (*reads * (self.name not in ("QUANTIZE", "SHAPE")), *writes * (self.name != "DEQUANTIZE"))
            if t in FLOATS
        ]
        if found:
            weights = ", the weights of a model that is not quantised" if reads == ["FLOAT16"] else ""
            raise UnsupportedError(
                f"{self.what} computes on {found[0]}{weights}: a float island",
                hint="quantise weights and activations: convert with a representative data set and TFLITE_BUILTINS_INT8",
            )

    def _options(self, table: Table) -> Table | None:
        if self.name not in fb.OPTIONS:
            return None
        code, fields = fb.OPTIONS[self.name]
        found = table.number(fb.Operator.BUILTIN_OPTIONS_TYPE, "B", 0)
        if found == 0 and self.name in fb.OPTIONAL_OPTIONS:
            return None
        if found != code:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected options of type {code} ({fields.__name__}), got {found}"
            )
        return table.table(fb.Operator.BUILTIN_OPTIONS, fields)

    def option(self, field: IntEnum, code: str = "i", default: float = 0) -> Any:
        """An option's value, the schema's default where it is absent."""
        return default if self.options is None else self.options.number(field, code, default)

    def activation(self, field: IntEnum) -> ops.Activation:
        code = self.option(field, "b")
        name = fb.ACTIVATIONS[code] if 0 <= code < len(fb.ACTIVATIONS) else str(code)
        if name not in ops.Activation.__members__:
            raise UnsupportedError(f"{self.what}: fused activation {name} is not supported")
        return ops.Activation[name]

    def pair(self, h: IntEnum, w: IntEnum, default: int = 0) -> tuple[int, int]:
        """Two positive options, (height, width)."""
        found = (self.option(h, default=default), self.option(w, default=default))
        if min(found) < 1:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected {h.name.lower()} and {w.name.lower()} above zero, got {found}"
            )
        return found

    def padding(
        self,
        field: IntEnum,
        x: ir.Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
    ) -> ops.Padding2d:
        code = self.option(field, "b")
        if not 0 <= code < len(fb.PADDINGS):
            raise UnsupportedError(f"{self.what}: padding {code} is not supported, expected SAME or VALID")
        if len(x.shape) != 3:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected an input [1, height, width, channels], got [1, *{x.shape}]"
            )
        if fb.PADDINGS[code] == "VALID":
            return ops.Padding2d()
        return ops.same_padding((x.shape[0], x.shape[1]), kernel, stride, dilation)

    def operands(self, least: int, most: int, outputs: int) -> None:
        """Raises ModelError unless the operator has `least` to `most` inputs and `outputs` outputs."""
        if not least <= len(self.inputs) <= most or len(self.outputs) != outputs:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected {least} to {most} inputs and {outputs} outputs, got "
                f"{len(self.inputs)} and {len(self.outputs)}"
            )

    def x(self, index: int = 0) -> ir.Tensor:
        """The activation that is operand `index`."""
        if self.stands_for is not None:
            return self.stands_for
        return self.tensors.activations[self.tensors.use(self.inputs[index], f"input {index} of {self.what}")]

    def constant(self, index: int, type_name: str) -> tuple[npt.NDArray[Any], Table]:
        """The constant that is operand `index`, and its table."""
        return self.tensors.constant(self.inputs[index], type_name, f"input {index} of {self.what}")

    def vector(self, index: int) -> list[int]:
        """The int32 elements of the constant operand `index`."""
        found = self.constant(index, "INT32")[0]
        if found.size > MAX_INDICES:
            raise self.unsupported(f"input {index} with {found.size} entries, more than {MAX_INDICES},")
        listed: list[int] = found.ravel().tolist()
        return listed

    def output(self, index: int = 0) -> ir.Tensor:
        """The activation that it writes as output `index`, before it is defined."""
        written = self.outputs[index]
        return self.tensors.peek(written, self.shape, unsigned=self.tensors.type_name(written) == "UINT8")

    def step(self, op: ops.Op, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Puts `op` in front of the operator's last one; its result of `shape`, quantised as its first input, as the graph numbers it."""
        like = self.tensors.activations[inputs[0]]
        result = self.tensors.add(replace(like, name=f"{self.output().name}/{len(self.steps)}", shape=shape))
        self.steps.append(ir.Node(op, inputs, result))
        return result

    def axis(self, axis: int) -> int:
        """`axis` (negative: from the end) of the first activation among the sample's. Refuses the batch axis."""
        rank = len(self.x(self.first).shape) + 1
        found = axis + rank if axis < 0 else axis
        if not 1 <= found < rank:
            raise self.unsupported(f"axis {axis} of a tensor of {rank} axes (the first is the batch)")
        return found - 1

    def malformed(self, expected: str, got: object) -> ModelError:
        return ModelError(f"malformed .tflite: {self.what}: expected {expected}, got {got}")

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.what}: {what} is not supported")
