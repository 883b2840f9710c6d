"""Chapter 12, "other layers": recurrent networks, which read a sequence one time step after the other.

A recurrent layer carries a state from step to step. Its cell, a few lines, computes the new state from the sum of a
projection of the input, W_ih x_t + b_ih, and one of the state, W_hh h_{t-1} + b_hh. `RNN`, `LSTM` and `GRU` differ in
the cell and share the rest: stacked layers, both directions of time, batches, packed sequences.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from reference.arguments import check_dtype, check_flag, check_integer, check_tensor
from reference.nn.activation import relu, sigmoid, tanh
from reference.nn.dropout import dropout
from reference.nn.initialization import uniform_
from reference.nn.linear import linear

# Arguments are annotated without shapes, so that a wrong shape or dtype reaches the check with an error that names it.
Input = Shaped[Tensor, "..."] | PackedSequence
Output = Float[Tensor, "*sequence features"] | PackedSequence
Gates = Float[Tensor, "batch gates"]
State = tuple[Float[Tensor, "batch _"], ...]  # of one layer in one direction: (h,), for the LSTM (h, c)
States = tuple[Float[Tensor, "stack *batch _"], ...]  # of all layers and directions, in the order of their parameters


# The definitions: the next state, given W_ih x_t + b_ih, W_hh h_{t-1} + b_hh and the previous state.


def rnn_definition(
    from_input: Gates, from_state: Gates, state: State, activation: Callable[[Tensor], Tensor] = tanh
) -> State:
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu instead of tanh."""
    return (activation(from_input + from_state),)


def lstm_definition(from_input: Gates, from_state: Gates, state: State) -> State:
    """c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g) and h_t = σ(o) ⊙ tanh(c_t), where i, f, g, o are parts of the sum."""
    i, f, g, o = (from_input + from_state).chunk(4, dim=-1)
    memory = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(memory), memory


def gru_definition(from_input: Gates, from_state: Gates, state: State) -> State:
    """h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}; the reset gate r multiplies the state's contribution to the new state n."""
    input_r, input_z, input_n = from_input.chunk(3, dim=-1)
    state_r, state_z, state_n = from_state.chunk(3, dim=-1)
    r = sigmoid(input_r + state_r)
    z = sigmoid(input_z + state_z)
    n = tanh(input_n + r * state_n)
    return ((1 - z) * n + z * state[0],)


