"""Exported files: the record that each carries, read without its runtime and without running anything in it.

Each format keeps the record of the model where it has a place for such texts: ONNX in
metadata_props, MindIR in user_info, OpenVINO in rt_info, and the archives of PyTorch in a file
extra/vitrail.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from vitrail.choices import Precision
from vitrail.errors import CheckpointError, command
from vitrail.files import describe_absent
from vitrail.weights.checkpoint import KEY, Record, hash_file, parse_record
from vitrail.weights.description import MAX_TEXT
from vitrail.weights.digest import check_archive, check_sealed
from vitrail.weights.formats.protobuf import read_fields
from vitrail.weights.formats.torch_file import check_directory

Stored = Precision | Literal["int8"]
"""Precision that a file computes in; with int8, the layers that are not quantized are in
float32."""
MAX_BYTES = 4 * 2**30
"""Largest exported file that is opened; the largest model here takes 400 million bytes."""
EXTRA = f"extra/{KEY}"
"""File of the record in an archive of PyTorch, below its one folder."""
MAX_XML = 256 * 2**20
"""Largest XML of OpenVINO that is read, in bytes; that of the largest model here has 3 million."""
MAX_NESTING = 100
"""Deepest nesting of elements in the XML of OpenVINO."""
_TEXTS = 14
"""Field of an ONNX model, and of MindIR which was made after it, with texts by name."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a file was exported; it stands in the record's provenance."""

    format: str
    source: str
    """Name of the weight file."""
    sha256: str
    """SHA-256 of the weight file."""
    precision: Stored = "float32"
    batch_size: int | None = None
    """Images that it takes at once; None takes any number."""
    input: Literal["normalised", "image"] = "normalised"
    """float32 images as the model reads them, or one image of uint8 and any size that the file
    preprocesses itself."""
    details: Mapping[str, str]
    """Versions, opset, and the CPU or GPU that the file was compiled for, which matter where it is
    loaded."""

    @property
    def record_entry(self) -> dict[str, Any]:
        """Return the entry of this making in a record's provenance."""
        return {"exported": asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Described:
    """The record of an exported file, and how the file was made."""

    record: Record
    making: Making


def with_making(record: Record, making: Making) -> Record:
    """Return a record that also says how it was exported."""
    return replace(record, provenance={**record.provenance, **making.record_entry})


def check_whole(path: Path) -> str:
    """Compare an exported file with its digest or, without one, an archive with the checksums of its entries.

    Returns:
        Name of the digest or checksums that it was compared with; nothing where it has neither.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    absent = "is a folder, no regular file" if path.is_dir() else describe_absent(path)
    if absent:
        raise CheckpointError(f"{path}: {absent}; give a file that `vitrail export` wrote")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise CheckpointError(
            f"{path}: has {size:,} bytes, and no model that is exported here has over {MAX_BYTES:,}"
        )
    with _damage_told(path):
        if check_sealed(path):
            return "its digest"
        if READERS[path.suffix] is not _archive_texts:
            return ""
        check_directory(path)
        # such an archive holds machine code, which is not to be run once a bit of it has changed
        count = check_archive(path)
        return f"the checksums of its {count} entries" if count else ""


def read_texts(path: Path) -> dict[str, str]:
    """Return the texts by name that an exported file carries.

    Raises:
        CheckpointError: It is damaged.
    """
    with _damage_told(path):
        return READERS[path.suffix](path)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # as many kinds as a file can be damaged in
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}: is damaged, or no file of {path.suffix} ({reason[:200]}); copy or export it "
            "again"
        ) from error


def describe(path: Path) -> Described:
    """Read what an exported file says of itself, after a look whether all of it is as it was written.

    Raises:
        CheckpointError: It is missing, damaged, or was not written by `vitrail export`.
    """
    check_whole(path)
    texts = read_texts(path)
    if KEY not in texts:
        again = command(
            "export", "CHECKPOINT", "--format", path.suffix[1:].replace("xml", "openvino")
        )
        raise CheckpointError(
            f"{path}: does not say which classes and preprocessing it has, as it was not written "
            f"by vitrail; write it from the weight file: {again}"
        )
    record = parse_record(texts, path)
    try:
        making = Making(**record.provenance["exported"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: does not say how it was exported; export it again"
        ) from error
    if making.format != (form := path.suffix[1:].replace("xml", "openvino")):
        raise CheckpointError(
            f"{path}: says that it is {making.format}, and it is {form}; use the original"
        )
    return Described(record=record, making=making)


def check_beside(path: Path, making: Making) -> None:
    """Compare the weights of an OpenVINO model, which lie beside it, with those that it was written with.

    Raises:
        CheckpointError: They are not there, damaged, or another model's.
    """
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(
            f"{path}: its weights, {weights.name}, are not beside it; copy both files"
        )
    if making.details.get("bin") != hash_file(weights):
        raise CheckpointError(
            f"{path}: {weights.name} beside it is damaged, or belongs to another file; copy both "
            "files, or export again"
        )


def _protobuf_texts(path: Path) -> dict[str, str]:
    """Read the texts of ONNX or MindIR; the network before them is passed over."""
    texts: dict[str, str] = {}
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for field, entry in read_fields(data):
        if field == _TEXTS and isinstance(entry, memoryview):
            name_and_text = {1: "", 2: ""}
            for number, text in read_fields(entry):
                if isinstance(text, memoryview):
                    name_and_text[number] = bytes(text).decode()
            texts[name_and_text[1]] = name_and_text[2]
    return texts


def _xml_texts(path: Path) -> dict[str, str]:
    """Read the texts in rt_info; the network before it is let go while it is read."""
    if (size := path.stat().st_size) > MAX_XML:
        raise ValueError(f"it has {size:,} bytes, and {MAX_XML:,} at most are read")
    texts: dict[str, str] = {}
    above: list[ElementTree.Element] = []
    for event, element in ElementTree.iterparse(path, ("start", "end")):
        if event == "start":
            if len(above) > MAX_NESTING:
                raise ValueError("it has elements within elements without end")
            above.append(element)
            continue
        above.pop()
        if len(above) == 2 and above[1].tag == "rt_info":
            texts[element.tag] = element.get("value", "")
        # an element that was read is let go, as the network may be large
        if above:
            above[-1].remove(element)
    return texts


def _archive_texts(path: Path) -> dict[str, str]:
    check_directory(path)
    with zipfile.ZipFile(path) as archive:
        entries = [
            entry for entry in archive.infolist() if entry.filename.partition("/")[2] == EXTRA
        ]
        if not entries:
            return {}
        # it is never compressed, so that the text is no longer than the file
        if entries[0].compress_type or entries[0].file_size > 4 * MAX_TEXT:
            raise ValueError(
                f"{EXTRA} has {entries[0].file_size:,} bytes, or is compressed, which it never is"
            )
        return {KEY: archive.read(entries[0]).decode()}


READERS: Mapping[str, Callable[[Path], dict[str, str]]] = {
    ".onnx": _protobuf_texts,
    ".xml": _xml_texts,
    ".pt2": _archive_texts,
    ".torchscript": _archive_texts,
    ".mindir": _protobuf_texts,
}
"""The reader of the texts of each kind of file, by its ending."""
