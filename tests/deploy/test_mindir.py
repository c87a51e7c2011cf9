"""MindIR: read by protobuf and executed node by node as MindSpore would, the file computes what the model does."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional
from torch.testing import assert_close

from support.random_weights import randomised
from vitrail.deploy.mindir import OPERATIONS, to_mindir
from vitrail.errors import ExportError
from vitrail.models.registry import create_model, find_variant

pytestmark = pytest.mark.usefixtures("without_shape_checks")

# ---- the format, as MindSpore's mind_ir.proto has it ----

MESSAGES = {
    "AttributeProto": "name=1 string, f=2 float, i=3 int64, s=5 bytes, ints=10 int64*, tensors=12 TensorProto*, "
    "type=16 int32, values=17 AttributeProto*, seq_info=18 SeqInfoProto",
    "SeqInfoProto": "is_dyn_len=1 bool",
    "TensorProto": "dims=1 int64*, data_type=2 int32, name=7 string, raw_data=9 bytes",
    "ValueInfoProto": "name=1 string, tensor=2 TensorProto*",
    "NodeProto": "input=1 string*, output=2 string*, name=3 string, op_type=4 string, attribute=5 AttributeProto*",
    "GraphProto": "node=1 NodeProto*, name=2 string, parameter=3 TensorProto*, input=5 ValueInfoProto*, "
    "output=6 ValueInfoProto*",
    "PrimitiveProto": "name=1 string, op_type=2 string, attribute=3 AttributeProto*, prim_type=5 int32",
    "ModelProto": "ir_version=1 string, producer_name=2 string, model_version=5 string, graph=7 GraphProto, "
    "little_endian=10 bool, primitives=12 PrimitiveProto*, mind_ir_version=13 int64",
}
FLOAT, INT32, INT64, STRING, BOOL, TENSORS, TUPLE = 1, 6, 7, 8, 9, 19, 20
DTYPES = {FLOAT: np.float32, INT32: np.int32}


@functools.cache
def model_proto() -> Any:
    """Return the class of ModelProto."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mind_ir.proto", package="mind_ir", syntax="proto2")
    for message, fields in MESSAGES.items():
        declared = file.message_type.add(name=message)
        for field in fields.split(", "):
            name, rest = field.split("=")
            number, kind = rest.split(" ")
            added = declared.field.add(name=name, number=int(number))
            added.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            if kind.rstrip("*") in MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".mind_ir.{kind.rstrip('*')}"
            else:
                added.type = getattr(kinds, f"TYPE_{kind.rstrip('*').upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mind_ir.ModelProto"))


def parse(program: ExportedProgram, version: Literal[1, 3]) -> Any:
    """Write a program, and read it as protobuf does; every field must be one of the format, and of its type."""
    model = model_proto().FromString(b"".join(to_mindir(program, version)))
    assert_known(model)
    assert (model.mind_ir_version, model.little_endian, model.producer_name) == (version, True, "vitrail")
    return model


def assert_known(message: Any) -> None:
    assert len(UnknownFieldSet(message)) == 0, message.DESCRIPTOR.name
    for field, content in message.ListFields():
        if field.message_type is not None:
            for member in content if isinstance(content, Sequence) else [content]:
                assert_known(member)


def value_of(attribute: Any, member: bool = False) -> Any:
    """Return what an attribute, or a member of a tuple, says."""
    match attribute.type:
        case kind if kind == INT64:
            return attribute.ints[0] if member else attribute.i
        case kind if kind == BOOL:
            return bool(attribute.i)
        case kind if kind == FLOAT:
            return attribute.f
        case kind if kind == STRING:
            return attribute.s.decode()
        case kind if kind == TUPLE:
            return tuple(value_of(x, member=True) for x in attribute.values)
        case kind if kind == TENSORS:
            (tensor,) = attribute.tensors
            return tensor_of(tensor) if tensor.HasField("raw_data") else tuple(tensor.dims)
    raise AssertionError(attribute)


def tensor_of(message: Any) -> Tensor:
    array = np.frombuffer(message.raw_data, DTYPES[message.data_type]).reshape(tuple(message.dims))
    return torch.from_numpy(array.copy())


# ---- what MindSpore's primitives do ----

