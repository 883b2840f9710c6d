"""Chapters 08 to 14 under `torch.func` and `torch.export`: every component, and the network made of them.

`vmap`, `grad`, `jvp` and `jacrev` transform a function; `torch.export` records a module for inputs of any batch size.
They work if a component computes with tensors only, independently of the values and of the batch size. `CASES` defines
the call of each component. The oracle is a plain loop: over the samples for `vmap`, over the numbers of the output for
derivatives.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from spec.support.assertions import Tolerance, assert_close, assert_equal, rounding
from spec.support.clauses import clause
from spec.support.run import current
from spec.support.strategies import normal, spread

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # slow is not wrong
    pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export:UserWarning"),
]

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensor]
Sample = Callable[[int], Tensors]

SAMPLES = 3


def numbers(*shape: int) -> Sample:
    """A sample of one tensor, drawn from the seed; no two numbers are close, so that maxima are unique."""
    return lambda seed: (spread(*shape, seed=seed) / 4,)


def classes(count: int, size: int) -> Sample:
    """A sample of scores, and of a class for each row."""
    return lambda seed: (normal(count, size, seed=seed), torch.arange(seed, seed + count) % size)


def pairs(*shape: int) -> Sample:
    """A sample of predictions and targets."""
    return lambda seed: (spread(*shape, seed=seed), normal(*shape, seed=seed + 1) / 64)


def sequences(count: int, *shape: int) -> Sample:
    """A sample of `count` tensors of one shape."""
    return lambda seed: tuple(normal(*shape, seed=seed + i) for i in range(count))


def indices(*shape: int) -> Sample:
    """A sample of indices below 5."""
    return lambda seed: ((torch.arange(torch.Size(shape).numel()) * (seed + 2) % 5).reshape(shape),)


@dataclass(frozen=True)
class Case:
    """The call of a component.

    Attributes:
        sample: The tensors of the samples, as a function of a seed. Its first dimension is the batch.
        weights: The shapes of the arguments that all samples share.
        arguments: The arguments after them.
        options: The named arguments; of the constructor, for a layer.
        layer: The component is a layer, made with `arguments` and `options`; its parameters are the weights.
        repeat: The number of times that a layer is passed its sample: attention gets it as query, key and value.
    """

    sample: Sample
    weights: tuple[tuple[int, ...], ...] = ()
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    layer: bool = False
    repeat: int = 1

    def function(self, component: Any) -> tuple[Function, Tensors]:
        """The component as a function of a sample's tensors and the weights; and the weights."""
        if not self.layer:
            weights = tuple(normal(*shape, seed=50 + i) / 2 for i, shape in enumerate(self.weights))
            return lambda *tensors: component(*tensors, *self.arguments, **self.options), weights
        layer = component(*self.arguments, **self.options).to(torch.float64).eval()
        names = [name for name, _ in layer.named_parameters()]
        weights = tuple(normal(*p.shape, seed=50 + i) / 2 for i, (_, p) in enumerate(layer.named_parameters()))

        def call(*tensors: Tensor) -> Tensor:
            count = len(tensors) - len(names)
            output = functional_call(layer, dict(zip(names, tensors[count:], strict=True)), self.given(tensors[:count]))
            return output[0] if isinstance(output, tuple) else output

        return call, weights

    def given(self, sample: Tensors) -> Tensors:
        """The arguments of the component for a sample."""
        return sample * self.repeat

    def samples(self) -> list[Tensors]:
        return [self.sample(seed) for seed in range(SAMPLES)]


def layer(sample: Sample, *arguments: Any, repeat: int = 1, **options: Any) -> Case:
    return Case(sample, arguments=arguments, options=options, layer=True, repeat=repeat)


