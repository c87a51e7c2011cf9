"""Every body of the word block equals the plain one, and what is around it does not notice which it is."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from support.golden import COMMITTED, check_norms, golden_model, run
from vitrail.kernels import compiled, word_block
from vitrail.kernels.word_block_compiled import prepare_word_block
from vitrail.kernels.word_block_plain import plain_word_block
from vitrail.models import pyramid_tnt, tnt
from vitrail.models.registry import create_model, find_variant

SHAPES = {
    "tnt_s": (7, 16, 24, 4, 96),
    "tnt_ti": (33, 16, 12, 2, 48),
    "tnt_b": (9, 16, 40, 4, 160),
    "four words": (5, 4, 16, 2, 64),
    "eight words, narrow": (11, 8, 6, 3, 10),
    "one word": (3, 1, 8, 1, 16),
    "one sentence": (1, 16, 24, 4, 96),
}
OF_SENTENCES = {
    "ptnt_ti": (33, 16, 5, 1, 20),
    "ptnt_s": (7, 16, 16, 4, 64),
    "ptnt_b": (2, 16, 64, 8, 256),
    "eight words": (5, 8, 6, 3, 10),
    "two words": (11, 2, 8, 1, 16),
}
"""Where norms are over all words of a sentence."""
WITH_WORDS = ("tnt_ti_patch16_224", "ptnt_ti_patch16_192")
"""A model of each family that has words."""


@pytest.fixture(params=["native", pytest.param("x86-64-v3", marks=pytest.mark.thorough)])
def fused(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Compute by the body that is compiled for this processor, or one with AVX2 alone; one process compiles for all."""
    if request.param == "x86-64-v3" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    march = f"-march={request.param}"
    monkeypatch.setattr(compiled, "FLAGS", [march if "-march" in flag else flag for flag in compiled.FLAGS])
    folder = tmp_path_factory.getbasetemp().parent / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv(compiled.VARIABLE, "auto")
    compiled.load.cache_clear()
    with FileLock(f"{folder}.lock"):
        reason = prepare_word_block()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    yield
    compiled.load.cache_clear()


def build_tiny(name: str = "tnt_ti_patch16_224", **options: float) -> Any:
    return create_model(name, **{**find_variant(name)[0].tiny, **options})


def make_weights(e: int, hidden: int, normed: int | None = None) -> list[Tensor]:
    norm = (normed or e,)
    sizes = (norm, norm, (2 * e, e), (e, e), (e, e), (e,), norm, norm, (hidden, e), (hidden,), (e, hidden), (e,))
    return [0.3 * torch.randn(size) for size in sizes]


def differentiate(
    function: object, words: Tensor, keep: Tensor | None, weights: Sequence[Tensor], *others: object
) -> list[Tensor]:
    """Return what a function makes of the words, and the gradients of the words and of each weight."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (words, *weights)]
    out = function(inputs[0], keep, inputs[1:], *others)  # type: ignore[operator]
    pattern = torch.linspace(-1, 1, out.numel()).bfloat16().reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, inputs, pattern.to(out.dtype))]


def check(words: Tensor, keep: Tensor | None, weights: Sequence[Tensor], heads: int, approximate: str) -> None:
    """See that the compiled body is as near to the truth as PyTorch itself in float32."""
    found = differentiate(word_block.word_block, words, keep, weights, heads, 1e-5, approximate, "float32")
    plain = differentiate(plain_word_block, words, keep, weights, heads, 1e-5, approximate)
    exact = [weight.double() for weight in weights]
    right = differentiate(plain_word_block, words.double(), keep, exact, heads, 1e-5, approximate)
    largest = max(float(one.abs().max()) for one in right)
    for one, other, wanted in zip(found, plain, right, strict=True):
        error = float((other.double() - wanted).abs().max())
        assert_close(one.double(), wanted, rtol=0, atol=4 * error + 1e-7 * largest)


def compare(found: Sequence[Tensor], right: Sequence[Tensor], share: float) -> None:
    """Compare each tensor by the size of its largest number."""
    for one, other in zip(found, right, strict=True):
        limit = share * max(float(other.abs().max()), 1e-30)
        assert_close(one.double(), other.double(), rtol=0, atol=limit)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_compiled_body_is_the_plain_one(
    shape: tuple[int, int, int, int, int], approximate: str, kept: bool
) -> None:
    torch.manual_seed(0)
    n, p, e, heads, hidden = shape
    words, weights = torch.randn(n, p, e), make_weights(e, hidden)
    keep = (torch.rand(2, n) > 0.3) / 0.7 if kept else None
    check(words, keep, weights, heads, approximate)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("shape", OF_SENTENCES.values(), ids=OF_SENTENCES.keys())
def test_norms_over_whole_sentences_are_the_plain_ones(shape: tuple[int, int, int, int, int], kept: bool) -> None:
    torch.manual_seed(0)
    n, p, e, heads, hidden = shape
    words, weights = 2 + torch.randn(n, p, e), make_weights(e, hidden, p * e)
    keep = (torch.rand(2, n) > 0.3) / 0.7 if kept else None
    assert word_block.choose_body("cpu", words.dtype, p, whole=True) == "compiled"
    check(words, keep, weights, heads, "none")

    # and the plain ones have the gradients of autograd
    exact = [weight.double() for weight in weights]
    found = differentiate(word_block.word_block, words.double(), keep, exact, heads, 1e-5, "none", "float32")
    right = differentiate(plain_word_block, words.double(), keep, exact, heads, 1e-5, "none")
    compare(found[:2], right[:2], 1e-12)
    compare(found[2:], right[2:], 1e-7)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_plain_body_has_the_gradients_of_autograd(
    shape: tuple[int, int, int, int, int], approximate: str, kept: bool
) -> None:
    torch.manual_seed(0)
    n, p, e, heads, hidden = shape
    words, weights = torch.randn(n, p, e).double(), [weight.double() for weight in make_weights(e, hidden)]
    keep = (torch.rand(2, n) > 0.3) / 0.7 if kept else None
    assert word_block.choose_body("cpu", words.dtype, p) == "plain"
    found = differentiate(word_block.word_block, words, keep, weights, heads, 1e-5, approximate, "float32")
    right = differentiate(plain_word_block, words, keep, weights, heads, 1e-5, approximate)
    compare(found[:2], right[:2], 1e-12)
    compare(found[2:], right[2:], 1e-7)  # those of weights are in float32


def drawn(*shape: int) -> Tensor:
    """Return the same numbers in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


