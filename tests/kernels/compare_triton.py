"""Compare Triton's body of the word block with the plain one; run with TRITON_INTERPRET=1, which needs no GPU.

Products in bfloat16 are wrong in the interpreter of Triton 3.9, so bfloat16 words are multiplied in float32.
"""

import sys

import torch

from vitrail.kernels.word_block_plain import plain_word_block
from vitrail.kernels.word_block_triton import run_backward, run_forward

CASES = (
    ((5, 16, 24, 4, 96), "none", torch.float32, "float32", 2e-6),
    ((9, 16, 12, 2, 48), "tanh", torch.float32, "float32", 2e-6),
    ((3, 4, 8, 1, 20), "none", torch.float32, "float32", 2e-6),
    ((5, 16, 24, 4, 96), "none", torch.float16, "float16", 3e-3),
    ((5, 16, 24, 4, 96), "none", torch.bfloat16, "float32", 1e-2),
)

torch.manual_seed(0)
for (n, p, e, heads, hidden), approximate, dtype, products, share in CASES:
    sizes = ((e,), (e,), (2 * e, e), (e, e), (e, e), (e,), (e,), (e,), (hidden, e), (hidden,), (e, hidden), (e,))
    weights = [0.3 * torch.randn(size) for size in sizes]
    words, grad = torch.randn(2, n, p, e).to(dtype)
    for keep in (None, (torch.rand(2, n) > 0.3) / 0.7):
        out = run_forward(words, keep, weights, heads, 1e-5, approximate, products)
        of_words, of_weights = run_backward(grad, words, keep, weights, heads, 1e-5, approximate, products)
        inputs = [one.double().requires_grad_() for one in (words, *weights)]
        right = plain_word_block(inputs[0], keep, inputs[1:], heads, 1e-5, approximate)
        grads = torch.autograd.grad(right, inputs, grad.double())
        flat = torch.cat([one.reshape(-1) for one in grads[1:]])
        for found, wanted in ((out, right), (of_words, grads[0]), (of_weights, flat)):
            worst = float((found.double() - wanted.detach()).abs().max() / wanted.detach().abs().max())
            assert worst <= share, f"{dtype}, {products}: {worst:.1e}"
        sys.stdout.write("equal\n")
