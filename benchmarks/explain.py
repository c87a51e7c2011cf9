"""Explain small models of each family on composed images with known truth: a digit in one quadrant, fragments in three.

uv run python benchmarks/explain.py --work /tmp/explain             # some ten minutes, and as many for the scores
uv run python benchmarks/explain.py --work /tmp/explain --images 16 # fewer images to score by

A digit of scikit-learn's set is pasted into one quadrant of an image; each other quadrant is put together of four
tiles of four other digits, so that it has strokes of the same kind and no digit. One small model of each family learns
to read the digit. What a map gives to that quadrant is right, and a quarter is what a map has there that knows nothing.
What was done is kept in the work folder, so that the command goes on where it was stopped; the timings need a quiet
machine.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from side_by_side import alternate, publish, speed_up
from sklearn.datasets import load_digits
from torch import Tensor

import vitrail
from vitrail.devices import keep_freed_memory
from vitrail.explanation.faithfulness import (
    blur,
    correlate_ranks,
    enlarge,
    mean_colour,
    measure_saco,
    order_pixels,
    shuffle_weights,
)
from vitrail.explanation.judge import Judge
from vitrail.explanation.methods import METHODS, explain
from vitrail.explanation.perturbation import STEPS, count_squares
from vitrail.explanation.relevance import roll_out, weigh_by_gradient
from vitrail.explanation.sheet import lay_over
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model

SIDE = 16
"""Pixels along a side of a quadrant: the digits of 8 x 8 twice as large."""
TRAIN, VAL = 12000, 400
"""Composed images to train on and to explain, of digits that are not the same."""
HELD_OUT = 300
"""Digits that no training image has."""
COLUMNS = {
    "inside": "inside", "pointing": "pointing", "saco": "SaCo", "insertion": "insertion", "deletion": "deletion",
    "shuffled": "shuffled weights", "occlusion": "like occlusion",
}  # fmt: skip
"""Measures of the table, by their titles."""
REPLACED = ("mean colour", "blurred", "another image")
"""What stands in place of pixels in SaCo of words, as the rule of words begins at the mean colour too."""
EXAMPLE = "3"
"""Digit whose first image is drawn."""
TILE, GAP, LINE = 112, 6, 14
COMMON: dict[str, Any] = {
    "data.name": None,
    "data.workers": 0,
    "augment.scale": [1.0, 1.0],
    "augment.ratio": [1.0, 1.0],
    "augment.hflip": 0.0,
    "optim.lr": 2e-3,
    "train.batch_size": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "TNT": ("cifar10_tnt", {"model.options.embed_dim": 96, "model.options.inner_num_heads": 2, "train.epochs": 10}),
    "T2T-ViT": ("cifar10_t2t", {"model.image_size": 64, "model.options.embed_dim": 96, "train.epochs": 8}),
    "Twins": ("cifar10_twins", {"model.options.embed_dims": [24, 48, 96], "train.epochs": 6}),
    "PyramidTNT": ("cifar10_ptnt", {"model.options.embed_dims": [32, 64, 128], "train.epochs": 8}),
}
"""Of each family the recipe of a small model, and what is smaller or otherwise here."""


def compose(work: Path) -> Path:
    """Write the composed images and the masks of their digits, unless they are there, and return their folder."""
    folder = work / "images"
    if (folder / "done").exists():
        return folder
    digits, labels = load_digits(return_X_y=True)
    large = (digits.reshape(-1, 8, 8) * 15.9375).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    order = np.random.default_rng(0).permutation(len(large))
    known, new = order[HELD_OUT:], order[:HELD_OUT]
    for split, count, chosen in (("train", TRAIN, known), ("val", VAL, new)):
        for number in range(count):
            draw = np.random.default_rng([len(split), number])
            index = draw.choice(chosen)
            image, quadrant = paste(large[index], large[chosen], draw)
            name = Path(split) / str(labels[index]) / f"{number:05d}.png"
            save(folder / name, image)
            if split == "val":
                save(work / "masks" / name, cover(quadrant))
    (folder / "done").touch()
    return folder


def paste(digit: NDArray[np.uint8], others: NDArray[np.uint8], draw: np.random.Generator) -> tuple[Any, int]:
    """Return an image with a digit among fragments, and the number of its quadrant, row by row."""
    quadrant = int(draw.integers(4))
    image = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
    for place in range(4):
        content = digit if place == quadrant else break_up(others, draw)
        image[quarter(place)] = content
    return image, quadrant


def quarter(place: int) -> tuple[slice, slice]:
    """Return the rows and columns of a quadrant."""
    top, left = place // 2 * SIDE, place % 2 * SIDE
    return slice(top, top + SIDE), slice(left, left + SIDE)


def break_up(others: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """Return a quadrant of four tiles, each from any place of another digit."""
    half = SIDE // 2
    content = np.zeros((SIDE, SIDE), np.uint8)
    for tile in range(4):
        fragment = others[draw.integers(len(others))]
        top, left = draw.integers(2, size=2) * half
        row, column = tile // 2 * half, tile % 2 * half
        content[row : row + half, column : column + half] = fragment[top : top + half, left : left + half]
    return content


def cover(quadrant: int) -> NDArray[np.uint8]:
    """Return the mask of a quadrant."""
    mask = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
    mask[quarter(quadrant)] = 255
    return mask


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an image, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def teach(work: Path, images: Path, family: str) -> dict[str, Any]:
    """Train the model of a family, unless it is trained, and return its weights and its accuracy."""
    note = work / f"{family}.json"
    if not note.exists():
        recipe, smaller = MODELS[family]
        places = {"data.root": images, "output.root": work / "runs", "output.name": family}
        run = vitrail.train(recipe, {**COMMON, **smaller, **places})
        about = {"weights": str(run.weights), "top1": run.best["val_top1"], "minutes": run.seconds / 60}
        note.write_text(json.dumps(about))
    return json.loads(note.read_text())


def score(work: Path, images: Path, family: str, count: int) -> dict[str, Any]:
    """Score all methods on composed images and their masks, unless that is done, and return the numbers."""
    note = work / f"{family}-scores-{count}.json"
    if not note.exists():
        weights = teach(work, images, family)["weights"]
        vitrail.score_explanations(
            weights, settings={"data.root": images, "data.workers": 0}, limit=count, masks=work / "masks", json=note
        )
    return json.loads(note.read_text())


def read_words(work: Path, images: Path, count: int) -> dict[str, list[float]]:
    """Return what the words of the TNT's map say of the digit's four patches, for each of some images that it reads.

    A word is one pixel of the digit before it was made twice as large, so it is on a stroke or beside one. `even` is a
    map whose sentences give their words equal shares, `shuffled` that of the model whose weights were shuffled.
    """
    note = work / f"words-{count}.json"
    if note.exists():
        return json.loads(note.read_text())
    model = vitrail.load_model(teach(work, images, "TNT")["weights"]).eval()
    assert model.preprocess is not None
    judge, shuffled = Judge(model, is_multi_label=False), shuffle_weights(model)
    paths = sorted((work / "masks" / "val").glob("*/*.png"))
    found: dict[str, list[float]] = {}

    def keep(name: str, value: Tensor | float) -> None:
        found.setdefault(name, []).append(float(value))

    for number in np.random.default_rng(0).permutation(len(paths))[:count]:
        path = images / paths[number].relative_to(work / "masks")
        image, label = model.preprocess(path)[None], torch.tensor([int(path.parent.name)])
        with torch.no_grad():
            if model(image).argmax() != label:
                continue
        mask = read_cells(paths[number]) > 0
        strokes = read_cells(path)[mask] > 64
        weighed = weigh_by_gradient(model, image, label)
        maps = {
            "words": weighed["words"],
            "even": enlarge(weighed["sentences"], (SIDE, SIDE)),
            "rollout": roll_out(model, image, label)["words"],
            "shuffled": weigh_by_gradient(shuffled, image, label)["words"],
        }
        another = model.preprocess(images / paths[number - 1].relative_to(work / "masks"))[None]
        others = dict(zip(REPLACED, (mean_colour(image), blur(image), another), strict=True))
        lost = lose_words(model, image, label, mask)
        keep("area", strokes.float().mean())
        keep("lost on strokes", lost.clamp(min=0)[strokes].sum() / lost.clamp(min=0).sum())
        for name, one in maps.items():
            inside = one[0][mask]
            keep(f"{name} on strokes", inside[strokes].sum() / inside.sum())
            keep(f"{name} agrees", correlate_ranks(inside[None], lost[None]))
            large = enlarge(one, (2 * SIDE, 2 * SIDE))
            order = order_pixels(large, [int(number)])
            for replaced_by, other in others.items():
                saco = measure_saco(judge.score, image, other, label, large, order)
                keep(f"{name} {replaced_by}", saco)
        drawn = torch.from_numpy(np.random.default_rng([1, int(number)]).random((SIDE, SIDE), np.float32))
        for name, values in {"larger": maps["words"][0], "smaller": -maps["words"][0], "drawn": drawn}.items():
            keep(name, lose_halves(model, image, label, values, mask))
    note.write_text(json.dumps(found))
    return found


def read_cells(path: Path) -> Tensor:
    """Return an image in which each word is one pixel."""
    return torch.from_numpy(np.asarray(Image.open(path))[::2, ::2].copy())


def cover_words(image: Tensor, words: Tensor) -> Tensor:
    """Return an image in which some words (h, w) have its mean colour."""
    pixels = words.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return torch.where(pixels, image.mean(dim=(2, 3), keepdim=True), image)


def lose_words(model: VisionModel, image: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Return what the logit loses where each word inside the mask alone is covered."""
    changed = [image]
    for row, column in mask.nonzero().tolist():
        one = torch.zeros_like(mask)
        one[row, column] = True
        changed.append(cover_words(image, one))
    with torch.no_grad():
        logits = model(torch.cat(changed))[:, label.item()]
    return logits[0] - logits[1:]


