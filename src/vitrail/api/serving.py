"""Serve from Python: answer HTTP requests with a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitrail.api.arguments import checked
from vitrail.api.options import path_or_none, read_settings, settings_alone, shown
from vitrail.choices import Device, Engine, Precision
from vitrail.config.commands import PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.display import Display
from vitrail.errors import MissingExtra
from vitrail.migrate.given import Settings
from vitrail.server.settings import Limits, Serving, read_key

SERVE_NEEDS = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Packages of the server."""


@checked
def serve(
    artifact: str | Path,
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 16,
    max_wait_ms: float = 5.0,
    topk: int | None = None,
    api_key_file: str | Path | None = None,
    cors: Sequence[str] = (),
    host_name: Sequence[str] = (),
    max_bytes: int = 20 * 2**20,
    max_files: int = 16,
    max_pixels: int = 50_000_000,
    max_decode_s: float = 5.0,
    queue: int = 256,
    max_explanations: int = 4,
    timeout_s: float = 30.0,
    device: Device = "auto",
    engine: Engine | None = None,
    precision: Precision | None = None,
    on_ready: Callable[[str], None] | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> None:
    """Answer HTTP requests with a model, and show a page to try it on, until SIGTERM or Ctrl-C.

    `vitrail.serve("best.safetensors", port=8080)` does what `vitrail serve best.safetensors --port
    8080` does.

    Args:
        artifact: The weight file, of any project, or an exported file.
        settings: How the file and images are read, of the sections weights and preprocess.
        host: Address to listen at; 0.0.0.0 is every one of this machine.
        port: Port to listen at; 0 takes a free one.
        max_batch: Images that are computed together.
        max_wait_ms: Milliseconds that an image waits for others to be computed with.
        topk: Classes of each answer, 5 by default; of a multi-label model at most so many that
            reach their thresholds.
        api_key_file: File with the key that requests must bring; or it is given in VITRAIL_API_KEY.
        cors: Origins whose pages may ask.
        host_name: Names that clients call it by, beside its addresses, localhost and `host`; * any.
        max_bytes: Largest size of one uploaded file in bytes.
        max_files: Files of one request.
        max_pixels: Pixels of one image.
        max_decode_s: Seconds of a processor's time for decoding one image.
        queue: Images held at a time; more are told to come again.
        max_explanations: Explanations held at a time, one of them computed; 0 explains nothing.
        timeout_s: Seconds from a request's first byte to its answer.
        device: auto takes the accelerator, where there is one.
        engine: What runs an exported file, where two can, as .onnx.
        precision: Precision of the computation; None is an exported file's own.
        on_ready: Told in a line where it is and what runs the model, once it answers; None shows it.
        display: Where notes are shown; None is the terminal or notebook.
        progress: Whether notes are shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The file is not one, or damaged.
        ConfigError: A setting or an option is wrong, or the port cannot be had.
        MissingExtra: The packages of the server are not installed.
    """
    layer = settings_alone(read_settings(serve, settings, sections))
    resolve(PredictConfig, [layer])  # a wrong setting is told before all else
    limits = Limits(
        max_bytes=max_bytes,
        max_files=max_files,
        max_pixels=max_pixels,
        decode_s=max_decode_s,
        queue=queue,
        timeout_s=timeout_s,
    )
    serving = Serving(
        host=host,
        port=port,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        topk=topk,
        api_key=read_key(path_or_none(api_key_file)),
        cors=tuple(cors),
        host_names=tuple(host_name),
        max_explanations=max_explanations,
        limits=limits,
    )
    _require_packages()

    with shown(display, progress) as display:
        _answer(artifact, layer, serving, display, engine, device, precision, on_ready)


def _answer(
    artifact: str | Path,
    layer: Layer,
    serving: Serving,
    display: Display,
    engine: Engine | None,
    device: Device,
    precision: Precision | None,
    on_ready: Callable[[str], None] | None,
) -> None:
    """Open the model and answer requests until the server is told to end."""
    from vitrail.devices import pick_device
    from vitrail.inference.predictor import read_predictor
    from vitrail.kernels.prepare import prepare_kernels
    from vitrail.models.registry import kernels_of
    from vitrail.server.serve import DEFAULT_TOPK
    from vitrail.server.serve import serve as run

    predictor = read_predictor(
        artifact,
        [layer],
        engine=engine,
        topk=serving.topk,
        default_topk=DEFAULT_TOPK,
        display=display,
    )

    tell = on_ready or display.note

    def tell_address(address: str, about: str) -> None:
        tell(f"{address}: {predictor.record.model}, run by {about}; Ctrl-C ends it")

    if predictor.artifact.weights is not None:
        names = kernels_of(predictor.record.model)
        prepare_kernels(names, pick_device(device).type, display.note)
    run(predictor, serving, device=pick_device(device), precision=precision, on_ready=tell_address)


def _require_packages() -> None:
    """Refuse to go on without the packages of the server.

    Raises:
        MissingExtra: With what to install.
    """
    missing = [name for name in SERVE_NEEDS if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"serve needs {', '.join(missing)}; run: pip install 'vitrail[serve]'")