HARD = {
    "large words": drawn(3, 16, 24) * 1e4,
    "equal words": torch.ones(3, 16, 24),
    "words of zeros": torch.zeros(3, 16, 24),
    "subnormal words": drawn(3, 16, 24) * 1e-39,
    "one large channel": drawn(3, 16, 24) * torch.tensor([1e3] + [1.0] * 23),
    "not contiguous": drawn(16, 3, 24).transpose(0, 1),
}


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("words", HARD.values(), ids=HARD.keys())
def test_hard_inputs_give_the_same(words: Tensor) -> None:
    torch.manual_seed(0)
    weights = make_weights(24, 96)
    weights[2] = weights[2] * 10  # scores of some hundred
    check(words, None, weights, 4, "none")


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("body", ["auto", "plain"])
def test_without_a_sentence_there_is_nothing_to_compute(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setenv(compiled.VARIABLE, body)
    compiled.load.cache_clear()
    words = torch.zeros(0, 16, 24)
    found = differentiate(word_block.word_block, words, None, make_weights(24, 96), 4, 1e-5, "none", "float32")
    assert found[0].shape == words.shape
    assert not any(one.any() for one in found)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_not_hidden(bad: float) -> None:
    torch.manual_seed(0)
    words, weights = torch.randn(4, 16, 24), make_weights(24, 96)
    words[2, 3, 5] = bad
    out = word_block.word_block(words, None, weights, 4, 1e-5, "none", "float32")
    assert out[2].isnan().all(), "all words of its sentence attend to it"
    assert out[[0, 1, 3]].isfinite().all()


@pytest.mark.usefixtures("fused")
def test_bfloat16_words_are_computed_in_float32_and_rounded_once() -> None:
    torch.manual_seed(0)
    words, weights = torch.randn(5, 16, 24).bfloat16(), [w.bfloat16() for w in make_weights(24, 96)]
    found = differentiate(word_block.word_block, words, None, weights, 4, 1e-5, "none", "bfloat16")
    exact = [weight.double() for weight in weights]
    right = differentiate(plain_word_block, words.double(), None, exact, 4, 1e-5, "none")
    assert all(one.dtype == torch.bfloat16 for one in found)
    compare(found, right, 2**-8)
    assert_close(found[0], right[0].bfloat16(), rtol=2**-8, atol=1e-6)


@pytest.mark.usefixtures("fused")
def test_the_numbers_depend_neither_on_threads_nor_on_neighbours() -> None:
    torch.manual_seed(0)
    words, weights = torch.randn(101, 16, 24), make_weights(24, 96)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(differentiate(word_block.word_block, words, None, weights, 4, 1e-5, "none", "float32"))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for one, other in zip(others, found[0], strict=True):
            assert torch.equal(one, other)
    alone = word_block.word_block(words[50:51], None, weights, 4, 1e-5, "none", "float32")
    assert torch.equal(alone[0], found[0][0][50])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (0, 16, 24, 4, 96)], ids=[*SHAPES, "no sentence"])