IMAGES = numbers(2, 2, 4, 4)
CASES: dict[str, Case] = {
    # 08 to 10
    "conv2d": Case(IMAGES, ((4, 1, 3, 2), (4,)), options={"padding": 1, "stride": (2, 1), "groups": 2}),
    "Conv2d": layer(IMAGES, 2, 3, 3, padding=1, stride=2, padding_mode="reflect"),
    "max_pool2d": Case(IMAGES, arguments=(3, 2, 1)),
    "MaxPool2d": layer(IMAGES, 2),
    "avg_pool2d": Case(IMAGES, arguments=(3, 2, 1)),
    "AvgPool2d": layer(IMAGES, 2),
    "adaptive_avg_pool2d": Case(IMAGES, arguments=((2, 3),)),
    "AdaptiveAvgPool2d": layer(IMAGES, 1),
    # 11
    "relu": Case(numbers(2, 4)),
    "ReLU": layer(numbers(2, 4)),
    "leaky_relu": Case(numbers(2, 4), arguments=(0.1,)),
    "LeakyReLU": layer(numbers(2, 4), 0.1),
    "sigmoid": Case(numbers(2, 4)),
    "Sigmoid": layer(numbers(2, 4)),
    "tanh": Case(numbers(2, 4)),
    "Tanh": layer(numbers(2, 4)),
    "softmax": Case(numbers(2, 4), arguments=(1,)),
    "Softmax": layer(numbers(2, 4), 1),
    "log_softmax": Case(numbers(2, 4), arguments=(1,)),
    "LogSoftmax": layer(numbers(2, 4), 1),
    # 12
    "linear": Case(numbers(2, 4), ((3, 4), (3,))),
    "Linear": layer(numbers(2, 4), 4, 3),
    "flatten": Case(IMAGES, arguments=(1,)),
    "Flatten": layer(IMAGES),
    "dropout": Case(numbers(2, 4), options={"training": False}),
    "Dropout": layer(numbers(2, 4)),
    "batch_norm": Case(numbers(4, 2, 2), arguments=(None, None), options={"training": True}),
    "BatchNorm2d": layer(IMAGES, 2),
    "layer_norm": Case(numbers(2, 4), arguments=((4,),)),
    "LayerNorm": layer(numbers(2, 4), 4),
    "embedding": Case(indices(2, 3), ((5, 4),)),
    "Embedding": layer(indices(2, 3), 5, 4),
    "RNN": layer(sequences(1, 2, 3, 4), 4, 2, batch_first=True),
    "LSTM": layer(sequences(1, 2, 3, 4), 4, 2, batch_first=True),
    "GRU": layer(sequences(1, 2, 3, 4), 4, 2, batch_first=True),
    "scaled_dot_product_attention": Case(sequences(3, 2, 3, 4), options={"is_causal": True}),
    "MultiheadAttention": layer(sequences(1, 2, 3, 4), 4, 2, batch_first=True, repeat=3),
    "TransformerEncoderLayer": layer(sequences(1, 2, 3, 4), 4, 2, 8, batch_first=True),
    # 14
    "l1_loss": Case(pairs(2, 4)),
    "L1Loss": layer(pairs(2, 4)),
    "mse_loss": Case(pairs(2, 4)),
    "MSELoss": layer(pairs(2, 4)),
    "nll_loss": Case(classes(2, 4)),
    "NLLLoss": layer(classes(2, 4)),
    "cross_entropy": Case(classes(2, 4)),
    "CrossEntropyLoss": layer(classes(2, 4), label_smoothing=0.1),
}

every_component = pytest.mark.parametrize("component", CASES, indirect=True)


def tolerance(expected: Tensor) -> Tolerance:
    """The tolerance: at these sizes a number results from at most 1000 roundings of numbers up to 16 times its size."""
    return rounding(torch.float64, 1000, 16 * expected.abs().max() + 1 if expected.numel() else 1.0)


def is_differentiable(tensors: Tensors) -> tuple[int, ...]:
    return tuple(i for i, tensor in enumerate(tensors) if tensor.is_floating_point())


def gradients(function: Function, arguments: Tensors, upstream: Tensor) -> list[Tensor]:
    """The gradients of the floating-point arguments, by `backward`."""
    leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return list(torch.autograd.grad(function(*leaves), wanted, upstream))


