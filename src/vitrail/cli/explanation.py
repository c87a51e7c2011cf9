"""The command of explanations: explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vitrail import choices
from vitrail.cli.inference import ImageOrSetting
from vitrail.cli.options import Checkpoint, Device, Engine, read_whole_number, split_images
from vitrail.cli.tables import show_result

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
        help="By default gradient-attention for TNT, T2T-ViT and Twins, grad-cam for PyramidTNT, and occlusion for "
        "others and for exported files."
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


def explain(
    checkpoint: Checkpoint,
    *inputs: ImageOrSetting,
    class_name: ClassName = None,
    method: Method = None,
    output: SheetFolder = None,
    topk: ExplainedClasses = None,
    engine: Engine = None,
    device: Device = "auto",
) -> int:
    """Show what answers to images rest on: a sheet with maps for each; status 1 if an image could not be read.

    TNT has a map of its sentences and one of the words in them.

    ```
    vitrail explain best.safetensors robin.jpg
    vitrail explain best.safetensors photos/ --class robin --method grad-cam --output robins
    vitrail explain best.onnx robin.jpg
    ```
    """
    from vitrail.api import explanation as api
    from vitrail.cli.terminal import open_terminal
    from vitrail.inference.prediction_file import find_free_name

    images, settings = split_images(inputs)
    with open_terminal() as display:
        result = api.explain(
            checkpoint,
            images,
            settings,
            class_name=class_name,
            method=method,
            output=output or find_free_name(Path("explanations")),
            topk=topk,
            engine=engine,
            device=device,
            display=display,
        )
    show_result(result)
    return int(bool(result.bad_files))
