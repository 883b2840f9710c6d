"""Chapter 12, other layers: networks that read a sequence step by step, `RNN`, `LSTM` and `GRU`."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import reference
from spec.support.assertions import Tolerance, assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds, whole

Layer = Callable[..., Any]

# PyTorch warns that it uses a slower kernel for projections; the numbers are the same.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

# The definitions, in float64


@dataclass(frozen=True)
class Rough:
    """Numbers, and the allowed error of an implementation: its errors so far, propagated, in units of its eps.

    Every operation propagates the errors of its operands and rounds once, by half a unit of its result; the other half
    covers products of errors.
    """

    value: Tensor
    error: Tensor

    def __add__(self, other: "Rough") -> "Rough":
        total = self.value + other.value
        return Rough(total, self.error + other.error + total.abs())

    def __mul__(self, other: "Rough") -> "Rough":
        product = self.value * other.value
        carried = self.error * other.value.abs() + other.error * self.value.abs()
        return Rough(product, carried + product.abs())

    def weighted(self, weight: Tensor, bias: Tensor | None) -> "Rough":
        """self · weightᵀ + bias: one rounding per term, each of at most the sum of the absolute values."""
        offset = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
        terms = weight.shape[1] + 1
        error = (self.error + terms * self.value.abs()) @ weight.abs().T + terms * offset.abs()
        return Rough(self.value @ weight.T + offset, error)

    def chunk(self, parts: int) -> list["Rough"]:
        """Equal parts of the last dimension."""
        return [Rough(*part) for part in zip(self.value.chunk(parts, -1), self.error.chunk(parts, -1), strict=True)]


def tanh(x: Rough) -> Rough:
    """Slope at most 1; four roundings, of an exponential, a sum, a quotient and a difference of at most 1."""
    return Rough(1 - 2 / (1 + (2 * x.value).exp()), x.error + 4)


def sigmoid(x: Rough) -> Rough:
    """Slope at most 1/4; three roundings, of the exponential, the sum and the quotient."""
    value = 1 / (1 + (-x.value).exp())
    return Rough(value, x.error / 4 + 3 * value)


def relu(x: Rough) -> Rough:
    return Rough(x.value * (x.value > 0), x.error)


State = list[Rough]
Weights = dict[str, Tensor]
Step = Callable[[Rough, State, Weights], State]


def from_input(x: Rough, weights: Weights) -> Rough:
    return x.weighted(weights["weight_ih"], weights.get("bias_ih"))


def from_state(state: State, weights: Weights) -> Rough:
    return state[0].weighted(weights["weight_hh"], weights.get("bias_hh"))


def tanh_step(x: Rough, state: State, weights: Weights) -> State:
    """Elman's network."""
    return [tanh(from_input(x, weights) + from_state(state, weights))]


def relu_step(x: Rough, state: State, weights: Weights) -> State:
    """The same with another nonlinearity."""
    return [relu(from_input(x, weights) + from_state(state, weights))]


def lstm_step(x: Rough, state: State, weights: Weights) -> State:
    """The LSTM of Hochreiter and Schmidhuber with a forget gate; the output may be projected."""
    i, f, g, o = (from_input(x, weights) + from_state(state, weights)).chunk(4)
    memory = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    hidden = sigmoid(o) * tanh(memory)
    return [hidden.weighted(weights["weight_hr"], None) if "weight_hr" in weights else hidden, memory]


def gru_step(x: Rough, state: State, weights: Weights) -> State:
    """The GRU of Cho, but the reset gate is applied after the matrix product."""
    input_r, input_z, input_n = from_input(x, weights).chunk(3)
    state_r, state_z, state_n = from_state(state, weights).chunk(3)
    r, z = sigmoid(input_r + state_r), sigmoid(input_z + state_z)
    n = tanh(input_n + r * state_n)
    kept = Rough(1 - z.value, z.error + 1 - z.value)
    return [kept * n + z * state[0]]


@dataclass(frozen=True)
class Kind:
    """One of the three layers: its construction, the number of row blocks of its weights, its step, its states."""

    name: str
    make: Layer
    gates: int
    states: int = 1

    def step(self, case: "Case") -> Step:
        """One time step."""
        if self.name == "RNN":
            return relu_step if case.relu else tanh_step
        return lstm_step if self.name == "LSTM" else gru_step

    def layer(self, case: "Case", **options: Any) -> nn.Module:
        """A new layer for the case."""
        if self.name == "RNN" and case.relu:
            options["nonlinearity"] = "relu"
        if self.name == "LSTM" and case.projected:
            options["proj_size"] = case.projected
        layer = self.make(case.input_size, case.hidden_size, **case.options | options)
        state = layer.state_dict()
        layer.load_state_dict(
            {name: normal(*state[name].shape, seed=case.seed + i) / 2 for i, name in enumerate(state)}
        )
        return layer

    def initial(self, case: "Case", dtype: torch.dtype) -> list[Tensor]:
        """Random initial states, `[stack, batch, features]`, in [-1, 1] like all later states."""
        widths = [self.features(case), case.hidden_size][: self.states]
        return [
            normal(case.stack, case.batch, w, seed=case.seed + i, dtype=dtype).clamp(-1, 1)
            for i, w in enumerate(widths)
        ]

    def features(self, case: "Case") -> int:
        """The size of h."""
        return case.projected or case.hidden_size if self.name == "LSTM" else case.hidden_size

    def given(self, states: Sequence[Tensor]) -> Any:
        """The states in the layout of the layer."""
        return tuple(states) if self.states == 2 else states[0]

    def as_list(self, states: Any) -> list[Tensor]:
        """The inverse of this conversion."""
        return list(states) if self.states == 2 else [states]


