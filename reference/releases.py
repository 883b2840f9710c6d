"""Functions that the oldest supported PyTorch lacks; every module calls them by these names.

Whether PyTorch has a function is found by looking for it, never by the version number. The differences that tests
detect are in `spec/support/versions.py`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether `torch.export` is tracing; PyTorch 2.6 answers only whether it or `torch.compile` is."""


def available_accelerator() -> torch.device | None:
    """The accelerator of this machine, or None; the function of PyTorch 2.6 also names one that it was built for."""
    if "check_available" in inspect.signature(torch.accelerator.current_accelerator).parameters:
        return torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def set_tf32(*, allowed: bool) -> None:
    """Let CUDA compute float32 products in TF32, with 10 bits of the fraction, or in float32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        precision = "tf32" if allowed else "ieee"
        for setting in (matmul, cudnn.conv, cudnn.rnn):  # pyright: ignore[reportAttributeAccessIssue]
            setting.fp32_precision = precision
    else:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed  # pyright: ignore[reportAttributeAccessIssue]


def processor_features() -> dict[str, Any]:
    """The instruction sets of the processor by name, such as `avx512_bf16`, with whether it has them.

    An older PyTorch, such as 2.9, has no function for it, and answers for a few of them only. Every processor with AMX
    has instructions for bfloat16.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    older = {"avx2": "avx2", "avx512_f": "avx512", "avx512_bf16": "avx512_bf16", "amx_tile": "amx_tile"}
    answers = {name: getattr(torch.cpu, f"_is_{part}_supported", bool)() for name, part in older.items()}
    return answers | {"amx_bf16": answers["amx_tile"]}