def jacobian(function: Function, arguments: Tensors) -> list[Tensor]:
    """The derivatives of each number of the output, `[*output, *argument]`, one `backward` for each."""
    output = function(*arguments)
    rows = [
        gradients(function, arguments, one.reshape(output.shape))
        for one in torch.eye(output.numel(), dtype=output.dtype)
    ]
    columns = zip(*rows, strict=True)
    return [torch.stack(column).unflatten(0, output.shape) if output.dim() else column[0] for column in columns]


@clause("13.func.vmap")
@every_component
def test_vmap_equals_a_loop_over_samples(component: Any) -> None:
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        samples = case.samples()
        batched = [torch.stack(parts) for parts in zip(*samples, strict=True)]
        dims = (0,) * len(batched) + (None,) * len(weights)
        output = vmap(function, in_dims=dims)(*batched, *weights)
        expected = torch.stack([function(*sample, *weights) for sample in samples])
    assert_close(output, expected, tolerance(expected), "the output under vmap")


@clause("13.func.weights")
def test_vmap_over_kernels_without_bias_equals_a_loop(conv2d: Any) -> None:
    images, kernels = torch.arange(32.0).reshape(1, 2, 4, 4), torch.arange(108.0).reshape(2, 3, 2, 3, 3)
    with current().trace.off():
        found = vmap(lambda kernel: conv2d(images, kernel))(kernels)
        expected = torch.stack([conv2d(images, kernel) for kernel in kernels])
    assert_equal(found, expected, "the outputs, whole numbers below 2²⁴")


@clause("13.func.weights")
@every_component
def test_vmap_over_weights_equals_a_loop_over_models(component: Any) -> None:
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        sample = case.sample(0)
        models = [tuple(weight * (1 + i) for weight in weights) for i in range(SAMPLES)] if weights else []
        expected = [function(*sample, *model) for model in models]
        if not weights:  # a component without weights: the same sample for each of `SAMPLES` calls
            expected = [function(*sample)] * SAMPLES
        stacked = [torch.stack(parts) for parts in zip(*models, strict=True)]
        count = torch.zeros(SAMPLES)
        dims = (0,) + (None,) * len(sample) + (0,) * len(stacked)
        output = vmap(lambda _, *tensors: function(*tensors), in_dims=dims)(count, *sample, *stacked)
    assert_close(output, torch.stack(expected), tolerance(torch.stack(expected)), "the output under vmap")


@clause("13.func.per_sample_gradients")
@every_component
def test_vmap_of_grad_gives_the_gradients_of_each_sample(component: Any) -> None:
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        samples = case.samples()
        upstream = normal(*function(*samples[0], *weights).shape, seed=99)
        batched = [torch.stack(parts) for parts in zip(*samples, strict=True)]
        wanted = is_differentiable((*samples[0], *weights))
        dims = (0,) * len(batched) + (None,) * len(weights)
        weighted = lambda *tensors: (function(*tensors) * upstream).sum()  # noqa: E731
        found = vmap(grad(weighted, argnums=wanted), in_dims=dims)(*batched, *weights)
        each = [gradients(function, (*sample, *weights), upstream) for sample in samples]
    for position, got, parts in zip(wanted, found, zip(*each, strict=True), strict=True):
        expected = torch.stack(parts)
        assert_close(got, expected, tolerance(expected), f"the gradients of argument {position}, one for each sample,")


@clause("13.func.weights", "13.func.per_sample_gradients")
@every_component
def test_vmap_of_grad_gives_the_gradients_of_each_model(component: Any) -> None:
    """Models with weights of their own, each with a sample of its own or all with the same sample."""
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        models = [tuple(weight * (1 + i) for weight in weights) for i in range(SAMPLES)]
        upstream = normal(*function(*case.sample(0), *weights).shape, seed=98)
        weighted = lambda *tensors: (function(*tensors) * upstream).sum()  # noqa: E731
        wanted = is_differentiable((*case.sample(0), *weights))
        stacked = [torch.stack(parts) for parts in zip(*models, strict=True)]
        results = []
        for samples in (case.samples(), [case.sample(0)] * SAMPLES):
            one = samples[0] is samples[-1] and bool(stacked)  # vmap needs something to go over
            given = samples[0] if one else tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
            dims = (None if one else 0,) * len(given) + (0,) * len(stacked)
            found = vmap(grad(weighted, argnums=wanted), in_dims=dims)(*given, *stacked)
            each = [gradients(function, (*s, *model), upstream) for s, model in zip(samples, models, strict=True)]
            results += zip(wanted, found, zip(*each, strict=True), strict=True)
    for position, got, parts in results:
        expected = torch.stack(parts)
        assert_close(got, expected, tolerance(expected), f"the gradients of argument {position}, one for each model,")


