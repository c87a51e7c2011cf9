"""The command of explanations: explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

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

Value = TypeVar("Value")
LIMIT = 32
"""Most images that are scored or measured where no limit is given."""
OPTIONS = {
    "": ("--class", "--method", "--output", "--topk", "--patch", "--engine", "--maps-alone"),
    "--score": ("--class", "--method", "--engine", "--limit", "--masks", "--json"),
    "--by-layer": ("--output", "--limit"),
}
"""Options that are for sheets, and for what is done in place of them."""

ClassNames = Annotated[
    list[str] | None,
    Parameter(
        name="--class",
        metavar="NAME",
        help="Class to explain, by its name or number; may be given several times; by default the most probable ones.",
    ),
]
Methods = Annotated[
    list[choices.ExplanationMethod] | None,
    Parameter(
        name="--method",
        metavar="METHOD",
        help="By default gradient-attention for TNT, T2T-ViT, Twins and PyramidTNT, and occlusion for other models and "
        "for exported files; with --score all that suit, or those that are given one by one.",
    ),
]
SheetFolder = Annotated[
    Path | None,
    Parameter(
        help="New folder for sheets, raw maps and their page, or for plots; explanations or layers by default, with a "
        "free number."
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
        metavar="ROW,COLUMN",
        n_tokens=1,
        allow_leading_hyphen=True,
        accepts_keys=False,
        converter=read_place,
        help="Row and column, from 0,0, of a patch of a TNT or PyramidTNT that the sheets magnify, with the share of "
        "each word.",
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
        "data set will do, as data.root=FOLDER, and nothing is the images that the model was validated with."
    ),
]
ByLayer = Annotated[
    bool,
    Parameter(
        help="Plot instead how far the attention of each head and layer reaches, and how alike tokens are after each "
        "block, as means over images or a data set, as with --score."
    ),
]
Limit = Annotated[
    int | None,
    Parameter(
        converter=read_whole_number,
        help="With --score or --by-layer, most images to take, drawn evenly from all; 32 by default.",
    ),
]
MaskFolder = Annotated[
    Path | None,
    Parameter(
        name="--masks",
        help="With --score, folder with a mask or boxes for each image, by the end of the image's path: a PNG, in "
        "which the class is where it is not 0, or an XML file of boxes as PASCAL VOC and ImageNet have them.",
    ),
]
ScoreFile = Annotated[
    Path | None, Parameter(name="--json", help="With --score, also write the numbers to this file.")
]


def explain(
    checkpoint: Checkpoint,
    *inputs: ImageOrSetting,
    class_names: ClassNames = None,
    methods: Methods = None,
    output: SheetFolder = None,
    topk: ExplainedClasses = None,
    engine: Engine = None,
    device: Device = "auto",
    maps_alone: MapsAlone = False,
    patch: MagnifiedPatch = None,
    score: Score = False,
    by_layer: ByLayer = False,
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
    vitrail explain best.safetensors photos/ --by-layer
    ```
    """
    from vitrail.api import explanation as api
    from vitrail.cli.terminal import open_terminal
    from vitrail.inference.prediction_file import find_free_name

    images, settings = split_images(inputs)
    given = {
        "--class": class_names and class_names[0],
        "--method": methods and methods[0],
        "--output": output,
        "--topk": topk,
        "--patch": None if patch is None else f"{patch[0]},{patch[1]}",
        "--engine": engine,
        "--maps-alone": maps_alone or None,
        "--limit": limit,
        "--masks": masks,
        "--json": json_file,
    }
    _check_options({"--score": score, "--by-layer": by_layer}, given)
    if score:
        return _score(
            checkpoint,
            images or None,
            settings,
            class_name=_single("--class", class_names, "--score explains one class of all images"),
            methods=methods,
            limit=LIMIT if limit is None else limit,
            masks=masks,
            json=json_file,
            engine=engine,
            device=device,
        )
    if by_layer:
        folder = output or find_free_name(Path("layers"))
        options = {"limit": LIMIT if limit is None else limit, "device": device}
        return _measure_depth(checkpoint, images or None, settings, output=folder, **options)
    if not images and any(text.startswith("data.") for text in settings):
        raise ConfigError("explain needs images; data sets go with --score and --by-layer")
    with open_terminal() as display:
        result = api.explain(
            checkpoint,
            images,
            settings,
            class_name=class_names,
            method=_single("--method", methods, "a sheet has one; --score compares several"),
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


def _single(flag: str, values: Sequence[Value] | None, reason: str) -> Value | None:
    """Return the one value that a flag is given.

    Raises:
        ConfigError: It is given several times.
    """
    if values is None:
        return None
    first, *others = values
    if others:
        raise ConfigError(f"{flag} {first} {flag} {others[0]}: {reason}; leave one of them out")
    return first


def _score(checkpoint: Path, images: list[str] | None, settings: list[str], **options: Any) -> int:
    """Score methods, and show the table; status 1 if an image could not be read."""
    from vitrail.api import explanation_scores as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        result = api.score_explanations(checkpoint, images, settings, display=display, **options)
    show_result(result)
    return int(bool(result.bad_files))


def _measure_depth(
    checkpoint: Path, images: list[str] | None, settings: list[str], **options: Any
) -> int:
    """Measure the layers of a network, and show the numbers; status 1 if an image could not be read."""
    from vitrail.api import depth as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        result = api.measure_depth(checkpoint, images, settings, display=display, **options)
    show_result(result)
    return int(bool(result.bad_files))


def _check_options(flags: Mapping[str, bool], given: Mapping[str, object]) -> None:
    """Refuse options that are not for what is asked for.

    Args:
        flags: What may be asked for in place of sheets, and whether it is.
        given: The options that are for some of it alone, None where they are not given.

    Raises:
        ConfigError: There is such an option.
    """
    asked = [flag for flag, is_asked in flags.items() if is_asked]
    if len(asked) > 1:
        raise ConfigError(f"{asked[0]} and {asked[1]} are two things; give one of them")
    mode = asked[0] if asked else ""
    for name, value in given.items():
        if value is None or name in OPTIONS[mode]:
            continue
        shown = name if value is True else f"{name} {value}"
        if mode:
            raise ConfigError(f"{shown}: does not go with {mode}; leave one of them out")
        modes = [flag for flag in flags if name in OPTIONS[flag]]
        raise ConfigError(f"{shown}: is for {' and '.join(modes)}; add that, or leave it out")
