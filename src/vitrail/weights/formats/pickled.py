"""Read a pickle as data: plain values, tensors still in their file, and inert stand-ins; nothing in it is run.

Python's own pickle looks up and calls whatever a file names. Here the instructions are followed by
hand: a class or a function is only a name, what it would have made is a stand-in that keeps its
arguments, and no module is ever imported. Work and memory are bounded by the length of the pickle,
since every instruction makes one small thing at most.
"""

from __future__ import annotations

import math
import pickletools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

MAX_STEPS = 2_000_000
"""Instructions of a pickle; the saves of a training of the largest model here have 100,000."""
PROTOCOL = 5
"""The newest protocol of pickles."""
MAX_DIMS = 16
MAX_KEY = 4096
"""Letters or digits of a dictionary's key, of which the names behind it are made."""
PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
"""Types of a dictionary's keys that are kept as they are: hashing a tuple of tuples could take for
ever."""
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
DAMAGED = "cannot be read: its description is damaged or cut off; use the original"
NOT_PLAIN = "is a sparse, quantized or empty tensor; save it as a plain one"
HARMLESS = {
    "_codecs", "argparse", "array", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "ipaddress", "itertools", "logging", "operator", "pathlib", "random", "re", "string", "threading",
    "time", "types", "typing", "uuid", "weakref", "zoneinfo",
}  # fmt: skip
"""Modules of Python's library whose objects lie beside weights: none for files, processes or
code."""
BUILTINS = {
    "bool", "bytearray", "bytes", "complex", "dict", "enumerate", "filter", "float", "frozenset", "getattr", "int",
    "iter", "list", "map", "object", "range", "reversed", "set", "slice", "str", "tuple", "type", "unicode", "xrange",
    "zip",
}  # fmt: skip
USUAL = re.compile(r"(argparse|builtins|collections|numpy|_codecs)\..*|torch\.\w+")
"""Classes whose stand-ins are not reported."""


class UnreadablePickle(ValueError):
    """Why a pickle cannot be read, as a clause that follows the file's name."""


