import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from vitrail.kernels import attention
from vitrail.kernels.attention import attend, long_attention
from vitrail.models.registry import create_model

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

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    attend(*drawn(shape, dtype))
    return bool(called)


def test_each_is_taken_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fused(monkeypatch, SHAPES["inner"], torch.float32)
    assert not fused(monkeypatch, SHAPES["inner"], torch.bfloat16)
    assert fused(monkeypatch, SHAPES["outer"], torch.float32)
    assert not fused(monkeypatch, SHAPES["outer"], torch.bfloat16)
    assert fused(monkeypatch, SHAPES["outer"], torch.float16)  # whose scores may overflow
    assert fused(monkeypatch, (1, 1, 900, 900, 64), torch.bfloat16)  # whose scores take more memory than all else


LONG = (2, 2, 300, 500, 8)


@pytest.fixture(params=[False, True], ids=["products", "convolutions"])
def several_cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have long attention taken, with several cuts of its rows, the last of them shorter, by either kind of product."""
    monkeypatch.setenv("VITRAIL_KERNELS", "auto")
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 128 * LONG[3])
    monkeypatch.setattr(attention, "is_convolution_faster", lambda: request.param)


@pytest.mark.usefixtures("several_cuts")
@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_attention_is_near_double_precision_and_its_gradients_too(dtype: torch.dtype, size: float) -> None:
    given = [(one.detach() * size).requires_grad_() for one in drawn(LONG, dtype)]
    exact = [one.detach().double().requires_grad_() for one in given]
    ours = with_gradients(long_attention(*given, 0.3), given)
    theirs = with_gradients(attention._attend_unfused(*given, 0.3), given)
    wanted = with_gradients(scaled_dot_product_attention(*exact, scale=0.3), exact)
    tolerance = 2e-5 if dtype == torch.float32 else 5e-2
    for a, b, c in zip(ours, theirs, wanted, strict=True):
        assert a.dtype == dtype
        assert a.shape == c.shape
        # large scores leave gradients of almost nothing, which are as far off so
        allowed = max(tolerance * float(c.abs().max()), 2 * float((b - c).abs().max()))
        assert (a - c).abs().max() <= allowed


def with_gradients(out: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]


def test_long_attention_is_taken_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    long = (1, 1, 900, 900, 64)
    assert fused(monkeypatch, long, torch.bfloat16)  # kernels are off
    monkeypatch.setenv("VITRAIL_KERNELS", "auto")
    assert not fused(monkeypatch, long, torch.bfloat16)
    assert fused(monkeypatch, long, torch.float16)
    for is_faster in (False, True):
        monkeypatch.setattr(attention, "is_convolution_faster", lambda is_faster=is_faster: is_faster)
        assert fused(monkeypatch, long, torch.float32) is not is_faster
    with torch.autocast("cpu", torch.bfloat16):  # which would compute float32 in bfloat16
        assert fused(monkeypatch, long, torch.float32)


@pytest.mark.usefixtures("several_cuts")
def test_long_attention_is_a_whole_operator() -> None:
    given = [torch.randn(1, 2, n, 4, requires_grad=True) for n in (5, 7, 7)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(long_attention, (*given, 0.5), test_utils=checks)


def test_its_multiply_adds_are_counted() -> None:
    q, k, v = drawn(LONG, torch.float32)
    with FlopCounterMode(display=False) as forward:
        out = long_attention(q, k, v, 0.3)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    products = 2 * q.numel() * k.shape[-2] + 2 * v.numel() * q.shape[-2]  # scores, and values by their shares
    assert forward.get_total_flops() == products
    assert backward.get_total_flops() == products * 5 // 2  # the scores again, and two gradients of each product


@pytest.mark.thorough
@pytest.mark.usefixtures("several_cuts")
def test_a_compiled_graph_has_long_attention_whole() -> None:
    given = drawn(LONG, torch.bfloat16)
    compiled = torch.compile(lambda *qkv: attend(*qkv).square(), fullgraph=True)
    grads = torch.autograd.grad(compiled(*given).float().sum(), given)
    wanted = torch.autograd.grad(attend(*given).square().float().sum(), given)
    for a, b in zip(grads, wanted, strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()


@pytest.mark.parametrize("kernels", ["plain", "auto"])
def test_a_token_transformer_gives_the_same_by_either(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "is_convolution_faster", lambda: True)
    torch.manual_seed(0)
    model = create_model("t2t_vit_t_14", depth=1, num_classes=3, image_size=128)  # 1,024 tokens of 64 numbers
    images = torch.randn(2, 3, 128, 128)
    wanted = torch.autograd.grad(model(images).square().sum(), model.head.weight)[0]
    monkeypatch.setenv("VITRAIL_KERNELS", kernels)
    called = fused(monkeypatch, (1, 1, 1024, 1024, 64), torch.float32)
    assert called is (kernels == "plain")
    found = torch.autograd.grad(model(images).square().sum(), model.head.weight)[0]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


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