@dataclass(frozen=True)
class Case:
    """A recurrent network, the sizes of its input, and a seed for the numbers."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    time: int
    batch: int
    relu: bool
    projected: int
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        return {
            "num_layers": self.num_layers, "bias": self.bias, "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
        }  # fmt: skip

    @property
    def suffixes(self) -> list[str]:
        """The parameter suffixes for each layer and direction, in the order of the states."""
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    @property
    def stack(self) -> int:
        """The number of layers times directions."""
        return len(self.suffixes)

    def sequence(self, dtype: torch.dtype) -> Tensor:
        """Random input, `[time, batch, features]`."""
        return normal(self.time, self.batch, self.input_size, seed=self.seed + 2, dtype=dtype)


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    size, flag = st.integers(1, 3), st.booleans()
    hidden_size = draw(size)
    drawn = {
        "input_size": draw(size), "hidden_size": hidden_size, "num_layers": draw(st.integers(1, 2)),
        "bias": draw(flag), "batch_first": draw(flag), "bidirectional": draw(flag), "time": draw(st.integers(1, 2)),
        "batch": draw(st.integers(1, 2)), "relu": draw(flag), "projected": draw(st.integers(0, hidden_size - 1)),
        "seed": draw(seeds),
    }  # fmt: skip
    return Case(**drawn | fixed)


# Two runs of the layers below may differ in the order of their sums. Five steps of two layers make fewer than 200
# roundings in a row; the weights are below 1/√4 and rows have at most 8, so that none of the 7 steps and layers that an
# error passes makes more than 16 times as much of it.
TWO_RUNS = rounding(torch.float64, 200, 16.0**7)


def exact(x: Tensor) -> Rough:
    return Rough(x.double(), torch.zeros_like(x, dtype=torch.float64))


def joined(parts: Sequence[Rough], how: Callable[..., Tensor], dim: int) -> Rough:
    return Rough(how([p.value for p in parts], dim), how([p.error for p in parts], dim))


def by_definition(
    kind: Kind, case: Case, layer: nn.Module, x: Tensor, initial: Sequence[Tensor]
) -> tuple[Rough, list[Rough]]:
    """Compute layer by layer, direction by direction, and step by step.

    Args:
        x: `[time, batch, features]`.
        initial: `[stack, batch, features]`.

    Returns:
        The output and the final states, laid out likewise.
    """
    weights, final = {name: value.double() for name, value in layer.state_dict().items()}, []
    sequence = [exact(step) for step in x]
    for number in range(case.num_layers):
        outputs = []
        for suffix in (s for s in case.suffixes if s.startswith(f"_l{number}")):
            own = {name.removesuffix(suffix): value for name, value in weights.items() if name.endswith(suffix)}
            state = [exact(part[len(final)]) for part in initial]
            output = []
            for step in sequence[::-1] if suffix.endswith("_reverse") else sequence:
                state = kind.step(case)(step, state, own)
                output.append(state[0])
            final.append(state)
            outputs.append(output[::-1] if suffix.endswith("_reverse") else output)
        sequence = [joined(parts, torch.cat, -1) for parts in zip(*outputs, strict=True)]
    return joined(sequence, torch.stack, 0), [joined(part, torch.stack, 0) for part in zip(*final, strict=True)]


def assert_as(actual: Tensor, expected: Rough, what: str) -> None:
    """Assert equality within the rounding errors of the definition."""
    __tracebackhide__ = True
    eps = torch.finfo(actual.dtype).eps
    error = expected.error + expected.value.abs()  # the expected number is rounded too
    largest = error.max().item() if error.numel() else 0
    because = f"the roundings of every step, carried along: up to {largest:.3g} · eps {eps:.3g}"
    assert_close(actual.double(), expected.value, Tolerance(error * eps, because), what)


class Recurrent:
    """The tests that the three layers have in common."""

    # The properties

    @staticmethod
    @clause("12.recurrent.definition", "12.recurrent.states", "12.recurrent.directions", "12.recurrent.layouts")
    @given(case=cases(), dtype=dtypes(), states=st.booleans(), layout=st.tuples(layouts, layouts))
    def test_outputs_equal_the_recurrence_of_the_definition(
        kind: Kind, case: Case, dtype: torch.dtype, states: bool, layout: tuple[int, int]
    ) -> None:
        layer, x, initial = kind.layer(case, dtype=dtype), case.sequence(dtype), kind.initial(case, dtype)
        if not states:
            initial = [torch.zeros_like(state) for state in initial]
        given_x = laid_out(x.transpose(0, 1) if case.batch_first else x, layout[0])
        given_states = [laid_out(state, layout[1]) for state in initial]
        output, final = layer(given_x, kind.given(given_states) if states else None)

        expected, expected_final = by_definition(kind, case, layer, x, initial)
        assert output.dtype == dtype
        assert_as(output.transpose(0, 1) if case.batch_first else output, expected, "the output")
        for name, state, wanted in zip(("h_n", "c_n"), kind.as_list(final), expected_final, strict=False):
            assert_as(state, wanted, name)
        assert_equal(given_x.transpose(0, 1) if case.batch_first else given_x, x, "the input afterwards")
        for state, before in zip(given_states, initial, strict=True):
            assert_equal(state, before, "the first state afterwards")

    @staticmethod
    @clause("12.recurrent.packed")
    @given(case=cases(batch_first=False), lengths=st.tuples(st.integers(1, 2), st.integers(1, 2)))
    def test_packed_sequence_equals_separate_sequences(kind: Kind, case: Case, lengths: tuple[int, int]) -> None:
        case = replace(case, batch=len(lengths), time=max(lengths))
        layer, x = kind.layer(case, dtype=torch.float64), case.sequence(torch.float64)
        initial = kind.initial(case, torch.float64)
        packed = pack_sequence([x[:length, i] for i, length in enumerate(lengths)], enforce_sorted=False)
        output, final = layer(packed, kind.given(initial))
        assert isinstance(output, PackedSequence)
        assert_equal(output.batch_sizes, packed.batch_sizes, "batch_sizes")
        outputs, _ = pad_packed_sequence(output)
        for i, length in enumerate(lengths):
            alone = [state[:, i : i + 1] for state in initial]
            expected, expected_final = layer(x[:length, i : i + 1], kind.given(alone))
            assert_close(outputs[:length, i : i + 1], expected.detach(), TWO_RUNS, f"the output of sequence {i}")
            for state, wanted in zip(kind.as_list(final), kind.as_list(expected_final), strict=True):
                assert_close(state[:, i : i + 1], wanted.detach(), TWO_RUNS, f"the last state of sequence {i}")

    @staticmethod
    @clause("12.recurrent.nonfinite")
    @given(case=cases(bidirectional=False, batch_first=False), data=st.data())
    def test_nan_reaches_later_steps_of_the_same_sequence_only(kind: Kind, case: Case, data: st.DataObject) -> None:
        layer, x = kind.layer(case, dtype=torch.float64), case.sequence(torch.float64)
        step, sequence = data.draw(st.integers(0, case.time - 1)), data.draw(st.integers(0, case.batch - 1))
        x[step, sequence, 0] = torch.nan
        output, final = layer(x)
        expected = torch.zeros_like(output, dtype=torch.bool)
        expected[step:, sequence] = True
        assert_equal(output.isnan(), expected, "whether the output is NaN")
        assert_equal(kind.as_list(final)[0].isnan()[-1], expected[-1], "whether h_n is NaN")

    # The layers

    @staticmethod
    @clause("12.recurrent.directions")
    def test_bidirectional_second_half_equals_a_pass_over_the_reversed_sequence(kind: Kind) -> None:
        options: dict[str, Any] = {"dtype": torch.float64}
        both, back = kind.make(3, 4, bidirectional=True, **options), kind.make(3, 4, **options)
        reverse = {name: value for name, value in both.state_dict().items() if name.endswith("_reverse")}
        back.load_state_dict({name.removesuffix("_reverse"): value for name, value in reverse.items()})
        x, states = normal(5, 2, 3, seed=0), [normal(2, 2, 4, seed=i) for i in range(kind.states)]
        output, final = both(x, kind.given(states))
        alone, alone_final = back(x.flip(0), kind.given([state[1:] for state in states]))
        assert_close(output[..., 4:].flip(0), alone, TWO_RUNS, "the second half, read backwards")
        for state, wanted in zip(kind.as_list(final), kind.as_list(alone_final), strict=True):
            assert_close(state[1:], wanted, TWO_RUNS, "its final state")

    @staticmethod
    @clause("12.recurrent.states")
    def test_final_state_continues_a_split_sequence(kind: Kind) -> None:
        layer, x = kind.make(3, 4, num_layers=2, dtype=torch.float64), normal(5, 2, 3, seed=0)
        output, final = layer(x)
        first, state = layer(x[:2])
        second, last = layer(x[2:], state)
        assert_close(torch.cat([first, second]), output, TWO_RUNS)
        for state, wanted in zip(kind.as_list(last), kind.as_list(final), strict=True):
            assert_close(state, wanted, TWO_RUNS, "the final state")

    @staticmethod
    @clause("12.recurrent.unbatched")
    @pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
    def test_unbatched_sequence_equals_a_batch_of_one(kind: Kind, batch_first: bool) -> None:
        options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
        layer, batch = kind.make(3, 4, **options), 0 if batch_first else 1
        x, states = normal(5, 3, seed=0), [normal(4, 4, seed=i) for i in range(kind.states)]
        output, final = layer(x, kind.given(states))
        wanted, wanted_final = layer(x.unsqueeze(batch), kind.given([state.unsqueeze(1) for state in states]))
        assert output.shape == (5, 8)
        assert_close(output, wanted.squeeze(batch), TWO_RUNS)
        for state, one in zip(kind.as_list(final), kind.as_list(wanted_final), strict=True):
            assert_close(state, one.squeeze(1), TWO_RUNS, "the final state")

    @staticmethod
    @clause("12.recurrent.states")
    def test_batch_first_does_not_change_the_layout_of_states(kind: Kind) -> None:
        layer = kind.make(3, 4, num_layers=2, batch_first=True)
        output, final = layer(torch.ones(5, 6, 3), kind.given([torch.zeros(2, 5, 4) for _ in range(kind.states)]))
        assert output.shape == (5, 6, 4)
        for state in kind.as_list(final):
            assert state.shape == (2, 5, 4)

    @staticmethod
    @clause("12.recurrent.empty")
    def test_empty_batch_gives_empty_outputs(kind: Kind) -> None:
        output, final = kind.make(3, 4, bidirectional=True)(torch.ones(5, 0, 3))
        assert output.shape == (5, 0, 8)
        for state in kind.as_list(final):
            assert state.shape == (2, 0, 4)

    @staticmethod
    @clause("12.recurrent.parameters")
    def test_parameters_are_named_by_layer_and_direction(kind: Kind) -> None:
        rows = kind.gates * 4
        layer = kind.make(3, 4, num_layers=2, bidirectional=True)
        own = {"weight_ih": (rows, 3), "weight_hh": (rows, 4), "bias_ih": (rows,), "bias_hh": (rows,)}
        second = own | {"weight_ih": (rows, 8)}  # it reads both directions of the first
        expected = {
            f"{name}_l{number}{direction}": shape
            for number, shapes in enumerate((own, second))
            for direction in ("", "_reverse")
            for name, shape in shapes.items()
        }
        assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected
        assert list(layer.state_dict()) == list(expected)
        assert list(kind.make(3, 4, bias=False).state_dict()) == ["weight_ih_l0", "weight_hh_l0"]

    @staticmethod
    @clause("12.recurrent.parameters")
    @pytest.mark.parametrize(
        "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}], ids=str
    )
    def test_state_dict_loads_to_and_from_pytorch(kind: Kind, options: dict[str, Any]) -> None:
        options = options | {"dtype": torch.float64}
        ours, theirs = kind.make(3, 4, **options), getattr(nn, kind.name)(3, 4, **options)
        x = normal(2, 5, 3, seed=0)
        theirs.load_state_dict(ours.state_dict())
        assert_close(theirs(x)[0], ours(x)[0], TWO_RUNS, "the output of PyTorch's layer with these parameters")
        theirs.reset_parameters()
        ours.load_state_dict(theirs.state_dict())
        assert_close(ours(x)[0], theirs(x)[0], TWO_RUNS, "the output with the parameters of PyTorch's layer")

    @staticmethod
    @clause("12.recurrent.initialization")
    def test_initialization_with_a_seed_equals_pytorchs(kind: Kind) -> None:
        options = {"num_layers": 2, "bidirectional": True}
        torch.manual_seed(5)
        theirs = getattr(nn, kind.name)(3, 4, **options).state_dict()
        torch.manual_seed(5)
        for name, value in kind.make(3, 4, **options).state_dict().items():
            assert_equal(value, theirs[name], name)

    @staticmethod
    @clause("12.recurrent.initialization")
    def test_parameters_start_uniform_within_1_over_sqrt_hidden_size(kind: Kind) -> None:
        bound = 1 / math.sqrt(50)
        for name, value in kind.make(100, 50).state_dict().items():
            assert value.abs().max() <= bound, f"{name} beyond 1/√hidden_size"
            # the largest of 50 numbers or more is below 0.8 of the bound with a chance of 0.8⁵⁰, about 1e-5
            assert value.abs().max() > 0.8 * bound, f"{name} is not spread up to 1/√hidden_size"
            # the mean of n such numbers has the standard deviation bound / √(3n); six of them
            assert value.mean().abs() < 6 * bound / math.sqrt(3 * value.numel()), f"{name} is not centred at 0"

    @staticmethod
    @clause("12.recurrent.repr")
    @pytest.mark.parametrize(
        ("options", "printed"),
        [
            ({}, "(3, 4)"),
            ({"num_layers": 2}, "(3, 4, num_layers=2)"),
            ({"bias": False, "batch_first": True}, "(3, 4, bias=False, batch_first=True)"),
            (
                {"num_layers": 3, "dropout": 0.5, "bidirectional": True},
                "(3, 4, num_layers=3, dropout=0.5, bidirectional=True)",
            ),
        ],
        ids=["defaults", "two layers", "without bias", "all the rest"],
    )
    def test_repr_shows_sizes_and_non_default_arguments(kind: Kind, options: dict[str, Any], printed: str) -> None:
        assert repr(kind.make(3, 4, **options)) == f"{kind.name}{printed}"

    @staticmethod
    @clause("12.recurrent.dropout")
    def test_dropout_1_zeroes_the_input_of_the_second_layer(kind: Kind) -> None:
        layer = kind.make(3, 4, num_layers=2, dropout=1, dtype=torch.float64)
        second = kind.make(4, 4, dtype=torch.float64)
        own = {name.replace("_l1", "_l0"): p for name, p in layer.state_dict().items() if "_l1" in name}
        second.load_state_dict(own)
        output, final = layer(normal(5, 2, 3, seed=0))
        silent, _ = second(torch.zeros(5, 2, 4, dtype=torch.float64))
        assert_close(output, silent, TWO_RUNS, "the output")
        assert kind.as_list(final)[0][0].ne(0).all(), "h_n of the first layer must not be dropped"

    @staticmethod
    @clause("12.recurrent.dropout")
    def test_dropout_applies_in_training_only(kind: Kind) -> None:
        layer, x = kind.make(3, 4, num_layers=2, dropout=0.5), torch.randn(5, 2, 3)
        plain = kind.make(3, 4, num_layers=2)
        plain.load_state_dict(layer.state_dict())
        assert layer(x)[0].ne(plain(x)[0]).any(), "dropout must change what a layer in training gives"
        assert_equal(layer.eval()(x)[0], plain(x)[0], "the output in evaluation")

    @staticmethod
    @clause("12.recurrent.dropout")
    def test_dropout_with_one_layer_has_no_effect_and_warns(kind: Kind) -> None:
        with pytest.warns(UserWarning, match=r"dropout.*num_layers"):
            layer = kind.make(3, 4, dropout=0.5)
        plain, x = kind.make(3, 4), torch.randn(5, 2, 3)
        plain.load_state_dict(layer.state_dict())
        assert_equal(layer(x)[0], plain(x)[0])

    # The gradients

    @staticmethod
    @clause("12.recurrent.gradients")
    @pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "bias": False}], ids=str)
    def test_outputs_are_differentiable_twice_in_the_inputs(kind: Kind, options: dict[str, Any]) -> None:
        layer = kind.make(2, 2, dtype=torch.float64, **options)
        stack = 2 if options else 1

        def run(x: Tensor, *states: Tensor) -> Tensor:
            output, final = layer(x, kind.given(states))
            return torch.cat([output.flatten(), *(state.flatten() for state in kind.as_list(final))])

        states = [normal(stack, 1, 2, seed=i) for i in range(kind.states)]
        assert_differentiable(run, *(t.requires_grad_() for t in (normal(2, 1, 2, seed=3), *states)))

    @staticmethod
    @clause("12.recurrent.gradients")
    def test_outputs_are_differentiable_twice_in_the_parameters(kind: Kind) -> None:
        layer, x = kind.make(1, 1, dtype=torch.float64), normal(2, 1, 1, seed=0)
        names, values = zip(*layer.named_parameters(), strict=True)

        def run(*parameters: Tensor) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)[0]

        assert_differentiable(run, *(value.detach().clone().requires_grad_() for value in values))

    @staticmethod
    @clause("12.recurrent.gradients")
    def test_gradients_flow_through_time_to_every_parameter(kind: Kind) -> None:
        layer, x = kind.make(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3).requires_grad_()
        layer(x)[0][2, 0].sum().backward()
        assert x.grad is not None
        assert x.grad[:, 0].ne(0).any(-1).all(), "each step of the sequence must have a gradient"
        assert_equal(x.grad[:, 1], torch.zeros(5, 3), "the gradient of the other sequence")
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"

    # Rejected arguments

    @staticmethod
    @clause("12.recurrent.rejects")
    @pytest.mark.parametrize(
        ("arguments", "naming"),
        [
            pytest.param({"input_size": 0}, "input_size", id="no input features"),
            pytest.param({"hidden_size": 0}, "hidden_size", id="no hidden features"),
            pytest.param({"hidden_size": 4.0}, "hidden_size", id="a size that is not whole"),
            pytest.param({"num_layers": 0}, "num_layers", id="no layers"),
            pytest.param({"bias": 1}, "bias", id="a number for bias"),
            pytest.param({"batch_first": 1}, "batch_first", id="a number for batch_first"),
            pytest.param({"num_layers": 2, "dropout": -0.1}, "dropout", id="a negative dropout"),
            pytest.param({"num_layers": 2, "dropout": 1.5}, "dropout", id="a dropout above 1"),
            pytest.param({"num_layers": 2, "dropout": True}, "dropout", id="a flag for dropout"),
        ],
    )
    def test_an_impossible_layer_is_rejected(kind: Kind, arguments: dict[str, Any], naming: str) -> None:
        with rejects(naming=naming):
            kind.make(**{"input_size": 3, "hidden_size": 4} | arguments)

    @staticmethod
    @clause("12.recurrent.rejects")
    @pytest.mark.parametrize(
        ("shape", "dtype", "naming"),
        [
            pytest.param((5, 2, 4), torch.float32, r"input.*\b4", id="other features"),
            pytest.param((3,), torch.float32, "input.*(1D|shape)", id="one dimension"),
            pytest.param((1, 5, 2, 3), torch.float32, "input.*(4D|shape)", id="four dimensions"),
            pytest.param((0, 2, 3), torch.float32, "sequence length|time step|input", id="no steps"),
            pytest.param((5, 2, 3), torch.float64, "input.*float64", id="another type"),
            pytest.param((5, 2, 3), torch.int64, "input.*int64", id="whole numbers"),
        ],
    )
    def test_invalid_input_is_rejected(kind: Kind, shape: tuple[int, ...], dtype: torch.dtype, naming: str) -> None:
        with rejects(naming, "input"):
            kind.make(3, 4)(torch.ones(shape, dtype=dtype))

    @staticmethod
    @clause("12.recurrent.rejects")
    @pytest.mark.parametrize(
        ("shape", "unbatched"),
        [((2, 2, 4), False), ((1, 3, 4), False), ((1, 2, 3), False), ((1, 4), False), ((1, 1, 4), True)],
        ids=["of two layers", "of another batch", "of other features", "without a batch", "with a batch that x lacks"],
    )
    def test_invalid_h_0_is_rejected(kind: Kind, shape: tuple[int, ...], unbatched: bool) -> None:
        x = torch.ones(5, 3) if unbatched else torch.ones(5, 2, 3)
        with rejects(naming="hidden|hx"):
            kind.make(3, 4)(x, kind.given([torch.zeros(shape) for _ in range(kind.states)]))


@clause("12.recurrent.rejects")
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((5, 2, 3), "[num_layers · directions, batch, features]"), ((5, 3), "[num_layers · directions, features]")],
    ids=["with a batch", "without a batch"],
)
def test_the_reference_names_the_layout_of_h_0(shape: tuple[int, ...], layout: str) -> None:
    with rejects(f"this input needs .*, {re.escape(layout)}"):
        reference.RNN(3, 4)(torch.ones(shape), torch.zeros(1))


class TestRNN(Recurrent):
    """Elman's network."""

    @pytest.fixture(scope="class")
    @classmethod
    def kind(cls, RNN: Layer) -> Kind:
        return Kind("RNN", RNN, gates=1)

    @staticmethod
    @clause("12.rnn.nonlinearity")
    @given(case=cases(relu=True), dtype=dtypes())
    def test_relu_recurrence_of_integers_is_exact(kind: Kind, case: Case, dtype: torch.dtype) -> None:
        # two steps at most of two layers of at most 2 · 2 features: at most 122, which even bfloat16 holds
        case = replace(case, hidden_size=2, input_size=2, batch_first=False)
        layer = kind.layer(case, dtype=dtype)
        layer.load_state_dict(
            {
                name: whole(*value.shape, seed=case.seed + i, dtype=dtype, largest=1)
                for i, (name, value) in enumerate(layer.state_dict().items())
            }
        )
        x = whole(case.time, case.batch, 2, seed=case.seed, dtype=dtype, largest=1)
        initial = whole(case.stack, case.batch, 2, seed=case.seed + 1, dtype=dtype, largest=1)
        output, final = layer(x, initial)
        expected, (expected_final,) = by_definition(kind, case, layer, x, [initial])
        assert_equal(output, expected.value.to(dtype))
        assert_equal(final, expected_final.value.to(dtype), "h_n")

    @staticmethod
    @clause("12.rnn.nonlinearity")
    def test_the_nonlinearity_is_tanh_by_default(RNN: Layer) -> None:
        layer = RNN(1, 1, bias=False, dtype=torch.float64)
        layer.load_state_dict({"weight_ih_l0": torch.ones(1, 1), "weight_hh_l0": torch.ones(1, 1)})
        output, _ = layer(torch.tensor([[0.5], [-2.0]], dtype=torch.float64))
        first = math.tanh(0.5)
        assert_close(output, [[first], [math.tanh(first - 2)]], rounding(torch.float64, 10))

    @staticmethod
    @clause("12.rnn.nonlinearity")
    def test_another_nonlinearity_is_rejected(RNN: Layer) -> None:
        with rejects("nonlinearity"):
            RNN(3, 4, nonlinearity="sigmoid")

    @staticmethod
    @clause("12.rnn.nonlinearity")
    @pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
    def test_gradient_equals_the_derivative_of_the_nonlinearity(RNN: Layer, nonlinearity: str) -> None:
        layer = RNN(1, 1, nonlinearity=nonlinearity, bias=False, dtype=torch.float64)
        layer.load_state_dict({"weight_ih_l0": torch.ones(1, 1), "weight_hh_l0": torch.zeros(1, 1)})
        x = torch.tensor([[0.0], [0.5], [-0.5]], dtype=torch.float64).requires_grad_()
        layer(x)[0].sum().backward()
        slope = 1 - math.tanh(0.5) ** 2
        assert x.grad is not None
        expected = [[1], [slope], [slope]] if nonlinearity == "tanh" else [[0], [1], [0]]
        assert_close(x.grad, expected, rounding(torch.float64, 10))

    @staticmethod
    @clause("12.recurrent.stability")
    @pytest.mark.parametrize("value", [1e4, torch.inf])
    def test_large_inputs_saturate_to_one(RNN: Layer, value: float) -> None:
        layer = RNN(1, 1)
        layer.load_state_dict({name: torch.ones_like(p) for name, p in layer.state_dict().items()})
        output, _ = layer(torch.tensor([[value], [-value], [value]]))
        assert_equal(output, [[1], [-1], [1]])

    @staticmethod
    @clause("12.recurrent.dropout")
    def test_dropout_draws_anew_at_every_step_and_scales_the_others(RNN: Layer) -> None:
        layer = RNN(1, 100, num_layers=2, dropout=0.25, bias=False, nonlinearity="relu")
        silent, identity = torch.zeros(100, 100), torch.eye(100)
        own = {"weight_ih_l0": torch.ones(100, 1), "weight_hh_l0": silent}
        layer.load_state_dict(own | {"weight_ih_l1": identity, "weight_hh_l1": silent})
        output = layer(torch.full((20, 5, 1), 3.0))[0]  # the output of the first layer, after dropout
        assert_equal(output.unique(), torch.tensor([0.0, 4.0]))
        # the number of zeros has the standard deviation √(n p (1 - p)); six of them
        for what, part in (("in all", output), ("in one step", output[7]), ("of one unit", output[:, :, 7])):
            zeros, n = int((part == 0).sum()), part.numel()
            assert abs(zeros - 0.25 * n) <= 6 * math.sqrt(n * 0.25 * 0.75), f"{zeros} of {n} were dropped {what}"
        assert output[0].ne(output[1]).any(), "each step needs its own dropout"

    @staticmethod
    @clause("12.recurrent.repr")
    def test_the_nonlinearity_is_not_printed(RNN: Layer) -> None:
        assert repr(RNN(3, 4, nonlinearity="relu")) == "RNN(3, 4)"
        assert RNN(3, 4).nonlinearity == "tanh"