class Source(Protocol):
    """Where the values of storages lie."""

    def __call__(self, key: str, dtype: torch.dtype) -> Tensor:
        """Return a storage as a flat tensor."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that is still in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    fault: str = ""
    """Why it cannot be read, as a clause that follows its name."""


@dataclass(eq=False, slots=True, repr=False)
class Inert:
    """Stands for an object of a class that is not looked up, or for the class itself."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    """Items of a mapping; None for other objects."""

    def __repr__(self) -> str:
        """Return its class alone: what it was made of may be deeper and wider than any text."""
        return f"<{self.name}>"

    def attributes(self) -> dict[Any, Any]:
        """Return the items of a mapping, or else the attributes of an object."""
        if self.items:
            return self.items
        state = self.state
        if isinstance(state, tuple) and state:
            state = state[0]  # then come the values of slots
        return state if isinstance(state, dict) else {}


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    dtype: torch.dtype | None
    size: int
    start: int
    source: Source


class Pickle:
    """Follows the instructions of pickles of one file."""

    def __init__(self, source: Source, nested: Callable[[bytes], Any]) -> None:
        """Prepare to read.

        Args:
            source: Where the values of storages lie.
            nested: Reads a storage that was pickled by itself, as a file within the file.
        """
        self.names: dict[str, int] = {}
        """How many stand-ins were made of each class."""
        self.storages: dict[str, torch.dtype] = {}
        """Type of each storage's values."""
        self._source, self._nested = source, nested
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0
        self._files: dict[int, tuple[Any, Any]] = {}

    def load(self, data: bytes | IO[bytes]) -> Any:
        """Return what the next pickle holds.

        Raises:
            UnreadablePickle: It is none, cut off, too long, or names something that no weights
                need.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for code, argument, _ in pickletools.genops(data):
                self._spend(1)
                if code.name == "STOP":
                    return self._stack.pop()
                self._follow(code.name, argument)
        except UnreadablePickle:
            raise
        except Exception as error:  # of bytes that are no pickle, anywhere
            raise UnreadablePickle(DAMAGED) from error
        raise UnreadablePickle(DAMAGED)

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise UnreadablePickle(
                f"has a description of more than {MAX_STEPS:,} parts; save its state_dict() alone"
            )

    def _follow(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(self._pops(_TUPLES[name])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        else:
            _HANDLERS[name](self, argument)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        values = self._stack
        self._stack = self._marks.pop()
        return values

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _set_items(self, pairs: Sequence[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            if target.items is None:
                target.items = {}
            target = target.items
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_check_key(key)] = value

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)  # what another class would do with them is not known

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _pops(self, number: int) -> list[Any]:
        values = self._stack[len(self._stack) - number :]
        del self._stack[len(self._stack) - number :]
        if len(values) < number:
            raise UnreadablePickle(DAMAGED)
        return values

    def _push_name(self, _: Any) -> None:
        module, name = self._pops(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnreadablePickle(DAMAGED)  # text of it could be longer than any memory
        self._stack.append(_stand_in(module, name))

    def _protocol(self, version: int) -> None:
        if version > PROTOCOL:
            raise UnreadablePickle(
                f"is a pickle of protocol {version}, newer than any known here; save it with "
                "protocol 2"
            )

    def _outside(self, _: Any) -> None:
        raise UnreadablePickle("keeps its values outside of the file; save its state_dict() alone")

    def _dictionary(self, _: Any) -> None:
        pairs = self._since_mark()
        self._push({})
        self._set_items(pairs)

    def _instance(self, name: Any) -> None:
        """Make an object the old way: INST has its class beside it, OBJ before its arguments."""
        arguments = self._since_mark()
        what = _stand_in(*name.split(" ")) if name else arguments.pop(0)
        self._call(what, tuple(arguments))

    def _call(self, what: Any, arguments: Any) -> None:
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        name = what.name if isinstance(what, Inert) else f"a {type(what).__name__}"
        self._stack.append(self._make(name, given))

    def _make(self, name: str, given: tuple[Any, ...]) -> Any:
        """Return what a call makes: a tensor, an array or a plain container where it is one, else a stand-in."""
        if name in _WITH_CLASS:
            name = given[0].name
        name = name.replace("__builtin__.", "builtins.").replace("numpy._core.", "numpy.core.")
        if name in _REBUILT:
            return _REBUILT[name](*given)
        if name in ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type"):
            return self._make(given[0].name, given[2])
        if name.startswith("torch._utils._rebuild_"):
            return _refuse_later()
        if name == "torch.storage._load_from_bytes":
            return self._storage_within(given[0])
        if name in _MAPPINGS:
            return self._mapping([item for item in given if isinstance(item, dict | list | tuple)])
        if name in (
            "builtins.set",
            "builtins.frozenset",
            "builtins.list",
            "torch.Size",
            "builtins.tuple",
        ):
            return given[0] if given and isinstance(given[0], list | tuple) else []
        if _is_program(name):
            raise UnreadablePickle(
                f"asks to run {name}, which is no tensor or plain value, so it is not opened; save "
                "its state_dict() alone"
            )
        self.names[name] = self.names.get(name, 0) + 1
        return Inert(name, given)

    def _mapping(self, given: list[Any]) -> dict[Any, Any]:
        if not given:
            return {}
        if isinstance(given[0], dict):
            return given[0]
        self._spend(len(given[0]))
        return {_check_key(key): value for key, value in given[0]}

    def _storage_within(self, data: Any) -> Any:
        if id(data) not in self._files:
            content = data.arguments[0].encode("latin1") if isinstance(data, Inert) else data
            self._files[id(data)] = (data, self._nested(content))
        return self._files[id(data)][1]

    def _build(self, _: Any) -> None:
        (state,) = self._pops(1)
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state

    def _persistent(self, what: Any) -> Any:
        if isinstance(what, tuple) and what and what[0] == "module":
            return what[1]  # a class, with its source beside it
        if not isinstance(what, tuple) or len(what) not in (5, 6) or what[0] != "storage":
            raise UnreadablePickle("refers to something outside of it; save its state_dict() alone")
        kind, key, _, size = what[1:5]
        dtype = STORAGES.get(kind.name.split(".")[-1])
        start = 0
        if len(what) == 6 and what[5] is not None:
            key, start, size = what[5]
        if not isinstance(key, str) or not _are_sizes((size, start)):
            raise UnreadablePickle("has a storage without a size; use the original")
        self.storages[key] = dtype or torch.uint8
        return _Storage(key, dtype, size, start, self._source)


def _is_program(name: str) -> bool:
    """Say whether a name is of the part of Python's library that runs code, or reaches files and processes."""
    top, _, rest = name.partition(".")
    if top == "builtins":
        return rest not in BUILTINS
    return top in sys.stdlib_module_names - HARMLESS