CONFIGURATION = {
    "BatchMatMul": ("transpose_a", "transpose_b"),
    "BiasAdd": ("format",),
    "Concat": ("axis",),
    "Gather": ("batch_dims",),
    "LayerNorm": ("begin_norm_axis", "begin_params_axis", "epsilon"),
    "MatMul": ("transpose_a", "transpose_b"),
    "ReduceMax": ("keep_dims",),
    "ReduceMean": ("keep_dims",),
    "ReduceSum": ("keep_dims", "skip_mode"),
    "Softmax": ("axis",),
    "StridedSlice": ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"),
}
"""What is an attribute in version 1 and one of the last inputs in version 3, from MindSpore 2.10's definitions."""


def product(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    return (a.mT if transpose_a else a) @ (b.mT if transpose_b else b)


def matrix_product(a: Tensor, b: Tensor, **transposed: bool) -> Tensor:
    assert a.ndim == b.ndim == 2
    return product(a, b, **transposed)


def batch_product(a: Tensor, b: Tensor, **transposed: bool) -> Tensor:
    assert a.ndim >= 3
    assert a.shape[:-2] == b.shape[:-2]
    return product(a, b, **transposed)


def bias_add(x: Tensor, bias: Tensor, format: str | int) -> Tensor:
    assert format in ("NCHW", 0)
    assert bias.shape == (x.shape[1],)
    return x + bias.reshape(1, -1, *[1] * (x.ndim - 2))


def convolution(x: Tensor, weight: Tensor, **given: Any) -> Tensor:
    top, bottom, left, right = given.pop("pad")
    (_, _, *stride), (_, _, *dilation) = given.pop("stride"), given.pop("dilation")
    groups = given.pop("group")
    assert given.pop("pad_list") == (top, bottom, left, right)
    assert (given.pop("out_channel"), *given.pop("kernel_size")) == (weight.shape[0], *weight.shape[2:])
    assert given == {"mode": 1, "pad_mode": "pad", "format": "NCHW"}
    x = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(x, weight, None, stride, 0, dilation, groups)


def layer_norm(
    x: Tensor, gain: Tensor, bias: Tensor, begin_norm_axis: int, begin_params_axis: int, epsilon: float
) -> tuple[Tensor, ...]:
    assert gain.shape == bias.shape == x.shape[begin_params_axis:]
    over = tuple(range(begin_norm_axis, x.ndim))
    mean, variance = x.mean(over, keepdim=True), x.var(over, correction=0, keepdim=True)
    return (x - mean) / (variance + epsilon).sqrt() * gain + bias, mean, variance


def gather(x: Tensor, index: Tensor, axis: int, batch_dims: int) -> Tensor:
    assert index.dtype == torch.int32
    assert batch_dims == 0
    return x.index_select(axis, index)


def strided_slice(x: Tensor, begin: Any, end: Any, strides: Any, **masks: int) -> Tensor:
    assert not any(masks.values())
    assert all(0 <= b < e <= n for b, e, n in zip(begin, end, x.shape, strict=True))
    return x[tuple(map(slice, begin, end, strides))]


def pad(x: Tensor, paddings: Any) -> Tensor:
    return functional.pad(x, [n for pair in reversed(paddings) for n in pair])


def reduce_sum(x: Tensor, axis: Any, keep_dims: bool, skip_mode: bool) -> Tensor:
    assert not skip_mode
    return x.sum(axis, keep_dims)


PRIMITIVES: Mapping[str, Any] = {
    "Add": torch.add,
    "BatchMatMul": batch_product,
    "BiasAdd": bias_add,
    "Concat": lambda parts, axis: torch.cat(parts, axis),
    "Conv2D": convolution,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Gather": gather,
    "GeLU": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "LayerNorm": layer_norm,
    "MakeTuple": lambda *parts: parts,
    "MatMul": matrix_product,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pad": pad,
    "RealDiv": torch.div,
    "ReduceMax": lambda x, axis, keep_dims: x.amax(axis, keep_dims),
    "ReduceMean": lambda x, axis, keep_dims: x.mean(axis, keep_dims),
    "ReduceSum": reduce_sum,
    "ReLU": torch.relu,
    "Reshape": lambda x, shape: x.reshape(shape),
    "Softmax": lambda x, axis: x.softmax(*axis),
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "StridedSlice": strided_slice,
    "Sub": torch.sub,
    "Tile": lambda x, multiples: x.repeat(multiples),
    "Transpose": lambda x, order: x.permute(order),
    "TupleGetItem": lambda parts, index: parts[index],
}


def execute(model: Any, *images: Tensor) -> Tensor:
    """Run the nodes in order; each must be given what stands before it, and yield the shape it says."""
    graph = model.graph
    values: dict[str, Any] = {tensor.name: tensor_of(tensor) for tensor in graph.parameter}
    for declared, x in zip(graph.input, images, strict=True):
        assert tuple(declared.tensor[0].dims) == x.shape
        values[declared.name] = x
    functions = {primitive.name: primitive for primitive in model.primitives}
    for node in graph.node:
        given = [values[name] for name in node.input]
        attributes = {attribute.name: value_of(attribute) for attribute in node.attribute}
        assert list(node.output) == [node.name]
        assert node.name not in values
        if node.op_type == "Constant":
            values[node.name] = attributes["value"]
            continue
        shape, name = attributes.pop("shape"), node.op_type
        if model.mind_ir_version == 3:
            assert not attributes
            used = functions[name.removeprefix("REF::")]
            attributes = {attribute.name: value_of(attribute) for attribute in used.attribute}
            name, is_function = used.op_type, used.prim_type == 2
            assert is_function == (name not in ("Conv2D", "Pad", "MakeTuple", "TupleGetItem"))
            if name in CONFIGURATION:
                count = len(CONFIGURATION[name])
                attributes = dict(zip(CONFIGURATION[name], given[-count:], strict=True))
                given = given[:-count]
        values[node.name] = result = PRIMITIVES[name](*given, **attributes)
        assert shape == (tuple(result.shape) if isinstance(result, Tensor) else tuple(tuple(x.shape) for x in result))
    (output,) = graph.output
    assert tuple(output.tensor[0].dims) == values[output.name].shape
    return values[output.name]


# ---- whole models ----

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tnt": ("tnt_s_patch16_224", {"depth": 1}),
    "tnt of the zoo": ("tnt_s_patch16_224", {"depth": 1, "biases": "zoo"}),
    "tnt wide, tanh": ("tnt_s_patch16_224", {"image_size": (32, 48), "gelu": "tanh", "depth": 1}),
    "tnt legacy, high": ("tnt_s_legacy_patch16_224", {"image_size": (48, 32), "depth": 1}),
    "t2t performer": ("t2t_vit_7", {"depth": 1}),
    "t2t transformer, wide": ("t2t_vit_t_14", {"image_size": (32, 48), "depth": 1}),
    "svt, padded windows": ("twins_svt_small", {"image_size": (72, 104), "depths": (1, 2, 1, 1)}),
    "svt, whole windows": (
        "twins_svt_small",
        {"image_size": (72, 104), "depths": (1, 1, 1, 1), "window_size": 2, "final_norm_eps": 1e-7},
    ),
    "pcpvt, rows left over": ("twins_pcpvt_small", {"image_size": (75, 97), "depths": (1, 1, 1, 1), "gelu": "tanh"}),
    "pyramid, odd grid": ("ptnt_ti_patch16_192", {"image_size": (96, 160), "depths": (1, 1, 1, 1)}),
    "no head": ("twins_pcpvt_small", {"depths": (1, 1, 1, 1), "num_classes": 0}),
}


