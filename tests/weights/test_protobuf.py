"""Protobuf's wire format: what is written reads back, and what is cut or bent is refused."""

from __future__ import annotations

import struct

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from vitrail.weights.formats.protobuf import block, integer, read_fields, read_varint, real, signed, varint


@given(st.integers(-(2**63), 2**63 - 1))
def test_varint_reads_back(value: int) -> None:
    data = varint(value)
    found, end = read_varint(memoryview(data), 0)
    assert (signed(found), end) == (value, len(data))


@given(st.integers(0, 2**31 - 1), st.text(), st.lists(st.text(max_size=300)))
def test_protobuf_reads_what_is_written(number: int, name: str, reserved: list[str]) -> None:
    inner = block(1, name) + integer(3, number)
    data = block(1, "a") + block(2, inner) + b"".join(block(10, text) for text in reserved)
    message = descriptor_pb2.DescriptorProto.FromString(data)
    assert (message.field[0].name, message.field[0].number) == (name, number)
    assert list(message.reserved_name) == reserved
    assert message.SerializeToString() == data


def test_fields_are_views_in_the_order_of_the_file() -> None:
    data = memoryview(integer(1, -1) + real(2, 0.5) + block(3, b"abc") + b"\x21" + bytes(8))
    fields = list(read_fields(data))
    assert [number for number, _ in fields] == [1, 2, 3, 4]
    assert fields[0][1] == 2**64 - 1
    half, text = fields[1][1], fields[2][1]
    assert isinstance(half, memoryview)
    assert isinstance(text, memoryview)
    assert struct.unpack("<f", half)[0] == 0.5
    assert text.obj is data.obj


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80", "ends within a number"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x0a\x05abc", "ends within a field of 5 bytes"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends within a field of 9,223,372,036,854,775,807 bytes"),
        (b"\x0d\x00", "ends within a field of 4 bytes"),
        (b"\x0b", "unknown kind 3"),
    ],
)
def test_what_is_cut_or_bent_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(read_fields(memoryview(data)))
