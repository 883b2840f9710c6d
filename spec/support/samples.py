"""PyTorch's own test samples for its operators, modules and optimizers, which are private to PyTorch, as an additional
oracle.

PyTorch is tested with samples of arguments (`op_db`, `module_db`, `optim_db`), and with arguments that must be refused.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from spec.support.assertions import Tolerance, assert_close

OPERATORS = {
    **{
        name: f"nn.functional.{name}"
        for name in (
            *("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "relu", "leaky_relu", "linear"),
            *("batch_norm", "layer_norm", "embedding", "scaled_dot_product_attention"),
            *("l1_loss", "mse_loss", "nll_loss", "cross_entropy"),
        )
    },
    **{name: name for name in ("sigmoid", "tanh", "softmax", "log_softmax", "flatten")},
}
"""PyTorch's name for the samples of a function; those of `dropout` differ between devices."""

MODULES = (
    *("Conv2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "ReLU", "LeakyReLU", "Sigmoid", "Tanh", "Softmax"),
    *("LogSoftmax", "Linear", "BatchNorm2d", "LayerNorm", "Embedding", "RNN", "LSTM", "GRU", "MultiheadAttention"),
    *("TransformerEncoderLayer", "L1Loss", "MSELoss", "NLLLoss", "CrossEntropyLoss"),
)
OPTIMIZERS = ("SGD", "Adam", "AdamW")


@cache
def samples(kind: str) -> Any:
    """PyTorch's list of samples: `op`, `module` or `optim`; skips where this PyTorch has none."""
    try:
        if kind == "op":
            from torch.testing._internal.common_methods_invocations import op_db as found
        elif kind == "module":
            from torch.testing._internal.common_modules import module_db as found
        else:
            from torch.testing._internal.common_optimizers import optim_db as found
    except (ImportError, AttributeError) as error:
        pytest.skip(f"PyTorch's private test samples cannot be imported: {error}")
    # this import freezes settings such as torch.backends.cudnn.benchmark, which later tests in this process set
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
    return found


def placed(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The structure with copies of its tensors on the device, and floating-point tensors in the dtype."""

    def copied(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        moved = tensor.detach().to(device, dtype if floating else None, copy=True)
        return moved.requires_grad_(floating and tensor.requires_grad)

    return tree_map_only(Tensor, copied, value)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a structure."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def results(call: Callable[[], Any], given: Sequence[Tensor]) -> list[Tensor]:
    """Every output, and the gradients of the inputs, for an upstream gradient that depends on the shape only."""
    outputs = tensors(call())
    flowing = [output for output in outputs if output.requires_grad]
    wanted = [value for value in given if value.requires_grad]
    gradients: list[Tensor] = []
    if flowing and wanted:
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in flowing]
        found = torch.autograd.grad(flowing, wanted, upstream, allow_unused=True)
        gradients = [
            torch.zeros_like(value) if g is None else g.detach() for value, g in zip(wanted, found, strict=True)
        ]
    return [*(output.detach() for output in outputs), *gradients]


def judge(
    ours: Callable[[Any, torch.device, torch.dtype | None], list[Tensor]],
    theirs: Callable[[Any, torch.device, torch.dtype | None], list[Tensor]],
    given: Any,
    device: torch.device,
    what: str,
    largest: float,
) -> None:
    """Compare the results of the implementation on the device with PyTorch's float64 results on the CPU.

    A sum of n products in float32 is the exact sum of products that are off by n · eps. So the error of a number may be
    at most four times the largest change caused by input errors of this size, where n is the size of the largest input,
    plus four roundings of numbers as large as the result, or as the upstream gradient, which is below 4. A norm divides
    the upstream gradient by at least the square root of its eps.
    """
    here, eps = torch.device("cpu"), torch.finfo(torch.float32).eps
    exact = theirs(given, here, torch.float64)
    count = max([value.numel() for value in tensors(given)] + [16])
    farthest = [torch.zeros_like(value, dtype=torch.float64) for value in exact]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)

        def off(tensor: Tensor, generator: torch.Generator = generator) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            moved = tensor.detach().double() * (1 + count * eps * signs)
            return moved.requires_grad_(tensor.requires_grad)

        wobbling = theirs(tree_map_only(Tensor, off, given), here, torch.float64)
        farthest = [
            torch.maximum(most, (one.double() - other.double()).abs().nan_to_num(0.0, 0.0, 0.0))
            for most, one, other in zip(farthest, wobbling, exact, strict=True)
        ]
    found = ours(given, device, None)
    assert len(found) == len(exact), what
    for number, (value, right, most) in enumerate(zip(found, exact, farthest, strict=True)):
        assert value.device.type == device.type, what
        if right.is_floating_point():
            size = max([largest, *right.abs().nan_to_num(0.0, 0.0, 0.0).flatten().tolist()])
            allowed = 4 * max([0.0, *most.flatten().tolist()]) + 4 * eps * size
            right = right.to(value.dtype)
        else:
            allowed = 0.0
        because = f"what inputs that are off by {count} · eps lead to"
        assert_close(value.cpu(), right, Tolerance(allowed, because), f"{what}: result {number}")


def largest_upstream(name: str) -> float:
    """The bound of an upstream gradient, initially below 4, inside a component."""
    return 4 / 1e-5**0.5 if "norm" in name.lower() else 4.0


def built(info: Any, name: str, training: bool) -> Iterator[tuple[Any, Any, Any]]:
    """The samples of a module: arguments of the class, arguments of the call, and a description."""
    torch.manual_seed(0)
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=True, training=training)
    for sample in inputs:
        yield sample.constructor_input, sample.forward_input, f"{name}: {sample.desc or sample.constructor_input}"