def _stand_in(*names: str) -> Inert:
    if sum(map(len, names)) > MAX_KEY:  # it can be named again and again by a few bytes
        raise UnreadablePickle(DAMAGED)
    return Inert(".".join(names))


def _check_key(key: Any) -> Any:
    if type(key) not in PLAIN_KEYS:
        return Inert("a key", (key,))
    is_long_text = isinstance(key, str | bytes) and len(key) > MAX_KEY
    is_long_number = isinstance(key, int) and key.bit_length() > MAX_KEY
    if is_long_text or is_long_number:
        raise UnreadablePickle(
            f"has a name of more than {MAX_KEY:,} letters; save its state_dict() alone"
        )
    return key


def _are_sizes(sizes: Any) -> bool:
    return all(type(size) is int and 0 <= size < 2**62 for size in sizes)


def _refuse_later(dtype: torch.dtype = torch.float32) -> Held:
    def read() -> Tensor:
        raise UnreadablePickle(NOT_PLAIN)

    return Held(dtype, (), read, NOT_PLAIN)


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Held:
    dtype = storage.dtype if isinstance(storage, _Storage) else None
    return _tensor(storage, offset, shape, stride, dtype)


def _view_of_type(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> Held:
    return _tensor(storage, offset, shape, stride, DTYPES.get(getattr(dtype, "name", "")))


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None) -> Held:
    # the number of sizes comes first, as many tensors may share a very long list of them
    if not len(shape) == len(stride) <= MAX_DIMS or not _are_sizes((offset, *shape, *stride)):
        raise UnreadablePickle("has a tensor whose sizes are none; use the original")
    shape, stride = tuple(shape), tuple(stride)
    if not isinstance(storage, _Storage) or dtype is None or storage.dtype is None:
        return _refuse_later()
    held = storage.size * storage.dtype.itemsize // dtype.itemsize
    count = math.prod(shape)
    last = 0
    if count:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    fault = ""
    if count > held or (count and last >= held):
        fault = f"claims {count:,} values and has fewer; save it whole"

    def read() -> Tensor:
        flat = storage.source(storage.key, dtype)
        if count and storage.start + last >= len(flat):
            raise UnreadablePickle("claims values that its file does not have; use the original")
        return (
            flat.as_strided(shape, stride, storage.start + offset)
            if count
            else flat.new_empty(shape)
        )

    return Held(dtype, shape, read, fault)


def _keep(tensor: Any, *_: Any) -> Any:
    return tensor


def _array(dtype: Any, shape: Any, data: Any, fortran: bool) -> Held | None:
    """Return a NumPy array of numbers, of which torch has the type."""
    code, order = _numpy_type(dtype)
    if (
        not re.fullmatch(r"[fiu][1248]", code)
        or order not in ("<", ">", "|", "=")
        or not isinstance(shape, tuple)
    ):
        return None
    kind = np.dtype(f"{order}{code}")
    if not hasattr(torch, kind.name) or len(shape) > MAX_DIMS or not _are_sizes(shape):
        return None
    # protocols before 3 have no bytes, so there they are text that is to be encoded
    content = data
    if (
        isinstance(data, Inert)
        and data.name == "_codecs.encode"
        and isinstance(data.arguments[0], str)
    ):
        content = data.arguments[0]
    if not isinstance(content, str | bytes | bytearray) or math.prod(shape) * kind.itemsize != len(
        content
    ):
        return None

    def read() -> Tensor:
        raw = content.encode("latin1") if isinstance(content, str) else content
        order = "F" if fortran else "C"
        values = np.frombuffer(raw, kind).reshape(shape, order=order)
        return torch.from_numpy(np.array(values, kind.newbyteorder("=")))

    return Held(getattr(torch, kind.name), shape, read)


