"""The command of the server: serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vitrail.cli.channel import outlive_output
from vitrail.cli.options import (
    BatchSize,
    Checkpoint,
    Device,
    Engine,
    FileSettings,
    Precision,
    read_whole_number,
)
from vitrail.cli.tables import show_line

Host = Annotated[str, Parameter(help="Address to listen at; 0.0.0.0 is every one of this machine.")]
Port = Annotated[
    int, Parameter(converter=read_whole_number, help="Port to listen at; 0 takes a free one.")
]
MaxWait = Annotated[
    float, Parameter(help="Milliseconds that an image waits for others to be computed with.")
]
AnswerTopk = Annotated[
    int | None,
    Parameter(
        converter=read_whole_number,
        help="Classes of each answer, 5 by default; a multi-label model answers with at most so many that reach "
        "their thresholds, all by default.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    Parameter(
        help="File with the key that requests must bring; or give the key in VITRAIL_API_KEY."
    ),
]
Origins = Annotated[
    list[str] | None, Parameter(help="Origin whose pages may ask; may be given several times.")
]
HostNames = Annotated[
    list[str] | None,
    Parameter(
        help="Name that clients call the server by, beside its addresses, localhost and --host; may be given "
        "several times, and * is any name."
    ),
]
MaxBytes = Annotated[
    int,
    Parameter(converter=read_whole_number, help="Largest size of one uploaded file in bytes."),
]
MaxFiles = Annotated[
    int, Parameter(converter=read_whole_number, help="Largest number of files in one request.")
]
MaxPixels = Annotated[
    int, Parameter(converter=read_whole_number, help="Largest number of pixels in one image.")
]
MaxDecode = Annotated[
    float, Parameter(help="Most seconds of a processor's time for decoding one image.")
]
Queue = Annotated[
    int,
    Parameter(
        converter=read_whole_number, help="Images held at a time; more are told to come again."
    ),
]
MaxExplanations = Annotated[
    int,
    Parameter(
        converter=read_whole_number,
        help="Explanations held at a time, one of which is computed; more are told to come again, and 0 explains "
        "nothing.",
    ),
]
Timeout = Annotated[float, Parameter(help="Seconds from a request's first byte to its answer.")]


def serve(
    artifact: Checkpoint,
    *settings: FileSettings,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch: BatchSize = 16,
    max_wait_ms: MaxWait = 5.0,
    topk: AnswerTopk = None,
    api_key_file: ApiKeyFile = None,
    cors: Origins = None,
    host_name: HostNames = None,
    max_bytes: MaxBytes = 20 * 2**20,
    max_files: MaxFiles = 16,
    max_pixels: MaxPixels = 50_000_000,
    max_decode_s: MaxDecode = 5.0,
    queue: Queue = 256,
    max_explanations: MaxExplanations = 4,
    timeout_s: Timeout = 30.0,
    device: Device = "auto",
    engine: Engine = None,
    precision: Precision = None,
) -> int:
    """Answer HTTP requests with a model, and show a page to try it on.

    SIGTERM, SIGHUP and Ctrl-C end it once all requests that it has begun are answered. The log on
    stderr is JSON.

    ```
    vitrail serve runs/digits/best.safetensors
    vitrail serve best.xml --host 0.0.0.0 --api-key-file key.txt --max-batch 32
    curl -F files=@seven.png http://127.0.0.1:8000/predict
    ```
    """
    from vitrail.api import serving as api
    from vitrail.server.log import LogDisplay, write_json_lines

    def show_address(line: str) -> None:
        show_line(line)
        sys.stdout.flush()

    outlive_output()
    write_json_lines()
    api.serve(
        artifact,
        settings,
        host=host,
        port=port,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        topk=topk,
        api_key_file=api_key_file,
        cors=cors or (),
        host_name=host_name or (),
        max_bytes=max_bytes,
        max_files=max_files,
        max_pixels=max_pixels,
        max_decode_s=max_decode_s,
        queue=queue,
        max_explanations=max_explanations,
        timeout_s=timeout_s,
        device=device,
        engine=engine,
        precision=precision,
        on_ready=show_address,
        display=LogDisplay(),
    )
    return 0