@functools.cache
def exported(case: str) -> tuple[nn.Module, ExportedProgram, Tensor]:
    name, overrides = CASES[case]
    model = randomised(create_model(name, **{**find_variant(name)[0].tiny, **overrides}))
    images = torch.randn(2, 3, *model.config.size)
    return model, torch.export.export(model, (images,)), images


def is_read(name: str) -> bool:
    """Say whether a model computes with a weight."""
    return name != "outer_tokens" and not name.endswith("num_batches_tracked")


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_file_holds_the_weights_and_computes_what_the_model_does(case: str) -> None:
    model, program, images = exported(case)
    files = [parse(program, version) for version in (1, 3)]
    with torch.no_grad():
        expected = model(images)
    for file in files:
        found = {tensor.name: tensor_of(tensor) for tensor in file.graph.parameter}
        weights = {f"vitrail:{name}": x for name, x in model.state_dict().items() if is_read(name)}
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], x) for name, x in weights.items())
        assert_close(execute(file, images), expected, atol=1e-5, rtol=1e-5)
    first, third = ([node.name.split(":")[1] for node in file.graph.node] for file in files)
    assert [name for name in first if name != "Constant"] == [name for name in third if name != "Constant"]


USED = ("t2t performer", "t2t transformer, wide", "svt, whole windows", "pyramid, odd grid")


