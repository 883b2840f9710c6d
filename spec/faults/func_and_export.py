"""Chapters 08 to 14 under torch.func and torch.export: components that work in ordinary calls only."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from spec.faults import Fault

FILE = "test_13_func_and_export.py"


class _Positive(Function):
    """max(x, 0), without a rule for vmap."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grads[0] * (output > 0)


class HasNoBatchingRule(Fault):
    """A custom autograd function without a vmap rule."""

    caught_by = f"{FILE}::test_vmap_equals_a_loop_over_samples"
    says = r"vmap over _Positive, but it does not have vmap support"

    @staticmethod
    def relu(input: Tensor) -> Tensor:
        return _Positive.apply(input)  # pyright: ignore[reportReturnType]


class LooksAtTheNumbers(Fault):
    """The formula is chosen by the values of the input, which fails under vmap."""

    caught_by = f"{FILE}::test_vmap_equals_a_loop_over_samples"
    says = r"data-dependent control flow"

    @staticmethod
    def sigmoid(input: Tensor) -> Tensor:
        return 1 / (1 + (-input).exp()) if (input > 0).all() else input.exp() / (1 + input.exp())


class NormalizesOverTheSamples(Fault):
    """The vmap rule adds the samples to the batch, although each sample needs separate statistics."""

    caught_by = f"{FILE}::test_vmap_equals_a_loop_over_samples"
    says = r"the output under vmap differs at index"

    class _Norm(Function):
        @staticmethod
        def forward(input: Tensor) -> Tensor:
            return F.batch_norm(input, None, None, training=True)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
            samples = args[0].movedim(in_dims[0], 0)
            return F.batch_norm(samples.flatten(0, 1), None, None, training=True).unflatten(0, samples.shape[:2]), 0

    @staticmethod
    def batch_norm(input: Tensor, *args: Any, **options: Any) -> Tensor:
        return NormalizesOverTheSamples._Norm.apply(input)  # pyright: ignore[reportReturnType]


class OnlyInputsAreBatched(Fault):
    """The vmap rule uses the weights of the first model for all models."""

    caught_by = f"{FILE}::test_vmap_over_weights_equals_a_loop_over_models"
    says = r"the output under vmap differs at index \[1, 0, 0\]"

    class _Linear(Function):
        @staticmethod
        def forward(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.linear(input, weight, bias)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
            input, weight, bias = (
                a if d is None or i == 0 else a.select(d, 0) for i, (a, d) in _numbered(args, in_dims)
            )
            samples = (
                input.expand(info.batch_size, *input.shape) if in_dims[0] is None else input.movedim(in_dims[0], 0)
            )
            return F.linear(samples, weight, bias), 0

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return OnlyInputsAreBatched._Linear.apply(input, weight, bias)  # pyright: ignore[reportReturnType]


def _numbered(args: tuple[Any, ...], in_dims: tuple[Any, ...]) -> Any:
    return enumerate(zip(args, in_dims, strict=True))


class GradientsAreAddedUpOverTheSamples(Fault):
    """Under vmap too, the gradient of the weight is summed over the batch."""

    caught_by = f"{FILE}::test_vmap_of_grad_gives_the_gradients_of_each_sample"
    says = r"the gradients of argument 1, one for each sample, differs at index"

    class _WeightGradient(Function):
        @staticmethod
        def forward(output_grad: Tensor, input: Tensor) -> Tensor:
            return output_grad.mT @ input

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
            output_grad, input = (a if d is None else a.movedim(d, 0) for a, d in zip(args, in_dims, strict=True))
            summed = (output_grad.mT @ input).sum(0)
            return summed.expand(info.batch_size, *summed.shape), 0

    class _Linear(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.linear(input, weight, bias)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs[:2])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            input, weight = ctx.saved_tensors
            of_weight = GradientsAreAddedUpOverTheSamples._WeightGradient.apply(grads[0], input)
            return grads[0] @ weight, of_weight, grads[0].sum(0)

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return GradientsAreAddedUpOverTheSamples._Linear.apply(input, weight, bias)  # pyright: ignore[reportReturnType]


class OnlyGoesBackward(Fault):
    """There is a derivative for backward mode only."""

    caught_by = f"{FILE}::test_jvp_equals_the_directional_derivative"
    says = r"implement the jvp function"

    class _Squashed(_Positive):
        generate_vmap_rule = True

    @staticmethod
    def relu(input: Tensor) -> Tensor:
        return OnlyGoesBackward._Squashed.apply(input)  # pyright: ignore[reportReturnType]


class ForwardModeForgetsTheSlope(Fault):
    """The tangent of the output is the tangent of the input."""

    caught_by = f"{FILE}::test_jvp_equals_the_directional_derivative"
    says = r"the derivative along the direction differs"

    class _Passing(_Positive):
        generate_vmap_rule = True

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
            return tangents[0].clone()

    @staticmethod
    def relu(input: Tensor) -> Tensor:
        return ForwardModeForgetsTheSlope._Passing.apply(input)  # pyright: ignore[reportReturnType]


class BackwardLooksAtItsGradient(Fault):
    """If the gradient is zero, the function returns early; with jacrev many gradients are computed together."""

    caught_by = f"{FILE}::test_jacrev_holds_the_derivative_of_each_output"
    says = r"data-dependent control flow"

    class _Hasty(_Positive):
        generate_vmap_rule = True

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (output,) = ctx.saved_tensors
            return grads[0] if not grads[0].any() else grads[0] * (output > 0)

    @staticmethod
    def relu(input: Tensor) -> Tensor:
        return BackwardLooksAtItsGradient._Hasty.apply(input)  # pyright: ignore[reportReturnType]


class DrawsWithNumPy(Fault):
    """Random numbers that PyTorch does not draw are the same for every sample."""

    caught_by = f"{FILE}::test_vmap_randomness_decides_between_one_and_many_dropout_masks"
    says = r"every sample is dropped alike"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        kept = torch.from_numpy(np.random.default_rng(0).random(tuple(input.shape)) >= p)
        return input * kept / (1 - p) if training else input


class BatchSizeIsBakedIn(Fault):
    """The batch size becomes a Python number, so that the exported program accepts no other size."""

    caught_by = f"{FILE}::test_exported_component_accepts_any_batch_size"
    says = r"batch"

    @staticmethod
    def flatten(input: Tensor, start_dim: int = 0) -> Tensor:
        return input.reshape(int(input.shape[0]), -1)