def lose_halves(model: VisionModel, image: Tensor, label: Tensor, values: Tensor, mask: Tensor) -> float:
    """Return the probability that is lost where the half of the words of each patch that is largest is covered."""
    of_patches = values.unflatten(1, (4, 4)).unflatten(0, (4, 4)).transpose(1, 2).flatten(2)  # (4, 4, 16)
    largest = of_patches.argsort(dim=2, descending=True)[..., :8]
    chosen = torch.zeros_like(of_patches, dtype=torch.bool).scatter_(2, largest, True)
    covered = chosen.unflatten(2, (4, 4)).transpose(1, 2).reshape(SIDE, SIDE) & mask
    changed = cover_words(image, covered)
    with torch.no_grad():
        odds = model(torch.cat([image, changed])).softmax(dim=1)[:, label]
    return float(odds[0] - odds[1])


def time_maps(rounds: int) -> dict[str, dict[str, float]]:
    """Return how many forward passes a map costs in time, by published model and method of one pass."""
    keep_freed_memory()  # as all that vitrail runs
    ratios: dict[str, dict[str, float]] = {}
    for name in ("tnt_s_patch16_224", "t2t_vit_14", "twins_svt_small", "ptnt_s_patch16_256"):
        model = create_model(name).eval()
        image, label = torch.randn(1, 3, *model.config.size), torch.tensor([0])
        subjects: dict[str, Any] = {"forward": partial(forward, model, image)}
        for method in ("rollout", "gradient-attention", "grad-cam"):
            subjects[method] = partial(METHODS[method].explain, model, image, label)
        seconds = alternate(subjects, rounds)
        passes = seconds.pop("forward")
        ratios[name] = {method: speed_up(passes, taken) for method, taken in seconds.items()}
    return ratios


