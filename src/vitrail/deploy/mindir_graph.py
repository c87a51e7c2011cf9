"""Nodes, constants and parameters of a MindIR file, written as protobuf messages.

The numbers are those that MindSpore's mind_ir.proto gives to the fields of its messages, which are
named beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vitrail.errors import ExportError
from vitrail.files import Buffer
from vitrail.weights.formats.protobuf import block, header, integer, integers, real

Shape = tuple[int, ...]

GRAPH = "vitrail"
"""Name of the graph, with which the names of its values begin."""
FLOAT = 1
INT32 = 6
INT64 = 7
STRING = 8
BOOL = 9
TENSORS = 19
TUPLE = 20
"""Types of attributes; FLOAT and INT32 are types of tensors too."""
TENSOR_TYPES = {torch.float32: FLOAT, torch.int32: INT32}
ATTRIBUTES_ONLY = ("Conv2D", "Pad", "MakeTuple", "TupleGetItem")
"""Primitives that take no configuration as inputs in version 3 either."""
WORD_INPUTS = {"NCHW": 0}
"""Numbers that version 3 has as inputs in place of words."""


class NoCounterpart(Exception):
    """An operation that cannot be written as it is called, with the reason."""


class Value(NamedTuple):
    """The result of an input, a parameter or a node: a tensor, or a tuple of several."""

    name: str
    shape: Any
    """A Shape, or a list of them."""


class Graph:
    """The nodes of a graph, in the order of execution.

    Args:
        version: Version of the format: in 1, what configures a primitive is in attributes, in 3
            mostly in inputs.
    """

    def __init__(self, version: Literal[1, 3]) -> None:
        self.version = version
        self.nodes: list[bytes] = []
        self.constants: dict[bytes, str] = {}
        """Names of constants by their content."""
        self.primitives: dict[bytes, str] = {}
        """Names of primitives by their content, which version 3 lists apart."""

    def add(
        self, primitive: str, shape: Shape | list[Shape], *inputs: Any, **configuration: Any
    ) -> Value:
        """Append a node, and return its result.

        Args:
            primitive: MindSpore's name of the operation.
            shape: Shape of the result; a list of shapes where it is a tuple.
            inputs: Values; a number, a tuple or a tensor becomes a constant.
            configuration: What else the primitive is told, in the order of its definition in
                MindSpore.
        """
        attributes = []
        operands = list(inputs)
        if self.version == 1 or primitive in ATTRIBUTES_ONLY:
            for key, value in configuration.items():
                attributes.append(block(1, key) + _write_attribute(value))  # name
        else:
            for value in configuration.values():
                operands.append(WORD_INPUTS[value] if isinstance(value, str) else value)
        names = [self._name(operand) for operand in operands]

        name = f"{GRAPH}:{primitive}:{len(self.nodes)}"
        if self.version == 3:
            primitive = "REF::" + self._list_primitive(primitive, attributes)
            attributes = []
        attributes.append(block(1, "shape") + _write_shape(shape))
        self._append(name, primitive, names, attributes)
        return Value(name, shape)

    def _name(self, operand: Any) -> str:
        """Return the name of a value, or of a constant, which is appended where it is met first."""
        if isinstance(operand, Value):
            return operand.name
        content = _write_attribute(operand)
        if content not in self.constants:
            name = f"{GRAPH}:Constant:{len(self.nodes)}"
            self.constants[content] = name
            self._append(name, "Constant", [], [block(1, "value") + content])
        return self.constants[content]

    def _list_primitive(self, primitive: str, attributes: Sequence[bytes]) -> str:
        """Return the name of a primitive in the list that version 3 keeps of them."""
        # a primitive, or a function of inputs alone
        kind = 1 if primitive in ATTRIBUTES_ONLY else 2
        content = block(2, primitive)  # op_type
        content += _write_blocks(3, attributes)  # attribute
        content += integer(5, kind)  # prim_type
        return self.primitives.setdefault(content, f"{primitive}:{len(self.primitives)}")

    def _append(
        self, name: str, operation: str, inputs: Sequence[str], attributes: Sequence[bytes]
    ) -> None:
        """Append a node, which yields one value of the same name."""
        message = _write_blocks(1, inputs)  # input
        message += block(2, name)  # output
        message += block(3, name)  # name
        message += block(4, operation)  # op_type
        message += _write_blocks(5, attributes)  # attribute
        self.nodes.append(message)


def write_parameter(name: str, tensor: Tensor) -> list[Buffer]:
    """Return the field `parameter` of a graph in two pieces, of which the second is a view of the tensor."""
    if tensor.dtype != torch.float32:
        raise ExportError(
            f"{name.removeprefix(f'{GRAPH}:')}: is {tensor.dtype}, and MindIR is written in "
            "float32; convert the model with float() first"
        )
    content = _view_bytes(tensor)
    start = _write_tensor(tensor.shape, name=name) + header(9, len(content))  # raw_data
    return [header(3, len(start) + len(content)) + start, content]


def write_value_info(value: Value) -> bytes:
    """Return the ValueInfoProto of an input or an output: its name and its shape."""
    return block(1, value.name) + block(2, _write_tensor(value.shape))


def _write_blocks(field: int, contents: Sequence[bytes] | Sequence[str]) -> bytes:
    return b"".join(block(field, content) for content in contents)


def _write_attribute(value: Any) -> bytes:
    """Return an AttributeProto, but for its name; its field 16 is the type."""
    match value:
        case bool():
            return integer(3, value) + integer(16, BOOL)
        case int():
            return integer(3, value) + integer(16, INT64)
        case float():
            return real(2, value) + integer(16, FLOAT)
        case str():
            return block(5, value) + integer(16, STRING)
        case tuple():
            return _write_blocks(17, [_write_member(member) for member in value]) + integer(
                16, TUPLE
            )
        case Tensor():
            # raw_data
            tensor = _write_tensor(value.shape, value.dtype) + block(9, _view_bytes(value))
            return block(12, tensor) + integer(16, TENSORS)
    raise NoCounterpart(f"given {value!r}")


def _write_member(member: Any) -> bytes:
    """Return a member of a tuple: a tuple, or a number, which stands in a list of one."""
    if isinstance(member, tuple):
        return _write_attribute(member)
    return integer(10, member) + integer(16, INT64)


def _write_shape(shape: Shape | list[Shape]) -> bytes:
    """Return the attribute that holds the shape of a node's result."""
    if isinstance(shape, list):
        members = _write_blocks(17, [_write_shape(member) for member in shape])
        fixed_length = block(18, integer(1, 0))  # seq_info
        return members + integer(16, TUPLE) + fixed_length
    return block(12, _write_tensor(shape)) + integer(16, TENSORS)


def _write_tensor(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, name: str = ""
) -> bytes:
    """Return a TensorProto, but for its content."""
    message = integers(1, shape)  # dims
    message += integer(2, TENSOR_TYPES[dtype])  # data_type
    if name:
        message += block(7, name)
    return message


def _view_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
