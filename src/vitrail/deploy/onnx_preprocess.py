"""Wrap an exported ONNX model with its image preprocessing and a softmax or sigmoid.

The wrapped model takes the pixels of one image of any size. The sizes follow from the image by the
arithmetic of `Preprocess.view`, to the last bit. The scaling is the runtime's own, with the same
filters; its levels of colour may be 2 off PyTorch's, which rounds otherwise between its passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitrail.images.preprocess import MAX_ASPECT, Preprocess

PREPROCESS = """
<ir_version: 10, opset_import: ["" : {opset}]>
preprocess (uint8[1, height, width, {channels}] image) => (float[1, {channels}, {rows}, {columns}] images) {{
    size = Constant <value = int64[2] {{ {rows}, {columns} }}> ()
    planes = Transpose <perm = [0, 3, 1, 2]> (image)

    {sides}
    images_and_channels = Constant <value = int64[2] {{ 1, {channels} }}> ()
    sizes = Concat <axis = 0> (images_and_channels, scaled)
    levels = Resize <{filter}, antialias = 1, coordinate_transformation_mode = "half_pixel"> (middle, , , sizes)

    {fitted}
    mean = Constant <value = float[1, {channels}, 1, 1] {{ {mean} }}> ()
    std = Constant <value = float[1, {channels}, 1, 1] {{ {std} }}> ()
    centred = Sub (pixels, mean)
    images = Div (centred, std)
}}
"""
"""The graph that scales, fits and normalises one image, as `Preprocess.view` and `normalise` do."""
CROP_SIDES = """
    axes = Constant <value = int64[2] {{ 2, 3 }}> ()
    one = Constant <value = int64[1] {{ 1 }}> ()
    two = Constant <value = double[1] {{ 2.0 }}> ()
    cover = Constant <value = int64[2] {{ {cover[0]}, {cover[1]} }}> ()
    cover_exact = Cast <to = 11> (cover)
    whole = Shape <start = 2, end = 4> (planes)
    whole_exact = Cast <to = 11> (whole)
    ratios = Div (whole_exact, cover_exact)
    ratio = ReduceMin <keepdims = 1> (ratios)

    reach = Constant <value = double[2] {{ {reach[0]}, {reach[1]} }}> ()
    longest_exact = Mul (reach, ratio)
    longest_up = Ceil (longest_exact)
    longest_any = Cast <to = 7> (longest_up)
    longest = Max (longest_any, one)
    kept = Min (whole, longest)
    outside = Sub (whole, kept)
    outside_exact = Cast <to = 11> (outside)
    outside_half = Div (outside_exact, two)
    from_exact = Round (outside_half)
    from = Cast <to = 7> (from_exact)
    until = Add (from, kept)
    middle = Slice (planes, from, until, axes)
    {scaled}
"""
"""What is resized to which sides before its centre is cropped: of a very long image the middle."""
SCALED_SQUARE = """
    short = ReduceMin <keepdims = 1> (kept)
    enlarged = Mul (cover, kept)
    scaled = Div (enlarged, short)
