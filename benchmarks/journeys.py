"""Count the rooms that a reader enters who follows one image, one weight file or one evaluation through the code.

uv run python benchmarks/journeys.py                                  # this package
git worktree add /tmp/before COMMIT && PYTHONPATH=/tmp/before/src uv run python benchmarks/journeys.py

Each journey is run and every call is noted. A room is a package below `vitrail`, or a module beside the packages. A
move is a call from one room into another, each pair of functions counted once; a climb is such a call whose answer is
something, with which the caller goes on. Rooms that everything uses do not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

import vitrail

PACKAGE = f"{Path(vitrail.__file__).parent}{os.sep}"
EVERYWHERE = {"errors", "files", "display", "choices", "text", "engine", "devices", "distributed", "__init__"}
CLASSES = ("blue", "green", "red")


def room_of(frame: FrameType) -> str:
    """Return the room of a function; empty where it is no room of ours, or one that everything uses."""
    path = frame.f_code.co_filename
    if not path.startswith(PACKAGE):
        return ""
    room = Path(path.removeprefix(PACKAGE)).parts[0].removesuffix(".py")
    return "" if room in EVERYWHERE else room


class Journey:
    """The calls of a run from one room into another."""

    def __init__(self) -> None:
        self.rooms: set[str] = set()
        self.moves: set[tuple[str, str]] = set()
        self.climbs: set[tuple[str, str]] = set()

    def note(self, frame: FrameType, event: str, answer: Any) -> None:
        """Take a call or a return, as `sys.setprofile` tells it."""
        if event not in ("call", "return"):
            return
        room, name = room_of(frame), frame.f_code.co_qualname
        # comprehensions, and what modules do when they are imported, are no functions of their own
        if not room or name.endswith(">") or (caller := self._caller(frame)) is None:
            return
        self.rooms |= {room, room_of(caller)}
        if room_of(caller) == room:
            return
        move = (f"{room_of(caller)}.{caller.f_code.co_qualname}", f"{room}.{name}")
        if event == "call":
            self.moves.add(move)
        elif answer is not None:
            self.climbs.add(move)

    def _caller(self, frame: FrameType) -> FrameType | None:
        caller = frame.f_back
        while caller is not None and not room_of(caller):
            caller = caller.f_back
        return caller

    def follow(self, run: Callable[[], object]) -> None:
        """Run something, and note its calls in all threads."""
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        try:
            run()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def make_images(root: Path) -> None:
    """Write a few images of noise by class."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 255, (32, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")


def run_command(*words: object) -> None:
    """Run a command in this process."""
    try:
        from vitrail.cli.app import main
    except ImportError:  # before there were rooms
        from vitrail.cli.app import main
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(StringIO()):
        main([str(word) for word in words])


def main() -> None:
    """Print the table of the journeys."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images")
        shape: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4}
        tiny = ("model.name=t2t_vit_7", "model.image_size=32", "train.batch_size=8", "train.device=cpu")
        data = (f"data.root={root / 'images'}", "data.name=null", "data.workers=0", "data.check=false")
        settings = (
            *data,
            *tiny,
            f"model.options={json.dumps(shape)}",
            "train.epochs=1",
            "schedule.warmup_epochs=0",
            f"output.root={root / 'runs'}",
        )
        run_command("train", "t2t_vit_7_imagenet", *settings)
        weights = root / "runs" / "t2t_vit_7_imagenet" / "best.safetensors"
        ckpt = root / "tiny.ckpt"
        run_command("convert", weights, ckpt, "--to", "zoo")
        image = root / "images" / "val" / "red" / "0.jpg"
        asked: dict[str, Callable[[], object]] = {
            "an image in `vitrail predict`": lambda: run_command("predict", weights, image, "--output", "/dev/null"),
            "a MindSpore .ckpt in `load_model`": lambda: vitrail.load_model(
                ckpt, model="t2t_vit_7", image_size=32, **shape
            ),
            "an evaluation with report": lambda: run_command(
                "evaluate", weights, *data[:1], "data.workers=0", "--report", root / "report"
            ),
        }
        print("| journey | rooms | moves | climbs |\n|-|-|-|-|")
        for name, run in asked.items():
            with contextlib.redirect_stderr(StringIO()):  # what is told of them is not wanted
                run()  # imports, which are no part of the way
                journey = Journey()
                journey.follow(run)
            moves = len(journey.moves) + len(journey.climbs)
            print(f"| {name} | {len(journey.rooms)} | {moves} | {len(journey.climbs)} |")


if __name__ == "__main__":
    main()
