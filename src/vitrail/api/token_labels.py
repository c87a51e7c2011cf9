"""Token labels from Python: what a teacher says of every token of each training image, for `token_labels.folder`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.api.arguments import checked
from vitrail.api.options import read_settings, require_at_least, settings_alone, shown
from vitrail.api.results import Result, copy_fields
from vitrail.choices import Device, Precision
from vitrail.config.commands import EmbedConfig
from vitrail.config.resolve import resolve
from vitrail.display import Display
from vitrail.errors import ConfigError, command, name_option, tell_count
from vitrail.migrate.given import Settings


@dataclass(frozen=True)
class TokenLabelFiles(Result):
    """What came of labelling the tokens of a data set's training images."""

    folder: Path
    """Folder of the labels, which `token_labels.folder` names."""
    teacher: str
    images: int
    grid: tuple[int, int]
    """Tokens of an image along height and width."""
    topk: int
    """Classes that are kept of a token."""
    bytes_per_image: int
    done_before: int
    """Images that were there already."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read, and has no labels."""
    data: dict[str, Any]
    """Settings of the data, for a training."""

    def lines(self) -> Sequence[str]:
        """Say what was written, and what to type next."""
        before = f", {self.done_before:,} of them before" if self.done_before else ""
        lines = [
            f"{self.folder}: {tell_count(self.images, 'image')}{before}, {self.grid[0]}x{self.grid[1]} tokens "
            f"each, {self.bytes_per_image:,} bytes an image"
        ]
        if self.bad_files:
            lines.append(
                f"{tell_count(len(self.bad_files), 'image')} could not be read, without labels:"
            )
            lines += [f"  {name}: {reason}" for name, reason in self.bad_files[:10]]
        where = [f"data.{key}={value}" for key, value in self.data.items() if value is not None]
        folder = f"token_labels.folder={self.folder}"
        lines.append(f"next: {command('train', 'RECIPE', *where, folder)}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return the numbers as one row."""
        return [
            {
                "folder": str(self.folder),
                "images": self.images,
                "bytes_per_image": self.bytes_per_image,
                "unreadable": len(self.bad_files),
            }
        ]


@checked
def make_token_labels(
    teacher: str | Path | None = None,
    settings: Settings | None = None,
    *,
    output: str | Path = "token-labels",
    topk: int = 5,
    device: Device = "auto",
    precision: Precision = "float32",
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> TokenLabelFiles:
    """Write what a teacher says of every token of each training image, for token labeling.

    `vitrail.make_token_labels("twins.safetensors", {"data.root": FOLDER})` does what `vitrail
    make-token-labels --teacher twins.safetensors data.root=FOLDER` does. Without settings of the
    data, for the images that the teacher was trained with. What was stopped goes on when it is
    called again.

    Args:
        teacher: Its weight file, of any project, or the name of published weights.
        settings: Settings of the sections weights, data and preprocess.
        output: Folder to write.
        topk: Likeliest classes to keep of each token.
        device: auto takes the accelerator, where there is one.
        precision: Precision of the computation.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The teacher's file is damaged, or the folder cannot be written.
        ConfigError: A setting is wrong, the teacher cannot label tokens, or the folder has other
            labels.
        DataError: There are no images, or the teacher lacks classes of theirs.
    """
    layer = settings_alone(read_settings(make_token_labels, settings, sections))
    if layer.values.get("data"):
        resolve(EmbedConfig, [layer])
    require_at_least(1, topk=topk)
    if teacher is None:
        raise ConfigError(
            f"{name_option('teacher')} is missing; give the weight file of a trained model"
        )

    from vitrail.distillation.label_tokens import label_tokens

    with shown(display, progress) as display:
        labelled = label_tokens(
            str(teacher),
            [layer],
            Path(output),
            display,
            topk=topk,
            device=device,
            precision=precision,
        )
    return TokenLabelFiles(**copy_fields(TokenLabelFiles, labelled))
