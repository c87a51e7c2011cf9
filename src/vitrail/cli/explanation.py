"""The command of explanations: explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitrail import choices
from vitrail.cli.inference import ImageOrSetting
from vitrail.cli.options import (
    Checkpoint,
    Device,
    Engine,
    read_place,
    read_whole_number,
    split_images,
)
from vitrail.cli.tables import show_result
from vitrail.errors import ConfigError

ClassName = Annotated[
    str | None,
    Parameter(
        name="--class",
        help="Class to explain, by its name or number; by default the most probable ones.",
    ),
]
Method = Annotated[
    choices.ExplanationMethod | None,
    Parameter(
        help="By default gradient-attention for TNT, T2T-ViT and Twins, and occlusion for others and for exported "
        "files."
    ),
]
SheetFolder = Annotated[
    Path | None,
    Parameter(
        help="New folder for sheets, raw maps and their page; explanations by default, with a free number."
    ),
]
ExplainedClasses = Annotated[
    int | None,
    Parameter(
        converter=read_whole_number,
        help="Most classes to explain of an image: one by default; of a multi-label model, all that reach their "
        "thresholds.",
    ),
]


MagnifiedPatch = Annotated[
    tuple[int, int] | None,
    Parameter(
        name="--patch",
        n_tokens=1,
        accepts_keys=False,
        converter=read_place,
        help="ROW,COLUMN of a patch of a TNT, from 0,0, that the sheets magnify, with the share of each word.",
    ),
]
MapsAlone = Annotated[
    bool,
    Parameter(
        help="Do not measure how faithful each map is, which takes some thirty answers and a map of the model whose "
        "weights are shuffled."
    ),
]
Score = Annotated[
    bool,
    Parameter(
        help="Measure how faithful the maps of each method are instead: a table of methods. Images need no labels; a "
        "data set will do, as data.root=FOLDER, and nothing is the images that it was validated with."
    ),
]
Limit = Annotated[
    int | None,
    Parameter(
        converter=read_whole_number,
        help="With --score, most images to explain, drawn evenly from all; 32 by default.",
    ),
]
MaskFolder = Annotated[
    Path | None,
    Parameter(
        name="--masks",
        help="With --score, folder with a PNG file for each image, by the end of the image's path; what is not 0 there "
        "is where the class is.",
    ),
]
ScoreFile = Annotated[
    Path | None, Parameter(name="--json", help="With --score, also write the numbers to this file.")
]


def explain(
    checkpoint: Checkpoint,
    *inputs: ImageOrSetting,
    class_name: ClassName = None,
    method: Method = None,
    output: SheetFolder = None,
    topk: ExplainedClasses = None,
    engine: Engine = None,
    device: Device = "auto",
    maps_alone: MapsAlone = False,
    patch: MagnifiedPatch = None,
    score: Score = False,
    limit: Limit = None,
    masks: MaskFolder = None,
    json_file: ScoreFile = None,
) -> int:
    """Show what answers to images rest on: a sheet with maps for each; status 1 if an image could not be read.

    TNT has a map of its sentences and one of the words in them.

    ```
    vitrail explain best.safetensors robin.jpg
    vitrail explain best.safetensors photos/ --class robin --method grad-cam --output robins
    vitrail explain best.onnx robin.jpg
    vitrail explain best.safetensors --score data.root=/data/birds --limit 100
    ```
    """
    from vitrail.api import explanation as api
    from vitrail.cli.terminal import open_terminal
    from vitrail.inference.prediction_file import find_free_name

    images, settings = split_images(inputs)
    if score:
        for name, value in {"--output": output, "--topk": topk, "--patch": patch}.items():
            if value is not None:
                raise ConfigError(
                    f"{name} {value}: --score writes no sheets; leave one of them out"
                )
        return _score(
            checkpoint,
            images or None,
            settings,
            class_name=class_name,
            methods=None if method is None else [method],
            limit=32 if limit is None else limit,
            masks=masks,
            json=json_file,
            engine=engine,
            device=device,
        )
    for name, value in {"--limit": limit, "--masks": masks, "--json": json_file}.items():
        if value is not None:
            raise ConfigError(f"{name} {value}: is for --score; add that, or leave it out")
    with open_terminal() as display:
        result = api.explain(
            checkpoint,
            images,
            settings,
            class_name=class_name,
            method=method,
            output=output or find_free_name(Path("explanations")),
            topk=topk,
            maps_alone=maps_alone,
            patch=patch,
            engine=engine,
            device=device,
            display=display,
        )
    show_result(result)
    return int(bool(result.bad_files))


def _score(checkpoint: Path, images: list[str] | None, settings: list[str], **options: Any) -> int:
    """Score methods, and show the table; status 1 if an image could not be read."""
    from vitrail.api import explanation_scores as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        result = api.score_explanations(checkpoint, images, settings, display=display, **options)
    show_result(result)
    return int(bool(result.bad_files))
