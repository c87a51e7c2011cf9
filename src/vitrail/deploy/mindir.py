"""MindIR, a network that MindSpore loads without knowing its code, from a program of `torch.export`.

A MindIR file is one protobuf message: parameters, and nodes in the order of execution, each with the shape of what it
yields. Every ATen operation of the program becomes one or a few of MindSpore's primitives, in a function of its own;
OPERATIONS is the table of them. Sizes are those that the program was exported with, and numbers are float32.

Version 1 keeps what configures a primitive, such as an axis, in attributes of the node; MindSpore 2.0 and newer read
it, and MindSpore Lite. Version 3 hands most of that over as constant inputs and lists the primitives apart, as
MindSpore 2.10 does itself; only what was loaded from such a file can MindSpore export again.

Source: MindSpore's mind_ir.proto, whose fields are given here by their numbers, and what its `export` writes.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as version_of
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import Node, map_arg

from vitrail.errors import ExportError
from vitrail.files import Buffer
from vitrail.weights.formats.protobuf import block, header, integer, real

Shape = tuple[int, ...]

GRAPH = "vitrail"
FLOAT, INT32, INT64, STRING, BOOL, TENSORS, TUPLE = 1, 6, 7, 8, 9, 19, 20
"""Kinds of attributes; the first two are kinds of tensors too."""
KINDS = {torch.float32: FLOAT, torch.int32: INT32}
ATTRIBUTES_ONLY = ("Conv2D", "Pad", "MakeTuple", "TupleGetItem")
"""Primitives that take no configuration as inputs in version 3 either."""
NUMBERS = {"NCHW": 0}
"""What stands for a word where version 3 makes it an input."""
CHECK_SCRIPT = '''"""Compare the .mindir file of this script's name with the logits that PyTorch computed.

    pip install mindspore==2.10.0 'numpy<2'
