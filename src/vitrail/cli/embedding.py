"""The command of features: embed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vitrail import choices
from vitrail.cli.options import BatchSize, CsvAsIs, Device, Weights, read_whole_number, split_images
from vitrail.cli.tables import show_line, show_result
from vitrail.distributed.launch import is_main_process
from vitrail.errors import command

EmbedInput = Annotated[
    str,
    Parameter(
        help="Images, folders, quoted globs or lists of paths, which have no classes; or a data set, as "
        "data.root=FOLDER, data.list=FILE or data.name=NAME; and preprocess.key=value or "
        "weights.key=value. "
        "Nothing is the data set that the weights were trained with."
    ),
]
FeatureFile = Annotated[
    Path | None,
    Parameter(
        help="File to write: .npy, with an index .csv and a description .json beside it, or .parquet. By default "
        "features.npy, unless something else is asked for."
    ),
]
Level = Annotated[
    int,
    Parameter(
        converter=read_whole_number,
        help="Level of the model, from 0, or from -1 at the end: blocks of TNT and T2T-ViT, stages of Twins.",
    ),
]
Pool = Annotated[
    Literal["head", "cls", "mean", "max"],
    Parameter(
        help="How tokens become one vector: as the head reads them, the class token, or over the map."
    ),
]
Split = Annotated[
    Literal["all", "train", "val"],
    Parameter(help="Split of the data set; all is train and then val."),
]
MapPage = Annotated[
    Path | None,
    Parameter(
        help="Page to write with all images in two dimensions, near where their features are alike."
    ),
]
SearchPage = Annotated[
    Path | None, Parameter(help="Page to write with the images that --search finds.")
]


def embed(
    checkpoint: Weights,
    *inputs: EmbedInput,
    output: FeatureFile = None,
    level: Level = -1,
    pool: Pool = "head",
    split: Split = "all",
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Annotated[
        choices.Precision, Parameter(help="Precision of the computation.")
    ] = "float32",
    knn: Annotated[
        bool, Parameter(help="Say how often the nearest images have the right class.")
    ] = False,
    probe: Annotated[
        bool, Parameter(help="Say how well one linear layer tells the classes apart.")
    ] = False,
    search: Annotated[Path | None, Parameter(help="Image whose nearest ones are found.")] = None,
    topk: Annotated[int, Parameter(converter=read_whole_number, help="How many of them.")] = 10,
    report: SearchPage = None,
    map: MapPage = None,
    csv_as_is: CsvAsIs = False,
) -> int:
    """Compute the features of images: write, probe, search and draw them; status 1 if an image could not be read.

    What was stopped goes on when it is called again. The features are kept in the user's cache, where the next
    call without --output finds them.

    ```
    vitrail embed best.safetensors data.root=/data/birds --output birds.npy
    vitrail embed best.safetensors data.root=/data/birds --knn --probe --map birds.html
    vitrail embed best.safetensors data.root=/data/birds --search robin.jpg --topk 20 --report robin.html
    torchrun --nproc-per-node 8 -m vitrail embed best.safetensors photos/ --output photos.parquet
    ```
    """
    from vitrail.api import embedding as api
    from vitrail.cli.terminal import open_terminal

    images, settings = split_images(inputs)
    if output is None and not (knn or probe or search or map):
        output = Path("features.npy")
    with open_terminal() as display:
        result = api.embed(
            checkpoint,
            images or None,
            settings,
            output=output,
            level=level,
            pool=pool,
            split=split,
            batch_size=batch_size,
            device=device,
            precision=precision,
            knn=knn,
            probe=probe,
            search=search,
            topk=topk,
            report=report,
            map=map,
            csv_as_is=csv_as_is,
            display=display,
        )
    if is_main_process():
        show_result(result)
        if output is not None and not images and not (knn or probe or search or map):
            show_line(
                f"next: {command('embed', checkpoint, *settings, '--knn', '--probe', '--map', 'map.html')}"
            )
    return int(bool(result.bad_files))
