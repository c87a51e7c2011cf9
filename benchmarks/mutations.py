"""Open thousands of damaged and malicious weight files, and count what happens.

    uv run python benchmarks/mutations.py [--files 10000]

Each file is a real one with bytes changed, cut, repeated or taken from elsewhere. Every kind is tried in a process of
its own that may not take more than 512 MiB beside what it began with. A clean refusal is one of our own errors, of one
line; "opened" is a change that no reader can see, such as another value of a weight.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cyclopts
import safetensors.torch
import torch
from side_by_side import publish

from vitrail.errors import VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import Record, model_options, save_model
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.loading import open_model
from vitrail.weights.request import LoadRequest

KINDS = ("ckpt", "safetensors", "vitrail", "pth", "legacy pth")
MEMORY = 512 * 2**20
NAME = "twins_svt_small"


def original(kind: str, path: Path) -> None:
    """Write the file that is to be damaged."""
    model = create_model(NAME, **find_variant(NAME)[0].tiny)
    weights = model.state_dict()
    if kind == "ckpt":
        path.write_bytes(b"".join(encode_ckpt(weights, checksum=False)))
    elif kind == "safetensors":
        safetensors.torch.save_file(weights, path, {"format": "pt"})
    elif kind == "vitrail":
        record = Record(
            model=NAME, options=model_options(model), classes=tuple("abcdefg"), preprocess=Preprocess(size=(32, 32))
        )
        save_model(path, weights, record)
    else:
        torch.save({"state_dict": weights, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "pth")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return a file with something wrong: most often near its beginning or its end, where its structure stands."""
    bent, edge = bytearray(data), min(len(data), 4096)
    how = draw.choice(("flip", "flip", "cut", "repeat", "swap", "grow", "zero"))
    where = draw.choice((range(edge), range(len(data) - edge, len(data)), range(len(data))))
    at = draw.choice(where)
    size = draw.randint(1, 64)
    if how == "flip":
        for _ in range(draw.randint(1, 8)):
            bent[draw.choice(where)] = draw.randrange(256)
    elif how == "cut":
        del bent[at:]
    elif how == "repeat":
        bent[at:at] = bent[at : at + size]
    elif how == "swap":
        other = draw.randrange(len(bent))
        bent[at : at + size] = bent[other : other + size]
    elif how == "grow":  # a number that says how much follows becomes a large one
        bent[at : at + 8] = b"\xff" * draw.randint(1, 8)
    else:
        bent[at : at + size] = bytes(len(bent[at : at + size]))
    return bytes(bent)


def attack(kind: str, files: int) -> dict[str, Any]:
    """Open so many damaged files of a kind."""
    draw, found, slowest, crashes = random.Random(kind), Counter[str](), 0.0, []
    wanted = LoadRequest(
        model=NAME, options={k: v for k, v in find_variant(NAME)[0].tiny.items() if k != "num_classes"}
    )
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "weights"
        original(kind, path)
        open_model(path, wanted)
        data = path.read_bytes()
        used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, -1))
        for number in range(files):
            path.write_bytes(damaged(data, draw))
            started = time.perf_counter()
            try:
                open_model(path, wanted)
                found["opened"] += 1
            except VitrailError as error:
                found["refused" if "\n" not in str(error) else "more than one line"] += 1
            except Exception as error:  # what is counted here is what must not happen
                found["other errors"] += 1
                crashes.append(f"{number}: {type(error).__name__}: {str(error)[:100]}")
            slowest = max(slowest, time.perf_counter() - started)
    return {"kind": kind, "files": files, **found, "slowest": slowest, "crashes": crashes[:5]}


def main(files: int = 10_000, kind: str | None = None) -> None:
    """Print a table and write it beside this file."""
    if kind is not None:
        print(json.dumps(attack(kind, files)))
        return
    table = ["| kind | files | refused in one line | opened | other errors | processes lost | slowest, s |"]
    table.append("|-|-:|-:|-:|-:|-:|-:|")
    for name in KINDS:
        words = [sys.executable, __file__, "--files", str(files // len(KINDS)), "--kind", name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            table.append(f"| {name} | {files // len(KINDS):,} | | | | 1 ({done.returncode}) | |")
            print(done.stderr, file=sys.stderr)
            continue
        result = json.loads(done.stdout)
        others = result.get("other errors", 0) + result.get("more than one line", 0)
        counts = (result["files"], result.get("refused", 0), result.get("opened", 0), others, 0)
        table.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {result['slowest']:.2f} |")
        for crash in result["crashes"]:
            print(f"{name}: {crash}", file=sys.stderr)
    notes = [f"a process may take {MEMORY // 2**20} MiB more than it began with", "seeds are the kinds' names"]
    publish("mutations", "Damaged weight files", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