"""

import sys
from pathlib import Path

import mindspore as ms
import numpy as np

script = Path(__file__)
stored = np.load(script.with_suffix(".npz"))
ms.set_context(mode=ms.GRAPH_MODE)
network = ms.nn.GraphCell(ms.load(str(script.with_suffix("").with_suffix(".mindir"))))
logits = network(ms.Tensor(stored["images"])).asnumpy()
difference = np.abs(logits - stored["logits"]).max()
good = bool(difference <= 1e-4)
print(f"MindSpore {ms.__version__}: logits differ by at most {difference:.2g};", "good" if good else "above 1e-4")
sys.exit(not good)
'''
"""For MindSpore 2.0 and newer; needs neither PyTorch nor this package."""


def to_mindir(
    program: ExportedProgram, version: Literal[1, 3] = 1, info: Mapping[str, str] | None = None
) -> list[Buffer]:
    """Return the pieces of a MindIR file, in order; weights are views of the program's own, not copies.

    Parameters that nothing reads are left out.

    Args:
        program: An inference program of float32, with fixed sizes.
        version: Of the format.
        info: Texts to be kept in the file beside the network, which MindSpore passes over.

    Raises:
        ExportError: An operation without a mapping, or weights of another type; the message names all of them.
    """
    _refuse_unmapped(program)
    graph = Graph(version)
    tensors: dict[Any, Any] = {**program.state_dict, **program.constants}
    values: dict[Node, Any] = {}
    inputs, parameters = [], []
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, given in zip(placeholders, program.graph_signature.input_specs, strict=True):
        name = f"{GRAPH}:{given.target or node.name}"
        values[node] = Value(name, tuple(node.meta["val"].shape))
        if given.kind == InputKind.USER_INPUT:
            inputs.append(values[node])
        elif node.users:
            parameters += _parameter(name, tensors[given.target])
    for node in program.graph.nodes:
        if node.op == "call_function":
            values[node] = _convert(graph, node, values)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    outputs = [values[node] for node in output.args[0]]

    nodes = [block(1, node) for node in graph.nodes]
    ends = [block(5, _value_info(value)) for value in inputs] + [block(6, _value_info(value)) for value in outputs]
    pieces = [*nodes, block(2, GRAPH), *parameters, *ends]
    before = block(1, "1.1") + block(2, "vitrail") + block(5, version_of("vitrail"))
    after = integer(10, True) + integer(13, version)
    after += b"".join(block(12, block(1, name) + content) for content, name in graph.primitives.items())
    after += b"".join(block(14, block(1, key) + block(2, text)) for key, text in (info or {}).items())
    return [before, header(7, sum(map(len, pieces))), *pieces, after]


class NoCounterpart(Exception):
    """An operation that cannot be written as it is called, with the reason."""


class Value(NamedTuple):
    """What an input, a parameter or a node yields: a tensor, or a tuple of several."""

    name: str
    shape: Any
    """A Shape, or a list of them."""


class Graph:
    """The nodes written so far."""

    def __init__(self, version: Literal[1, 3]) -> None:
        self.version = version
        self.nodes: list[bytes] = []
        self.constants: dict[bytes, str] = {}
        self.primitives: dict[bytes, str] = {}

    def node(self, primitive: str, shape: Shape | list[Shape], *inputs: Any, **configuration: Any) -> Value:
        """Append a node, and return what it yields.

        Args:
            primitive: MindSpore's name of it.
            shape: Of what it yields.
            inputs: Values; a number, a tuple or a tensor becomes a constant.
            configuration: What else the primitive is told, in the order of its definition in MindSpore.
        """
        attributes = []
        if self.version == 1 or primitive in ATTRIBUTES_ONLY:
            attributes = [block(1, name) + _attribute(x) for name, x in configuration.items()]
        else:
            inputs += tuple(NUMBERS[x] if isinstance(x, str) else x for x in configuration.values())
        names = [x.name if isinstance(x, Value) else self.constant(x) for x in inputs]
        name = f"{GRAPH}:{primitive}:{len(self.nodes)}"
        if self.version == 3:
            primitive, attributes = "REF::" + self.reference(primitive, attributes), []
        self.append(name, primitive, names, [*attributes, block(1, "shape") + _shape(shape)])
        return Value(name, shape)

    def constant(self, x: Any) -> str:
        """Return the name of a constant, which is appended where it is met first."""
        content = _attribute(x)
        if content not in self.constants:
            self.constants[content] = name = f"{GRAPH}:Constant:{len(self.nodes)}"
            self.append(name, "Constant", [], [block(1, "value") + content])
        return self.constants[content]

    def reference(self, primitive: str, attributes: Sequence[bytes]) -> str:
        """Return the name of a primitive in the list that version 3 keeps of them."""
        kind = 1 if primitive in ATTRIBUTES_ONLY else 2  # a primitive, or a function of inputs alone
        content = block(2, primitive) + b"".join(block(3, x) for x in attributes) + integer(5, kind)
        return self.primitives.setdefault(content, f"{primitive}:{len(self.primitives)}")

    def append(self, name: str, operation: str, inputs: Sequence[str], attributes: Sequence[bytes]) -> None:
        """Append a node, which yields one value of the same name."""
        message = b"".join(block(1, x) for x in inputs) + block(2, name) + block(3, name) + block(4, operation)
        self.nodes.append(message + b"".join(block(5, x) for x in attributes))


def _attribute(x: Any) -> bytes:
    """Return an attribute, but for its name."""
    match x:
        case bool():
            return integer(3, x) + integer(16, BOOL)
        case int():
            return integer(3, x) + integer(16, INT64)
        case float():
            return real(2, x) + integer(16, FLOAT)
        case str():
            return block(5, x) + integer(16, STRING)
        case tuple():  # whose numbers are told by a list of one
            members = [_attribute(y) if isinstance(y, tuple) else integer(10, y) + integer(16, INT64) for y in x]
            return b"".join(block(17, member) for member in members) + integer(16, TUPLE)
        case Tensor():
            return block(12, _tensor(x.shape, x.dtype) + block(9, _content(x))) + integer(16, TENSORS)
    raise NoCounterpart(f"given {x!r}")


def _tensor(shape: Sequence[int], dtype: torch.dtype = torch.float32, name: str = "") -> bytes:
    """Return a tensor, but for its content."""
    return b"".join(integer(1, n) for n in shape) + integer(2, KINDS[dtype]) + (block(7, name) if name else b"")


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _shape(shape: Shape | list[Shape]) -> bytes:
    """Return the attribute that tells what a node yields."""
    if isinstance(shape, list):
        return b"".join(block(17, _shape(member)) for member in shape) + integer(16, TUPLE) + block(18, integer(1, 0))
    return block(12, _tensor(shape)) + integer(16, TENSORS)


def _parameter(name: str, tensor: Tensor) -> list[Buffer]:
    if tensor.dtype != torch.float32:
        raise ExportError(
            f"{name.removeprefix(f'{GRAPH}:')}: is {tensor.dtype}, and MindIR is written in float32; convert the model "
            "with float() first"
        )
    start, content = _tensor(tensor.shape, name=name), _content(tensor)
    start += header(9, len(content))
    return [header(3, len(start) + len(content)) + start, content]


def _value_info(value: Value) -> bytes:
    return block(1, value.name) + block(2, _tensor(value.shape))


def _convert(graph: Graph, node: Node, values: Mapping[Node, Any]) -> Any:
    """Append the nodes of one ATen operation."""
    write = OPERATIONS[node.target]
    result = node.meta.get("val")
    shape = tuple(result.shape) if isinstance(result, Tensor) else [tuple(x.shape) for x in result or ()]
    args, kwargs = map_arg((node.args, node.kwargs), lambda x: values[x])
    try:
        try:
            inspect.signature(write).bind(graph, shape, *args, **kwargs)
        except TypeError:  # what is not among the parameters of the function cannot be written
            given = [*node.args, *(f"{name}={x}" for name, x in node.kwargs.items())]
            raise NoCounterpart(f"given {', '.join(map(str, given))}") from None
        return write(graph, shape, *args, **kwargs)
    except NoCounterpart as error:
        _refuse([f"{_place(node)} ({error})"])


def _refuse_unmapped(program: ExportedProgram) -> None:
    missing: dict[Any, Node] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target not in OPERATIONS:
            missing.setdefault(node.target, node)
    if missing:
        _refuse([_place(node) for node in missing.values()])


def _refuse(found: Sequence[str]) -> NoReturn:
    raise ExportError(
        f"MindIR has no counterpart here for {', '.join(found)}; use other operations, or add to OPERATIONS in "
        "vitrail/deploy/mindir.py what they are in MindSpore"
    )


def _place(node: Node) -> str:
    """Return an operation and the module that it is in."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{node.target}{f' in {modules[-1]}' if modules else ''}"


