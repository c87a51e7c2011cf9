"""Write whole models as MindIR, run each file in MindSpore, and compare its logits with PyTorch's.

    VITRAIL_MINDSPORE_PYTHON=... uv run python benchmarks/mindir.py [MODEL ...]

The variable names a Python that has MindSpore, or several, divided as in PATH. What runs there is the check that is
written beside each file.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import cyclopts
import numpy as np
import torch
from side_by_side import publish

from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export, find_outputs
from vitrail.images.preprocess import Preprocess
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model
from vitrail.weights.checkpoint import Record, model_options, save_model
from vitrail.weights.loading import open_model

MODELS = (
    "tnt_s_patch16_224",
    "tnt_b_patch16_224",
    "t2t_vit_7",
    "t2t_vit_14",
    "t2t_vit_t_14",
    "twins_svt_small",
    "twins_pcpvt_small",
)


def build(name: str) -> VisionModel:
    """Build a model that no initialisation hides anything in: logits and attention spread as after training."""
    torch.manual_seed(0)
    model = create_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.add_(scale * torch.randn_like(parameter))
    return model


def checked(python: str, check: Path) -> tuple[str, str]:
    """Run a check; return the version of MindSpore and the largest difference of logits, or that it does not load."""
    asked = [python, "-c", "import mindspore; print(mindspore.__version__)"]
    version = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    done = subprocess.run([python, check.name], cwd=check.parent, capture_output=True, text=True, check=False)
    difference = re.search(r"logits differ by at most (\S+); good", done.stdout)
    if difference is None and "maximum mind ir version" not in done.stderr:
        raise RuntimeError(done.stdout + done.stderr)
    return version, difference[1] if difference else "not read"


def main(*names: str, batch_size: int = 2) -> None:
    """Compare both versions of the format, and write a page beside this file."""
    pythons = os.environ["VITRAIL_MINDSPORE_PYTHON"].split(os.pathsep)
    torch.export.export(torch.nn.Identity(), (torch.zeros(1),))  # the first export of a process loads much
    header, rows = "", []
    for name in names or MODELS:
        model = build(name)
        record = Record(
            model=name,
            options=model_options(model),
            classes=tuple(map(str, range(model.config.num_classes))),
            preprocess=Preprocess(size=model.config.size),
        )
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place, "best.safetensors")
            save_model(checkpoint, model.state_dict(), record)
            for version in (1, 3):
                opened = open_model(checkpoint)
                outputs, sample = find_outputs(["mindir"], checkpoint, None), gather_sample(opened.record, None)
                (done,) = export(opened, outputs, sample, batch_size=batch_size, mindir_version=version)
                assert done.script is not None
                size, script = done.path.stat().st_size / 2**20, done.script
                spread = np.load(script.with_suffix(".npz"))["logits"].std()
                found = [checked(python, script) for python in pythons]
                header = " | ".join(f"MindSpore {of}" for of, _ in found)
                differences = " | ".join(difference for _, difference in found)
                rows.append(f"| {name} | {version} | {size:.1f} | {done.seconds:.1f} | {differences} | {spread:.2f} |")
    notes = [
        f"{batch_size} images of normal noise, on the CPU; random weights, the gains of norms and the biases too",
        "export: from the weights to the content of the three files",
        "below each MindSpore: the largest difference of its logits from PyTorch's; spread: their standard deviation",
    ]
    columns = f"| model | MindIR version | file, MiB | export, s | {header} | spread |"
    publish("mindir", "MindIR in MindSpore", notes, [columns, "|-" + "|-:" * (4 + len(pythons)) + "|", *rows])


if __name__ == "__main__":
    cyclopts.run(main)