def test_every_mapping_is_used_by_a_model() -> None:
    programs = [exported(case)[1] for case in USED]
    used = {node.target for program in programs for node in program.graph.nodes if node.op == "call_function"}
    assert used == OPERATIONS.keys()


def test_weights_are_not_copied_and_constants_are_written_once() -> None:
    model, program, _ = exported("tnt")
    pieces = to_mindir(program)
    places = {np.frombuffer(piece, np.uint8).ctypes.data for piece in pieces if isinstance(piece, memoryview)}
    assert places == {x.data_ptr() for name, x in model.state_dict().items() if name != "outer_tokens"}
    constants = [node.attribute[0] for node in parse(program, 1).graph.node if node.op_type == "Constant"]
    assert len({constant.SerializeToString() for constant in constants}) == len(constants)


# ---- single operations ----


class Calls(nn.Module):
    """A module whose forward pass is a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 1::2, -3:-1],
        lambda x: x.transpose(-1, 0).select(0, -2),
        lambda x: x[:, :1].expand(-1, 4, -1) + x[0, 0].expand(2, 4, 6),
        lambda x: torch.cat([x, x[..., :2]], dim=-1),
        lambda x: x.clamp(-0.5, 0.25) / 3 - (x - 1) * 2,
        lambda x: x.sum((0, -1)) + x.mean((0, 2), keepdim=True).squeeze(2).squeeze(0),
        lambda x: x.split(3, dim=-2)[0].unfold(-1, 4, 2).unfold(1, 2, 1) + x.chunk(3, dim=1)[1].mean([1, 2]),
        lambda x: functional.pad(x, (1, 0, 2, 3)).unsqueeze(-2).flatten(1),
        lambda x: functional.scaled_dot_product_attention(x, x[:, :3], x[:, :3, :2], scale=0.3),
        lambda x: functional.conv2d(
            x.unsqueeze(1), x[:1, :3, :2].reshape(1, 1, 3, 2), stride=[2, 1], padding=[1, 2], dilation=[1, 2]
        ),
    ],
    ids=["slice", "select", "expand", "cat", "numbers", "reduce", "unfold", "pad", "attention", "conv2d"],
)
def test_an_operation_means_the_same_for_any_dimension(function: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6)
    program = torch.export.export(Calls(function).eval(), (x,))
    for version in (1, 3):
        assert_close(execute(parse(program, version), x), function(x), atol=1e-6, rtol=1e-5)


def refusal(model: nn.Module, x: Tensor | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        to_mindir(torch.export.export(model, (torch.randn(2, 4, 6) if x is None else x,)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_operations_without_a_counterpart_are_all_named_with_their_module() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Calls(torch.erfinv), Calls(lambda x: x.cumsum(0).erfinv()))
    assert refusal(model) == (
        "MindIR has no counterpart here for aten.erfinv.default in 1, aten.cumsum.default in 2; use other operations, "
        "or add to OPERATIONS in vitrail/deploy/mindir.py what they are in MindSpore"
    )


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
            "aten.scaled_dot_product_attention.default (given x, x, x, None, 0.0, True)",
        ),
        (lambda x: functional.pad(x, (-1, 0)), "aten.pad.default (with margins below 0)"),
        (lambda x: functional.pad(x, (1, 0), value=1.0), "aten.pad.default (given x, [1, 0], constant, 1.0)"),
        (lambda x: torch.add(x, x, alpha=2), "aten.add.Tensor (given x, x, alpha=2)"),
        (lambda x: x.matmul(x[:1].transpose(1, 2)), "aten.matmul.default (of shapes (2, 4, 6) and (1, 6, 4))"),
        (lambda x: x.to(torch.float64), "aten.to.dtype (to torch.float64)"),
        (lambda x: functional.dropout(x, 0.5, True), "aten.dropout.default (of training; call eval() first)"),
        (lambda x: functional.layer_norm(x, (6,), None, None, 1e-5), "aten.layer_norm.default (given None)"),
    ],
    ids=["causal", "cut", "filled", "alpha", "broadcast", "double", "dropout", "no gain"],
)
def test_an_operation_called_in_a_way_that_cannot_be_written_is_refused(function: Any, reason: str) -> None:
    assert reason in refusal(Calls(function))


def test_half_precision_is_refused() -> None:
    message = refusal(nn.Linear(6, 2).bfloat16(), torch.randn(2, 6).bfloat16())
    assert (
        message == "weight: is torch.bfloat16, and MindIR is written in float32; convert the model with float() first"
    )
