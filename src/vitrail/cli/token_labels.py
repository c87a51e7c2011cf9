"""The command of token labels: make-token-labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vitrail import choices
from vitrail.cli.options import Device, read_whole_number
from vitrail.cli.tables import show_result
from vitrail.distributed.launch import is_main_process

DataSettings = Annotated[
    str,
    Parameter(
        show_default=False,
        help="A data set, as data.root=FOLDER, data.list=FILE or data.name=NAME; and preprocess.key=value or "
        "weights.key=value, such as weights.options.image_size=448 for a finer map. "
        "Nothing is the data set that the teacher was trained with.",
    ),
]
TeacherFile = Annotated[
    str | None,
    Parameter(
        help="Trained model that labels the tokens: a weight file of any project, or a name "
        "that `vitrail weights` lists."
    ),
]


def make_token_labels(
    *settings: DataSettings,
    teacher: TeacherFile = None,
    output: Annotated[
        Path, Parameter(help="Folder to write, or to go on with what is there.")
    ] = Path("token-labels"),
    topk: Annotated[
        int,
        Parameter(converter=read_whole_number, help="Likeliest classes to keep of each token."),
    ] = 5,
    device: Device = "auto",
    precision: Annotated[
        choices.Precision, Parameter(help="Precision of the computation.")
    ] = "float32",
) -> int:
    """Write what a teacher says of every token of each training image; status 1 if an image could not be read.

    What was stopped goes on when it is called again.

    ```
    vitrail make-token-labels --teacher twins.safetensors data.root=/data/birds
    vitrail make-token-labels --teacher twins_svt_large data.root=/data/imagenet --output labels
    torchrun --nproc-per-node 8 -m vitrail make-token-labels --teacher twins_svt_large data.root=/data/imagenet
    ```
    """
    from vitrail.api import token_labels as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        result = api.make_token_labels(
            teacher,
            list(settings),
            output=output,
            topk=topk,
            device=device,
            precision=precision,
            display=display,
        )
    if is_main_process():
        show_result(result)
    return int(bool(result.bad_files))
