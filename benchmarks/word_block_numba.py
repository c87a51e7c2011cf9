"""The forward pass of `vitrail::word_block` in numba, measured beside the C++ by delivery.py; nothing else uses it.

It is laid out as the C++ is: a group of LANES words goes through the whole block, a row of LANES numbers a channel, so
that LLVM finds inner loops over lanes to make vectors of. Numbers of channels and of hidden channels are even.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange  # pyright: ignore[reportMissingImports] # no dependency

F = np.float32
LANES = 32
"""Words of a group: two vectors of AVX-512."""
CHUNKS = 32
"""Parts of a call, each with arrays of its own."""
FAST = {"contract"}
"""What the C++ is allowed too: a product and a sum in one operation. True breaks the exponential, and is no faster."""
ZERO, ONE, HALF = F(0), F(1), F(0.5)
LOWEST, HIGHEST, LOG2E, MAGIC = F(-87), F(88), F(1.4426950408889634), F(12582912)
LN2_HIGH, LN2_LOW = F(0.693145751953125), F(1.428606765330187e-06)
E6, E5, E4, E3 = F(0.0013824818879768904), F(0.008371565624834617), F(0.04166823597315587), F(0.16666460530255967)
E2, E1, E0 = F(0.49999993055906083), F(1.0000000269411533), F(1.0000000004128153)
T1 = F(0.33234018715767733)
Q6, Q5, Q4, Q3 = F(0.08561788403669565), F(-0.40880909925614717), F(0.5882932102913043), F(-0.10993323205869993)
Q2, Q1, Q0 = F(0.3291652812282315), F(0.24943918420396083), F(0.266226754670164)


@njit(error_model="numpy", fastmath=FAST, inline="always")
def exponential(x):
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    shifted = x * LOG2E + MAGIC
    n = shifted - MAGIC
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = (((((E6 * r + E5) * r + E4) * r + E3) * r + E2) * r + E1) * r + E0
    exponent = (np.float32(shifted).view(np.int32) - np.int32(0x4B400000 - 127)) << np.int32(23)
    return p * np.int32(exponent).view(np.float32)


@njit(error_model="numpy", fastmath=FAST, inline="always")
def gelu(x):
    size = -x if x < ZERO else x
    density = exponential(-HALF * x * x)
    t = ONE / (ONE + T1 * size)
    q = (((((Q6 * t + Q5) * t + Q4) * t + Q3) * t + Q2) * t + Q1) * t + Q0
    tail = HALF * density * q * t
    share = tail if x < ZERO else ONE - tail
    return x * share


@njit(error_model="numpy", fastmath=FAST)
def linear(given, weights, bias, out):
    rows, count = weights.shape
    for r in range(0, rows, 4):
        w = weights[r : r + 4]
        o0, o1, o2, o3 = out[r], out[r + 1], out[r + 2], out[r + 3]
        for lane in range(LANES):
            o0[lane], o1[lane], o2[lane], o3[lane] = bias[r], bias[r + 1], bias[r + 2], bias[r + 3]
        for i in range(0, count, 4):
            x0, x1, x2, x3 = given[i], given[i + 1], given[i + 2], given[i + 3]
            a0, a1, a2, a3 = w[0, i], w[0, i + 1], w[0, i + 2], w[0, i + 3]
            b0, b1, b2, b3 = w[1, i], w[1, i + 1], w[1, i + 2], w[1, i + 3]
            c0, c1, c2, c3 = w[2, i], w[2, i + 1], w[2, i + 2], w[2, i + 3]
            d0, d1, d2, d3 = w[3, i], w[3, i + 1], w[3, i + 2], w[3, i + 3]
            for lane in range(LANES):
                y0, y1, y2, y3 = x0[lane], x1[lane], x2[lane], x3[lane]
                o0[lane] += a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
                o1[lane] += b0 * y0 + b1 * y1 + b2 * y2 + b3 * y3
                o2[lane] += c0 * y0 + c1 * y1 + c2 * y2 + c3 * y3
                o3[lane] += d0 * y0 + d1 * y1 + d2 * y2 + d3 * y3


@njit(error_model="numpy", fastmath=FAST)
def normalise(given, scale, shift, eps, mean, rate, out):
    e = given.shape[0]
    mean[:] = ZERO
    rate[:] = ZERO
    for c in range(e):
        row = given[c]
        for lane in range(LANES):
            mean[lane] += row[lane]
    for lane in range(LANES):
        mean[lane] /= F(e)
    for c in range(e):
        row, to = given[c], out[c]
        for lane in range(LANES):
            from_mean = row[lane] - mean[lane]
            to[lane] = from_mean
            rate[lane] += from_mean * from_mean
    for lane in range(LANES):
        rate[lane] = ONE / math.sqrt(rate[lane] / F(e) + eps)
    for c in range(e):
        to, by, more = out[c], scale[c], shift[c]
        for lane in range(LANES):
            to[lane] = to[lane] * rate[lane] * by + more


@njit(error_model="numpy", fastmath=FAST)
def attend(q, k, v, p, factor, scores, most, total, out):
    dim = q.shape[0]
    for j in range(p):
        row = scores[j]
        row[:] = ZERO
        for c in range(0, dim, 2):
            for s in range(0, LANES, p):
                one, other = k[c, s + j], k[c + 1, s + j]
                q0, q1, here = q[c, s : s + p], q[c + 1, s : s + p], row[s : s + p]
                for lane in range(p):
                    here[lane] += q0[lane] * one + q1[lane] * other
        for lane in range(LANES):
            row[lane] *= factor
    most[:] = scores[0]
    for j in range(1, p):
        row = scores[j]
        for lane in range(LANES):
            most[lane] = most[lane] if most[lane] > row[lane] else row[lane]
    total[:] = ZERO
    for j in range(p):
        row = scores[j]
        for lane in range(LANES):
            x = exponential(row[lane] - most[lane])
            row[lane] = x
            total[lane] += x
    for lane in range(LANES):
        total[lane] = ONE / total[lane]
    for c in range(dim):
        row = out[c]
        row[:] = ZERO
        for j in range(0, p, 2):
            for s in range(0, LANES, p):
                one, other = v[c, s + j], v[c, s + j + 1]
                s0, s1, here = scores[j, s : s + p], scores[j + 1, s : s + p], row[s : s + p]
                for lane in range(p):
                    here[lane] += s0[lane] * one + s1[lane] * other
        for lane in range(LANES):
            row[lane] *= total[lane]


@njit(error_model="numpy", fastmath=FAST)
def activate(wide):
    for c in range(wide.shape[0]):
        row = wide[c]
        for lane in range(LANES):
            row[lane] = gelu(row[lane])


@njit(error_model="numpy", fastmath=FAST)
def add(to, part):
    for c in range(to.shape[0]):
        row, other = to[c], part[c]
        for lane in range(LANES):
            row[lane] += other[lane]


@njit(error_model="numpy", fastmath=FAST, parallel=True, cache=True)
def word_block(words, norm1, qkv, proj, proj_bias, norm2, fc1, fc1_bias, fc2, fc2_bias, heads, eps, out):
    """Fill `out` (n, p, e) for an even number p of words, of which LANES is a multiple; each norm is (2, e)."""
    n, p, e = words.shape
    hidden = fc1.shape[0]
    together = LANES // p
    groups = (n + together - 1) // together
    dim = e // heads
    factor = F(1 / math.sqrt(dim))
    no_bias = np.zeros(3 * e, F)
    for chunk in prange(CHUNKS):
        x, normed = np.zeros((e, LANES), F), np.empty((e, LANES), F)  # parts of one array would not be contiguous to it
        mixed, part = np.empty((e, LANES), F), np.empty((e, LANES), F)
        all_three = np.empty((3 * e, LANES), F)
        wide = np.empty((hidden, LANES), F)
        scores = np.empty((p, LANES), F)
        first, second = np.empty(LANES, F), np.empty(LANES, F)
        for group in range(groups * chunk // CHUNKS, groups * (chunk + 1) // CHUNKS):
            begin = group * together
            count = min(together, n - begin)
            for s in range(count):
                for w in range(p):
                    for c in range(e):
                        x[c, s * p + w] = words[begin + s, w, c]
            normalise(x, norm1[0], norm1[1], eps, first, second, normed)
            linear(normed, qkv, no_bias, all_three)
            for h in range(heads):
                at = h * dim
                q, k = all_three[at : at + dim], all_three[e + at : e + at + dim]
                v = all_three[2 * e + at : 2 * e + at + dim]
                attend(q, k, v, p, factor, scores, first, second, mixed[at : at + dim])
            linear(mixed, proj, proj_bias, part)
            add(x, part)
            normalise(x, norm2[0], norm2[1], eps, first, second, normed)
            linear(normed, fc1, fc1_bias, wide)
            activate(wide)
            linear(wide, fc2, fc2_bias, part)
            for s in range(count):
                for w in range(p):
                    for c in range(e):
                        out[begin + s, w, c] = x[c, s * p + w] + part[c, s * p + w]