"""
"""Sides of the scaled image where the view is square: rounded down, as in torchvision's Resize."""
SCALED = """
    kept_exact = Cast <to = 11> (kept)
    scaled_exact = Div (kept_exact, ratio)
    scaled_rounded = Round (scaled_exact)
    scaled = Cast <to = 7> (scaled_rounded)
"""
"""Sides of the scaled image where the view is not square: rounded to the nearest, as in timm."""
CROP = """
    margin = Sub (scaled, size)
    margin_exact = Cast <to = 11> (margin)
    margin_half = Div (margin_exact, two)
    corner_exact = Round (margin_half)
    corner = Cast <to = 7> (corner_exact)
    opposite = Add (corner, size)
    view = Slice (levels, corner, opposite, axes)
    pixels = Cast <to = 1> (view)
"""
"""The centre of the scaled image."""
SQUASH_SIDES = """
    middle = Identity (planes)
    scaled = Identity (size)
"""
"""All of the image is resized to the sides of the view."""
SQUASH = """
    pixels = Cast <to = 1> (levels)
"""
"""The scaled image is the view."""
LETTERBOX_SIDES = """
    one = Constant <value = int64[1] {{ 1 }}> ()
    size_exact = Cast <to = 11> (size)
    whole = Shape <start = 2, end = 4> (planes)
    whole_exact = Cast <to = 11> (whole)
    ratios = Div (whole_exact, size_exact)
    ratio = ReduceMax <keepdims = 1> (ratios)
    scaled_exact = Div (whole_exact, ratio)
    scaled_rounded = Round (scaled_exact)
    scaled_any = Cast <to = 7> (scaled_rounded)
    scaled = Max (scaled_any, one)
    middle = Identity (planes)
"""
"""All of the image is resized by one factor, to a side of the view at most."""
LETTERBOX = """
    axes = Constant <value = int64[2] {{ 2, 3 }}> ()
    two = Constant <value = int64[1] {{ 2 }}> ()
    margin = Sub (size, scaled)
    before = Div (margin, two)
    after = Sub (margin, before)
    margins = Concat <axis = 0> (before, after)
    fill = Constant <value = float[1, {channels}, 1, 1] {{ {fill} }}> ()
    levels_exact = Cast <to = 1> (levels)
    above_fill = Sub (levels_exact, fill)
    nothing = Constant <value = float {{ 0.0 }}> ()
    framed = Pad <mode = "constant"> (above_fill, margins, nothing, axes)
    pixels = Add (framed, fill)
"""
"""The scaled image in a frame, whose level is each channel's own; ONNX's Pad has one for all."""
PROBABILITIES = """
<ir_version: 10, opset_import: ["" : {opset}]>
answer (float[batch, {classes}] logits)
    => (float[1, {classes}] probabilities, float[1, {topk}] top_probabilities, int64[1, {topk}] top_classes) {{
    count = Constant <value = int64[1] {{ {topk} }}> ()
    probabilities = {activation} (logits)
    top_probabilities, top_classes = TopK <axis = 1> (probabilities, count)
}}
"""
"""The graph that turns logits into probabilities and finds the largest of them."""
FILTERS = {
    "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5, exclude_outside = 1',
    "bilinear": 'mode = "linear", exclude_outside = 1',
}
"""Attributes of ONNX's Resize for each interpolation, which make it the filter of Pillow and
torchvision."""


def add_preprocess(
    network: Any, preprocess: Preprocess, classes: int, topk: int, *, is_multi_label: bool = False
) -> Any:
    """Return the ONNX model that takes a uint8 `image` (1, h, w, c) and yields its `probabilities` (1, classes).

    It also yields the `topk` largest of them, as `top_probabilities` and `top_classes`.

    Args:
        network: An ONNX model that takes `images` and yields `logits`.
        preprocess: The preprocessing of the model; EXIF orientation is for whoever decodes the
            file.
        classes: Number of classes of the model.
        topk: Number of largest probabilities; at most all classes are yielded.
        is_multi_label: Whether each class has a probability of its own, from a sigmoid.
    """
    from onnx import compose, parser

    def parse_graph(text: str, prefix: str) -> Any:
        """Return a graph with inner names that no other graph has; those of inputs and outputs stay."""
        graph = parser.parse_model(text)
        graph = compose.add_prefix(graph, prefix, rename_inputs=False, rename_outputs=False)
        graph.ir_version = network.ir_version
        return graph

    opset = network.opset_import[0].version
    before = parse_graph(_write_preprocess(preprocess, opset), "preprocess/")
    activation = "Sigmoid" if is_multi_label else "Softmax <axis = 1>"
    text = PROBABILITIES.format(
        opset=opset, activation=activation, classes=classes, topk=min(topk, classes)
    )
    after = parse_graph(text, "answer/")
    model = compose.merge_models(before, network, [("images", "images")])
    return compose.merge_models(model, after, [("logits", "logits")], producer_name="vitrail")


def _write_preprocess(preprocess: Preprocess, opset: int) -> str:
    """Return preprocessing as a graph in ONNX's text format."""
    rows, columns = preprocess.size
    cover = preprocess.cover
    is_square = cover[0] == cover[1]
    sides, fitted = {
        "crop": (CROP_SIDES, CROP),
        "squash": (SQUASH_SIDES, SQUASH),
        "letterbox": (LETTERBOX_SIDES, LETTERBOX),
    }[preprocess.resize]
    values = {
        "cover": cover,
        "reach": [float(MAX_ASPECT * side) for side in cover],
        "scaled": SCALED_SQUARE if is_square else SCALED,
        "channels": preprocess.channels,
        "fill": ", ".join(f"{level}.0" for level in preprocess.fill),
    }
    return PREPROCESS.format(
        opset=opset,
        channels=preprocess.channels,
        rows=rows,
        columns=columns,
        sides=sides.format(**values),
        fitted=fitted.format(**values),
        filter=FILTERS[preprocess.interpolation],
        mean=_format_levels(preprocess.mean),
        std=_format_levels(preprocess.std),
    )


def _format_levels(values: tuple[float, ...]) -> str:
    """Write float32 numbers for levels from 0 to 255, so that they are read as `normalise` has them."""
    levels = [float(np.float32(255 * value)) for value in values]
    return ", ".join(map(repr, levels))
