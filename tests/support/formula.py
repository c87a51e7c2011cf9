"""Weights and images without a random generator: a formula over (name, index), as the golden numbers were made with."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor


def formula(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return values in [-1, 1): SplitMix64 of the key's CRC-32 in the high half and the flat index in the low one."""
    state = np.arange(math.prod(shape), dtype=np.uint64) | np.uint64(zlib.crc32(key.encode()) << 32)
    state += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)) / 2.0**52 - 1).reshape(shape)


def golden_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """Scale the formula by what the tensor is: a table or token, a matrix or kernel, a gain, a bias."""
    value = formula(key, shape)
    if len(shape) >= 2:
        value *= 0.2 if shape[0] == 1 else math.sqrt(3 / math.prod(shape[1:]))
    else:
        value = 0.1 * value + (1 if key.endswith(".weight") else 0)
    return torch.from_numpy(value.astype(np.float32))
