"""Chapter 19, on a GPU: PyTorch's own samples for its operators, modules and optimizers. `pytest -m gpu`.

PyTorch tests itself with samples of arguments (`op_db`, `module_db`, `optim_db`). Each that belongs to a component is
drawn on the CPU, computed by the implementation on the GPU in float32, forwards and backwards, and compared with what
PyTorch computes on the CPU in float64. The samples are private to PyTorch: where they cannot be imported the tests are
skipped with the reason. How many samples each test used is among its recorded properties.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

import reference
from spec.support.assertions import Tolerance, assert_close
from spec.support.clauses import clause

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # samples are also of what PyTorch warns about
]

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
"""Under which name PyTorch has the samples of a function; those of `dropout` differ from device to device."""

MODULES = (
    *("Conv2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "ReLU", "LeakyReLU", "Sigmoid", "Tanh", "Softmax"),
    *("LogSoftmax", "Linear", "BatchNorm2d", "LayerNorm", "Embedding", "RNN", "LSTM", "GRU", "MultiheadAttention"),
    *("TransformerEncoderLayer", "L1Loss", "MSELoss", "NLLLoss", "CrossEntropyLoss"),
)
OPTIMIZERS = ("SGD", "Adam", "AdamW")
SIDES = ("reference", "torch")


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
    return found


def component(side: str, name: str) -> Any:
    """A component of the reference or of PyTorch."""
    if side == "reference":
        return getattr(reference, name)
    homes = (nn, nn.functional, torch.optim, torch)
    return next(getattr(home, name) for home in homes if hasattr(home, name))


def placed(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The structure with copies of its tensors on the device, floating-point ones in the dtype."""

    def copied(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        moved = tensor.detach().to(device, dtype if floating else None, copy=True)
        return moved.requires_grad_(floating and tensor.requires_grad)

    return tree_map_only(Tensor, copied, value)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a structure."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def results(call: Callable[[], Any], given: Sequence[Tensor]) -> list[Tensor]:
    """Every output, and the gradients of what is given, for an upstream gradient that depends on the shape only."""
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
    """Compare what the implementation computes on the device with PyTorch's float64 on the CPU.

    A sum of n products in float32 is the exact sum of products that are off by n · eps. So no number of a result may be
    farther from the exact one than four times the farthest that inputs lead which are off by that much, n being the
    numbers of the largest input; and by four roundings of numbers as large as the result, or as the upstream gradient,
    which is below 4. A norm divides it by at least the square root of its eps on the way.
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
    """What an upstream gradient, below 4, grows to on its way through a component."""
    return 4 / 1e-5**0.5 if "norm" in name.lower() else 4.0


@clause("19.gpu.samples")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_samples(
    gpu: torch.device, side: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    counts: Counter[str] = Counter()
    for info in samples("op"):
        if info.name != OPERATORS[name] or info.variant_test_name not in ("", "cuda"):
            continue
        torch.manual_seed(0)
        for number, sample in enumerate(info.sample_inputs(torch.device("cpu"), torch.float32, requires_grad=True)):
            if sample.kwargs.get("dropout_p", 0.0) != 0.0 or sample.kwargs.get("dtype") not in (None, torch.float32):
                counts["left out: random, or of another dtype"] += 1
                continue

            def run(function: Any, given: Any, device: torch.device, dtype: torch.dtype | None) -> list[Tensor]:
                given = placed(given, device, dtype)
                if dtype is not None and "dtype" in given[2]:
                    given[2]["dtype"] = dtype
                first, arguments, named = given
                if name == "embedding":  # PyTorch's sample begins with the table, its function with the numbers
                    first, arguments = arguments[0], (first, *arguments[1:])
                return results(lambda: function(first, *arguments, **named), tensors(given))

            given = (sample.input, tuple(sample.args), dict(sample.kwargs))
            judge(
                lambda *how: run(component(side, name), *how),
                lambda *how: run(component("torch", name), *how),
                given,
                gpu,
                f"sample {number} of {info.name}: {sample.summary()}",
                largest_upstream(name),
            )
            counts["samples"] += 1
    record_property("samples", dict(counts))
    assert counts["samples"] > 0


def built(info: Any, name: str, training: bool) -> Iterator[tuple[Any, Any, Any]]:
    """The samples of a module: arguments of the class, of the call, and a description."""
    torch.manual_seed(0)
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=True, training=training)
    for sample in inputs:
        yield sample.constructor_input, sample.forward_input, f"{name}: {sample.desc or sample.constructor_input}"


@clause("19.gpu.samples")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MODULES)
def test_module_samples(
    gpu: torch.device, side: str, name: str, training: bool, record_property: Callable[[str, object], None]
) -> None:
    counts: Counter[str] = Counter()
    for info in samples("module"):
        if info.module_cls is not getattr(nn, name):
            continue
        for make, call, what in built(info, name, training):
            if call is None or (training and "Transformer" in name) or (training and make.kwargs.get("dropout")):
                counts["left out: random, or never called"] += 1
                continue
            torch.manual_seed(0)
            pattern = getattr(nn, name)(*make.args, **make.kwargs)

            def run(
                kind: Any, given: Any, device: torch.device, dtype: torch.dtype | None, make: Any = make
            ) -> list[Tensor]:
                state, arguments, named = placed(given, device, dtype)
                layer = kind(*placed(make.args, device, dtype), **placed(make.kwargs, device, dtype))
                layer.to(device, dtype).train(training)
                layer.load_state_dict(state)
                outputs = results(
                    lambda: layer(*arguments, **named), [*tensors((arguments, named)), *layer.parameters()]
                )
                return [*outputs, *(value.detach() for _, value in layer.named_buffers())]

            judge(
                lambda *how, run=run: run(component(side, name), *how),
                lambda *how, run=run: run(getattr(nn, name), *how),
                (dict(pattern.state_dict()), tuple(call.args), dict(call.kwargs)),
                gpu,
                what,
                largest_upstream(name),
            )
            counts["samples"] += 1
    record_property("samples", dict(counts))
    assert counts["samples"] > 0 or (training and "Transformer" in name)


@clause("19.gpu.samples")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_samples(
    gpu: torch.device, side: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    kind, counts = component(side, name), Counter[str]()
    known = set(inspect.signature(kind).parameters)
    for info in samples("optim"):
        if info.optim_cls is not getattr(torch.optim, name):
            continue
        for sample in info.optim_inputs_func(device=str(gpu)):
            if unknown := set(sample.kwargs) - known:
                counts[f"left out: not offered: {', '.join(sorted(unknown))}"] += 1
                continue

            def run(
                kind: Any, given: Any, device: torch.device, dtype: torch.dtype | None, options: Any = sample.kwargs
            ) -> list[Tensor]:
                parameters = [nn.Parameter(value) for value in placed(given, device, dtype)]
                options = placed(deepcopy(options), device, dtype)
                if device.type == "cpu":  # these say how it computes, not what
                    options = {k: v for k, v in options.items() if k not in ("capturable", "foreach", "fused")}
                optimizer = kind(parameters, **options)
                for _ in range(5):
                    for number, parameter in enumerate(parameters, 1):
                        parameter.grad = parameter.detach() * number
                    optimizer.step()
                return [parameter.detach() for parameter in parameters]

            generator = torch.Generator().manual_seed(0)
            given = [torch.randn(3, 5, generator=generator), torch.randn(7, generator=generator)]
            judge(
                lambda *how, run=run: run(kind, *how),
                lambda *how, run=run: run(getattr(torch.optim, name), *how),
                given,
                gpu,
                f"{name} {sample.kwargs}",
                largest_upstream(name),
            )
            counts["samples"] += 1
    record_property("samples", dict(counts))
    assert counts["samples"] > 0
