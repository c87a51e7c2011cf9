"""Preview from Python: what a model sees of the images, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from vitrail.api.arguments import checked
from vitrail.api.options import read_settings, require_at_least, shown, tell_remarks
from vitrail.api.results import Result
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import resolve
from vitrail.display import Display
from vitrail.errors import ConfigError, write_option
from vitrail.files import refuse_output
from vitrail.migrate.given import Settings
from vitrail.training.start import begin

ENDINGS = (".html", ".htm", ".png")
"""Endings of the files that a preview is written to."""


@dataclass(frozen=True)
class ImagePreview(Result):
    """What a model sees of some images, in a file that a notebook shows."""

    page: Path
    """The page, or the sheet where its name ends in .png."""
    images: int
    """Number of images on it."""
    lost: float
    """Share of its area that the median image loses in evaluation."""
    advice: str
    """What helps where that is much; else empty."""

    def lines(self) -> Sequence[str]:
        """Say where the page is, and what is lost."""
        lost = f"the median image loses {self.lost:.0%} of its area in evaluation"
        return [
            f"{self.images} images; {lost}",
            *([self.advice] if self.advice else []),
            f"preview: {self.page}",
        ]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return the numbers as one row."""
        return [asdict(self)]

    def _repr_html_(self) -> str:
        if not self.page.is_file():
            return super()._repr_html_()
        if self.page.suffix.lower() == ".png":
            from vitrail.pages.render import data_uri

            return f'<img src="{data_uri(self.page.read_bytes())}" alt="preview">'
        page = escape(self.page.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


@checked
def preview(
    recipe: str | Path | None = None,
    settings: Settings | None = None,
    *,
    output: str | Path = "preview.html",
    images: int = 12,
    views: int = 4,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> ImagePreview:
    """Show some images as they are, as evaluation shows them to the model, and as training does: varied and mixed.

    `vitrail.preview("tnt_s_imagenet", {"data.root": FOLDER})` does what `vitrail preview
    tnt_s_imagenet data.root=FOLDER` does.

    Args:
        recipe: Name or file of a recipe, or weights, whose own settings and preprocessing count.
        settings: Settings that go before the recipe's, such as {"preprocess.resize": "letterbox"}.
        output: File to write: a page, or a sheet of pictures where it ends in .png.
        images: Number of images, drawn by train.seed.
        views: Number of training views of each image.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as augment={"mixup": 0}.

    Raises:
        ConfigError: Settings that do not fit, or a file that is no page and no sheet.
        DataError: The images are not there, or none can be read.
        CheckpointError: A file cannot be read or written.
    """
    file = Path(output)
    require_at_least(1, images=images, views=views)
    if file.suffix.lower() not in ENDINGS:
        where = write_option("output", file)
        raise ConfigError(f"{where}: ends in none of {', '.join(ENDINGS)}; give it one of them")
    refuse_output("output", file, [recipe or ""])
    given = read_settings(preview, settings, sections)

    from vitrail.training.initial_model import refuse_left_options
    from vitrail.training.preview import names_weights, read_weights_as_recipe
    from vitrail.training.preview import preview as run

    with shown(display, progress) as display:
        if recipe is not None and names_weights(str(recipe)):
            layers = read_weights_as_recipe(str(recipe), given.layer, display)
            config = resolve(TrainConfig, [*layers, given.layer]).config
        else:
            start = begin(None if recipe is None else str(recipe), given)
            refuse_left_options(start.left, start.config.model.name)
            tell_remarks(display, start.remarks)
            config = start.config
        drawn = run(config, file, display, images=images, views=views)
    return ImagePreview(page=file, images=drawn.images, lost=drawn.lost, advice=drawn.advice)