def forward(model: VisionModel, image: Tensor) -> Tensor:
    """Return the logits of an image."""
    with torch.inference_mode():
        return model(image)


def draw(work: Path, images: Path, path: Path) -> None:
    """Draw one image and its finest map by each method for each family; of gradient-attention the coarsest too."""
    rows = []
    for family in MODELS:
        model = vitrail.load_model(teach(work, images, family)["weights"]).eval()
        assert model.preprocess is not None
        example = sorted((images / "val" / EXAMPLE).iterdir())[0]
        image, label = model.preprocess(example)[None], torch.tensor([int(EXAMPLE)])
        picture = Image.open(example).convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)
        tiles = [(f"{family}: a {EXAMPLE}", picture)]
        for method in METHODS:
            maps = explain(method, model, image, label)
            levels = [*maps]
            levels = [levels[0], levels[-1]] if method == "gradient-attention" else levels[-1:]
            for level in levels:
                title = f"gradient: {level}" if len(levels) > 1 else method
                values = maps[level][0].numpy()
                tiles.append((title, lay_over(picture, values, is_signed=METHODS[method].is_signed)))
        rows.append(tiles)
    most = max(map(len, rows))
    sheet = Image.new("RGB", (most * (TILE + GAP) + GAP, len(rows) * (TILE + LINE + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for row, tiles in enumerate(rows):
        top = GAP + row * (TILE + LINE + GAP)
        for column, (title, tile) in enumerate(tiles):
            left = GAP + column * (TILE + GAP)
            pen.text((left, top), title, (28, 37, 48), font)
            sheet.paste(tile, (left, top + LINE))
    sheet.save(path, optimize=True)


def tell_words(found: dict[str, list[float]]) -> list[str]:
    """Return what is found of words in TNT, as text."""
    mean = {name: statistics.mean(values) for name, values in found.items()}
    percent = {name: f"{100 * value:.1f}" for name, value in mean.items()}
    heads = " | ".join(f"SaCo, {by}" for by in REPLACED)
    rows = [f"| words by | on strokes, % | agrees with covering them one by one | {heads} |", "|-|-:|-:|-:|-:|-:|"]
    titles = {
        "words": "gradient-attention",
        "even": "its sentences, spread evenly",
        "rollout": "rollout",
        "shuffled": "gradient-attention, shuffled weights",
    }
    for name, title in titles.items():
        agrees = "" if name == "even" else f"{mean[f'{name} agrees']:.2f}"
        sacos = " | ".join(f"{mean[f'{name} {by}']:.2f}" for by in REPLACED)
        rows.append(f"| {title} | {percent[f'{name} on strokes']} | {agrees} | {sacos} |")
    text = (
        f"The digit's four patches in {len(found['area'])} images that the TNT reads. A word is one pixel of the "
        f"digit's 8 x 8, and {percent['area']} % of them are strokes; of what the logit loses where each word "
        f"alone has the mean colour, {percent['lost on strokes']} % is there. Where that half of each patch's "
        f"words is covered that has the larger values of gradient-attention, {percent['larger']} points of "
        f"probability are lost; {percent['smaller']} where it is the other half, and {percent['drawn']} where it "
        f"is drawn."
    )
    return ["## Words", "", text, "", *rows]


def main(*, work: Path, images: int = 64, rounds: int = 20) -> None:
    """Train the models, score the methods, draw the picture, and publish a page."""
    work.mkdir(parents=True, exist_ok=True)
    folder = compose(work)
    scored = {family: score(work, folder, family, images) for family in MODELS}
    table = []
    for family, numbers in scored.items():
        about = teach(work, folder, family)
        table += [f"## {family}", "", f"{about['top1']:.1f} % of {VAL} images of new digits are read.", ""]
        table += [f"| method | {' | '.join(COLUMNS.values())} |", f"|-|{'-:|' * len(COLUMNS)}"]
        for one in numbers["methods"]:
            measures = one["measures"]
            cells_of_row = [one["method"]]
            for name in COLUMNS:
                of_method = measures.get(name)
                cells_of_row.append(f"{of_method['mean']:.2f} ± {of_method['std']:.2f}" if of_method else "")
            table.append("| " + " | ".join(cells_of_row) + " |")
        table.append("")
    table += tell_words(read_words(work, folder, images))
    table += ["", "## Cost", "", "| model, at its own size | method | forward passes |", "|-|-|-:|"]
    for model, ratios in time_maps(rounds).items():
        table += [f"| {model} | {method} | {ratio:.1f} |" for method, ratio in ratios.items()]
    picture = Path(__file__).with_suffix(".png")
    draw(work, folder, picture)
    table += ["", f"![maps of one image by family and method]({picture.name})"]
    notes = [
        f"{images} images of {VAL}, mean and standard deviation between images; the truth is a quarter of each image",
        "inside: share of what is positive of a map in the digit's quadrant; pointing: its largest value is there",
        "shuffled weights: rank correlation with the map of the model whose parameters' values were shuffled",
        "cost: median over the rounds of the time of a map over that of a forward pass of one image, untrained; "
        f"integrated gradients take {STEPS} passes forward and back, occlusion {count_squares(224, 224)} forward",
    ]
    publish("explain", "Maps of small models beside a known truth", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
