"""Pickles are read as data: weights come out exactly, what lies beside them is inert, and nothing of a file is run."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import io
import operator
import os
import pathlib
import pickle
import re
import subprocess
import sys
import time
import types
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.weight_files import opened, save, tiny
from vitrail.errors import CheckpointError
from vitrail.weights.formats.pickled import MAX_STEPS
from vitrail.weights.loading import open_model

WILD = Path(__file__).parents[3] / "shared" / "wild"
TNT = "tnt_s_patch16_224"


class Color(enum.Enum):
    RED = 1


class AttributeDict(dict[str, Any]):
    """Like those of EasyDict, yacs and mmengine."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Numbers(list[int]):
    pass


class History:
    """Like mmengine's, with a state of arrays."""

    def __init__(self) -> None:
        self.log_history, self.count, self.statistics = np.arange(5.0), np.ones(5, np.int64), {"mean": len}


class Circle:
    """Like OmegaConf's settings, which know what they are in."""

    def __init__(self, depth: int = 3) -> None:
        self.content = {"a": Circle(depth - 1), "b": Circle(depth - 1)} if depth else {}
        for child in self.content.values():
            child.parent = self
        self.itself, self.listed = self, [self]


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = torch.ones(3)


@dataclass
class Options:
    lr: float = 0.1


BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("/data")),
    "paths": [pathlib.PurePosixPath("/data"), pathlib.PureWindowsPath("C:/data"), pathlib.Path("a")],
    "times": (datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(1), datetime.date(2024, 1, 2)),
    "containers": [
        collections.defaultdict(list, a=[1]), collections.OrderedDict(a=1), collections.Counter("aab"),
        collections.deque([1, 2]), {1, 2}, frozenset({3}), bytearray(b"abc"), b"\xff", 1j, slice(1), range(3),
    ],
    "numpy": [np.float64(1), np.int32(2), np.bool_(True), np.arange(3), np.dtype("f4"), np.array(["a"]), np.zeros(0)],
    "generator": np.random.default_rng(0),
    "enum": Color.RED,
    "torch": [torch.Size([1, 2]), torch.device("cpu"), torch.float16],
    "partial": functools.partial(nn.LayerNorm, eps=1e-6),
    "small classes": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), uuid.UUID(int=1), re.compile("a")],
    "simple namespace": types.SimpleNamespace(a=1),
    "attribute dictionary": AttributeDict(lr=0.1, nested=AttributeDict(a=1)),
    "subclass of list": Numbers([1, 2]),
    "history": {"loss": History()},
    "circle": Circle(),
    "slots": Slotted(),
    "dataclass": Options(),
    "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.ones(1))]), 1),
    "function": [operator.add, torch.nn.functional.relu, nn.GELU],
    "keys": {(1, 2): 3, None: 4, 5: 6, Color.RED: 7},
    "big number": 10**3000,
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_weights_is_passed_over(what: str, old: bool, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = tmp_path / "a.pth"
    content = {"epoch": 3, "extra": BESIDE[what], "state_dict": weights, "again": BESIDE[what]}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    found = opened(path, TNT)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in weights.items())
    assert {entry.theirs[0] for entry in found.account.entries if entry.what == "skipped"} >= {"epoch"}


def test_classes_passed_over_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"hub": History(), "cfg": AttributeDict(), "state_dict": tiny(TNT).state_dict()})
    notes = opened(path, TNT).account.notes
    assert (
        f"{path}: objects of test_pickled.History, test_pickled.AttributeDict are passed over or read as plain values; "
        "nothing of them is run"
    ) in notes


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_every_protocol_is_read(protocol: int, old: bool, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    content = {"state_dict": weights, "long": "x" * 300, "bytes": bytearray(b"a"), "sets": [{1}, frozenset({2})]}
    path = tmp_path / "a.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    found = opened(path, TNT)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", ["tensors", "arrays", "parameters"])
def test_plain_pickles_of_weights_are_read(kind: str, protocol: int, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    kinds = {"arrays": lambda t: t.numpy(), "parameters": nn.Parameter, "tensors": lambda t: t}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({name: kinds[kind](t) for name, t in weights.items()}, protocol))
    found = opened(path, TNT)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in weights.items())


