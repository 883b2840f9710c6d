"""Every component of chapters 08 to 14 with its calls at several sizes and its formula.

A test of all components loops over `SUBJECTS`: one entry for each component, with inputs as a function of a size, the
call, and the oracle of `spec/support/oracles.py`. `judge` compares values and gradients number by number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, islice, product
from operator import or_
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from spec.support import oracles
from spec.support.assertions import Tolerance, assert_close
from spec.support.strategies import laid_out

Tensors = dict[str, Tensor]

SIZES = ("a few numbers", "several hundred numbers", "several thousand numbers", "a batch of 257")
"""The sizes at which a subject is called, by index. Their counts are odd: no power of two divides them."""
BATCHES = (2, 3, 65, 257)
FEW, HUNDREDS, THOUSANDS, BATCH_257 = range(len(SIZES))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64 on the CPU."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")


def whole(*shape: int, below: int, seed: int = 0) -> Tensor:
    """Integers from 0, including the largest one, so that the last row of a table is used."""
    found = torch.randint(below, shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    if found.numel():
        found.view(-1)[-1] = below - 1
    return found


@dataclass(frozen=True)
class Subject:
    """A component and its call.

    Attributes:
        given: The tensors of a call in float64, by name, as a function of the size.
        oracle: The expected result, as a function of these tensors, the parameters and the size.
        call: The call, as a function of the component or layer, the tensors and the size.
        make: The construction of a layer, from its class and the size; None for a function.
        depth: The number of terms in the longest sum.
        roundings: In half precision, for values and gradients: the number of successive roundings to half precision. 1
            means that only the result is rounded.
        fixed: The tensors without a gradient.
        training: The layer is in training mode.
    """

    given: Callable[[int], Tensors]
    oracle: Callable[[Tensors, int], Any]
    call: Callable[[Any, Tensors, int], Any]
    make: Callable[..., nn.Module] | None = None
    depth: int = 8
    roundings: tuple[int, int] = (1, 1)
    fixed: tuple[str, ...] = ()
    training: bool = False

    def layer(self, component: Any, size: int, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
        """The layer with random parameters."""
        assert self.make is not None
        layer = self.make(component, size, **options).to(dtype).train(self.training)
        with torch.no_grad():
            for i, parameter in enumerate(layer.parameters()):
                parameter.copy_(numbers(*parameter.shape, seed=50 + i) / 3)
        return layer

    def prepare(self, component: Any, size: int, dtype: torch.dtype) -> tuple[Callable[[Tensors], Any], Tensors]:
        """The call as a function of its tensors, and the parameters of the layer by name."""
        if self.make is None:
            return lambda tensors: self.call(component, tensors, size), {}
        layer = self.layer(component, size, dtype)
        return lambda tensors: self.call(layer, tensors, size), dict(layer.named_parameters())


def function(
    given: Callable[[int], Tensors],
    oracle: Callable[..., Any],
    *,
    options: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = {},  # noqa: B006 (it is only read)
    **settings: Any,
) -> Subject:
    """A function that is called with the tensors in order; the oracle has the same options."""

    def of(size: int) -> Mapping[str, Any]:
        return options(size) if callable(options) else options

    settings.setdefault("call", lambda f, tensors, size: f(*tensors.values(), **of(size)))
    return Subject(given, lambda tensors, size: oracle(*tensors.values(), **of(size)), **settings)


def layer(
    make: Callable[..., nn.Module],
    given: Callable[[int], Tensors],
    oracle: Callable[[Tensors, int], Any],
    **settings: Any,
) -> Subject:
    """A layer that is called with the tensors in order; the oracle gets the parameters with the tensors."""
    settings.setdefault("call", lambda module, tensors, size: module(*tensors.values()))
    return Subject(given, oracle, make=make, **settings)


def elementwise(size: int) -> Tensors:
    return {"input": numbers(*((3, 5), (7, 47), (3, 7, 149), (257, 13))[size]) * 2}


def rows(size: int) -> Tensors:
    return {"input": numbers(*((3, 5), (3, 333), (65, 47), (257, 13))[size]) * 2}


def images(size: int, channels: int = 3) -> Tensor:
    """Image sizes; the last is wider than 2,048."""
    heights = (4, 9, 7, 3)[size], (5, 13, 15, 2051)[size]
    return numbers((2, 3, 65, 1)[size], channels, *heights)


def image(size: int) -> Tensors:
    return {"input": images(size)}


def convolved(size: int) -> Tensors:
    return {"input": images(size, 4), "weight": numbers(6, 2, 3, 2, seed=1) / 2, "bias": numbers(6, seed=2)}


def pairs(size: int) -> Tensors:
    return elementwise(size) | {"target": elementwise(size)["input"].flip(-1) / 3}


def scores(size: int) -> Tensors:
    """Sizes of losses; the third has more than 256 classes."""
    count, classes = ((3, 5), (33, 13), (17, 333), (257, 13))[size]
    return {"input": numbers(count, classes) * 2, "target": whole(count, below=classes)}


def looked_up(size: int) -> Tensors:
    positions, table = (((2, 3), (5, 3)), ((3, 11), (7, 13)), ((65, 3), (333, 17)), ((257,), (11, 13)))[size]
    return {"input": whole(*positions, below=table[0]), "weight": numbers(*table, seed=1)}


FEATURES = ((4, 3), (13, 11), (47, 51), (7, 13))


def weighed(size: int) -> Tensors:
    inner, outer = FEATURES[size]
    x = {"input": numbers((3, 31, 65, 257)[size], inner)}
    return x | {"weight": numbers(outer, inner, seed=1) / 3, "bias": numbers(outer, seed=2)}


def only_input(given: Callable[[int], Tensors], *names: str) -> Callable[[int], Tensors]:
    wanted = names or ("input",)
    return lambda size: {name: tensor for name, tensor in given(size).items() if name in wanted}


def statistics(size: int) -> Tensors:
    x = numbers(*((3, 2, 3), (3, 5, 3, 7), (65, 7, 3, 3), (257, 3, 5))[size])
    channels = x.shape[1]
    return {
        "input": x * 2 + 1,
        "running_mean": numbers(channels, seed=1),
        "running_var": numbers(channels, seed=2).square() + 0.5,
        "weight": numbers(channels, seed=3),
        "bias": numbers(channels, seed=4),
    }


def call_batch_norm(f: Any, tensors: Tensors, size: int) -> Any:
    mean, var = tensors["running_mean"].clone(), tensors["running_var"].clone()
    x, weight, bias = (tensors[name] for name in ("input", "weight", "bias"))
    return f(x, mean, var, weight, bias, True, 0.25), mean, var


def normalized_images(size: int) -> Tensors:
    return {"input": numbers(*((2, 2, 3, 2), (3, 5, 3, 7), (65, 7, 3, 3), (257, 3, 5, 1))[size]) * 2 + 1}


def call_batch_norm_layer(module: Any, tensors: Tensors, size: int) -> Any:
    module.running_mean.zero_()
    module.running_var.fill_(1)
    return module(tensors["input"]), module.running_mean.clone(), module.running_var.clone()


def batch_norm_of_layer(tensors: Tensors, size: int) -> Any:
    x, zeros = tensors["input"], torch.zeros_like(tensors["weight"]).detach()
    return oracles.batch_norm(x, zeros, zeros + 1, tensors["weight"], tensors["bias"], training=True, momentum=0.25)


def affine_rows(size: int) -> Tensors:
    x = rows(size)
    width = x["input"].shape[-1]
    return x | {"weight": numbers(width, seed=1), "bias": numbers(width, seed=2)}


def call_layer_norm(f: Any, tensors: Tensors, size: int) -> Any:
    return f(tensors["input"], (tensors["input"].shape[-1],), tensors["weight"], tensors["bias"])


SEQUENCES = ((2, 3, 4, 3), (5, 3, 5, 11), (65, 3, 7, 9), (257, 3, 3, 5))
"""Batch, steps, features and hidden features."""


def sequences(size: int) -> Tensors:
    batch, steps, features, _ = SEQUENCES[size]
    return {"input": numbers(steps, batch, features)}


def recurrent(kind: str) -> Subject:
    options = {"bidirectional": True}

    def oracle(tensors: Tensors, size: int) -> Any:
        return oracles.recurrent(kind, tensors, tensors["input"], hidden_size=SEQUENCES[size][3], **options)  # pyright: ignore[reportArgumentType]

    return layer(
        lambda c, size, **o: c(SEQUENCES[size][2], SEQUENCES[size][3], **options, **o),
        sequences,
        oracle,
        call=lambda module, tensors, size: tree_flatten(module(tensors["input"]))[0],
        depth=64,
        roundings=(32, 32),
    )


def attended(size: int) -> Tensors:
    batch, queries, keys, features = ((2, 2, 3, 4), (3, 9, 11, 15), (65, 5, 7, 13), (257, 3, 5, 3))[size]
    return {
        "query": numbers(batch, queries, features),
        "key": numbers(batch, keys, features, seed=1),
        "value": numbers(batch, keys, features, seed=2),
    }


EMBEDDED = ((2, 3, 4, 2), (3, 7, 15, 3), (65, 5, 9, 3), (257, 3, 5, 1))
"""Batch, positions, features and heads."""


def embedded(size: int) -> Tensors:
    batch, positions, features, _ = EMBEDDED[size]
    return {"query": numbers(batch, positions, features)}


def eleven(c: Any, size: int) -> nn.Module:
    width = (4, 13, 47, 13)[size]
    return c(*(nn.Tanh() if i % 2 else nn.Linear(width, width) for i in range(11)))


def composed(tensors: Tensors, size: int) -> Tensor:
    x = tensors["input"]
    for i in range(11):
        x = oracles.tanh(x) if i % 2 else oracles.linear(x, tensors[f"{i}.weight"], tensors[f"{i}.bias"])
    return x


CONVOLUTION = {"stride": (2, 1), "padding": 1, "groups": 2}
MAXIMUM = {"kernel_size": 3, "stride": 2, "padding": 1}
MEAN = {"kernel_size": (3, 2), "stride": 2, "padding": 1}
REGIONS = (3, 5)

SUBJECTS: dict[str, Subject] = {
    # 08 to 10
    "conv2d": function(convolved, oracles.conv2d, options=CONVOLUTION, depth=4096, roundings=(1, 4)),
    "Conv2d": layer(
        lambda c, size, **o: c(4, 6, (3, 2), **CONVOLUTION, **o),
        only_input(convolved),
        lambda t, size: oracles.conv2d(t["input"], t["weight"], t["bias"], **CONVOLUTION),
        depth=4096,
        roundings=(1, 4),
    ),
    "max_pool2d": function(
        image,
        oracles.max_pool2d,
        options=MAXIMUM,
        call=lambda f, t, size: f(t["input"], **MAXIMUM, return_indices=True),
    ),
    "MaxPool2d": layer(
        lambda c, size: c(**MAXIMUM), image, lambda t, size: oracles.max_pool2d(t["input"], **MAXIMUM)[0]  # pyright: ignore[reportArgumentType]
    ),
    "avg_pool2d": function(image, oracles.avg_pool2d, options=MEAN, roundings=(1, 4)),
    "AvgPool2d": layer(
        lambda c, size: c(**MEAN), image, lambda t, size: oracles.avg_pool2d(t["input"], **MEAN), roundings=(1, 4)
    ),
    "adaptive_avg_pool2d": function(
        image, oracles.adaptive_avg_pool2d, options={"output_size": REGIONS}, depth=2048, roundings=(1, 4)
    ),
    "AdaptiveAvgPool2d": layer(
        lambda c, size: c(REGIONS),
        image,
        lambda t, size: oracles.adaptive_avg_pool2d(t["input"], REGIONS),
        depth=2048,
        roundings=(1, 4),
    ),
    # 11
    "relu": function(elementwise, oracles.relu),
    "ReLU": layer(lambda c, size: c(), elementwise, lambda t, size: oracles.relu(t["input"])),
    "leaky_relu": function(elementwise, oracles.leaky_relu, options={"negative_slope": 0.25}),
    "LeakyReLU": layer(lambda c, size: c(0.25), elementwise, lambda t, size: oracles.leaky_relu(t["input"], 0.25)),
    "sigmoid": function(elementwise, oracles.sigmoid, roundings=(1, 3)),
    "Sigmoid": layer(lambda c, size: c(), elementwise, lambda t, size: oracles.sigmoid(t["input"]), roundings=(1, 3)),
    "tanh": function(elementwise, oracles.tanh, roundings=(1, 3)),
    "Tanh": layer(lambda c, size: c(), elementwise, lambda t, size: oracles.tanh(t["input"]), roundings=(1, 3)),
    "softmax": function(rows, oracles.softmax, options={"dim": -1}, depth=256, roundings=(1, 4)),
    "Softmax": layer(
        lambda c, size: c(-1), rows, lambda t, size: oracles.softmax(t["input"], -1), depth=256, roundings=(1, 4)
    ),
    "log_softmax": function(rows, oracles.log_softmax, options={"dim": -1}, depth=256, roundings=(4, 4)),
    "LogSoftmax": layer(
        lambda c, size: c(-1), rows, lambda t, size: oracles.log_softmax(t["input"], -1), depth=256, roundings=(4, 4)
    ),
    # 12
    "linear": function(weighed, oracles.linear, depth=256, roundings=(2, 2)),
    "Linear": layer(
        lambda c, size, **o: c(*FEATURES[size], **o),
        only_input(weighed),
        lambda t, size: oracles.linear(t["input"], t["weight"], t["bias"]),
        depth=256,
        roundings=(2, 2),
    ),
    "flatten": function(image, oracles.flatten, options={"start_dim": 1}),
    "Flatten": layer(lambda c, size: c(), image, lambda t, size: oracles.flatten(t["input"], 1)),
    "dropout": function(elementwise, lambda x, training: x, options={"training": False}),
    "Dropout": layer(lambda c, size: c(), elementwise, lambda t, size: t["input"]),
    "batch_norm": function(
        statistics,
        lambda *tensors: oracles.batch_norm(*tensors, True, 0.25),  # pyright: ignore[reportCallIssue]
        call=call_batch_norm,
        depth=1024,
        roundings=(4, 4),
        fixed=("running_mean", "running_var"),
    ),
    "BatchNorm2d": layer(
        lambda c, size, **o: c((2, 5, 7, 3)[size], momentum=0.25, **o),
        normalized_images,
        batch_norm_of_layer,
        call=call_batch_norm_layer,
        depth=1024,
        roundings=(4, 4),
        training=True,
    ),
    "layer_norm": function(
        affine_rows,
        lambda x, weight, bias: oracles.layer_norm(x, x.shape[-1:], weight, bias),
        call=call_layer_norm,
        depth=256,
        roundings=(1, 4),
    ),
    "LayerNorm": layer(
        lambda c, size, **o: c((5, 333, 47, 13)[size], **o),
        rows,
        lambda t, size: oracles.layer_norm(t["input"], t["input"].shape[-1:], t["weight"], t["bias"]),
        depth=256,
        roundings=(1, 4),
    ),
    "embedding": function(looked_up, oracles.embedding, depth=64, roundings=(1, 32)),
    "Embedding": layer(
        lambda c, size, **o: c(*((5, 3), (7, 13), (333, 17), (11, 13))[size], **o),
        only_input(looked_up),
        lambda t, size: oracles.embedding(t["input"], t["weight"]),
        depth=64,
        roundings=(1, 32),
    ),
    "RNN": recurrent("RNN"),
    "LSTM": recurrent("LSTM"),
    "GRU": recurrent("GRU"),
    "scaled_dot_product_attention": function(
        attended, oracles.scaled_dot_product_attention, depth=64, roundings=(8, 8)
    ),
    "MultiheadAttention": layer(
        lambda c, size, **o: c(EMBEDDED[size][2], EMBEDDED[size][3], batch_first=True, **o),
        embedded,
        lambda t, size: oracles.multihead_attention(
            t, *[t["query"]] * 3, num_heads=EMBEDDED[size][3], batch_first=True
        ),
        call=lambda module, t, size: module(*[t["query"]] * 3),
        depth=64,
        roundings=(16, 16),
    ),
    "TransformerEncoderLayer": layer(
        lambda c, size, **o: c(EMBEDDED[size][2], EMBEDDED[size][3], 17, batch_first=True, **o),
        embedded,
        lambda t, size: oracles.encoder_layer(t, t["query"], nhead=EMBEDDED[size][3], batch_first=True),
        depth=64,
        roundings=(32, 32),
    ),
    # 13
    "Sequential": layer(eleven, only_input(lambda size: {"input": weighed(size)["input"] if size != BATCH_257 else
        numbers(257, 13)}), composed, depth=256, roundings=(22, 22)),
    # 14
    "l1_loss": function(pairs, oracles.l1_loss, depth=4096, roundings=(3, 3)),
    "L1Loss": layer(lambda c, size: c(), pairs, lambda t, size: oracles.l1_loss(*t.values()), depth=4096,  # pyright: ignore[reportArgumentType]
        roundings=(3, 3)),
    "mse_loss": function(pairs, oracles.mse_loss, depth=4096, roundings=(3, 3)),
    "MSELoss": layer(lambda c, size: c(), pairs, lambda t, size: oracles.mse_loss(*t.values()), depth=4096,  # pyright: ignore[reportArgumentType]
        roundings=(3, 3)),
    "nll_loss": function(scores, oracles.nll_loss, depth=256, roundings=(3, 3)),
    "NLLLoss": layer(lambda c, size: c(), scores, lambda t, size: oracles.nll_loss(*t.values()), depth=256,  # pyright: ignore[reportArgumentType]
        roundings=(3, 3)),
    "cross_entropy": function(scores, oracles.cross_entropy, depth=512, roundings=(8, 8)),
    "CrossEntropyLoss": layer(lambda c, size: c(), scores, lambda t, size: oracles.cross_entropy(*t.values()),  # pyright: ignore[reportArgumentType]
        depth=512, roundings=(8, 8)),
}  # fmt: skip
"""Every component of chapters 08 to 14 that computes, by its name."""


# The comparison


@dataclass(frozen=True)
class Expected:
    """A result of the oracle: its name, the exact numbers, and the largest rounding error."""

    name: str
    exact: Tensor
    moved: float = 0.0


def results(
    call: Callable[[Tensors], Any],
    tensors: Tensors,
    parameters: Tensors,
    fixed: Sequence[str],
    off: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Tensors:
    """The outputs and the gradients of tensors and parameters, by name, for an upstream gradient of multiples of 1/8.

    `off` changes the upstream gradient.
    """
    leaves = {
        name: tensor.detach().requires_grad_() if tensor.is_floating_point() and name not in fixed else tensor.detach()
        for name, tensor in tensors.items()
    }
    outputs = [leaf for leaf in tree_flatten(call(leaves))[0] if isinstance(leaf, Tensor)]
    found = {f"output {i}" if i else "the output": output.detach() for i, output in enumerate(outputs)}
    wanted = {name: leaf for name, leaf in (leaves | parameters).items() if leaf.requires_grad}
    flowing = [output for output in outputs if output.requires_grad]
    if flowing and wanted:
        upstream = [
            off(((whole(*o.shape, below=33, seed=9) - 16.0) / 8 if o.dim() else torch.ones((), device="cpu")).to(o))
            for o in flowing
        ]
        gradients = torch.autograd.grad(flowing, list(wanted.values()), upstream, allow_unused=True)
        for (name, leaf), gradient in zip(wanted.items(), gradients, strict=True):
            found[f"the gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return found


def rounded(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The tensors in the dtype, if they have floating-point numbers."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def expected(subject: Subject, size: int, dtype: torch.dtype, parameters: Tensors) -> list[Expected]:
    """The results of the oracle for the numbers rounded to the dtype, with their rounding errors.

    A sum of n products in a dtype is the exact sum of products that are off by n · eps. So inputs with errors of this
    size change a result by about as much as the roundings of the computation. Two random draws estimate this change.
    """
    precise = torch.float64
    tensors = rounded(rounded(subject.given(size), dtype), precise)
    weights = rounded(rounded(parameters, dtype), precise)
    names = tuple(weights)

    def exact(off: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensors:
        moved = {name: off(weights[name]).detach().requires_grad_() for name in names}
        given = {name: off(tensor) for name, tensor in tensors.items()}
        return results(lambda leaves: subject.oracle(leaves | moved, size), given, moved, subject.fixed, off)

    right = exact()
    half = torch.finfo(dtype).bits == 16
    furthest: dict[str, float] = dict.fromkeys(right, 0.0)
    base = subject.depth * torch.finfo(torch.float32 if half else dtype).eps
    steps = [max(base, n * torch.finfo(dtype).eps if half and n > 1 else 0.0) for n in subject.roundings]
    for step, seed in product(sorted(set(steps)), range(2)):
        generator = torch.Generator("cpu").manual_seed(seed)

        def off(tensor: Tensor, generator: torch.Generator = generator, step: float = step) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            signs = torch.randint(0, 2, tensor.shape, generator=generator, device="cpu").to(tensor) * 2 - 1
            return tensor * (1 + step * signs)

        for name, value in exact(off).items():
            own = steps[name.startswith("the gradient")]
            if own == step and value.numel() and value.is_floating_point():
                furthest[name] = max(furthest[name], (value - right[name]).abs().max().item())
    return [Expected(name, value, furthest[name]) for name, value in right.items()]


_kept: dict[Any, list[Expected]] = {}


def judge(component: Any, size: int, dtype: torch.dtype, layout: int = 0) -> None:
    """Compare a component with its oracle: the dtype, the shape and each number of the outputs and gradients.

    Args:
        component: The component under test; its name selects the subject.
        size: An index of `SIZES`.
        dtype: The floating-point type.
        layout: The memory layout of its inputs, see `laid_out`.
    """
    __tracebackhide__ = True
    subject = SUBJECTS[component.name]
    call, layer_parameters = subject.prepare(component, size, dtype)
    drawn = {n: numbers(*p.shape, seed=50 + i) / 3 for i, (n, p) in enumerate(layer_parameters.items())}
    key = (component.name, size, dtype, *((n, tuple(p.shape)) for n, p in drawn.items()))
    if key not in _kept:  # the implementations share the results of the oracle
        _kept[key] = expected(subject, size, dtype, drawn)
    tensors = {
        name: laid_out(tensor.to(torch.get_default_device()), layout)
        for name, tensor in rounded(subject.given(size), dtype).items()
    }
    found = results(call, tensors, layer_parameters, subject.fixed)
    where = f"{component.name} of {SIZES[size]} in {str(dtype).removeprefix('torch.')}" + (
        f", layout {layout}" if layout else ""
    )
    if missing := [entry.name for entry in _kept[key] if entry.name not in found]:
        pytest.fail(f"{where}: there is no {', no '.join(missing)}")
    for entry in _kept[key]:
        compare(found[entry.name], entry, subject, dtype, f"{where}: {entry.name}")


def compare(found: Tensor, entry: Expected, subject: Subject, dtype: torch.dtype, what: str) -> None:
    """Compare one result; the tolerance is the error from `expected` plus the rounding of the result itself."""
    __tracebackhide__ = True
    exact = entry.exact
    if not exact.is_floating_point():
        assert_close(found.cpu(), exact, Tolerance(0.0, "these are whole numbers"), what)
        return
    if found.dtype != dtype:
        pytest.fail(f"{what} has dtype {found.dtype}, expected {dtype}")
    limits = torch.finfo(dtype)
    once = limits.bits == 16 and subject.roundings[entry.name.startswith("the gradient")] == 1
    own = (0.5 if once else 4.0) * limits.eps * exact.abs() * 1.001 + limits.smallest_normal * limits.eps
    because = "one rounding of the result, and" if once else "four roundings, and"
    because += f" what inputs lead to that are off by {'sums in float32' if once else 'the roundings on the way'}"
    assert_close(found.cpu().double(), exact, Tolerance(own + 4 * entry.moved, because), what)


# Options together


def together(
    options: Mapping[str, Sequence[Any]], allowed: Callable[[dict[str, Any]], bool] = lambda _: True
) -> list[dict[str, Any]]:
    """A covering array: combinations of options that contain every allowed pair of values of two options.

    It is built greedily: each combination starts with an uncovered pair, and among some completions the one with the
    most new pairs is chosen. The result is the same in every run.
    """
    names, random = list(options), Random(0)
    every = [range(len(options[name])) for name in names]

    def values(row: Sequence[int]) -> dict[str, Any]:
        return {name: options[name][i] for name, i in zip(names, row, strict=True)}

    numbers = {pair: number for number, pair in enumerate(combinations(range(len(names)), 2))}
    most = max(map(len, every))

    def met(row: Sequence[int]) -> int:
        """The pairs of values in a row, as the bits of a number."""
        return sum(1 << (number * most + row[a]) * most + row[b] for (a, b), number in numbers.items())

    if math.prod(map(len, every)) <= 4096:
        rows = [row for row in product(*every) if allowed(values(row))]
    else:
        drawn = (tuple(random.choice(choices) for choices in every) for _ in range(20_000))
        rows = [row for row in dict.fromkeys(drawn) if allowed(values(row))]
    random.shuffle(rows)
    pairs = {row: met(row) for row in rows}
    todo, found = reduce(or_, pairs.values()), []
    while todo:
        candidates = islice((row for row in rows if pairs[row] & todo), 200)
        best = max(candidates, key=lambda row: (pairs[row] & todo).bit_count())
        todo &= ~pairs[best]
        found.append(values(best))
    return found
