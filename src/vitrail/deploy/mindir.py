"""Write a program of `torch.export` as MindIR: a network that MindSpore loads without knowing its code.

A MindIR file is one protobuf message: parameters, and nodes in the order of execution, each with
the shape of what it yields. Every ATen operation of the program becomes one or a few of MindSpore's
primitives, in a function of its own; OPERATIONS is the table of them. Sizes are those that the
program was exported with, and numbers are float32.

Version 1 keeps what configures a primitive, such as an axis, in attributes of the node; MindSpore
2.0 and newer read it, and MindSpore Lite. Version 3 hands most of that over as constant inputs and
lists the primitives apart, as MindSpore 2.10 does itself; only what was loaded from such a file can
MindSpore export again.

Source: MindSpore's mind_ir.proto, whose fields are given here by their numbers, and what its
`export` writes.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as version_of
from itertools import starmap
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import Node, map_arg

from vitrail.deploy.mindir_graph import (
    GRAPH,
    Graph,
    NoCounterpart,
    Shape,
    Value,
    write_parameter,
    write_value_info,
)
from vitrail.errors import ExportError
from vitrail.files import Buffer
from vitrail.weights.formats.protobuf import block, header, integer

CHECK_SCRIPT = '''"""Compare the .mindir file of this script's name with the logits that PyTorch computed.

    pip install mindspore==2.10.0 'numpy<2'
"""

import hashlib
import sys
from pathlib import Path

try:
    import mindspore as ms
    import numpy as np
except ImportError as error:
    sys.exit(f"{error.name} is not installed; run: pip install mindspore==2.10.0 'numpy<2'")

script = Path(__file__)
file = script.with_suffix("").with_suffix(".mindir")
stored = np.load(script.with_suffix(".npz"))
if "sha256" in stored and hashlib.sha256(file.read_bytes()).hexdigest() != str(stored["sha256"]):
    sys.exit(f"{file} is not the file that was written with {script.stem}.npz; copy or export all three again")
ms.set_context(mode=ms.GRAPH_MODE)
network = ms.nn.GraphCell(ms.load(str(file)))
logits = network(ms.Tensor(stored["images"])).asnumpy()
difference = np.abs(logits - stored["logits"]).max()
good = bool(difference <= 1e-4)
print(f"MindSpore {ms.__version__}: logits differ by at most {difference:.2g};", "good" if good else "above 1e-4")
sys.exit(not good)
'''
"""A program that is written beside the file, for MindSpore 2.0 and newer; it needs neither PyTorch
nor this package."""


CONV2D_DEFAULTS: tuple[Any, ...] = ((1, 1), (0, 0), (1, 1), 1)
"""Stride, padding, dilation and groups of ATen's conv2d where they are not given."""


