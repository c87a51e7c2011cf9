"""A folder of explanations: a sheet and raw maps for each image, and a page that shows all sheets."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.errors import ConfigError, name_option, write_option
from vitrail.explanation.explainer import Explained, Explainer
from vitrail.explanation.judge import READING, Judged
from vitrail.explanation.methods import METHODS
from vitrail.explanation.patch import Patch
from vitrail.explanation.sheet import Row, draw_sheet
from vitrail.files import refusal_told, write_whole
from vitrail.pages.render import pictured, render

PAGE = "index.html"
LONGEST_STEM = 60
"""Characters of an image's name that the names of its files keep."""


def refuse_folder(folder: Path) -> None:
    """Refuse a folder that has files, before any work is done for it.

    Raises:
        ConfigError: It is a file, has something in it, or cannot be made or written to.
    """
    where = write_option("output", folder)
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ConfigError(f"{where}: has files in it; give a new folder")
    elif folder.exists():
        raise ConfigError(f"{where}: is a file; give a new folder")
    # what cannot be written is told before the first image is explained
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise ConfigError(f"{where}: {there} is a file; give a new folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{where}: {there} cannot be written to; give another folder")


@dataclass
class ExplanationFolder:
    """A folder that is filled image by image, and has its page at the end."""

    folder: Path
    explainer: Explainer
    patch: Patch | None = None
    """A patch that each sheet magnifies."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """What the page shows of each image."""

    def write(
        self, explained: Explained, judged: Sequence[Judged] = ()
    ) -> tuple[Path | None, Path | None]:
        """Write the files of one image, and return its sheet and the raw values of its finest map.

        Args:
            explained: The maps of the image.
            judged: How faithful each of its finest maps is; nothing where that was not measured.

        Raises:
            CheckpointError: They cannot be written.
        """
        entry: dict[str, Any] = {"path": explained.path, "error": explained.error}
        self.shown.append(entry)
        if explained.maps is None or explained.view is None:
            return None, None
        self._make()
        stem = f"{len(self.shown):04d}_{_stem_of(explained.path)}"
        sheet = self.folder / f"{stem}.png"
        method = METHODS[self.explainer.method]
        title = f"{explained.path}: {self.explainer.method}, {self.explainer.path}"
        rows = _rows_of(explained, self.explainer, judged)
        drawn = draw_sheet(
            explained.view, title, rows, is_signed=method.is_signed, patch=self.patch
        )
        self._put(sheet, drawn)
        files = []
        *coarse, finest = explained.maps
        for level in (*coarse, finest):
            name = f"{stem}.npy" if level == finest else f"{stem}.{level}.npy"
            buffer = io.BytesIO()
            np.save(buffer, explained.maps[level])
            self._put(self.folder / name, buffer.getvalue())
            files.append(name)
        entry |= {"sheet": sheet.name, "files": files, "rows": _texts_of(explained, self.explainer)}
        entry["judged"] = [(str(one), one.fails) for one in judged]
        return sheet, self.folder / files[-1]

    def write_page(self) -> Path:
        """Write the page with all sheets.

        Raises:
            CheckpointError: It cannot be written.
        """
        self._make()
        page = render(
            "explain.html",
            name=self.explainer.path,
            method=self.explainer.method,
            is_signed=METHODS[self.explainer.method].is_signed,
            pictured=pictured(self.explainer.preprocess.pixels),
            images=self.shown,
            reading=READING,
            has_patch=self.patch is not None,
        )
        self._put(self.folder / PAGE, page)
        return self.folder / PAGE

    def _make(self) -> None:
        with refusal_told(self.folder, None, self._advice):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _put(self, path: Path, data: bytes) -> None:
        write_whole(path, data, self._advice)

    @property
    def _advice(self) -> str:
        """What to do where a file cannot be written."""
        return f"choose another folder with {name_option('output')}"


def _rows_of(explained: Explained, explainer: Explainer, judged: Sequence[Judged]) -> list[Row]:
    """Return what the sheet shows: a row a class, or one of all classes where the method knows of none."""
    assert explained.maps is not None
    texts = _texts_of(explained, explainer)
    if not METHODS[explainer.method].of_class:
        caption = ", ".join(f"{name} {odds}" for name, odds, _ in texts)
        maps = [(level, of_all[0]) for level, of_all in explained.maps.items()]
        return [Row(caption, maps, *_note_of(judged, 0))]
    rows = []
    for number, (name, odds, note) in enumerate(texts):
        caption = f"{name} {odds}{f' ({note})' if note else ''}"
        maps = [(level, of_classes[number]) for level, of_classes in explained.maps.items()]
        rows.append(Row(caption, maps, *_note_of(judged, number)))
    return rows


def _note_of(judged: Sequence[Judged], number: int) -> tuple[str, bool]:
    """Return what is said of a map, and whether it fails."""
    return (str(judged[number]), judged[number].fails) if judged else ("", False)


def _texts_of(explained: Explained, explainer: Explainer) -> list[tuple[str, str, str]]:
    """Return name, probability and a note of each class that is explained."""
    texts = []
    for index, probability in zip(explained.classes, explained.probabilities, strict=True):
        note = "" if index == explained.answer else f"answer: {explainer.names[explained.answer]}"
        # of several classes, the first is the answer
        note = note if explainer.wanted else ""
        texts.append((explainer.names[index], f"{probability:.3f}", note))
    return texts


def _stem_of(path: str) -> str:
    """Return the name of an image as a part of names of files anywhere."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem)
    return stem[:LONGEST_STEM] or "image"
