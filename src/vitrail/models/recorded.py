"""Whether a model is called to be recorded as a program, which keeps to what every machine computes well."""

from __future__ import annotations

import torch


def is_recorded() -> bool:
    """Say whether `torch.export` or `torch.jit.trace` makes this call."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
