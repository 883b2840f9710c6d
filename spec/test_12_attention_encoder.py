"""Chapter 12, other layers: attention in an encoder layer."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import reference
from spec.support.assertions import assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.attention import (
    Layer,
    Multihead,
    State,
    asserting,
    multiheads,
    outside,
    with_numbers,
)
from spec.support.clauses import clause
from spec.support.strategies import given, normal


@dataclass(frozen=True)
class Encoder:
    """A valid encoder layer: its attention and its other arguments."""

    attention: Multihead
    hidden: int
    norm_first: bool
    activation: Any
    eps: float

    @property
    def options(self) -> dict[str, Any]:
        return {
            "dim_feedforward": self.hidden, "norm_first": self.norm_first, "activation": self.activation,
            "layer_norm_eps": self.eps, "bias": self.attention.bias, "batch_first": self.attention.batch_first,
        }  # fmt: skip

    def layer(self, make: Layer) -> nn.Module:
        """A layer without dropout, with other than its initial parameters."""
        made = make(self.attention.embed_dim, self.attention.heads, dropout=0.0, dtype=torch.float64, **self.options)
        return with_numbers(made, self.attention.seed).train(self.attention.recording)

    def masks(self) -> dict[str, Tensor]:
        names = {"attn_mask": "src_mask", "key_padding_mask": "src_key_padding_mask"}
        return {names[name]: mask for name, mask in self.attention.masks().items()}

    def by_definition(self, state: State, src: Tensor) -> Tensor:
        """`[batch, length, features]`."""
        part = lambda name: {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}  # noqa: E731

        def attend(x: Tensor) -> Tensor:
            factor = self.attention.factor(self.attention.masks())
            return self.attention.by_definition(part("self_attn."), (x, x, x), factor)[0]

        def think(x: Tensor) -> Tensor:
            first, second = part("linear1."), part("linear2.")
            hidden = activated(x @ first["weight"].T + first.get("bias", 0), self.activation)
            return hidden @ second["weight"].T + second.get("bias", 0)

        def norm(name: str, x: Tensor) -> Tensor:
            mean = x.sum(-1, keepdim=True) / x.shape[-1]
            variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
            own = part(name)
            return (x - mean) / (variance + self.eps) ** 0.5 * own["weight"] + own.get("bias", 0)

        if self.norm_first:
            src = src + attend(norm("norm1.", src))
            return src + think(norm("norm2.", src))
        src = norm("norm1.", src + attend(src))
        return norm("norm2.", src + think(src))


def activated(x: Tensor, activation: Any) -> Tensor:
    """max(0, x), or x Φ(x) with the distribution function Φ of the normal distribution, or any function."""
    if activation == "gelu":
        return x * x.new_tensor([math.erfc(-v / math.sqrt(2)) / 2 for v in x.flatten()]).reshape(x.shape)
    return x * (x > 0) if activation == "relu" else activation(x)


@st.composite
def encoders(draw: st.DrawFn) -> Encoder:
    # two heads: PyTorch's kernel for evaluation wants an even number
    attention = draw(multiheads(heads=2, alone=True, kdim=None, vdim=None, add_bias_kv=False, add_zero_attn=False))
    return Encoder(
        attention=replace(attention, keys=attention.queries),
        hidden=draw(st.integers(1, 3)),
        norm_first=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "gelu", torch.sin])),
        eps=draw(st.sampled_from([0.5, 1.0])),  # a sample with a tiny variance is only rounding error, times 1/√eps
    )


# Below 200 roundings of numbers below 20; a norm magnifies an error by 2 · |weight| / √0.5, below 6, and there are two.
ENCODER = rounding(torch.float64, 200, 20 * 6 * 6)


@clause("12.encoder.definition", "12.encoder.masks", "12.encoder.evaluation")
@given(case=encoders(), watched=st.booleans())
def test_encoder_equals_attention_and_feedforward_with_residuals_and_norms(
    TransformerEncoderLayer: Layer, case: Encoder, watched: bool
) -> None:
    # PyTorch does not use its evaluation kernel for a layer with hooks. That kernel hides keys with a nonzero float
    # mask instead of adding the mask, so it is avoided here.
    hooked = watched or case.attention.attn == "float"
    make = TransformerEncoderLayer if hooked else TransformerEncoderLayer.target  # pyright: ignore[reportFunctionMemberAccess]
    layer, src = case.layer(make), case.attention.inputs()[0]
    if hooked:
        layer.register_forward_hook(lambda *_: None)
    batch_first = case.attention.batch_first
    with torch.set_grad_enabled(case.attention.recording):
        output = layer(outside(src, batch_first), **case.masks())
    assert_close(outside(output, batch_first), case.by_definition(layer.state_dict(), src), ENCODER)


@clause("12.encoder.submodules")
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_encoder_calls_the_registered_submodules(TransformerEncoderLayer: Layer, norm_first: bool) -> None:
    layer = TransformerEncoderLayer(4, 2, 8, dropout=0.0, norm_first=norm_first, dtype=torch.float64)
    layer.norm1, layer.norm2 = nn.Tanh(), nn.Sigmoid()
    layer.linear1, layer.linear2 = nn.Identity(), nn.Softplus()
    layer.dropout, layer.dropout1, layer.dropout2 = nn.SELU(), nn.ELU(), nn.CELU()
    src = normal(3, 2, 4, seed=0)

    def attend(x: Tensor) -> Tensor:
        return layer.dropout1(layer.self_attn(x, x, x)[0])

    def think(x: Tensor) -> Tensor:
        return layer.dropout2(layer.linear2(layer.dropout(layer.linear1(x).relu())))

    if norm_first:
        x = src + attend(layer.norm1(src))
        expected = x + think(layer.norm2(x))
    else:
        x = layer.norm1(src + attend(src))
        expected = layer.norm2(x + think(x))
    assert_close(layer(src), expected, rounding(torch.float64, 200, 10))


@clause("12.encoder.unbatched")
def test_unbatched_source_equals_a_batch_of_one(TransformerEncoderLayer: Layer) -> None:
    layer = TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64).eval()
    src = normal(3, 4, seed=0)
    assert_close(layer(src), layer(src[None])[0], rounding(torch.float64, 200, 10 / math.sqrt(1e-5)))


@clause("12.encoder.empty")
def test_encoder_accepts_an_empty_batch(TransformerEncoderLayer: Layer) -> None:
    assert TransformerEncoderLayer(4, 2, 8)(torch.ones(3, 0, 4)).shape == (3, 0, 4)


@clause("12.encoder.dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_encoder_output_has_the_dtype_of_the_layer(TransformerEncoderLayer: Layer, dtype: torch.dtype) -> None:
    layer, src = (
        TransformerEncoderLayer(4, 2, 8, dtype=dtype, layer_norm_eps=1.0).eval(),
        torch.randn(3, 2, 4).to(dtype),
    )
    output = layer(src)
    exact = layer.double()(src.double())
    # fewer than 40 roundings of numbers below 4 for an output; the norms divide by more than 1
    assert_close(output, exact.to(dtype), rounding(dtype, 40, 4))


@clause("12.encoder.masks")
def test_is_causal_applies_the_causal_mask_to_the_source(TransformerEncoderLayer: Layer) -> None:
    layer, src = TransformerEncoderLayer(4, 2, 8, dropout=0.0, layer_norm_eps=1.0), torch.randn(3, 2, 4)
    mask = torch.tensor([[j > i for j in range(3)] for i in range(3)])
    tolerance = rounding(torch.float32, 200, 10)
    assert_close(layer(src, mask)[:1], layer(src[:1]), tolerance, "the first output, which sees nothing else")
    assert_close(layer(src, mask, is_causal=True), layer(src, mask), tolerance)


@clause("12.encoder.dropout")
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_encoder_dropout_1_leaves_the_residual(TransformerEncoderLayer: Layer, norm_first: bool) -> None:
    layer = with_numbers(TransformerEncoderLayer(4, 2, 8, dropout=1.0, norm_first=norm_first), seed=0)
    src = torch.randn(3, 2, 4)
    assert_equal(layer(src), src if norm_first else layer.norm2(layer.norm1(src)).detach())  # pyright: ignore[reportCallIssue]


@clause("12.encoder.dropout")
def test_encoder_dropout_is_0_1_and_applies_in_training_only(TransformerEncoderLayer: Layer) -> None:
    layer, src = TransformerEncoderLayer(4, 2, 8), torch.randn(3, 2, 4)
    assert [layer.dropout.p, layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout] == [0.1] * 4
    assert layer(src).ne(layer(src)).any(), "two passes in training must not drop the same"
    layer.eval()
    assert_equal(layer(src), layer(src), "a second pass in evaluation")


@clause("12.encoder.parameters")
def test_encoder_parameters_are_those_of_the_submodules(TransformerEncoderLayer: Layer) -> None:
    ours, theirs = TransformerEncoderLayer(4, 2, 8).eval(), nn.TransformerEncoderLayer(4, 2, 8).eval()
    expected = {
        "self_attn.in_proj_weight": (12, 4), "self_attn.in_proj_bias": (12,), "self_attn.out_proj.weight": (4, 4),
        "self_attn.out_proj.bias": (4,), "linear1.weight": (8, 4), "linear1.bias": (8,), "linear2.weight": (4, 8),
        "linear2.bias": (4,), "norm1.weight": (4,), "norm1.bias": (4,), "norm2.weight": (4,), "norm2.bias": (4,),
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(expected)
    without = TransformerEncoderLayer(4, 2, 8, bias=False).state_dict()
    assert list(without) == [name for name in expected if "bias" not in name]
    src = torch.randn(3, 2, 4)
    theirs.load_state_dict(ours.state_dict())
    tolerance = rounding(torch.float32, 200, 10 / math.sqrt(1e-5))
    assert_close(theirs(src), ours(src), tolerance, "the output of PyTorch's layer with these parameters")
    ours.load_state_dict(with_numbers(theirs, seed=0).state_dict())
    assert_close(ours(src), theirs(src), tolerance, "the output with the parameters of PyTorch's layer")


@clause("12.encoder.initialization")
def test_encoder_initialization_equals_pytorchs(TransformerEncoderLayer: Layer) -> None:
    torch.manual_seed(5)
    theirs = nn.TransformerEncoderLayer(4, 2).state_dict()
    torch.manual_seed(5)
    for name, value in TransformerEncoderLayer(4, 2).state_dict().items():  # 2048 hidden features
        assert_equal(value, theirs[name], name)


@clause("12.encoder.repr")
def test_encoder_prints_the_submodules(TransformerEncoderLayer: Layer) -> None:
    printed = """\