@clause("13.func.jvp")
@every_component
def test_jvp_equals_the_directional_derivative(component: Any) -> None:
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        arguments = (*case.sample(0), *weights)
        wanted = is_differentiable(arguments)
        directions = tuple(normal(*arguments[i].shape, seed=70 + i) for i in wanted)

        def of_wanted(*tensors: Tensor) -> Tensor:
            given = list(arguments)
            for i, tensor in zip(wanted, tensors, strict=True):
                given[i] = tensor
            return function(*given)

        output, slope = jvp(of_wanted, tuple(arguments[i] for i in wanted), directions)  # pyright: ignore[reportAssignmentType]
        expected_output, matrices = function(*arguments), jacobian(function, arguments)
    assert_close(output, expected_output, tolerance(expected_output), "the output of jvp")
    dims = expected_output.dim()
    parts = [
        (matrix.flatten(dims) * direction.flatten()).sum(-1)
        for matrix, direction in zip(matrices, directions, strict=True)
    ]
    expected = torch.stack(parts).sum(0)
    assert_close(slope, expected, tolerance(torch.stack(parts)), "the derivative along the direction")


@clause("13.func.jvp")
@every_component
def test_jvp_of_grad_equals_the_hessian_along_a_direction(component: Any) -> None:
    """Forward over reverse mode; the oracle is reverse over reverse mode, which other tests verify."""
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        arguments = (*case.sample(0), *weights)
        wanted = is_differentiable(arguments)
        directions = tuple(normal(*arguments[i].shape, seed=90 + i) for i in wanted)

        def loss(*tensors: Tensor) -> Tensor:
            given = list(arguments)
            for i, tensor in zip(wanted, tensors, strict=True):
                given[i] = tensor
            return function(*given).pow(3).sum()

        numbers = tuple(range(len(wanted)))
        _, found = jvp(grad(loss, argnums=numbers), tuple(arguments[i] for i in wanted), directions)  # pyright: ignore[reportAssignmentType]
        _, expected = torch.autograd.functional.hvp(loss, tuple(arguments[i] for i in wanted), directions)
    for i, got, product in zip(wanted, found, expected, strict=True):
        assert_close(got, product, tolerance(product), f"the Hessian's product for argument {i}")


@clause("13.func.jacrev")
@every_component
def test_jacrev_holds_the_derivative_of_each_output(component: Any) -> None:
    case = CASES[component.name]
    with current().trace.off():
        function, weights = case.function(component)
        arguments = (*case.sample(0), *weights)
        wanted = is_differentiable(arguments)
        found = jacrev(function, argnums=wanted)(*arguments)
        matrices = jacobian(function, arguments)
    for position, got, expected in zip(wanted, found, matrices, strict=True):
        assert_close(got, expected, tolerance(expected), f"the derivatives with respect to argument {position}")


@clause("13.func.randomness")
def test_vmap_randomness_decides_between_one_and_many_dropout_masks(dropout: Function) -> None:
    x = torch.ones(4, 400)
    with current().trace.off():
        different = vmap(lambda row: dropout(row, 0.5, True), randomness="different")(x)
        same = vmap(lambda row: dropout(row, 0.5, True), randomness="same")(x)
    assert set(different.unique().tolist()) == {0.0, 2.0}
    # the dropout masks of two rows of 400 numbers are equal with a probability of 2⁻⁴⁰⁰
    assert not torch.equal(different[0], different[1]), "every sample is dropped alike"
    for row in same[1:]:
        assert_equal(row, same[0], "what is drawn once")