def test_tensors_of_every_layout_are_read_exactly(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    whole = torch.cat([weights["head.bias"], weights["norm.bias"]])
    changed = {
        **weights,
        "norm.weight": torch.stack([weights["norm.weight"], weights["norm.bias"]], 1)[:, 0],
        "head.weight": weights["head.weight"].T.contiguous().T,
        "head.bias": whole[:7],
        "norm.bias": whole[7:],
        "proj.bias": nn.Parameter(weights["proj.bias"]),
        "cls_token": weights["cls_token"].to(torch.bfloat16),
        "inner_pos": np.asfortranarray(weights["inner_pos"].numpy()),
        "outer_pos": weights["outer_pos"].numpy().astype(">f8"),
    }
    for old in (False, True):
        path = tmp_path / "a.pth"
        torch.save(changed, path, _use_new_zipfile_serialization=not old)
        found = opened(path, TNT).weights
        for name, tensor in weights.items():
            expected = tensor.to(torch.bfloat16).float() if name == "cls_token" else tensor
            assert torch.equal(found[name], expected), name


class OfDevice:
    """Like a tensor of XLA, which is saved as an array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_device_tensor_from_numpy, (self.array, torch.float32, "xla:0", False)


class Kind(torch.Tensor):
    """Like the tensors of fastai and torchvision, of a class of their own."""


def test_tensors_of_devices_and_classes_are_read_as_plain_ones(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    changed = {
        **weights,
        "norm.bias": OfDevice(weights["norm.bias"].numpy()),
        "norm.weight": weights["norm.weight"].as_subclass(Kind),
    }
    found = opened(save(tmp_path / "a.pth", changed), TNT).weights
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert type(found["norm.weight"]) is torch.Tensor


def test_files_of_a_big_endian_machine_are_read(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = save(tmp_path / "a.pth", weights)
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(tmp_path / "b.pth", "w") as swapped:
        for entry in given.infolist():
            data = given.read(entry)
            if entry.filename.endswith("byteorder"):
                data = b"big"
            elif "/data/" in entry.filename:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            swapped.writestr(entry.filename, data)
    found = opened(tmp_path / "b.pth", TNT).weights
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_files_without_checksums_are_read_and_wrong_ones_are_not(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.pth", weights)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(opened(path, TNT).weights["norm.bias"], weights["norm.bias"])
    path = save(tmp_path / "a.pth", weights)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"a\.pth: [\w.]+ cannot be read \(Bad CRC-32 for file .*; use the original"
    ):
        opened(path, TNT)


# Nothing is run

TOUCHED = "VITRAIL_TEST_TOUCHED"


def touch(*_: Any, **__: Any) -> None:
    os.environ[TOUCHED] = "yes"


class Setting:
    def __setstate__(self, state: Any) -> None:
        touch()


class Making:
    def __new__(cls, *_: Any, **__: Any) -> Making:
        touch()
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        touch()


class Filling(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        touch()

    def append(self, value: Any) -> None:
        touch()

    def __hash__(self) -> int:  # type: ignore[override]
        touch()
        return 1


P = b"\x80\x02"
HERE = b"ctest_pickled\n"
GOOD = b"X\x01\x00\x00\x00g"
HOSTILE = {
    "reduce": HERE + b"touch\n)R",
    "reduce of a found name": b"X\x0c\x00\x00\x00test_pickledX\x05\x00\x00\x00touch\x93)R",
    "build": HERE + b"Setting\n)\x81}b",
    "new": HERE + b"Making\n)\x81",
    "new with keywords": HERE + b"Making\n)}\x92",
    "inst": b"(itest_pickled\nMaking\n",
    "obj": b"(" + HERE + b"Making\no",
    "items": HERE + b"Filling\n)\x81" + GOOD + GOOD + b"s",
    "appends": HERE + b"Filling\n)\x81(" + GOOD + b"e",
    "adds": HERE + b"Filling\n)\x81(" + GOOD + b"\x90",
    "key": b"}" + HERE + b"Filling\n)\x81" + GOOD + b"s",
    "extension": b"\x82\xf0)R",
    "extension of two bytes": b"\x83\xf0\x00)R",
    "extension of four bytes": b"\x84\xf0\x00\x00\x00)R",
    "attribute": b"c__builtin__\ngetattr\n" + HERE + b"Making\nX\x07\x00\x00\x00__new__\x86R" + HERE + b"Making\n\x85R",
    "import": b"cvitrail_test_imported\nThing\n)R",
    "rebuilt tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + HERE + b"touch\n" + HERE + b"Making\n)NtR",
    "loaded bytes": b"ctorch.storage\n_load_from_bytes\nC\x19" + P + HERE + b"touch\n)R." + b"\x85R",
    "function of a hook": b"ccopyreg\n_reconstructor\n(" + HERE + b"Setting\nc__builtin__\nobject\nNtR}b",
    "partial": b"cfunctools\npartial\n" + HERE + b"touch\n\x85R)R",
    "called twice": HERE + b"touch\n)R)R",
}


@pytest.fixture(autouse=True)
def _untouched() -> Any:
    os.environ.pop(TOUCHED, None)
    copyreg.add_extension("test_pickled", "touch", 0xF0)
    yield
    copyreg.remove_extension("test_pickled", "touch", 0xF0)
    assert os.environ.pop(TOUCHED, None) is None


def with_beside(path: Path, beside: bytes, weights: Any) -> Path:
    """Write a file of torch whose pickle has an entry more, made of these instructions."""
    torch.save({"state_dict": weights}, path)
    packed = path.with_suffix(".packed")
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(packed, "w") as changed:
        for entry in given.infolist():
            data = given.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data[-1:] == b"."
                data = data[:-1] + b"X\x05\x00\x00\x00extra" + beside + b"s."
            changed.writestr(entry.filename, data)
    packed.replace(path)
    return path


@pytest.mark.parametrize("how", HOSTILE)
def test_nothing_that_a_pickle_asks_for_is_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "vitrail_test_imported.py"
    module.write_text(f"import os\nos.environ[{TOUCHED!r}] = 'yes'\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    weights = tiny(TNT).state_dict()
    path = with_beside(tmp_path / "a.pth", HOSTILE[how], weights)
    # the same instructions do run where they are obeyed, or else this shows nothing
    try:
        pickle.loads(P + HOSTILE[how] + b".")
    except Exception:
        assert how in ("loaded bytes", "adds", "rebuilt tensor", "called twice", "partial", "key")
    else:
        assert os.environ.pop(TOUCHED, None) == "yes" or how in ("partial", "rebuilt tensor")
    os.environ.pop(TOUCHED, None)
    sys.modules.pop("vitrail_test_imported", None)
    found = opened(path, TNT)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in weights.items())
    assert "vitrail_test_imported" not in sys.modules


@pytest.mark.parametrize(
    ("instructions", "named"),
    [
        (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R", "os.system"),
        (b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R", "posix.system"),
        (b"(X\x04\x00\x00\x00trueios\nsystem\n", "os.system"),
        (b"csubprocess\nPopen\nX\x04\x00\x00\x00true\x85\x81", "subprocess.Popen"),
        (b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R", "builtins.eval"),
        (b"c__builtin__\nexec\nX\x01\x00\x00\x001\x85R", "builtins.exec"),
        (b"cbuiltins\n__import__\nX\x02\x00\x00\x00os\x85R", "builtins.__import__"),
        (b"crunpy\nrun_path\nX\x01\x00\x00\x00a\x85R", "runpy.run_path"),
        (b"cpickle\nloads\nC\x01a\x85R", "pickle.loads"),
        (b"csocket\nsocket\n)R", "socket.socket"),
    ],
)
def test_what_reaches_files_processes_and_code_is_refused_by_name(
    instructions: bytes, named: str, tmp_path: Path
) -> None:
    path = with_beside(tmp_path / "a.pth", instructions, tiny(TNT).state_dict())
    with pytest.raises(CheckpointError) as caught:
        opened(path, TNT)
    assert str(caught.value) == (
        f"{path}: asks to run {named}, which is no tensor or plain value, so it is not opened; save its state_dict() "
        "alone"
    )


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"U\x01aQ", "refers to something outside of it; save its state_dict"),
        (b"Pos.system\n", "refers to something outside of it; save its state_dict"),
        (b"(U\x07storageNNNNtQ", "cannot be read: its description is damaged or cut off; use the original"),
        (b"\x97", "keeps its values outside of the file; save its state_dict"),
        (b"\x80\x09N", "is a pickle of protocol 9, newer than any known here; save it with protocol 2"),
        (b"\xff", "cannot be read: its description is damaged"),
        (b"0000000", "cannot be read"),
        (b"j\xff\xff\xff\x7f", "cannot be read"),
        (b"I" + b"9" * 5000 + b"\n", "cannot be read"),
        (b"X\xff\xff\xff\x7fabc", "cannot be read"),
        (b"\x8e\x00\x00\x00\x00\x10\x00\x00\x00", "cannot be read"),
        (b"\x96\x00\x00\x00\x00\x10\x00\x00\x00", "cannot be read"),
        (b"(" * 10, "cannot be read"),
    ],
)
def test_pickles_that_cannot_be_followed_are_refused(instructions: bytes, message: str, tmp_path: Path) -> None:
    path = with_beside(tmp_path / "a.pth", instructions, tiny(TNT).state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(path, TNT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("claim", [b"\x8e", b"\x96", b"\x8d"], ids=["bytes", "bytearray", "text"])
def test_what_a_plain_pickle_claims_is_not_set_aside(claim: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(P + claim + (2**40).to_bytes(8, "little") + b"abc.")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_model(path)


DEEP = 50_000


@pytest.mark.parametrize(
    "nested",
    [b"](" * DEEP + b"e" * DEEP, (HERE + b"Setting\n)\x81") * DEEP + b"b" * (DEEP - 1)],
    ids=["lists", "objects"],
)
def test_depth_overruns_no_stack(nested: bytes, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    found = opened(with_beside(tmp_path / "a.pth", nested, weights), TNT)
    assert torch.equal(found.weights["norm.bias"], weights["norm.bias"])
    entries = b"}" + b"X\x01\x00\x00\x00a}" * DEEP + b"s" * DEEP
    assert opened(with_beside(tmp_path / "b.pth", entries, weights), TNT).weights.keys() == weights.keys()


def test_pickles_without_end_are_refused(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = with_beside(tmp_path / "a.pth", b"N0" * (MAX_STEPS // 2) + b"N", weights)
    with pytest.raises(CheckpointError, match="has a description of more than 2,000,000 parts"):
        opened(path, TNT)
    deep: Any = {"w": torch.ones(1)}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="holds no weights; its entries are a"):
        open_model(save(tmp_path / "a.pth", deep))
    wide: Any = {"w": torch.ones(1)}
    for _ in range(30):
        wide = {"a": wide, "b": wide}
    with pytest.raises(CheckpointError, match=r"holds more than 200,000 values|the same weight|20,000 tensors"):
        open_model(save(tmp_path / "a.pth", wide))
    tuples: Any = ()
    for _ in range(60):
        tuples = (tuples, tuples)
    found = opened(save(tmp_path / "a.pth", {"state_dict": weights, "deep": [tuples, {"key": tuples}]}), TNT)
    assert torch.equal(found.weights["norm.bias"], weights["norm.bias"])


def test_file_within_a_file_within_a_file_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(torch.ones(2), 2)
    for _ in range(3):
        call = b"ctorch.storage\n_load_from_bytes\nB" + len(data).to_bytes(4, "little") + data + b"\x85R"
        data = P + call + b"."
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="has files within files without end"):
        open_model(path)


LIMITED = """
import contextlib, resource, sys, time
from vitrail.errors import CheckpointError
from vitrail.weights.loading import open_model
with contextlib.suppress(CheckpointError):
    open_model(sys.executable)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20,) * 2)