def _numpy_type(dtype: Any) -> tuple[str, Any]:
    """Return the code and the byte order of a NumPy dtype's stand-in; an empty code where it is none."""
    if not isinstance(dtype, Inert) or dtype.name != "numpy.dtype" or not dtype.arguments:
        return "", "<"
    code = dtype.arguments[0] if isinstance(dtype.arguments[0], str) else ""
    if isinstance(dtype.state, tuple) and len(dtype.state) > 1:
        return code, dtype.state[1]
    return code, "<"


def as_tensor(value: Any) -> Held | None:
    """Return a tensor, or a NumPy array of numbers as one; None for anything else."""
    if isinstance(value, Held):
        return value
    if not isinstance(value, Inert):
        return None
    is_array = value.name == "numpy.core.multiarray._reconstruct"
    if is_array and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, data = value.state
        return _array(dtype, shape, data, bool(fortran))
    if value.name == "numpy.core.numeric._frombuffer" and len(value.arguments) == 4:
        data, dtype, shape, order = value.arguments
        return _array(dtype, shape, data, order == "F")
    return None


_REBUILT: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view_of_type,
    "torch._utils._rebuild_parameter": _keep,
    "torch._utils._rebuild_parameter_with_state": _keep,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _keep,
    "torch._utils._rebuild_device_tensor_from_numpy": _keep,
}
_WITH_CLASS = {"copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"}
"""Functions of pickle's own that make an object of the class that is their first argument."""
_MAPPINGS = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "builtins.dict",
}
_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "FLOAT", "BINFLOAT",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


_HANDLERS: dict[str, Callable[[Pickle, Any], Any]] = {
    "PROTO": Pickle._protocol,
    "FRAME": lambda pickle, _: None,
    "MARK": Pickle._mark,
    "MEMOIZE": Pickle._memoize,
    "DUP": lambda pickle, _: pickle._push(pickle._stack[-1]),
    "POP": Pickle._pop,
    "POP_MARK": lambda pickle, _: pickle._since_mark(),
    "TUPLE": lambda pickle, _: pickle._push(tuple(pickle._since_mark())),
    "LIST": lambda pickle, _: pickle._push(pickle._since_mark()),
    "FROZENSET": lambda pickle, _: pickle._push(pickle._since_mark()),
    "DICT": Pickle._dictionary,
    "APPEND": lambda pickle, _: pickle._append(pickle._pops(1)),
    "APPENDS": lambda pickle, _: pickle._append(pickle._since_mark()),
    "ADDITEMS": lambda pickle, _: pickle._append(pickle._since_mark()),
    "SETITEM": lambda pickle, _: pickle._set_items(pickle._pops(2)),
    "SETITEMS": lambda pickle, _: pickle._set_items(pickle._since_mark()),
    "GLOBAL": lambda pickle, name: pickle._push(_stand_in(*name.split(" "))),
    "STACK_GLOBAL": Pickle._push_name,
    "EXT1": lambda pickle, number: pickle._push(Inert(f"extension.{number}")),
    "EXT2": lambda pickle, number: pickle._push(Inert(f"extension.{number}")),
    "EXT4": lambda pickle, number: pickle._push(Inert(f"extension.{number}")),
    "REDUCE": lambda pickle, _: pickle._call(*pickle._pops(2)),
    "NEWOBJ": lambda pickle, _: pickle._call(*pickle._pops(2)),
    "NEWOBJ_EX": lambda pickle, _: pickle._call(*pickle._pops(3)[:2]),
    "INST": Pickle._instance,
    "OBJ": Pickle._instance,
    "BUILD": Pickle._build,
    "PERSID": lambda pickle, key: pickle._push(pickle._persistent(key)),
    "BINPERSID": lambda pickle, _: pickle._push(pickle._persistent(*pickle._pops(1))),
    "NEXT_BUFFER": Pickle._outside,
    "READONLY_BUFFER": Pickle._outside,
}