def to_mindir(
    program: ExportedProgram, version: Literal[1, 3] = 1, info: Mapping[str, str] | None = None
) -> list[Buffer]:
    """Return the pieces of a MindIR file, in order; weights are views of the program's own, not copies.

    Parameters that nothing reads are left out.

    Args:
        program: An inference program of float32, with fixed sizes.
        version: Version of the format, as above.
        info: Texts to be kept in the file beside the network, which MindSpore passes over.

    Raises:
        ExportError: An operation without a mapping, or weights of another type; the message names
            all of them.
    """
    _refuse_unmapped(program)
    graph = Graph(version)
    values, inputs, parameters = _write_placeholders(program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            values[node] = _convert(graph, node, values)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    outputs = [values[node] for node in output.args[0]]

    # the field `graph` of the model, which is too large to be joined
    pieces: list[Buffer] = [block(1, node) for node in graph.nodes]
    pieces.append(block(2, GRAPH))  # name
    pieces += parameters
    pieces += [block(5, write_value_info(value)) for value in inputs]
    pieces += [block(6, write_value_info(value)) for value in outputs]

    # the other fields of the model
    before = block(1, "1.1")  # ir_version
    before += block(2, "vitrail")  # producer_name
    before += block(5, version_of("vitrail"))  # model_version
    after = integer(10, True)  # little_endian
    after += integer(13, version)  # mind_ir_version
    for content, name in graph.primitives.items():
        after += block(12, block(1, name) + content)  # primitives
    for key, text in (info or {}).items():
        after += block(14, block(1, key) + block(2, text))  # user_info
    return [before, header(7, sum(map(len, pieces))), *pieces, after]


def _write_placeholders(
    program: ExportedProgram,
) -> tuple[dict[Node, Any], list[Value], list[Buffer]]:
    """Return the value of each placeholder, those that are inputs of the network, and the pieces of the parameters."""
    tensors: dict[Any, Any] = {**program.state_dict, **program.constants}
    values: dict[Node, Any] = {}
    inputs = []
    parameters: list[Buffer] = []
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, given in zip(placeholders, program.graph_signature.input_specs, strict=True):
        name = f"{GRAPH}:{given.target or node.name}"
        values[node] = Value(name, tuple(node.meta["val"].shape))
        if given.kind == InputKind.USER_INPUT:
            inputs.append(values[node])
        elif node.users:
            parameters += write_parameter(name, tensors[given.target])
    return values, inputs, parameters


def _convert(graph: Graph, node: Node, values: Mapping[Node, Any]) -> Any:
    """Append the nodes of one ATen operation, and return their result."""
    write = OPERATIONS[node.target]
    args, kwargs = map_arg((node.args, node.kwargs), lambda operand: values[operand])
    try:
        shape = _read_shape(node)
        _check_arguments(write, node, (graph, shape, *args), kwargs)
        return write(graph, shape, *args, **kwargs)
    except NoCounterpart as error:
        _refuse([f"{_describe_place(node)} ({error})"])


def _read_shape(node: Node) -> Shape | list[Shape]:
    """Return the shape of an operation's result, or a list of shapes where it yields several tensors or none."""
    result = node.meta.get("val")
    if isinstance(result, Tensor):
        return tuple(result.shape)
    return [tuple(tensor.shape) for tensor in result or ()]


def _check_arguments(
    write: Callable[..., Any], node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse a call with arguments that are not among the parameters of its writer, which cannot write them."""
    try:
        inspect.signature(write).bind(*args, **kwargs)
    except TypeError:
        given = [str(argument) for argument in node.args]
        given += [f"{name}={argument}" for name, argument in node.kwargs.items()]
        raise NoCounterpart(f"given {', '.join(given)}") from None


def _refuse_unmapped(program: ExportedProgram) -> None:
    missing: dict[Any, Node] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target not in OPERATIONS:
            missing.setdefault(node.target, node)
    if missing:
        _refuse([_describe_place(node) for node in missing.values()])


def _refuse(operations: Sequence[str]) -> NoReturn:
    raise ExportError(
        f"MindIR has no counterpart here for {', '.join(operations)}; use other operations, or add "
        "to OPERATIONS in vitrail/deploy/mindir.py what they are in MindSpore"
    )


def _describe_place(node: Node) -> str:
    """Return an operation and the module that it is in."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    if not modules:
        return f"{node.target}"
    return f"{node.target} in {modules[-1]}"


# What follows writes one ATen operation each: given the graph, the shape of the result and the
# operands, it appends
# nodes and returns their result. An argument that is not among the parameters of the function is
# refused.


def _reshape(graph: Graph, shape: Shape, x: Value, *_: Any) -> Value:
    """Write any operation that changes nothing but the shape, if it changes that."""
    if x.shape == shape:
        return x
    return graph.add("Reshape", shape, x, shape)


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
    return graph.add("Transpose", shape, x, tuple(n % len(shape) for n in order))


def _transpose(graph: Graph, shape: Shape, x: Value, first: int, second: int) -> Value:
    order = list(range(len(shape)))
    order[first], order[second] = order[second], order[first]
    return _permute(graph, shape, x, order)


def _reverse(graph: Graph, shape: Shape, x: Value) -> Value:
    return _permute(graph, shape, x, range(len(shape))[::-1])


def _expand(graph: Graph, shape: Shape, x: Value, _: Sequence[int]) -> Value:
    """Repeat along dimensions of one entry."""
    new_dims = len(shape) - len(x.shape)
    x = _reshape(graph, (1,) * new_dims + x.shape, x)
    if x.shape == shape:
        return x
    repeats = tuple(map(operator.floordiv, shape, x.shape))
    return graph.add("Tile", shape, x, repeats)


def _cat(graph: Graph, shape: Shape, parts: Sequence[Value], dim: int = 0) -> Value:
    together = graph.add("MakeTuple", [part.shape for part in parts], *parts)
    return graph.add("Concat", shape, together, axis=dim % len(shape))


def _cut(graph: Graph, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    """Write a part of one dimension, unless it is all of it."""
    dim %= len(x.shape)
    limits = [(0, size, 1) for size in x.shape]
    limits[dim] = (start, stop, step)
    shape = tuple(map(len, starmap(range, limits)))
    if shape == x.shape:
        return x
    begin, end, strides = zip(*limits, strict=True)
    masks = dict.fromkeys(
        ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0
    )
    return graph.add("StridedSlice", shape, x, begin, end, strides, **masks)


def _slices(
    graph: Graph,
    shape: Shape,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    return _cut(graph, x, dim, *slice(start, end, step).indices(x.shape[dim]))


def _select(graph: Graph, shape: Shape, x: Value, dim: int, index: int) -> Value:
    index %= x.shape[dim]
    return _reshape(graph, shape, _cut(graph, x, dim, index, index + 1))


def _split(graph: Graph, shapes: list[Shape], x: Value, _: Any, dim: int = 0) -> list[Value]:
    """Write each part, whether the sizes or the number of parts were given."""
    parts = []
    start = 0
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
    before = x.shape[:dim]
    after = x.shape[dim + 1 :]
    windows = shape[dim]
    starts = torch.arange(windows, dtype=torch.int32).unsqueeze(1) * step
    index = starts + torch.arange(size, dtype=torch.int32)  # (windows, size)
    y = graph.add("Gather", (*before, windows * size, *after), x, index.view(-1), dim, batch_dims=0)
    y = _reshape(graph, (*before, windows, size, *after), y)
    order = [n for n in range(len(y.shape)) if n != dim + 1]
    return _permute(graph, shape, y, [*order, dim + 1])


def _pad(graph: Graph, shape: Shape, x: Value, margins: Sequence[int]) -> Value:
    """Write zeros around a tensor, if there are any; the margins begin with the last dimension."""
    if min(margins) < 0:
        raise NoCounterpart("with margins below 0")
    pairs = list(zip(margins[::2], margins[1::2], strict=True))
    pairs += [(0, 0)] * (len(shape) - len(pairs))
    if shape == x.shape:
        return x
    return graph.add("Pad", shape, x, paddings=tuple(reversed(pairs)))


def _linear(
    graph: Graph, shape: Shape, x: Value, weight: Value, bias: Value | None = None
) -> Value:
    """Multiply two-dimensional matrices, the only ones that MatMul takes."""
    rows = math.prod(shape[:-1])
    x = _reshape(graph, (rows, x.shape[-1]), x)
    y = graph.add("MatMul", (rows, shape[-1]), x, weight, transpose_a=False, transpose_b=True)
    if bias is not None:
        y = graph.add("BiasAdd", y.shape, y, bias, format="NCHW")
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
    columns = b.shape[-2] if transposed else b.shape[-1]
    shape = (*a.shape[:-1], columns)
    return graph.add(primitive, shape, a, b, transpose_a=False, transpose_b=transposed)


def _attention(
    graph: Graph,
    shape: Shape,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None = None,
    *,
    scale: float | None = None,
) -> Value:
    """Write softmax(scale q k^T + bias) v, of full attention."""
    if scale is None:
        scale = q.shape[-1] ** -0.5
    q = graph.add("Mul", q.shape, q, torch.tensor(scale))
    weights = _product(graph, "BatchMatMul", q, k, transposed=True)
    if bias is not None:
        weights = graph.add("Add", weights.shape, weights, bias)
    weights = graph.add("Softmax", weights.shape, weights, axis=(-1,))
    return _product(graph, "BatchMatMul", weights, v)


def _conv2d(
    graph: Graph, shape: Shape, x: Value, weight: Value, bias: Value | None = None, *geometry: Any
) -> Value:
    """Write a convolution, whose geometry is stride, padding, dilation and groups, as far as they are given."""
    stride, padding, dilation, groups = (*geometry, *CONV2D_DEFAULTS[len(geometry) :])
    top, left = padding
    y = graph.add(
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
    if bias is None:
        return y
    return graph.add("BiasAdd", shape, y, bias, format="NCHW")


def _batch_norm(
    graph: Graph,
    shape: Shape,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    training: bool,
    *others: Any,
) -> Value:
    """Write the norm by the statistics that training kept: (x - mean) / sqrt(variance + eps) weight + bias."""
    if training:
        raise NoCounterpart("of training; call eval() first")
    _, eps, *_ = others
    by_channel = (1, shape[1], *[1] * (len(shape) - 2))
    weight, bias, mean, variance = (
        _reshape(graph, by_channel, one) for one in (weight, bias, mean, variance)
    )
    deviation = graph.add("Add", by_channel, variance, torch.tensor(eps))
    deviation = graph.add("Sqrt", by_channel, deviation)
    y = graph.add("Sub", shape, x, mean)
    y = graph.add("RealDiv", shape, y, deviation)
    y = graph.add("Mul", shape, y, weight)
    return graph.add("Add", shape, y, bias)


def _avg_pool2d(
    graph: Graph,
    shape: Shape,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int] = (),
    *others: Any,
) -> Value:
    """Write means of whole cells, by a mean over two dimensions of their own."""
    cells = (shape[2] * size[0], shape[3] * size[1])
    if others or tuple(stride or size) != tuple(size) or cells != tuple(x.shape[2:]):
        raise NoCounterpart("of other than whole cells side by side")
    y = _reshape(graph, (*shape[:3], size[0], shape[3], size[1]), x)
    return graph.add("ReduceMean", shape, y, (3, 5), keep_dims=False)


def _layer_norm(
    graph: Graph,
    shape: Shape,
    x: Value,
    dims: Sequence[int],
    weight: Value,
    bias: Value,
    eps: float,
    _: bool = True,
) -> Value:
    """Write the norm, which yields mean and variance too, and take its first result."""
    first = len(shape) - len(dims)
    reduced = shape[:first] + (1,) * len(dims)
    y = graph.add(
        "LayerNorm",
        [shape, reduced, reduced],
        x,
        weight,
        bias,
        begin_norm_axis=first,
        begin_params_axis=first,
        epsilon=eps,
    )
    return graph.add("TupleGetItem", shape, y, 0)


def _gelu(graph: Graph, shape: Shape, x: Value, *, approximate: str = "none") -> Value:
    """Write MindSpore's GeLU, which is the approximation by tanh, or x / 2 (1 + erf(x / sqrt(2)))."""
    if approximate == "tanh":
        return graph.add("GeLU", shape, x)
    y = graph.add("Mul", shape, x, torch.tensor(math.sqrt(0.5)))
    y = graph.add("Erf", shape, y)
    y = graph.add("Add", shape, y, torch.tensor(1.0))
    half = graph.add("Mul", shape, x, torch.tensor(0.5))
    return graph.add("Mul", shape, half, y)


def _clamp(
    graph: Graph, shape: Shape, x: Value, low: float | None = None, high: float | None = None
) -> Value:
    for primitive, limit in (("Maximum", low), ("Minimum", high)):
        if limit is not None:
            x = graph.add(primitive, shape, x, torch.tensor(float(limit)))
    return x


def _elementwise(primitive: str) -> Callable[..., Value]:
    """Return the writer of an operation on entries of one tensor, or of two, one of which may be a number."""

    def write(graph: Graph, shape: Shape, *operands: Value | float) -> Value:
        inputs: list[Value | Tensor] = []
        for operand in operands:
            inputs.append(operand if isinstance(operand, Value) else torch.tensor(float(operand)))
        return graph.add(primitive, shape, *inputs)

    return write


def _reduction(primitive: str, **configuration: Any) -> Callable[..., Value]:
    """Return the writer of an operation that reduces some dimensions to one entry."""

    def write(
        graph: Graph, shape: Shape, x: Value, dims: Sequence[int], keepdim: bool = False
    ) -> Value:
        axis = tuple(n % len(x.shape) for n in dims)
        return graph.add(primitive, shape, x, axis, keep_dims=keepdim, **configuration)

    return write


aten = torch.ops.aten
OPERATIONS: Mapping[Any, Callable[..., Any]] = {
    operator.getitem: _part,
    aten._assert_tensor_metadata.default: _check,
    aten.add.Tensor: _elementwise("Add"),
    aten.alias.default: _same,
    aten.amax.default: _reduction("ReduceMax"),
    aten.avg_pool2d.default: _avg_pool2d,
    aten.batch_norm.default: _batch_norm,
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
    aten.relu.default: _elementwise("ReLU"),
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
"""Every ATen operation that the models use, and the function that writes it."""
