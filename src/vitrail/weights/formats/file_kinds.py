"""Recognise files that are no weights by their first bytes, and say what to do instead."""

from __future__ import annotations

from pathlib import Path

HEAD = 512
"""Bytes at the beginning of a file that are enough to know its format."""
READABLE = "readable are safetensors, PyTorch's .pth and MindSpore's .ckpt"
DOWNLOAD = "an address that was not the file's was saved instead of it; download it again, by its direct link"
"""What is said of a web page that somebody gives for a file."""
_UNPACK = "unpack it and give the file that is in it"
_RUN = "evaluate, predict, bench and serve run exported files, by their ending"
_OTHER = "only weights of PyTorch and MindSpore are read, in .pth, .safetensors or .ckpt"
MAGIC = (
    (
        0,
        b"version https://git-lfs",
        "is a pointer of Git LFS, not the file; fetch it with `git lfs pull`",
    ),
    (0, b"\x1f\x8b", f"is packed with gzip; {_UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"is packed with xz; {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"is packed with zstd; {_UNPACK}"),
    (0, b"BZh", f"is packed with bzip2; {_UNPACK}"),
    (0, b"\x04\x22\x4d\x18", f"is packed with lz4; {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"is a 7z archive; {_UNPACK}"),
    (0, b"Rar!", f"is a RAR archive; {_UNPACK}"),
    (
        257,
        b"ustar",
        f"is a tar archive (a .pth.tar of torch.save is none, whatever its name); {_UNPACK}",
    ),
    (0, b"\x89HDF\r\n\x1a\n", f"is HDF5, as Keras writes it; {_OTHER}"),
    (
        0,
        b"\x93NUMPY",
        "is one NumPy array (.npy); save the model's state_dict() with torch.save, or the arrays "
        "by name as tensors",
    ),
    (4, b"TFL3", f"is a model of TensorFlow Lite; {_OTHER}"),
    (0, b"GGUF", f"is GGUF, which holds language models; {_OTHER}"),
    (0, b"\xff\xd8\xff", "is a JPEG image; the weight file comes before the images"),
    (0, b"\x89PNG", "is a PNG image; the weight file comes before the images"),
    (0, b"%PDF", f"is a PDF; {READABLE}"),
)
"""Position and bytes by which each format is known, and the clause that explains it."""


def is_safetensors(head: bytes) -> bool:
    """Say whether a file begins as safetensors do: a size of eight bytes, then JSON."""
    return head[8:9] == b"{" and not _is_text(head[:8])


def is_torch(head: bytes) -> bool:
    """Say whether a file is a zip archive or a pickle."""
    return head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"


def explain_other_kind(path: Path, head: bytes) -> str | None:
    """Return what a file is that holds no weights, and what to do, as a clause; None where its bytes do not tell.

    Safetensors and what torch writes are known first: their first bytes can be any of these.
    """
    if not head:
        return "is empty: the download or the save did not finish; get it again"
    for start, magic, explanation in MAGIC:
        if head[start : start + len(magic)] == magic:
            return explanation
    if ".data-0" in path.name or path.suffix == ".index":
        return f"is a checkpoint of TensorFlow; {_OTHER}"
    if path.suffix in (".onnx", ".xml", ".bin", ".pb", ".mindir", ".pdmodel"):
        return _explain_program(path)
    return _explain_text(path, head) if _is_text(head) else None


def _explain_program(path: Path) -> str:
    named = {".onnx": "an ONNX model", ".xml": "an OpenVINO model", ".mindir": "a MindIR model"}
    if path.suffix in named:
        return f"is {named[path.suffix]}, a program and not weights; {READABLE}; {_RUN}"
    if path.suffix == ".bin":
        return f"is no weight file; {READABLE}; {_RUN}, an OpenVINO model by the name of its .xml"
    framework = "PaddlePaddle" if path.suffix == ".pdmodel" else "TensorFlow"
    return f"is a model of {framework}; {_OTHER}"


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in head) and len(head) > 1


def _explain_text(path: Path, head: bytes) -> str:
    begin = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in begin:
        return f"is a web page: {DOWNLOAD}"
    if begin.startswith(b"<"):
        return f"is XML, such as a server's refusal: {DOWNLOAD}"
    if begin.startswith((b"{", b"[")) and path.name.endswith(".index.json"):
        return (
            "is a list of the parts that the weights were cut into; join them into one file first"
        )
    if begin.startswith((b"{", b"[")):
        return f"is JSON, such as a server's refusal or a configuration, not weights; {READABLE}"
    shown = " ".join(head[:40].decode("utf-8", "replace").split())
    for letter in shown:
        if not letter.isprintable():
            shown = shown.replace(letter, "?")
    return f"is text that begins {shown!r}, not weights; {READABLE}"
