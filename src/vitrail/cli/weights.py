"""The commands of published weights: weights, weights fetch and weights add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vitrail.cli.tables import show_result

weights = App(
    name="weights",
    default_parameter=Parameter(negative=""),
    result_action="return_value",
)


@weights.default
def list_published(
    pattern: Annotated[
        str, Parameter(help="A shell pattern of names or origins: a star stands for any letters.")
    ] = "*",
) -> int:
    """List the weights that are published and have a name; wherever a weight file goes, such a name will do.

    ```
    vitrail weights
    vitrail weights 't2t_vit_14*'
    vitrail weights mindcv
    vitrail weights fetch twins_svt_small
    vitrail weights add downloads/model.pth
    ```
    """
    from vitrail.api import weights as api

    show_result(api.list_weights(pattern))
    return 0


@weights.command
def fetch(
    *names: Annotated[
        str, Parameter(help="Names that `vitrail weights` lists, or hf-hub:OWNER/NAME.")
    ],
) -> int:
    """Download published weights, such as before a machine goes offline; what is here already and whole stays.

    What is here is compared with its recorded hash, and fetched again where it is damaged. A download that was cut
    goes on where it stopped. VITRAIL_WEIGHTS_MIRROR names a server that has
    all the files, HF_ENDPOINT one that has the Hub's.

    ```
    vitrail weights fetch twins_svt_small t2t_vit_14_384
    ```
    """
    from vitrail.api import weights as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        show_result(api.fetch_weights(names, display=display))
    return 0


@weights.command
def add(
    *files: Annotated[
        Path, Parameter(help="Files that were downloaded elsewhere, whatever they are called.")
    ],
    name: Annotated[
        str | None,
        Parameter(
            help="Which published weights the file holds, where its content leaves that open."
        ),
    ] = None,
) -> int:
    """Copy a file that was downloaded by hand to where published weights are looked for.

    It is known by its hash where that was published, and by the names and shapes of its weights
    elsewhere.

    ```
    vitrail weights add ~/Downloads/tnt_s_81.5.pth.tar
    vitrail weights add alt_gvt_small.pth --name twins_svt_small:official
    ```
    """
    from vitrail.api import weights as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        show_result(api.add_weights(files, name=name, display=display))
    return 0
