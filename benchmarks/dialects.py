"""Every project that a weight file can come from or go to: written, read back, computed, and beside the project's own.

    uv run python benchmarks/dialects.py

Each model has random weights, norms and biases too. "As it computes" is the largest difference between logits of the
model and of the same weights read as that project's, with its GELU and epsilons; "its own program" is the difference
from logits that the project's code computed: timm here and now, the official code and MindSpore in ../shared/golden.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import cyclopts
import numpy as np
import timm
import torch
from side_by_side import publish

from vitrail.errors import VitrailError
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model
from vitrail.weights.convert import convert
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt, read_ckpt
from vitrail.weights.loading import open_model
from vitrail.weights.request import LoadRequest

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.formula import formula, golden_weight

SHARED = Path(__file__).parents[2] / "shared" / "golden"
MODELS = (
    "tnt_s_patch16_224", "tnt_b_patch16_224", "tnt_s_legacy_patch16_224", "t2t_vit_14", "t2t_vit_t_14",
    "twins_svt_small", "twins_pcpvt_small",
)  # fmt: skip
PROJECTS = {"official": ".pth", "timm": ".safetensors", "mmpretrain": ".pth", "mindcv": ".ckpt", "zoo": ".ckpt"}
MINDSPORE = {
    "image_size": 32, "patch_size": 16, "embed_dim": 48, "inner_dim": 12, "depth": 2, "num_heads": 3,
    "inner_num_heads": 2,
}  # fmt: skip


def randomised(name: str, without_biases: bool) -> VisionModel:
    """Return a model whose every trained weight is random; the zoo's TNT has zeros where it has no biases."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if without_biases and key.endswith("bias") and "norm" not in key and "fc1" not in key:
                parameter.zero_()
    return model


def beside_timm(name: str, path: Path) -> str:
    """Load the written file in timm, and compare."""
    theirs = timm.create_model(name, checkpoint_path=str(path)).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        difference = (theirs(images) - open_model(path, LoadRequest(model=name)).build()(images)).abs().max()
    return f"{difference:.1e} (timm {timm.__version__})"


def beside_official(name: str, folder: Path) -> str:
    """Read the golden weights from a file under official names, and compare with the official code's logits."""
    golden = SHARED / "models" / f"{name}.npz"
    if not golden.is_file():
        return "not run"
    kept = ("pos_embed", "outer_tokens")
    weights = {
        key: tensor if key in kept else golden_weight(key, tuple(tensor.shape))
        for key, tensor in create_model(name).state_dict().items()
    }
    torch.save(weights, folder / "golden.pth")
    images = torch.from_numpy(formula("image", (2, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        logits = open_model(folder / "golden.pth", LoadRequest(model=name)).build()(images)
    return f"{np.abs(logits.numpy() - np.load(golden)['logits']).max():.1e} (golden logits)"


def beside_mindspore(project: str) -> str:
    """Read the file that MindSpore wrote, and compare with the logits that it computed."""
    path = SHARED / "mindspore" / f"{project}_tnt_tiny.ckpt"
    if not path.is_file():
        return "not run"
    images = torch.from_numpy(formula("image", (2, 3, 32, 32)).astype(np.float32))
    with torch.inference_mode():
        logits = open_model(path, LoadRequest(model="tnt_s_patch16_224", options=MINDSPORE)).build()(images)
    expected = np.load(SHARED / "mindspore" / f"{project}_tnt_tiny.logits.npy")
    return f"{np.abs(logits.numpy() - expected).max():.1e} (tiny, MindSpore 2.10)"


def own_program(name: str, project: str, target: Path, folder: Path) -> str:
    """Return the difference from the project's own program, where there is one to compare with."""
    if project == "timm":
        return beside_timm(name, target)
    if project == "official":
        return beside_official(name, folder)
    if project in ("mindcv", "zoo") and name == "tnt_s_patch16_224":
        return beside_mindspore(project)
    return "not run"


def main(*names: str) -> None:
    """Print the table and write it beside this file."""
    table = [
        "| model | project | file | weights read back | as it computes | of logits of std | its own program |",
        "|-|-|-|-|-:|-:|-|",
    ]
    refused = ["", "| model | project | why not |", "|-|-|-|"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in names or MODELS:
            for project, ending in PROJECTS.items():
                source, target = folder / "source.pth", folder / f"target{ending}"
                without_biases = project == "zoo" and name.startswith("tnt")
                torch.save(randomised(name, without_biases).state_dict(), source)
                if "legacy" in name:  # whose names are no project's but ours; timm's come first
                    weights = timm.create_model(name).state_dict()
                    torch.save({key: 0.1 * torch.randn_like(tensor) for key, tensor in weights.items()}, source)
                try:
                    done = convert(source, target, project, LoadRequest(model=name))
                except VitrailError as error:
                    refused.append(f"| {name} | {project} | {str(error).split(': ', 1)[1]} |")
                    continue
                own = own_program(name, project, target, folder)
                table.append(
                    f"| {name} | {project} | {ending} | all, bit for bit | {done.difference:.1e} | {done.scale:.2f} "
                    f"| {own} |"
                )
        model = randomised("tnt_s_patch16_224", without_biases=False)
        big = folder / "big.ckpt"
        big.write_bytes(b"".join(encode_ckpt(model.state_dict())))
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            read_ckpt(big)
            seconds.append(time.perf_counter() - started)
        speed = f"a .ckpt of {big.stat().st_size / 1e6:.0f} MB is read in {sorted(seconds)[2]:.2f} s (median of 5)"
    publish("dialects", "Weights of every project, written and read", [speed], [*table, *refused])


if __name__ == "__main__":
    cyclopts.run(main)