# What follows turns one ATen operation each into nodes: given the graph, the shape of the result and the operands.


def _reshape(graph: Graph, shape: Shape, x: Value, *_: Any) -> Value:
    """Write any operation that changes nothing but the shape, if it changes that."""
    return x if x.shape == shape else graph.node("Reshape", shape, x, shape)


def _same(graph: Graph, shape: Shape, x: Value) -> Value:
    """Write nothing."""
    return x


def _dropout(graph: Graph, shape: Shape, x: Value, rate: float, train: bool) -> Value:
    """Write nothing, as befits inference."""
    if train:
        raise NoCounterpart("of training; call eval() first")
    return x


def _to_dtype(graph: Graph, shape: Shape, x: Value, dtype: torch.dtype) -> Value:
    """Write nothing for float32."""
    if dtype != torch.float32:
        raise NoCounterpart(f"to {dtype}")
    return x


def _check(graph: Graph, shape: Shape, x: Value, **_: Any) -> None:
    """Write nothing for what the export itself has checked."""


def _permute(graph: Graph, shape: Shape, x: Value, order: Sequence[int]) -> Value:
    return graph.node("Transpose", shape, x, tuple(n % len(shape) for n in order))


def _transpose(graph: Graph, shape: Shape, x: Value, first: int, second: int) -> Value:
    order = list(range(len(shape)))
    order[first], order[second] = order[second], order[first]
    return _permute(graph, shape, x, order)


def _reverse(graph: Graph, shape: Shape, x: Value) -> Value:
    return _permute(graph, shape, x, range(len(shape))[::-1])


