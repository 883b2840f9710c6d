"""Chapter 19, on a GPU: PyTorch's own samples for its operators, modules and optimizers. `pytest -m gpu`.

PyTorch tests itself with samples of arguments (`op_db`, `module_db`, `optim_db`). Each sample of a component is drawn
on the CPU, computed by the implementation on the GPU in float32, forward and backward, and compared with PyTorch's
results on the CPU in float64. The samples are private to PyTorch: if they cannot be imported, the tests are skipped
with the reason. The number of samples is a recorded property of each test.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from spec.support.clauses import clause
from spec.support.samples import (
    MODULES,
    OPERATORS,
    OPTIMIZERS,
    built,
    judge,
    largest_upstream,
    placed,
    results,
    samples,
    tensors,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # some samples cause warnings of PyTorch
]

SIDES = ("reference", "torch")


def component(side: str, name: str) -> Any:
    """A component of the reference or of PyTorch."""
    if side == "reference":
        return getattr(reference, name)
    homes = (nn, nn.functional, torch.optim, torch)
    return next(getattr(home, name) for home in homes if hasattr(home, name))


@clause("19.gpu.samples")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", OPERATORS)
def test_samples_of_operators_agree_on_the_gpu(
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


@clause("19.gpu.samples")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MODULES)
def test_samples_of_modules_agree_on_the_gpu(
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
def test_samples_of_optimizers_agree_on_the_gpu(
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
                if device.type == "cpu":  # these settings do not change the result
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