def test_its_multiply_adds_are_those_of_the_layers(shape: tuple[int, int, int, int, int], device: str) -> None:
    n, p, e, heads, hidden = shape
    counts = []
    for function, others in ((word_block.word_block, ("float32",)), (plain_word_block, ())):
        words = torch.randn(n, p, e, device=device)
        inputs = [one.to(device).requires_grad_() for one in (words, *make_weights(e, hidden))]
        keep = torch.rand(2, n, device=device)
        with FlopCounterMode(display=False) as forward:
            out = function(inputs[0], keep, inputs[1:], heads, 1e-5, "none", *others)  # type: ignore[operator]
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    assert all(counts[0]) or n == 0


@pytest.mark.usefixtures("fused")
def test_a_models_multiply_adds_do_not_depend_on_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny().train()
    counts = []
    for body in ("auto", "plain"):
        monkeypatch.setenv(compiled.VARIABLE, body)
        compiled.load.cache_clear()
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 3, 32, 32)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("body", ["auto", "plain"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_it_is_a_whole_operator_of_torch(monkeypatch: pytest.MonkeyPatch, is_turned: bool, body: str) -> None:
    monkeypatch.setenv(compiled.VARIABLE, body)
    compiled.load.cache_clear()
    weights = [weight.requires_grad_() for weight in make_weights(12, 48)]
    words = torch.randn(4, 16, 12, requires_grad=True)
    if is_turned:  # as the stem gives words
        words = torch.randn(4, 12, 16, requires_grad=True).transpose(1, 2)
    arguments = (words, torch.rand(2, 4), weights, 2, 1e-5, "none", "float32")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(word_block.word_block, arguments, test_utils=checks)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", WITH_WORDS)
def test_golden_numbers_hold_through_the_compiled_body(name: str) -> None:
    expected = COMMITTED["models"][name]
    assert word_block.choose_body("cpu", torch.float32, 16) == "compiled"
    logits, features, loss, norms = run(golden_model(name))
    assert_close(logits[:, :16], torch.tensor(expected["logits"]), atol=2e-5, rtol=0)
    assert_close(features[:, :16], torch.tensor(expected["features"]), atol=2e-5, rtol=0)
    assert loss == pytest.approx(expected["loss"], abs=1e-5)
    check_norms(norms, expected["grad_norms"])


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", WITH_WORDS)
def test_a_model_trains_as_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny(name, drop_path_rate=0.4).train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()  # behind one that trains, the gradient of a bias is zero but for rounding
    images = torch.randn(6, 3, *model.config.size)
    found = []
    for body in ("auto", "plain"):
        monkeypatch.setenv(compiled.VARIABLE, body)
        compiled.load.cache_clear()
        torch.manual_seed(1)  # the same sentences are dropped
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    compare(found[0], found[1], 1e-5)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", WITH_WORDS)
def test_checkpointing_computes_it_again_alike(name: str) -> None:
    model = build_tiny(name, drop_path_rate=0.4).train()
    images = torch.randn(2, 3, *model.config.size)
    found = []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        torch.manual_seed(1)
        model.zero_grad()
        model(images).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", WITH_WORDS)
def test_layers_that_are_looked_at_or_replaced_are_computed_one_by_one(name: str) -> None:
    model = build_tiny(name).eval()
    block = model.get_submodule("blocks.0" if name.startswith("tnt") else "stages.0.blocks.0")
    images = torch.randn(2, 3, *model.config.size)
    seen = []
    hook = block.inner_attn.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        looked_at = model(images)
        hook.remove()
        assert_close(model(images), looked_at)
    assert seen == [1]
    block.inner_mlp.fc1 = torch.nn.Sequential(block.inner_mlp.fc1, torch.nn.ReLU())
    with torch.no_grad():
        assert not torch.allclose(model(images), looked_at), "what stands in its place is computed"


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("name", "module"), [(WITH_WORDS[0], tnt), (WITH_WORDS[1], pyramid_tnt)])
def test_words_that_are_dropped_out_are_computed_by_layers(
    name: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = module.word_block
    monkeypatch.setattr(module, "word_block", lambda *given: calls.append(1) or real(*given))
    model = build_tiny(name, drop_rate=0.5).train()
    images = torch.randn(2, 3, *model.config.size)
    assert not torch.equal(model(images), model(images))
    assert not calls
    with torch.no_grad():
        model.eval()(images)
    assert calls


@pytest.mark.usefixtures("fused")
def test_exported_programs_have_the_plain_form() -> None:
    model = build_tiny().eval()
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),))
    assert "word_block" not in str(program.graph)


@pytest.mark.thorough
@pytest.mark.usefixtures("fused", "without_shape_checks")
def test_torch_compile_has_no_graph_break() -> None:
    model = build_tiny()
    images = torch.randn(2, 3, 32, 32)
    right = model(images)
    found = torch.compile(model, fullgraph=True)(images)
    assert_close(found, right)
    found.sum().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_the_body_for_gpus_is_the_plain_one_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compare_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("equal") == 10


@pytest.mark.thorough
def test_the_body_for_gpus_compiles_without_one() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compile_triton.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("bytes of shared memory") == 8