def _expand(graph: Graph, shape: Shape, x: Value, _: Sequence[int]) -> Value:
    """Repeat along dimensions of one entry."""
    x = _reshape(graph, (1,) * (len(shape) - len(x.shape)) + x.shape, x)
    return (
        x
        if x.shape == shape
        else graph.node("Tile", shape, x, tuple(n // old for n, old in zip(shape, x.shape, strict=True)))
    )


def _cat(graph: Graph, shape: Shape, parts: Sequence[Value], dim: int = 0) -> Value:
    together = graph.node("MakeTuple", [part.shape for part in parts], *parts)
    return graph.node("Concat", shape, together, axis=dim % len(shape))


def _cut(graph: Graph, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    """Write a part of one dimension, unless it is all of it."""
    dim %= len(x.shape)
    begin, end, strides = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    begin[dim], end[dim], strides[dim] = start, stop, step
    shape = tuple(len(range(*limits)) for limits in zip(begin, end, strides, strict=True))
    if shape == x.shape:
        return x
    masks = dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0)
    return graph.node("StridedSlice", shape, x, tuple(begin), tuple(end), tuple(strides), **masks)


def _slices(
    graph: Graph, shape: Shape, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    return _cut(graph, x, dim, *slice(start, end, step).indices(x.shape[dim]))


def _select(graph: Graph, shape: Shape, x: Value, dim: int, index: int) -> Value:
    index %= x.shape[dim]
    return _reshape(graph, shape, _cut(graph, x, dim, index, index + 1))


def _split(graph: Graph, shapes: list[Shape], x: Value, _: Any, dim: int = 0) -> list[Value]:
    """Write each part, whether the sizes or the number of parts were given."""
    parts, start = [], 0
    for shape in shapes:
        parts.append(_cut(graph, x, dim, start, start + shape[dim]))
        start += shape[dim]
    return parts


def _part(graph: Graph, shape: Shape, parts: list[Value], index: int) -> Value:
    """Write nothing: the parts are written already."""
    return parts[index]


def _unfold(graph: Graph, shape: Shape, x: Value, dim: int, size: int, step: int) -> Value:
    """Gather overlapping windows of one dimension, whose content becomes the last one."""
    dim %= len(x.shape)
    before, after, windows = x.shape[:dim], x.shape[dim + 1 :], shape[dim]
    index = torch.arange(windows, dtype=torch.int32).unsqueeze(1) * step + torch.arange(size, dtype=torch.int32)
    y = graph.node("Gather", (*before, windows * size, *after), x, index.view(-1), dim, batch_dims=0)
    y = _reshape(graph, (*before, windows, size, *after), y)
    order = [n for n in range(len(y.shape)) if n != dim + 1]
    return _permute(graph, shape, y, [*order, dim + 1])


def _pad(graph: Graph, shape: Shape, x: Value, margins: Sequence[int]) -> Value:
    """Write zeros around a tensor, if there are any; the margins begin with the last dimension."""
    if min(margins) < 0:
        raise NoCounterpart("with margins below 0")
    pairs = list(zip(margins[::2], margins[1::2], strict=True))
    pairs += [(0, 0)] * (len(shape) - len(pairs))
    return x if shape == x.shape else graph.node("Pad", shape, x, paddings=tuple(reversed(pairs)))


def _linear(graph: Graph, shape: Shape, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Multiply two-dimensional matrices, the only ones that MatMul takes."""
    rows = math.prod(shape[:-1])
    x = _reshape(graph, (rows, x.shape[-1]), x)
    y = graph.node("MatMul", (rows, shape[-1]), x, weight, transpose_a=False, transpose_b=True)
    if bias is not None:
        y = graph.node("BiasAdd", y.shape, y, bias, format="NCHW")
    return _reshape(graph, shape, y)


def _matmul(graph: Graph, shape: Shape, a: Value, b: Value) -> Value:
    """Multiply by one matrix, or by a matrix for each of the batch."""
    if len(b.shape) == 2:
        rows = math.prod(shape[:-1])
        a = _reshape(graph, (rows, a.shape[-1]), a)
        return _reshape(graph, shape, _product(graph, "MatMul", a, b))
    if a.shape[:-2] != b.shape[:-2]:
        raise NoCounterpart(f"of shapes {a.shape} and {b.shape}")
    return _product(graph, "BatchMatMul", a, b)


def _product(graph: Graph, primitive: str, a: Value, b: Value, transposed: bool = False) -> Value:
    """Multiply matrices, the second of which may be transposed."""
    shape = (*a.shape[:-1], b.shape[-2 if transposed else -1])
    return graph.node(primitive, shape, a, b, transpose_a=False, transpose_b=transposed)


def _attention(graph: Graph, shape: Shape, q: Value, k: Value, v: Value, *, scale: float | None = None) -> Value:
    """Write softmax(scale q k^T) v, of full attention without a mask."""
    q = graph.node("Mul", q.shape, q, torch.tensor(q.shape[-1] ** -0.5 if scale is None else scale))
    weights = _product(graph, "BatchMatMul", q, k, transposed=True)
    weights = graph.node("Softmax", weights.shape, weights, axis=(-1,))
    return _product(graph, "BatchMatMul", weights, v)


def _conv2d(
    graph: Graph,
    shape: Shape,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Value:
    top, left = padding
    y = graph.node(
        "Conv2D",
        shape,
        x,
        weight,
        out_channel=weight.shape[0],
        kernel_size=weight.shape[2:],
        mode=1,  # a convolution in the usual sense
        pad_mode="pad",
        pad=(top, top, left, left),
        pad_list=(top, top, left, left),  # what MindSpore Lite reads
        stride=(1, 1, *stride),
        dilation=(1, 1, *dilation),
        group=groups,
        format="NCHW",
    )
    return y if bias is None else graph.node("BiasAdd", shape, y, bias, format="NCHW")


def _layer_norm(
    graph: Graph, shape: Shape, x: Value, dims: Sequence[int], weight: Value, bias: Value, eps: float, _: bool = True
) -> Value:
    """Write the norm, which yields mean and variance too, and take its first result."""
    first = len(shape) - len(dims)
    rest = (*shape[:first], *(1 for _ in dims))
    y = graph.node(
        "LayerNorm", [shape, rest, rest], x, weight, bias, begin_norm_axis=first, begin_params_axis=first, epsilon=eps
    )
    return graph.node("TupleGetItem", shape, y, 0)


def _gelu(graph: Graph, shape: Shape, x: Value, *, approximate: str = "none") -> Value:
    """Write MindSpore's GeLU, which is the approximation by tanh, or x / 2 (1 + erf(x / sqrt(2)))."""
    if approximate == "tanh":
        return graph.node("GeLU", shape, x)
    y = graph.node("Erf", shape, graph.node("Mul", shape, x, torch.tensor(math.sqrt(0.5))))
    y = graph.node("Add", shape, y, torch.tensor(1.0))
    return graph.node("Mul", shape, graph.node("Mul", shape, x, torch.tensor(0.5)), y)


def _clamp(graph: Graph, shape: Shape, x: Value, low: float | None = None, high: float | None = None) -> Value:
    for primitive, limit in (("Maximum", low), ("Minimum", high)):
        if limit is not None:
            x = graph.node(primitive, shape, x, torch.tensor(float(limit)))
    return x


def _elementwise(primitive: str) -> Callable[..., Value]:
    """Return the writer of an operation on entries of one tensor, or of two, one of which may be a number."""

    def write(graph: Graph, shape: Shape, *operands: Value | float) -> Value:
        return graph.node(primitive, shape, *(x if isinstance(x, Value) else torch.tensor(float(x)) for x in operands))

    return write


def _reduction(primitive: str, **configuration: Any) -> Callable[..., Value]:
    """Return the writer of an operation that reduces some dimensions to one entry."""

    def write(graph: Graph, shape: Shape, x: Value, dims: Sequence[int], keepdim: bool = False) -> Value:
        axis = tuple(n % len(x.shape) for n in dims)
        return graph.node(primitive, shape, x, axis, keep_dims=keepdim, **configuration)

    return write


aten = torch.ops.aten
OPERATIONS: Mapping[Any, Callable[..., Any]] = {
    operator.getitem: _part,
    aten._assert_tensor_metadata.default: _check,
    aten.add.Tensor: _elementwise("Add"),
    aten.alias.default: _same,
    aten.amax.default: _reduction("ReduceMax"),
    aten.cat.default: _cat,
    aten.chunk.default: _split,
    aten.clamp.default: _clamp,
    aten.conv2d.default: _conv2d,
    aten.detach.default: _same,
    aten.div.Tensor: _elementwise("RealDiv"),
    aten.dropout.default: _dropout,
    aten.exp.default: _elementwise("Exp"),
    aten.expand.default: _expand,
    aten.flatten.using_ints: _reshape,
    aten.gelu.default: _gelu,
    aten.layer_norm.default: _layer_norm,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mean.dim: _reduction("ReduceMean"),
    aten.mul.Tensor: _elementwise("Mul"),
    aten.neg.default: _elementwise("Neg"),
    aten.numpy_T.default: _reverse,
    aten.pad.default: _pad,
    aten.permute.default: _permute,
    aten.reshape.default: _reshape,
    aten.scaled_dot_product_attention.default: _attention,
    aten.select.int: _select,
    aten.slice.Tensor: _slices,
    aten.split.Tensor: _split,
    aten.square.default: _elementwise("Square"),
    aten.squeeze.dim: _reshape,
    aten.sub.Tensor: _elementwise("Sub"),
    aten.sum.dim_IntList: _reduction("ReduceSum", skip_mode=False),
    aten.to.dtype: _to_dtype,
    aten.transpose.int: _transpose,
    aten.unfold.default: _unfold,
    aten.unsqueeze.default: _reshape,
}
"""Every ATen operation that the models use, and what writes it."""