class _Recurrent(torch.nn.Module):
    """The base class of recurrent layers. A subclass defines a cell and its number of gates per hidden unit."""

    gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]] = ("hx",)

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float | int,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_integer(f"{type(self).__name__}: {name}", size, at_least=1)
        for name, flag in (("bias", bias), ("batch_first", batch_first)):
            check_flag(f"{type(self).__name__}: {name}", flag)
        probability = isinstance(dropout, float | int) and not isinstance(dropout, bool) and 0 <= dropout <= 1
        self._check(probability, f"dropout must be a number from 0 to 1, got {dropout!r}")
        self._check(0 <= proj_size < hidden_size, f"proj_size must be from 0 to {hidden_size - 1}, got {proj_size}")
        if dropout > 0 and num_layers == 1:
            text = f"dropout={dropout} acts between layers and has no effect with num_layers=1"
            warnings.warn(f"{type(self).__name__}: {text}", stacklevel=3)

        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size

        rows, features = self.gates * hidden_size, proj_size or hidden_size
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                in_features = input_size if layer == 0 else features * len(self._suffixes(layer))
                shapes = {"weight_ih": (rows, in_features), "weight_hh": (rows, features)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes |= {"weight_hr": (proj_size, hidden_size)}
                for name, shape in shapes.items():
                    values = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(name + suffix, torch.nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/√hidden_size, 1/√hidden_size)."""
        for parameter in self.parameters():
            uniform_(parameter, 1 / math.sqrt(self.hidden_size))

    def forward(
        self, input: Input, hx: Shaped[Tensor, "..."] | Sequence[Tensor] | None = None
    ) -> tuple[Output, Float[Tensor, "stack *batch hidden"] | States]:
        """The hidden state of the last layer at every step, and the state of every layer after its last step.

        Args:
            input: `[time, batch, input_size]`, with `batch_first` `[batch, time, input_size]`, without a batch
                `[time, input_size]`; or a packed sequence.
            hx: the state before the first step, h_0, for the LSTM (h_0, c_0); zeros if None. Each is
                `[num_layers · directions, batch, hidden_size]` in either layout, without a batch
                `[num_layers · directions, hidden_size]`; a projected h has `proj_size` features.

        Returns:
            output: as `input`, with the features of h, `directions` times; packed if `input` is.
            h_n, for the LSTM (h_n, c_n): the state after the last step, shaped as `hx`.

        Raises:
            TypeError: `input` or a state is not a tensor, or has another dtype than the weights.
            ValueError: `input` or a state has the wrong shape, or `input` has no time steps.
        """
        output, final = self._run(input, self._given_states(hx))
        return output, final[0] if len(self.state_names) == 1 else final

    def extra_repr(self) -> str:
        """The arguments of the layer with other values than the default."""
        shown = f"{self.input_size}, {self.hidden_size}"
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0}
        for name, default in (defaults | {"bidirectional": False}).items():
            value = getattr(self, name)
            shown += "" if value == default else f", {name}={value}"
        return shown

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction: weight_ih, weight_hh, then bias_ih, bias_hh, weight_hr if any."""
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [[weight for weight in self._weights(suffix) if weight is not None] for suffix in suffixes]

    def flatten_parameters(self) -> None:
        """Do nothing: in PyTorch's layers this gathers the weights for cuDNN, which is not used here."""

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        """The next state, given W_ih x_t + b_ih, W_hh h_{t-1} + b_hh and the previous state."""
        raise NotImplementedError

    def _run_direction(
        self,
        sequence: Float[Tensor, "time batch features"],
        state: State,
        suffix: str,
        active: Bool[Tensor, "time batch"] | None,
    ) -> tuple[Float[Tensor, "time batch out"], State]:
        """The recurrence of one layer in one direction: its hidden state at every step, its state at the end."""
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = self._weights(suffix)
        from_input = linear(sequence, weight_ih, bias_ih).unbind()  # all steps together
        steps = range(len(sequence))
        outputs = {}
        for t in reversed(steps) if suffix.endswith("_reverse") else steps:
            hidden, *rest = self._cell(from_input[t], linear(state[0], weight_hh, bias_hh), state)
            if weight_hr is not None:
                hidden = linear(hidden, weight_hr)
            after = (hidden, *rest)
            if active is not None:  # after its last time step a sequence keeps its state
                after = tuple(torch.where(active[t, :, None], new, old) for new, old in zip(after, state, strict=True))
            state = after
            outputs[t] = state[0]
        return torch.stack([outputs[t] for t in steps]), state

    def _run_layers(
        self,
        sequence: Float[Tensor, "time batch features"],
        initial: States,
        active: Bool[Tensor, "time batch"] | None = None,
    ) -> tuple[Float[Tensor, "time batch out"], States]:
        """Each layer takes the output of the layer below, after dropout; its two directions are concatenated."""
        states, final = zip(*initial, strict=True), []
        for layer in range(self.num_layers):
            if layer > 0:
                sequence = self._drop(sequence, active)
            outputs = []
            for suffix in self._suffixes(layer):
                output, state = self._run_direction(sequence, next(states), suffix, active)
                outputs.append(output)
                final.append(state)
            sequence = torch.cat(outputs, dim=-1)
        return sequence, tuple(torch.stack(parts) for parts in zip(*final, strict=True))

    def _run(self, input: Input, states: Sequence[Tensor] | None) -> tuple[Output, States]:
        """Convert `input` and `states` to the layout `[time, batch, features]`, run all layers, and convert back."""
        if isinstance(input, PackedSequence):
            return self._run_packed(input, states)
        self._check_input(input, dimensions=(2, 3))
        batched = input.ndim == 3
        swapped = batched and self.batch_first
        sequence = (input.transpose(0, 1) if swapped else input) if batched else input.unsqueeze(1)
        self._check(len(sequence) > 0, f"input has the shape {tuple(input.shape)}, but needs at least one time step")

        output, final = self._run_layers(sequence, self._initial_states(states, sequence, batched))
        if not batched:
            return output.squeeze(1), tuple(state.squeeze(1) for state in final)
        return output.transpose(0, 1) if swapped else output, final

    def _run_packed(self, packed: PackedSequence, states: Sequence[Tensor] | None) -> tuple[PackedSequence, States]:
        """Run sequences of different lengths, the longest first; step t has the first `batch_sizes[t]` of them."""
        data, batch_sizes, order, back = packed
        self._check_input(data, dimensions=(2,))
        active = (torch.arange(int(batch_sizes[0]), device=batch_sizes.device) < batch_sizes[:, None]).to(data.device)
        sequence = _pad(data, active)

        initial = self._initial_states(states, sequence, batched=True)
        if order is not None:
            initial = tuple(state[:, order] for state in initial)
        output, final = self._run_layers(sequence, initial, active)
        if back is not None:
            final = tuple(state[:, back] for state in final)
        return PackedSequence(output[active], batch_sizes, order, back), final

    def _drop(
        self, sequence: Float[Tensor, "time batch features"], active: Bool[Tensor, "time batch"] | None
    ) -> Float[Tensor, "time batch features"]:
        if active is None:
            return dropout(sequence, self.dropout, self.training)
        return _pad(dropout(sequence[active], self.dropout, self.training), active)

    def _suffixes(self, layer: int) -> list[str]:
        """The suffixes of the parameters of `layer`, for each of its directions."""
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def _weights(self, suffix: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        bias_ih, bias_hh, weight_hr = (
            getattr(self, name + suffix, None) for name in ("bias_ih", "bias_hh", "weight_hr")
        )
        return getattr(self, "weight_ih" + suffix), getattr(self, "weight_hh" + suffix), bias_ih, bias_hh, weight_hr

    def _given_states(self, hx: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor] | None:
        if hx is None:
            return None
        single = len(self.state_names) == 1
        states = (hx,) if single else hx
        pair = isinstance(states, tuple | list) and len(states) == len(self.state_names)
        needed = "a tensor" if single else "a pair of tensors (h_0, c_0)"
        text = f"hx must be {needed}, got {type(hx).__name__}"
        self._check(pair and all(isinstance(state, Tensor) for state in states), text, TypeError)
        return states  # pyright: ignore[reportReturnType]  the line above has made sure

    def _initial_states(
        self, states: Sequence[Tensor] | None, sequence: Float[Tensor, "time batch features"], batched: bool
    ) -> States:
        """The states given, checked and `[stack, batch, features]`, or zeros."""
        stack, batch = self.num_layers * len(self._suffixes(0)), (sequence.shape[1],) if batched else ()
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: len(self.state_names)]
        shapes = [(stack, *batch, width) for width in widths]
        if states is None:
            states = [sequence.new_zeros(shape) for shape in shapes]
        for name, state, shape in zip(self.state_names, states, shapes, strict=True):
            layout = "[num_layers · directions, batch, features]" if batched else "[num_layers · directions, features]"
            text = f"{name} has the shape {tuple(state.shape)}, but this input needs {shape}, {layout}"
            self._check(state.shape == shape, text)
            self._check_dtype(name, state)
        return tuple(state if batched else state.unsqueeze(1) for state in states)

    def _check_input(self, input: Tensor, dimensions: tuple[int, ...]) -> None:
        check_tensor(f"{type(self).__name__}: input", input)
        layout = "[batch, time, features]" if self.batch_first else "[time, batch, features]"
        text = f"input has the shape {tuple(input.shape)}, but needs {layout} or [time, features]"
        self._check(input.ndim in dimensions, text)
        features = input.shape[-1]
        self._check(features == self.input_size, f"input has {features} features, but input_size={self.input_size}")
        self._check_dtype("input", input)

    def _check_dtype(self, name: str, value: Tensor) -> None:
        check_dtype(f"{type(self).__name__}: {name}", value, self._weights("_l0")[0].dtype, of="the weights")

    def _check(self, valid: bool, text: str, error: type[Exception] = ValueError) -> None:
        if not valid:
            raise error(f"{type(self).__name__}: {text}")


class RNN(_Recurrent):
    """Elman's network: the state is tanh (or relu) of a linear function of the input and the previous state.

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)          or relu instead of tanh

    Args:
        input_size: features of the input at each step.
        hidden_size: features of the state h.
        num_layers: number of stacked layers; each takes the hidden states of the layer below.
        nonlinearity: "tanh" or "relu".
        bias: with b_ih and b_hh.
        batch_first: sequences are `[batch, time, features]` instead of `[time, batch, features]`; states are not.
        dropout: the probability with which training zeroes each output of every layer but the last.
        bidirectional: each layer also reads the sequence backwards; both outputs are concatenated.
        device: the device of the parameters.
        dtype: their dtype.

    Attributes:
        weight_ih_l0: W_ih of layer 0, `[hidden_size, input_size]`; `weight_ih_l0_reverse` for the other direction.
        weight_hh_l0: W_hh, `[hidden_size, hidden_size]`.
        bias_ih_l0: b_ih, `[hidden_size]`.
        bias_hh_l0: b_hh, `[hidden_size]`.

    Raises:
        TypeError: a size is not an integer, or a flag is not a bool.
        ValueError: a size is not positive, `dropout` is not from 0 to 1, or `nonlinearity` is unknown.
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        sizes = (input_size, hidden_size, num_layers)
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(mode, *sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        self.nonlinearity = nonlinearity

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        return rnn_definition(from_input, from_state, state, tanh if self.nonlinearity == "tanh" else relu)


class LSTM(_Recurrent):
    """Long short-term memory: gates scale the cell state c, the new value that is added to it, and the output.

    Hochreiter and Schmidhuber, 1997; the forget gate is that of Gers, Schmidhuber and Cummins, 2000.

        i, f, o = σ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)         input, forget and output gate, each with its own rows
        g       = tanh( … the same sum … )                         the candidate for the cell state
        c_t     = f ⊙ c_{t-1} + i ⊙ g
        h_t     = o ⊙ tanh(c_t)                                    with proj_size: W_hr (o ⊙ tanh(c_t))

    Args, attributes and errors are those of `RNN` without `nonlinearity`, and:
        proj_size: the features that h is projected to, fewer than `hidden_size`; 0 for no projection.
        weight_hr_l0: W_hr, `[proj_size, hidden_size]`.

    The other weights and biases have `4 · hidden_size` rows, in the order i, f, g, o.
    """

    gates = 4
    state_names = ("hx[0]", "hx[1]")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        super().__init__("LSTM", *sizes, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        return lstm_definition(from_input, from_state, state)


class GRU(_Recurrent):
    """Gated recurrent unit: one gate mixes the old state with a new one, one scales the old state in it (Cho, 2014).

        r   = σ(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)             reset gate
        z   = σ(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)             update gate
        n   = tanh(W_in x_t + b_in + r ⊙ (W_hn h_{t-1} + b_hn))    the new state
        h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}

    The paper resets before the product, W_hn (r ⊙ h_{t-1}); PyTorch and this layer reset after it.

    Args, attributes and errors are those of `RNN` without `nonlinearity`. Weights and biases have `3 · hidden_size`
    rows, in the order r, z, n.
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        super().__init__("GRU", *sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype)

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        return gru_definition(from_input, from_state, state)


def _pad(
    rows: Float[Tensor, "active features"], active: Bool[Tensor, "time batch"]
) -> Float[Tensor, "time batch features"]:
    """Lay out `rows` where `active` is true, step by step, with zeros elsewhere; `x[active]` is the inverse."""
    padded = rows.new_zeros(*active.shape, rows.shape[-1])
    return padded.masked_scatter(active[..., None], rows)