class TestLSTM(Recurrent):
    """Long short-term memory."""

    @pytest.fixture(scope="class")
    @classmethod
    def kind(cls, LSTM: Layer) -> Kind:
        return Kind("LSTM", LSTM, gates=4, states=2)

    @staticmethod
    @clause("12.lstm.gates")
    @pytest.mark.parametrize(
        ("open_gates", "hidden", "memory"),
        [
            pytest.param("f", 0.0, 0.5, id="forget open: the memory is kept, and not shown"),
            pytest.param("fo", math.tanh(0.5), 0.5, id="output open: the memory is shown"),
            pytest.param("io", math.tanh(1.0), 1.0, id="input open: the memory is new"),
            pytest.param("ifo", math.tanh(1.5), 1.5, id="all open: old and new are added"),
            pytest.param("", 0.0, 0.0, id="all closed: nothing is left"),
        ],
    )
    def test_lstm_gates_input_forget_and_output(LSTM: Layer, open_gates: str, hidden: float, memory: float) -> None:
        layer = LSTM(1, 1, dtype=torch.float64)
        state = {name: torch.zeros_like(p) for name, p in layer.state_dict().items()}
        # a gate at ±1000 is open or closed; the candidate is tanh(1000) = 1
        state["bias_ih_l0"] = torch.tensor([1000.0 if gate in f"g{open_gates}" else -1000.0 for gate in "ifgo"])
        layer.load_state_dict(state)
        start = torch.zeros(1, 1, dtype=torch.float64)
        output, (h, c) = layer(start, (start, start + 0.5))
        tolerance = rounding(torch.float64, 10)
        assert_close(output, [[hidden]], tolerance)
        assert_close(h, [[hidden]], tolerance, "h_n")
        assert_close(c, [[memory]], tolerance, "c_n")

    @staticmethod
    @clause("12.lstm.projection")
    def test_proj_size_is_the_size_of_h_and_of_the_weights_that_read_it(LSTM: Layer) -> None:
        layer = LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
        shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
        assert shapes["weight_hh_l0"] == (20, 2)
        assert shapes["weight_hr_l0"] == shapes["weight_hr_l1_reverse"] == (2, 5)
        assert shapes["weight_ih_l1"] == (20, 4)
        assert list(shapes)[:5] == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0"]
        output, (h, c) = layer(torch.ones(6, 7, 3))
        assert output.shape == (6, 7, 4)
        assert h.shape == (4, 7, 2)
        assert c.shape == (4, 7, 5)
        assert repr(layer) == "LSTM(3, 5, proj_size=2, num_layers=2, bidirectional=True)"

    @staticmethod
    @clause("12.lstm.projection")
    @pytest.mark.parametrize("size", [-1, 4, 5], ids=["negative", "as large as h", "larger than h"])
    def test_invalid_proj_size_is_rejected(LSTM: Layer, size: int) -> None:
        with rejects(naming="proj_size"):
            LSTM(3, 4, proj_size=size)

    @staticmethod
    @clause("12.lstm.projection", "12.recurrent.gradients")
    def test_outputs_are_differentiable_twice_with_a_projection(LSTM: Layer) -> None:
        layer = LSTM(2, 2, proj_size=1, dtype=torch.float64)
        assert_differentiable(
            lambda x, h, c: layer(x, (h, c))[0],
            *(normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(2, 1, 2), (1, 1, 1), (1, 1, 2)])),
        )

    @staticmethod
    @clause("12.recurrent.stability")
    def test_large_inputs_open_and_close_the_gates_of_the_lstm(LSTM: Layer) -> None:
        layer = LSTM(1, 1)
        layer.load_state_dict({name: torch.ones_like(p) for name, p in layer.state_dict().items()})
        # all gates open and g = 1, then all closed, then open again
        output, (_, c) = layer(torch.tensor([[1e4], [-1e4], [1e4]]))
        tolerance = rounding(torch.float32, 10)
        assert_close(output, [[math.tanh(1)], [0], [math.tanh(1)]], tolerance)
        assert_close(c, [[1]], tolerance)

    @staticmethod
    @clause("12.recurrent.rejects")
    @pytest.mark.parametrize("shape", [(2, 2, 4), (1, 3, 4), (1, 2, 3)], ids=["layers", "batch", "features"])
    def test_invalid_c_0_is_rejected(LSTM: Layer, shape: tuple[int, ...]) -> None:
        with rejects(r"hidden\[1\]|hx\[1\]", "hx", "hidden", "cx", "c_0"):
            LSTM(3, 4)(torch.ones(5, 2, 3), (torch.zeros(1, 2, 4), torch.zeros(shape)))


