import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.kernels import linear as of_layers
from vitrail.kernels.linear import Linear
from vitrail.models.registry import create_model

SHAPES = ((5, 7, 24), (1, 1, 24), (3, 24), (24,), (0, 7, 24), (2, 3, 5, 24))


@pytest.fixture
def convolving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_layers, "is_convolution_faster", lambda: True)


def both(layer: Linear, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return output and gradients of our layer and of torch's."""
    found = []
    for forward in (layer.forward, super(Linear, layer).forward):
        given = x.clone().requires_grad_(x.dtype == torch.float32)
        out = forward(given)
        layer.zero_grad()
        if given.requires_grad and given.numel():
            (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        grads = [p.grad.clone() for p in (given, *layer.parameters()) if p.grad is not None]
        found.append([out.detach(), *grads])
    return found[0], found[1]


@pytest.mark.usefixtures("convolving")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_convolution_is_the_linear_layer(shape: tuple[int, ...], threads: int, bias: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    try:
        ours, theirs = both(Linear(24, 10, bias=bias), torch.randn(shape))
    finally:
        torch.set_num_threads(1)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("convolving")
def test_what_lies_otherwise_in_memory_is_read_right() -> None:
    layer, x = Linear(24, 10), torch.randn(24, 6, 4).permute(1, 2, 0)
    assert not x.is_contiguous()
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-6)


@pytest.mark.usefixtures("convolving")
@pytest.mark.parametrize("bias", [False, True])
def test_compiled_it_is_one_operator_with_the_same_numbers(bias: bool) -> None:
    layer, x = Linear(24, 10, bias=bias), torch.randn(5, 7, 24)
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    found = []
    for forward in (compiled, layer):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        out = forward(given)
        out.square().sum().backward()
        grads = [p.grad.clone() for p in (given, *layer.parameters()) if p.grad is not None]
        found.append([out.detach(), *grads])
    assert "vitrail.linear.default" in [str(node.target) for node in graphs[0].graph.nodes]
    assert not any("conv" in str(node.target) for node in graphs[0].graph.nodes)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
def test_the_operator_is_whole_and_counts_what_the_layer_does(wanted: tuple[bool, ...]) -> None:
    given = [torch.randn(5, 7, 24), torch.randn(10, 24), torch.randn(10)]
    given = [one.requires_grad_(is_wanted) for one, is_wanted in zip(given, wanted, strict=True)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(of_layers.convolved_linear, tuple(given), test_utils=checks)
    counts = []
    for forward in (of_layers.convolved_linear, nn.functional.linear):
        with FlopCounterMode(display=False) as counter:
            forward(*given).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("convolving")
def test_other_precisions_and_exported_programs_have_the_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(24, 10), torch.randn(5, 24)

    def refused(*_: object) -> torch.Tensor:
        raise AssertionError("a convolution")

    program = torch.export.export(layer, (x,))
    assert any("linear" in str(node.target) for node in program.graph.nodes)
    assert not any("conv" in str(node.target) for node in program.graph.nodes)
    monkeypatch.setattr(of_layers, "conv2d", refused)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to(torch.float64)(x.double()).dtype == torch.float64
    with pytest.raises(AssertionError, match="a convolution"):
        Linear(24, 10)(x)


@pytest.mark.parametrize(
    "name", ["tnt_s_patch16_224", "t2t_vit_14", "t2t_vit_t_14", "twins_svt_small", "twins_pcpvt_small"]
)
def test_every_linear_layer_of_the_models_is_ours(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {Linear}


@pytest.mark.thorough
def test_importing_the_models_reads_no_file_of_the_machine() -> None:
    code = """
import sys, torch

opened = []
sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
import vitrail.models.registry
assert opened and not [name for name in opened if name.startswith("/proc")], opened
"""
    subprocess.run([sys.executable, "-c", code], check=True)
