"""Which networks TinyEngine's code generator translates as their file says, so that its kernels' rules are the whole story.

It ignores strides of pointwise convolutions, fused activations and the file's padding (it pads by half the kernel, and drops a PAD
in front of a convolution), computes average pools as one window, and overwrites a depthwise convolution's input. What it would
compute otherwise than the file says is refused here. Source: mit-han-lab/tinyengine at 47bb283, code_generator/{TfliteConvertor,
OpGenerator,CodeGenerator}.py, converters/tflite_parser, operators, codetemplate/depthwiseTemplate.py.
"""

from __future__ import annotations

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.graph import Graph, Node
from cactus_edge.ir.ops import Add, AvgPool, Conv2d, Dense, DepthwiseConv2d, Pad, Padding2d

STEM = (3, 3, 3)
"""Kernel and input channels of the one convolution with a window, of stride 2."""

DEPTHWISE_KERNELS = (3, 5, 7)


def check_translated(graph: Graph) -> None:
    """Raises UnsupportedError, naming the op, for what the generator translates into something else or not at all."""
    for index, node in enumerate(graph.nodes):
        problem = _problem(graph, index, node)
        if problem:
            raise UnsupportedError(f"{graph.label(index)}: {problem}, which was not shown equal to TinyEngine")


def _problem(graph: Graph, index: int, node: Node) -> str:
    """What is wrong with one node; "" where nothing is."""
    x, out = graph.tensors[node.inputs[0]], graph.tensors[node.output]
    if any(i in graph.constants for i in node.inputs):
        return "a constant operand"
    match node.op:
        case Pad(pads):
            after = graph.nodes[index + 1].op if index + 1 < len(graph.nodes) else None
            fused = isinstance(after, Conv2d | DepthwiseConv2d) and graph.nodes[index + 1].inputs[0] == node.output
            if not fused or not isinstance(after, Conv2d | DepthwiseConv2d) or _readers(graph, node.output) != 1:
                return "a PAD other than in front of a convolution of its own"
            half = _half(after)
            if pads != ((half, half), (half, half), (0, 0)):
                return f"a PAD by {pads} in front of a kernel of {2 * half + 1}"
        case Conv2d() | DepthwiseConv2d() as op:
            return _convolution(graph, node, op)
        case Dense(weight=weight):
            if x.shape != weight.shape[1:] or weight.shape[1] % 4 or weight.shape[0] % 2:
                return f"weights {weight.shape} on {x.shape}: inputs by fours and outputs by twos"
        case AvgPool(kernel=kernel, padding=padding):
            if kernel != x.shape[:2] or padding != Padding2d():
                return "an average pool of less than the whole image"
        case Add():
            if len(set(node.inputs)) == 1 or any(graph.tensors[i].shape != out.shape for i in node.inputs):
                return "a sum of a tensor with itself or of other shapes"
        case _:
            pass
    return ""


def _convolution(graph: Graph, node: Node, op: Conv2d | DepthwiseConv2d) -> str:
    source = {n.output: n for n in graph.nodes}.get(node.inputs[0])
    padded = source is not None and isinstance(source.op, Pad)
    half = _half(op)
    # What the generator takes for the image, and pads by half a kernel on every side.
    height, width, channels = graph.tensors[source.inputs[0] if padded and source else node.inputs[0]].shape
    before = (half, half) if padded else (op.padding.top, op.padding.left)
    if padded and op.padding != Padding2d():
        return "padding behind a PAD"
    if op.dilation != (1, 1) or op.stride[0] != op.stride[1] or before != (half, half):
        return f"stride {op.stride}, dilation {op.dilation} and {before} rows and columns before the image"
    stride = op.stride[0]
    if graph.tensors[node.output].shape[:2] != (-(-height // stride), -(-width // stride)):
        return "an output of another size than the image's over the stride"
    if isinstance(op, DepthwiseConv2d):
        kernel, count = op.weight.shape[:2], op.weight.shape[2]
        if kernel[0] != kernel[1] or kernel[0] not in DEPTHWISE_KERNELS or stride > 2 or count != channels:
            return f"a kernel {kernel} of stride {stride} with {count} outputs for {channels} channels"
        inner = source.inputs[0] if padded and source else node.inputs[0]
        return "" if _readers(graph, inner) == 1 else "an input that another op reads after it was overwritten"
    outputs, *window = op.weight.shape
    if outputs % 2:
        return f"{outputs} outputs, an odd number"
    if window[:2] == [1, 1]:
        return "" if stride == 1 and channels % 4 == 0 else f"stride {stride} on {channels} channels"
    if tuple(window) != STEM or stride != 2 or height % 2 or width % 2:
        return f"a kernel {tuple(window)} of stride {stride} on {height} x {width}"
    return ""


def _half(op: Conv2d | DepthwiseConv2d) -> int:
    """The rows and columns that the generator pads by."""
    height: int = op.weight.shape[1] if isinstance(op, Conv2d) else op.weight.shape[0]
    return height // 2


def _readers(graph: Graph, tensor: int) -> int:
    return sum(tensor in node.inputs for node in graph.nodes) + (tensor in graph.outputs)