class TestGRU(Recurrent):
    """Gated recurrent unit."""

    @pytest.fixture(scope="class")
    @classmethod
    def kind(cls, GRU: Layer) -> Kind:
        return Kind("GRU", GRU, gates=3)

    @staticmethod
    @clause("12.gru.gates")
    @pytest.mark.parametrize(
        ("r", "z", "expected"),
        [
            pytest.param(1000.0, 1000.0, 0.5, id="update open: the state is kept"),
            pytest.param(1000.0, -1000.0, math.tanh(1.5), id="update closed: the state is new"),
            pytest.param(-1000.0, -1000.0, 0.0, id="reset closed: the new state sees neither the old one nor its bias"),
            pytest.param(0.0, -1000.0, math.tanh(0.75), id="reset half open: half of the product and of its bias"),
            pytest.param(1000.0, 0.0, (0.5 + math.tanh(1.5)) / 2, id="update half open: the mean of old and new"),
        ],
    )
    def test_gru_gates_reset_and_update(GRU: Layer, r: float, z: float, expected: float) -> None:
        layer = GRU(1, 1, dtype=torch.float64)
        state = {name: torch.zeros_like(p) for name, p in layer.state_dict().items()}
        # a gate at ±1000 is open or closed for any input; n is tanh(r · (h + 1))
        state["weight_hh_l0"] = torch.tensor([[0.0], [0.0], [1.0]])
        state["bias_ih_l0"] = torch.tensor([r, z, 0.0])
        state["bias_hh_l0"] = torch.tensor([0.0, 0.0, 1.0])
        layer.load_state_dict(state)
        start = torch.full((1, 1), 0.5, dtype=torch.float64)
        output, _ = layer(torch.zeros_like(start), start)
        assert_close(output, [[expected]], rounding(torch.float64, 10))

    @staticmethod
    @clause("12.recurrent.stability")
    def test_large_inputs_open_and_close_the_gates_of_the_gru(GRU: Layer) -> None:
        layer = GRU(1, 1)
        state = {name: torch.ones_like(p) for name, p in layer.state_dict().items()}
        layer.load_state_dict(state | {"weight_ih_l0": torch.tensor([[1.0], [-1.0], [1.0]])})
        # the update gate is closed and n = 1, then it is open, then closed again
        output, _ = layer(torch.tensor([[1e4], [-1e4], [1e4]]))
        assert_close(output, [[1], [1], [1]], rounding(torch.float32, 10))
