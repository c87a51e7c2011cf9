"""Time from typing `vitrail predict one.jpg` to its answer, beside a script of timm that does the same.

    uv run python benchmarks/startup.py [MODEL] [--rounds 7]

Each is a new process, and they take turns: our command with the weights, and with the ONNX and OpenVINO files made of
them; timm's model built, loaded with the same number of weights and asked; and `import torch`, below which nothing that
computes in PyTorch can be. Files are in the system's cache, as on the second run of a day.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cyclopts
import timm
import torch
from export import save
from PIL import Image
from side_by_side import alternate, publish

from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export, find_outputs
from vitrail.images.synthetic import draw_photo
from vitrail.weights.loading import open_model

THEIRS = """
import sys, timm, torch
from PIL import Image
model = timm.create_model(sys.argv[1], pretrained=False).eval()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    probabilities = model(transform(Image.open(sys.argv[3]).convert("RGB"))[None]).softmax(1)
print(probabilities.argmax().item())
"""


def main(model: str = "tnt_s_patch16_224", rounds: int = 7) -> None:
    """Print the table, and write a page beside this file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint, photo = folder / f"{model}.safetensors", folder / "one.jpg"
        save(model, checkpoint)
        Image.fromarray(draw_photo(0)).save(photo)
        opened = open_model(checkpoint)
        files = find_outputs(["onnx", "openvino"], checkpoint, None)
        exported = list(export(opened, files, gather_sample(opened.record, None)))
        assert all(one.is_good for one in exported)
        torch.save(timm.create_model(model, pretrained=False).state_dict(), folder / "timm.pth")

        def process(*words: object) -> Callable[[], object]:
            line = [sys.executable, *map(str, words)]
            return lambda: subprocess.run(line, check=True, capture_output=True, cwd=folder)

        predict = ("-m", "vitrail", "predict")
        seconds = alternate(
            {
                "`vitrail predict model.safetensors one.jpg`": process(*predict, checkpoint, photo),
                "`vitrail predict model.onnx one.jpg`": process(*predict, files["onnx"], photo),
                "`vitrail predict model.xml one.jpg`": process(*predict, files["openvino"], photo),
                f"timm {timm.__version__}, the same in a script": process(
                    "-c", THEIRS, model, folder / "timm.pth", photo
                ),
                "`import torch` alone": process("-c", "import torch"),
                "`vitrail --version`": process("-m", "vitrail", "--version"),
            },
            rounds,
        )
    theirs = statistics.median(next(taken for what, taken in seconds.items() if what.startswith("timm")))
    rows = [
        f"| {what} | {statistics.median(taken):.2f} | {min(taken):.2f} | {statistics.median(taken) / theirs:.2f} |"
        for what, taken in seconds.items()
    ]
    header = ["| from start to end of | median, s | least, s | of timm's |", "|-|-:|-:|-:|"]
    notes = [f"{model}, one photo of 640 x 480, {rounds} alternating rounds, each a new process on the CPU"]
    publish("startup", "From the command to the first prediction", notes, [*header, *rows])


if __name__ == "__main__":
    cyclopts.run(main)
