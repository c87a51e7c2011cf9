import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vitrail.kernels import dense
from vitrail.kernels.dense import attend

SHAPES = {
    "inner": (20, 4, 16, 16, 6),
    "outer": (2, 3, 50, 50, 64),
    "reduced": (2, 2, 60, 9, 32),
    "one": (1, 1, 1, 1, 8),
}


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    b, h, n, m, d = shape
    return [torch.randn(b, s, h, d, dtype=dtype).transpose(1, 2).requires_grad_() for s in (n, m, m)]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_either_formulation_gives_the_same_and_the_same_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float | None
) -> None:
    ours, exact = drawn(shape, dtype), drawn(shape, dtype)
    exact = [one.detach().float().requires_grad_() for one in exact]
    found, wanted = attend(*ours, scale=scale), scaled_dot_product_attention(*exact, scale=scale)
    assert found.dtype == dtype
    weights = torch.linspace(-1, 1, wanted.numel()).view(wanted.shape)
    (found.float() * weights).sum().backward()
    (wanted * weights).sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    assert torch.allclose(found.float(), wanted, atol=tolerance)
    for a, b in zip(ours, exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad.float(), b.grad, atol=tolerance * max(1, float(b.grad.abs().max())))


def fused(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Say whether PyTorch's own attention is called."""
    called = []

    def watched(*args: torch.Tensor, **options: object) -> torch.Tensor:
        called.append(1)
        return scaled_dot_product_attention(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "scaled_dot_product_attention", watched)
    attend(*drawn(shape, dtype))
    return bool(called)


def test_each_is_taken_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fused(monkeypatch, SHAPES["inner"], torch.float32)
    assert not fused(monkeypatch, SHAPES["inner"], torch.bfloat16)
    assert fused(monkeypatch, SHAPES["outer"], torch.float32)
    assert not fused(monkeypatch, SHAPES["outer"], torch.bfloat16)
    assert fused(monkeypatch, SHAPES["outer"], torch.float16)  # whose scores may overflow
    assert fused(monkeypatch, (1, 1, 900, 900, 64), torch.bfloat16)  # whose scores take more memory than all else


@pytest.mark.parametrize("size", [6, 64])
def test_autocast_is_as_it_was_and_narrow_heads_are_exact_in_it(size: int) -> None:
    q, k, v = drawn((3, 2, 16, 16, size), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*(one.bfloat16() for one in (q, k, v)))
        assert torch.is_autocast_enabled("cpu")
        assert (q @ k.transpose(-2, -1)).dtype == torch.bfloat16
    assert found.dtype == torch.bfloat16
    wanted = scaled_dot_product_attention(*(one.bfloat16().float() for one in (q, k, v)))
    if size == 6:
        assert torch.equal(found, wanted.bfloat16()) or (found.float() - wanted).abs().max() < 2**-8


def test_an_exported_program_has_one_operation() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attend(q, k, v)

    program = torch.export.export(Attention(), tuple(drawn(SHAPES["inner"], torch.float32)))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.scaled_dot_product_attention.default"]