@clause("13.func.ocean")
def test_the_network_has_a_gradient_for_each_image(
    Ocean: Any, Sequential: Any, Conv2d: Any, MaxPool2d: Any, Flatten: Any, Linear: Any
) -> None:
    with current().trace.off():
        parts = {"Sequential": Sequential, "Conv2d": Conv2d, "MaxPool2d": MaxPool2d, "Flatten": Flatten}
        network = Ocean(layers=SimpleNamespace(**parts, Linear=Linear)).to(torch.float64)
        images, labels = spread(SAMPLES, 3, 32, 32, seed=0, gap=1e-3), torch.arange(SAMPLES)
        weights = {name: parameter.detach() for name, parameter in network.named_parameters()}

        def score(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return functional_call(network, weights, (image[None],))[0].gather(0, label[None])[0]

        found = vmap(grad(score), in_dims=(None, 0, 0))(weights, images, labels)
        for i in range(SAMPLES):
            one = network(images[i : i + 1])[0, labels[i]]
            expected = torch.autograd.grad(one, list(network.parameters()))
            for (name, got), wanted in zip(found.items(), expected, strict=True):
                # up to 1024 products in each of five layers, forward and backward
                bound = rounding(torch.float64, 10 * 1024, wanted.abs().max() + 1)
                assert_close(got[i], wanted, bound, f"the gradient of {name} for image {i}")


# torch.export


class Exported(nn.Module):
    """A component as a module: functions are exported with their weights as buffers."""

    def __init__(self, case: Case, component: Any) -> None:
        super().__init__()
        self.case = case
        if case.layer:
            self.call = component(*case.arguments, **case.options).to(torch.float64).eval()
            with torch.no_grad():
                for i, parameter in enumerate(self.call.parameters()):
                    parameter.copy_(normal(*parameter.shape, seed=50 + i) / 2)
        else:
            self.call = component.target
            for i, weight in enumerate(case.function(component)[1]):
                self.register_buffer(f"weight_{i}", weight)

    def forward(self, *sample: Tensor) -> Any:
        if self.case.layer:
            return self.call(*self.case.given(sample))
        return self.call(*sample, *self.buffers(), *self.case.arguments, **self.case.options)


EVERY_DAY = ("linear", "flatten")
"""The components that are exported in every run; each takes about a third of a second."""


@clause("13.export.dynamic_batch")
@pytest.mark.parametrize(
    "component",
    [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
    indirect=True,
)
def test_exported_component_accepts_any_batch_size(component: Any) -> None:
    case = CASES[component.name]
    with current().trace.off():
        module = Exported(case, component)
        twice, example = case.sample(0), [torch.cat([part, part]) for part in case.sample(0)]
        dynamic = (tuple({0: torch.export.Dim("batch", min=2)} for _ in example),)
        program = torch.export.export(module, tuple(example), dynamic_shapes=dynamic, strict=False).module()
        for sample in (twice, tuple(torch.cat([part] * 5) for part in case.sample(1))):
            found, wanted = program(*sample), module(*sample)
            found, wanted = (v[0] if isinstance(v, tuple) else v for v in (found, wanted))
            assert_close(found, wanted, tolerance(wanted), f"the exported component on a batch of {len(sample[0])}")


@clause("13.export.ocean")
@pytest.mark.slow
def test_exported_network_accepts_any_batch_size(
    Ocean: Any, Sequential: Any, Conv2d: Any, MaxPool2d: Any, Flatten: Any, Linear: Any
) -> None:
    with current().trace.off():
        parts = {"Sequential": Sequential, "Conv2d": Conv2d, "MaxPool2d": MaxPool2d, "Flatten": Flatten}
        network = Ocean(layers=SimpleNamespace(**parts, Linear=Linear)).to(torch.float64).eval()
        images = spread(7, 3, 32, 32, seed=0, gap=1e-3)
        dynamic = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(network, (images[:4],), dynamic_shapes=dynamic, strict=False).module()
        for count in (1, 2, 7):
            expected = network(images[:count])
            bound = rounding(torch.float64, 5 * 1024, expected.abs().max().detach() * 64 + 1)
            assert_close(program(images[:count]), expected, bound, f"the scores of {count} images")