TransformerEncoderLayer(
  (self_attn): MultiheadAttention(
    (out_proj): NonDynamicallyQuantizableLinear(in_features=4, out_features=4, bias=True)
  )
  (linear1): Linear(in_features=4, out_features=8, bias=True)
  (dropout): Dropout(p=0.1, inplace=False)
  (linear2): Linear(in_features=8, out_features=4, bias=True)
  (norm1): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
  (norm2): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
  (dropout1): Dropout(p=0.1, inplace=False)
  (dropout2): Dropout(p=0.1, inplace=False)
)"""
    assert repr(TransformerEncoderLayer(4, 2, 8)) == printed


@clause("12.encoder.gradients")
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_the_encoder_is_differentiable_twice(TransformerEncoderLayer: Layer, norm_first: bool) -> None:
    layer = TransformerEncoderLayer(
        2, 1, 2, dropout=0.0, activation="gelu", norm_first=norm_first, layer_norm_eps=0.5, dtype=torch.float64
    )
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused kernel has no second derivative
        assert_differentiable(with_numbers(layer, seed=0), normal(2, 1, 2, seed=0).requires_grad_())


@clause("12.encoder.gradients")
def test_every_parameter_of_the_encoder_has_a_gradient(TransformerEncoderLayer: Layer) -> None:
    layer = with_numbers(TransformerEncoderLayer(4, 2, 8, dropout=0.0), seed=0)
    (layer(torch.randn(3, 2, 4)) ** 2).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.ne(0).any(), f"the gradient of {name} is 0"


@clause("12.encoder.rejects")
@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        pytest.param({"nhead": 3}, "nhead|num_heads", id="heads that do not divide the features"),
        pytest.param({"nhead": 0}, "nhead|num_heads", id="no heads"),
        pytest.param({"d_model": 0}, "d_model|embed_dim", id="no features"),
        pytest.param({"activation": "tanh"}, "activation.*tanh", id="an unknown activation"),
        pytest.param({"dropout": 1.5}, "1.5", id="a dropout above 1"),
    ],
)
def test_encoder_rejects_arguments(TransformerEncoderLayer: Layer, arguments: dict[str, Any], naming: str) -> None:
    with rejects(naming, *arguments), asserting():
        TransformerEncoderLayer(**{"d_model": 4, "nhead": 2, "dim_feedforward": 8} | arguments)


@clause("12.encoder.rejects")
def test_the_encoder_of_the_reference_rejects_an_activation_that_cannot_be_called() -> None:
    with rejects("activation must be a name or a function, got 3"):
        reference.TransformerEncoderLayer(4, 2, 8, activation=3)  # pyright: ignore[reportArgumentType]


@clause("12.encoder.rejects")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"src": torch.ones(5, 2, 3)}, "embed|src|d_model", id="other features"),
        pytest.param({"src": torch.ones(4)}, "1-D|src", id="one dimension"),
        pytest.param({"src": torch.ones(5, 2, 4).double()}, "double|float64", id="another type"),
        pytest.param({"src_mask": torch.ones(5, 6) > 0}, "mask.*5, 6", id="a mask of another length"),
        pytest.param({"src_mask": torch.ones(5, 5).long()}, "src_mask", id="a mask of whole numbers"),
        pytest.param({"src_key_padding_mask": torch.ones(2, 6) > 0}, "key_padd.*6", id="padding of another length"),
        pytest.param({"is_causal": True}, "mask.*is_causal|is_causal.*mask", id="causal without the mask"),
    ],
)
def test_encoder_rejects_source(TransformerEncoderLayer: Layer, change: dict[str, Any], naming: str) -> None:
    with rejects(naming, *change), asserting():
        TransformerEncoderLayer(4, 2, 8)(**{"src": torch.ones(5, 2, 4)} | change)
