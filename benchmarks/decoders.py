"""Damaged images by the thousand, read with torchcodec and with Pillow alone: the same verdict and the same pixels?

    uv run python benchmarks/decoders.py [--files 8000]

A file that one of the two reads and the other refuses, or that both read with other pixels, is counted under "differ".
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import cyclopts
from side_by_side import publish

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.damaged_images import compare, pictures

OUTCOMES = ("both read", "both refuse", "differ")


def count(files: int) -> list[str]:
    """Return a table of what came out, a row a format."""
    table = ["| format | files | both read, the same pixels | both refuse | differ |", "|-|-:|-:|-:|-:|"]
    forms = pictures()
    for form in forms:
        counts = Counter(outcome for outcome, _ in compare(form, files // len(forms)))
        numbers = (files // len(forms), *(counts[outcome] for outcome in OUTCOMES))
        table.append(f"| {form} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return table


def main(files: int = 8000) -> None:
    """Print a table and write it beside this file."""
    publish("decoders", "torchcodec and Pillow on damaged images", ["seeds are the formats' names"], count(files))


if __name__ == "__main__":
    cyclopts.run(main)