for name in sys.argv[1:]:
    start = time.process_time()
    try:
        open_model(name)
    except CheckpointError as error:
        print(str(error).removeprefix(f"{name}: "))
    assert time.process_time() - start < 10
"""


@pytest.mark.thorough
@pytest.mark.skipif(not WILD.is_dir(), reason="the program that writes the files lies beside the repository")
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_small_files_that_ask_for_gigabytes_take_none(tmp_path: Path) -> None:
    subprocess.run([sys.executable, WILD / "bombs.py", tmp_path], check=True)
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", LIMITED, *files], check=True, stdout=subprocess.PIPE, text=True)
    refusals = dict(zip((Path(file).stem for file in files), done.stdout.splitlines(), strict=True))
    assert refusals.keys() == {"case", "cast", "f4", "fifth", "hex", "object", "puny"}
    assert refusals["cast"] == "w claims 500,000,000 values and has fewer; save it whole"
    assert refusals["f4"] == "a is of type F4, which no weight here is; use the original"
    assert refusals["hex"] == "holds no weights; its entries are none"


def test_byte_arrays_are_not_made(tmp_path: Path) -> None:
    class Huge:
        def __reduce__(self) -> tuple[Any, ...]:
            return bytearray, (6_000_000_000,)

    for old in (False, True):
        path = tmp_path / "a.pth"
        torch.save({"state_dict": Huge()}, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(CheckpointError, match="holds no weights; its entries are state_dict"):
            open_model(path)


DOUBLED = b"]" + b"2\x86" * 60
"""A list, and pairs of pairs of it, whose text has 2 ** 60 parts."""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04}" + DOUBLED + b"K\x01s.", "holds no weights; its entries are <a key>"),
        (b"\x80\x04\x8c\x01a" + DOUBLED + b"\x93)R.", "is damaged or cut off"),
        (b"\x80\x04X\xff\xff\x00\x00" + b"a" * 65535 + b"\x94h\x00\x93.", "is damaged or cut off"),
        (b"\x80\x02c" + b"a" * 5000 + b"\nb\n.", "is damaged or cut off"),
        (b"\x80\x02(i" + b"a" * 5000 + b"\nb\n.", "is damaged or cut off"),
        (b"\x80\x04}X\xff\xff\x00\x00" + b"a" * 65535 + b"K\x01s.", "has a name of more than 4,096 letters"),
        (b"\x80\x04}\x8b\x20\x4e\x00\x00" + b"\x7f" * 20_000 + b"K\x01s.", "has a name of more than 4,096 letters"),
        (
            b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93(NK\x00(" + b"K\x01" * 1000 + b"t)tR.",
            "has a tensor whose sizes are none",
        ),
    ],
    ids=["key", "class", "long class", "old class", "instance", "long key", "large key", "dimensions"],
)
def test_no_text_grows_from_a_few_bytes(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        open_model(tmp_path / "a.pth")


def test_long_list_in_many_places_is_looked_at_once(tmp_path: Path) -> None:
    listed = [*[torch.zeros(1)] * 20_000, None]
    path = save(tmp_path / "a.pth", dict.fromkeys(range(20_000), listed))
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match="holds no weights; its entries are 0, 1, 2, 3, 4"):
        open_model(path)
    assert time.perf_counter() - started < 10


def test_iterators_and_times_beside_weights_are_passed_over(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    beside = {"it": iter([1, 2]), "time": time.gmtime(0), "map": map(str, [1])}
    found = opened(save(tmp_path / "a.pth", {"model": weights, **beside}), TNT)
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)


def test_cut_and_changed_files_raise_checkpoint_errors_only(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for old in (False, True):
        whole = io.BytesIO()
        torch.save(
            {"state_dict": tiny(TNT).state_dict(), "extra": History()}, whole, _use_new_zipfile_serialization=not old
        )
        data, path = whole.getvalue(), tmp_path / "a.pth"
        refused = []
        for number in range(60):
            changed = bytearray(data)
            if number % 3 == 0:
                changed = changed[: int(generator.integers(len(data)))]
            for _ in range(number % 3):
                changed[int(generator.integers(min(len(data), 20_000)))] = int(generator.integers(256))
            path.write_bytes(changed)
            try:
                opened(path, TNT)
            except CheckpointError as error:
                refused.append(str(error))
        assert len(refused) > 20
        assert not [message for message in refused if "\n" in message]
