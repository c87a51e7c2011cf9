"""Make the kernels of a model ready before a long job, and say which bodies compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitrail.kernels.compiled import are_kernels_wanted, load
from vitrail.kernels.word_block import has_triton
from vitrail.kernels.word_block_compiled import NAME, prepare_word_block


def prepare_kernels(names: Sequence[str], device: str, note: Callable[[str], None]) -> None:
    """Compile what a model has kernels for, where it computes on a CPU: seconds, once on a machine.

    It is done before the first image, not beside the job, since bodies differ in the last digits,
    and a run that changed its body on the way could not be made again.

    Args:
        names: Operators that the model has, as its family names them.
        device: Type of the device that computes, such as cpu.
        note: Told why an operator is computed in plain PyTorch, where a faster body is wanted.

    Raises:
        ConfigError: The environment variable VITRAIL_KERNELS has another value than auto or plain.
    """
    if not are_kernels_wanted() or device != "cpu" or NAME not in names:
        return
    reason = prepare_word_block()
    if reason is not None:
        note(f"the words of TNT are computed in plain PyTorch, which is slower: {reason}")


def describe_kernels() -> str:
    """Say which bodies compute the operators on this machine, for logs and reports."""
    bodies = []
    if load(NAME) is not None:
        bodies.append("compiled for this CPU")
    if has_triton():
        bodies.append("Triton on the GPU")
    return f"{NAME} {' and '.join(bodies)}" if bodies else "plain PyTorch"
