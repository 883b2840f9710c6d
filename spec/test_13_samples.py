"""PyTorch's own samples for its operators, modules and optimizers, as an additional oracle.

Each sample is computed by the implementation in float32, forwards and backwards, and compared with PyTorch's results in
float64. PyTorch also has arguments that must be refused. Both are private to PyTorch: if they cannot be imported, the
tests are skipped with the reason. The number of samples is a recorded property of each test.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spec.support.assertions import REJECTIONS
from spec.support.clauses import clause
from spec.support.outcomes import NotOffered
from spec.support.run import current
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
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # some samples cause warnings of PyTorch
]

Property = Callable[[str, object], None]
CPU = torch.device("cpu")


def original(name: str) -> Any:
    """PyTorch's component with this name."""
    return next(getattr(home, name) for home in (nn, functional, torch.optim, torch) if hasattr(home, name))


def run(function: Any, name: str, given: Any, dtype: torch.dtype | None) -> list[Tensor]:
    """The outputs and gradients of a sample of an operator."""
    given = placed(given, CPU, dtype)
    if dtype is not None and "dtype" in given[2]:
        given[2]["dtype"] = dtype
    first, arguments, named = given
    if name == "embedding":  # PyTorch's sample begins with the table, its function with the numbers
        first, arguments = arguments[0], (first, *arguments[1:])
    return results(lambda: function(first, *arguments, **named), tensors(given))


@clause("13.samples.agree")
@pytest.mark.parametrize("component", OPERATORS, indirect=True)
def test_every_sample_of_an_operator_has_pytorchs_result(component: Any, record_property: Property) -> None:
    name, counts = component.name, Counter[str]()
    for info in samples("op"):
        if info.name != OPERATORS[name] or info.variant_test_name:
            continue
        torch.manual_seed(0)
        for number, sample in enumerate(info.sample_inputs(CPU, torch.float32, requires_grad=True)):
            if sample.kwargs.get("dropout_p", 0.0) != 0.0 or sample.kwargs.get("dtype") not in (None, torch.float32):
                counts["left out: random, or of another dtype"] += 1
                continue
            with current().trace.off():
                try:
                    judge(
                        lambda given, _, dtype: run(component, name, given, dtype),
                        lambda given, _, dtype: run(original(name), name, given, dtype),
                        (sample.input, tuple(sample.args), dict(sample.kwargs)),
                        CPU,
                        f"sample {number} of {info.name}: {sample.summary()}",
                        largest_upstream(name),
                    )
                except NotOffered:
                    counts["left out: not offered"] += 1
                    continue
            counts["samples"] += 1
    record_property("samples", dict(counts))
    assert counts["samples"] > 0


@clause("13.samples.refused")
@pytest.mark.parametrize("component", OPERATORS, indirect=True)
def test_arguments_that_an_operator_of_pytorch_refuses_are_refused(component: Any, record_property: Property) -> None:
    name, counts = component.name, Counter[str]()
    accepted = []
    for info in samples("op"):
        if info.name != OPERATORS[name] or info.variant_test_name or info.error_inputs_func is None:
            continue
        for wrong in info.error_inputs(CPU):
            sample = wrong.sample_input
            arguments: list[Any] = [sample.input, *sample.args]
            if name == "embedding":
                arguments[:2] = arguments[1::-1]
            try:
                with current().trace.off():
                    component(*arguments, **sample.kwargs)
            except REJECTIONS:
                counts["refused"] += 1
            else:
                accepted.append(f"{wrong.error_type.__name__} {wrong.error_regex!r}: {sample.summary()}")
    record_property("refused", dict(counts))
    assert accepted == []


@clause("13.samples.agree")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("component", MODULES, indirect=True)
def test_every_sample_of_a_module_has_pytorchs_result(
    component: Any, training: bool, record_property: Property
) -> None:
    name, counts = component.name, Counter[str]()
    for info in samples("module"):
        if info.module_cls is not getattr(nn, name):
            continue
        for make, call, what in built(info, name, training):
            if call is None or (training and "Transformer" in name) or (training and make.kwargs.get("dropout")):
                counts["left out: random, or never called"] += 1
                continue
            torch.manual_seed(0)
            pattern = getattr(nn, name)(*make.args, **make.kwargs)

            def outcome(kind: Any, given: Any, dtype: torch.dtype | None, make: Any = make) -> list[Tensor]:
                state, arguments, named = placed(given, CPU, dtype)
                layer = kind(*placed(make.args, CPU, dtype), **placed(make.kwargs, CPU, dtype))
                layer.to(CPU, dtype).train(training)
                layer.load_state_dict(state)
                used = [*tensors((arguments, named)), *layer.parameters()]
                found = results(lambda: layer(*arguments, **named), used)
                return [*found, *(value.detach() for _, value in layer.named_buffers())]

            with current().trace.off():
                judge(
                    lambda given, _, dtype, outcome=outcome: outcome(component, given, dtype),
                    lambda given, _, dtype, outcome=outcome: outcome(getattr(nn, name), given, dtype),
                    (dict(pattern.state_dict()), tuple(call.args), dict(call.kwargs)),
                    CPU,
                    what,
                    largest_upstream(name),
                )
            counts["samples"] += 1
    record_property("samples", dict(counts))
    assert counts["samples"] > 0 or (training and "Transformer" in name)


@clause("13.samples.refused")
@pytest.mark.parametrize("component", MODULES, indirect=True)
def test_arguments_that_a_module_of_pytorch_refuses_are_refused(component: Any, record_property: Property) -> None:
    name, counts = component.name, Counter[str]()
    accepted = []
    for info in samples("module"):
        if info.module_cls is not getattr(nn, name) or info.module_error_inputs_func is None:
            continue
        for wrong in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
        ):
            sample = wrong.module_error_input
            try:
                with current().trace.off():
                    layer = component(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                    layer(*sample.forward_input.args, **sample.forward_input.kwargs)
            except REJECTIONS:
                counts["refused"] += 1
            else:
                accepted.append(f"{wrong.error_type.__name__} {wrong.error_regex!r}")
    record_property("refused", dict(counts))
    assert accepted == []


@clause("13.samples.refused")
@pytest.mark.parametrize("component", OPTIMIZERS, indirect=True)
def test_arguments_that_an_optimizer_of_pytorch_refuses_are_refused(component: Any, record_property: Property) -> None:
    name, counts = component.name, Counter[str]()
    accepted = []
    for info in samples("optim"):
        if info.optim_cls is not getattr(torch.optim, name):
            continue
        for wrong in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            if issubclass(wrong.error_type, Warning):
                counts["left out: PyTorch warns only"] += 1
                continue
            sample = wrong.optimizer_error_input
            try:
                with current().trace.off():
                    component(sample.params, **sample.kwargs)
            except REJECTIONS:
                counts["refused"] += 1
            except NotOffered:
                counts["left out: not offered"] += 1
            else:
                accepted.append(f"{wrong.error_type.__name__} {wrong.error_regex!r}: {sample.desc}")
    record_property("refused", dict(counts))
    assert accepted == []
