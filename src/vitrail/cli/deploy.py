"""The commands that write models for other programs: convert, export and quantize."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vitrail import choices
from vitrail.cli.options import FileSettings, ModelRecipe, Settings, Weights, read_whole_number
from vitrail.cli.tables import show_line, show_result
from vitrail.errors import command

if TYPE_CHECKING:
    from vitrail.api.deploy import ExportedFile, Exports


def convert(
    source: Annotated[
        str, Parameter(help="A weight file, a folder of timm's or the hub's, or hf-hub:OWNER/NAME.")
    ],
    target: Annotated[
        Path,
        Parameter(help="File to write; its ending says of which kind. For timm, also a folder."),
    ],
    *settings: Annotated[
        str, Parameter(show_default=False, help="How the source is read: weights.key=value.")
    ],
    to: Annotated[
        Literal["official", "timm", "mmpretrain", "mindcv", "zoo", "mindspore", "vitrail"],
        Parameter(
            help="The project that is to read it: the paper's own, timm, mmpretrain, MindCV, MindSpore's zoo."
        ),
    ],
    report: Annotated[
        Path | None, Parameter(help="Also write what became of each weight to this JSON file.")
    ] = None,
) -> int:
    """Write a weight file for another project, with an account of every weight; read it back and compare.

    ```
    vitrail convert 82.9_T2T_ViT.pth.tar t2t.ckpt --to zoo weights.model=t2t_vit_14
    vitrail convert tnt_s.ckpt tnt_s/ --to timm
    ```
    """
    from vitrail.api import deploy as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        done = api.convert(source, target, settings, to=to, report=report, display=display)
    show_result(done)
    show_line(f"next: {command('evaluate', target, 'data.root=FOLDER', *done.settings)}")
    return 0


def export(
    checkpoint: Weights,
    *settings: FileSettings,
    format: Annotated[
        list[choices.ExportFormat],
        Parameter(
            help="What to write; may be given several times. mindir is for MindSpore and MindSpore Lite."
        ),
    ],
    output: Annotated[
        Path | None,
        Parameter(help="File to write, or for several a folder; beside the checkpoint by default."),
    ] = None,
    precision: Annotated[
        choices.Precision,
        Parameter(help="What the file computes in; images and logits are float32."),
    ] = "float32",
    images: Annotated[
        Path | None,
        Parameter(help="Folder of images to compare answers on; pictures are drawn by default."),
    ] = None,
    batch_size: Annotated[
        int | None,
        Parameter(
            converter=read_whole_number,
            help="Images that the file takes at once; any number, and 1 for mindir.",
        ),
    ] = None,
    with_preprocess: Annotated[
        bool, Parameter(help="Let the onnx file read whole images itself, and yield probabilities.")
    ] = False,
    topk: Annotated[
        int | None,
        Parameter(
            converter=read_whole_number,
            help="Likeliest classes that a file with --with-preprocess yields too, 5 by default.",
        ),
    ] = None,
    config: ModelRecipe = None,
    device: Annotated[choices.Device, Parameter(help="What a pt2 is compiled for.")] = "auto",
    mindir_version: Annotated[
        Literal[1, 3] | None,
        Parameter(
            help="Version of a mindir: 1, the default, is read by MindSpore 2.0 and newer, and Lite; 3 by newer ones, "
            "which can export it again."
        ),
    ] = None,
) -> int:
    """Write a trained model for other runtimes, and compare the answers of each file with PyTorch's.

    A file whose logits are too far off is kept as FILE.rejected, and the status is 2.

    ```
    vitrail export runs/digits/best.safetensors --format onnx --format openvino
    vitrail export best.safetensors --format onnx --with-preprocess --images photos/
    vitrail export best.safetensors --format mindir --batch-size 8 --output served.mindir
    ```
    """
    from vitrail.api import deploy as api
    from vitrail.cli.terminal import open_terminal

    try:
        with open_terminal() as display:
            exports = api.export(
                checkpoint,
                settings,
                format=format,
                output=output,
                precision=precision,
                images=images,
                batch_size=batch_size,
                with_preprocess=with_preprocess,
                topk=topk,
                config=config,
                device=device,
                mindir_version=mindir_version,
                display=display,
            )
    except api.Rejected as rejected:
        show_result(rejected.result)
        raise
    show_result(exports)
    for one in exports:
        show_line(
            f"next: {_next_command(one, exports, checkpoint, with_preprocess=with_preprocess)}"
        )
    return 0


def _next_command(
    one: ExportedFile, exports: Exports, checkpoint: Path, *, with_preprocess: bool
) -> str:
    """Return what to type to try an exported file."""
    if one.script is not None:
        return f"{shlex.join(['python', str(one.script)])}  # where MindSpore is"
    if with_preprocess:
        code = (
            "import numpy, onnxruntime, PIL.Image; image = "
            "numpy.array(PIL.Image.open('IMAGE').convert('RGB')); "
            f"print(onnxruntime.InferenceSession({str(one.path)!r}).run(None, {{'image': "
            f"image[None]}})[1:])"
        )
        return shlex.join(["python", "-c", code])
    # `evaluate` and `predict` have no use for it
    if exports.num_classes < 2 and not exports.multi_label:
        return command("bench", one.path)
    data = [] if exports.has_data else ["data.root=FOLDER"]
    return command("evaluate", one.path, *data, "--against", checkpoint)


def quantize(
    checkpoint: Weights,
    *settings: Settings,
    format: Annotated[choices.QuantizedFormat, Parameter(help="What to write.")],
    max_drop: Annotated[
        float, Parameter(help="Points of top-1, or of mAP, that may be lost.")
    ] = 1.0,
    output: Annotated[
        Path | None,
        Parameter(
            help="File to write; NAME.int8.onnx or NAME.int8.xml beside the checkpoint by default."
        ),
    ] = None,
    rounds: Annotated[
        int,
        Parameter(
            converter=read_whole_number,
            help="Rounds in which all files are timed, each with 5 runs.",
        ),
    ] = 5,
) -> int:
    """Write a trained model in 8 bits, if it stays accurate on labelled images.

    Accuracy is measured on the images the weights were validated with, or on those that data.*
    names; ranges of inputs are found on 128 images of the training. The 1, 2, 4, ... layers that
    suffer most stay in float until the drop is allowed; if that takes more than half of them, the
    file is kept as FILE.rejected, and the status is 2.

    ```
    vitrail quantize runs/digits/best.safetensors --format onnx
    vitrail quantize best.safetensors --format openvino data.root=/data/birds --max-drop 0.5
    ```
    """
    from vitrail.api import deploy as api
    from vitrail.cli.terminal import open_terminal

    try:
        with open_terminal() as display:
            result = api.quantize(
                checkpoint,
                settings,
                format=format,
                max_drop=max_drop,
                output=output,
                rounds=rounds,
                display=display,
            )
    except api.Rejected as rejected:
        show_result(rejected.result)
        raise
    show_result(result)
    data = [text for text in settings if text.startswith(("data.", "evaluate."))]
    show_line(f"next: {command('evaluate', result.path, *data, '--against', checkpoint)}")
    return 0
