"""Chapter 12, "other layers": recurrent networks, which read a sequence one time step after the other.

A recurrent layer carries a state from step to step. Its cell, a few lines, says what the state becomes: it joins a
projection of the input, W_ih x_t + b_ih, with one of the state, W_hh h_{t-1} + b_hh. `RNN`, `LSTM` and `GRU` differ in the
cell and share everything else: layers on top of each other, both directions of time, batches, packed sequences.
"""

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from reference.nn.activation import relu, sigmoid, tanh
from reference.nn.dropout import dropout
from reference.nn.initialization import uniform_
from reference.nn.linear import linear

# What a caller hands in is annotated loosely: a wrong shape or dtype shall meet the error that names it.
Input = Shaped[Tensor, "..."] | PackedSequence
Output = Float[Tensor, "*sequence features"] | PackedSequence
Gates = Float[Tensor, "batch gates"]
State = tuple[Float[Tensor, "batch _"], ...]  # of one layer in one direction: (h,), for the LSTM (h, c)
States = tuple[Float[Tensor, "stack *batch _"], ...]  # of all layers and directions, in the order of their parameters


class _Recurrent(torch.nn.Module):
    """All that recurrent layers share. A subclass adds the parameters its cell needs per unit, and the cell."""

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
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            self._check(isinstance(size, int), f"{name} must be an integer, got {size!r}", TypeError)
            self._check(size > 0, f"{name} must be at least 1, got {size}")
        for name, flag in (("bias", bias), ("batch_first", batch_first)):
            self._check(isinstance(flag, bool), f"{name} must be True or False, got {flag!r}", TypeError)
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

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction: weight_ih, weight_hh, and bias_ih, bias_hh, weight_hr if there."""
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [[weight for weight in self._weights(suffix) if weight is not None] for suffix in suffixes]

    def flatten_parameters(self) -> None:
        """Do nothing: in PyTorch's layers this gathers the weights for cuDNN, which is not used here."""

    def forward(
        self, input: Input, hx: Shaped[Tensor, "..."] | Sequence[Tensor] | None = None
    ) -> tuple[Output, Float[Tensor, "stack *batch hidden"]]:
        """The hidden state of the last layer at every step, and of every layer after its last step.

        Args:
            input: `[time, batch, input_size]`, with `batch_first` `[batch, time, input_size]`, without a batch
                `[time, input_size]`; or a packed sequence.
            hx: h_0, the state before the first step, `[num_layers · directions, batch, hidden_size]` in either layout,
                without a batch `[num_layers · directions, hidden_size]`; zeros if None.

        Returns:
            output: as `input`, with `directions · hidden_size` features; packed if `input` is.
            h_n: the state after the last step, shaped as `hx`.

        Raises:
            TypeError: `input` or `hx` is not a tensor, or not of the dtype of the weights.
            ValueError: `input` or `hx` has the wrong shape, or `input` has no time steps.
        """
        self._check(hx is None or isinstance(hx, Tensor), f"hx must be a tensor, got {type(hx).__name__}", TypeError)
        output, (hidden,) = self._run(input, None if hx is None else (hx,))  # pyright: ignore[reportArgumentType]
        return output, hidden

    def extra_repr(self) -> str:
        shown = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0),
            ("bidirectional", False),
        ):
            value = getattr(self, name)
            shown += "" if value == default else f", {name}={value}"
        return shown

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        """The next state, given W_ih x_t + b_ih, W_hh h_{t-1} + b_hh and the state before."""
        raise NotImplementedError

    def _run(self, input: Input, states: Sequence[Tensor] | None) -> tuple[Output, States]:
        """Bring `input` and `states` into the layout `[time, batch, features]`, run all layers, and go back."""
        if isinstance(input, PackedSequence):
            return self._run_packed(input, states)
        self._check_input(input, dimensions=(2, 3))
        batched = input.ndim == 3
        swapped = batched and self.batch_first
        sequence = (input.transpose(0, 1) if swapped else input) if batched else input.unsqueeze(1)
        self._check(len(sequence) > 0, f"input has the shape {tuple(input.shape)}, but needs at least one time step")

        initial = self._initial_states(states, sequence, batched)
        output, final = self._run_layers(sequence, initial)
        if not batched:
            return output.squeeze(1), tuple(state.squeeze(1) for state in final)
        return output.transpose(0, 1) if swapped else output, final

    def _run_packed(self, packed: PackedSequence, states: Sequence[Tensor] | None) -> tuple[PackedSequence, States]:
        """Run a batch of sequences of different lengths, the longest first: step t has its first `batch_sizes[t]` rows."""
        data, batch_sizes, order, back = packed
        self._check_input(data, dimensions=(2,))
        active = (torch.arange(int(batch_sizes[0])) < batch_sizes[:, None]).to(data.device)

        initial = self._initial_states(states, _pad(data, active), batched=True)
        if order is not None:
            initial = tuple(state[:, order] for state in initial)
        output, final = self._run_layers(_pad(data, active), initial, active)
        if back is not None:
            final = tuple(state[:, back] for state in final)
        return PackedSequence(output[active], batch_sizes, order, back), final

    def _run_layers(
        self,
        sequence: Float[Tensor, "time batch features"],
        initial: States,
        active: Bool[Tensor, "time batch"] | None = None,
    ) -> tuple[Float[Tensor, "time batch out"], States]:
        """Each layer reads what the one below gave, thinned by dropout; a layer's two directions are concatenated."""
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

    def _run_direction(
        self,
        sequence: Float[Tensor, "time batch features"],
        state: State,
        suffix: str,
        active: Bool[Tensor, "time batch"] | None,
    ) -> tuple[Float[Tensor, "time batch out"], State]:
        """The recurrence itself: one layer in one direction, its hidden state at every step and its state at the end."""
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = self._weights(suffix)
        from_input = linear(sequence, weight_ih, bias_ih)  # for all steps at once: only the state has to wait
        steps = range(len(sequence))
        outputs = {}
        for t in reversed(steps) if suffix.endswith("_reverse") else steps:
            hidden, *rest = self._cell(from_input[t], linear(state[0], weight_hh, bias_hh), state)
            if weight_hr is not None:
                hidden = linear(hidden, weight_hr)
            after = (hidden, *rest)
            if active is not None:  # a sequence that is over, or in reverse has not begun, keeps its state
                after = tuple(torch.where(active[t, :, None], new, old) for new, old in zip(after, state, strict=True))
            state = after
            outputs[t] = state[0]
        return torch.stack([outputs[t] for t in steps]), state

    def _drop(
        self, sequence: Float[Tensor, "time batch features"], active: Bool[Tensor, "time batch"] | None
    ) -> Float[Tensor, "time batch features"]:
        if active is None:
            return dropout(sequence, self.dropout, self.training)
        return _pad(dropout(sequence[active], self.dropout, self.training), active)

    def _suffixes(self, layer: int) -> list[str]:
        """How the parameters of `layer` end, for each of its directions."""
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def _weights(self, suffix: str) -> list[Tensor]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return [getattr(self, name + suffix, None) for name in names]

    def _initial_states(
        self, states: Sequence[Tensor] | None, sequence: Float[Tensor, "time batch features"], batched: bool
    ) -> States:
        """The states given, checked and `[stack, batch, features]`, or zeros."""
        batch = (sequence.shape[1],) if batched else ()
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: len(self.state_names)]
        shapes = [(self.num_layers * len(self._suffixes(0)), *batch, width) for width in widths]
        if states is None:
            states = [sequence.new_zeros(shape) for shape in shapes]
        for name, state, shape in zip(self.state_names, states, shapes, strict=True):
            layout = "[num_layers · directions, batch, features]" if batched else "[num_layers · directions, features]"
            text = f"{name} has the shape {tuple(state.shape)}, but this input needs {shape}, {layout}"
            self._check(state.shape == shape, text)
            self._check_dtype(name, state)
        return tuple(state if batched else state.unsqueeze(1) for state in states)

    def _check_input(self, input: Tensor, dimensions: tuple[int, ...]) -> None:
        self._check(isinstance(input, Tensor), f"input must be a tensor, got {type(input).__name__}", TypeError)
        layout = "[batch, time, features]" if self.batch_first else "[time, batch, features]"
        text = f"input has the shape {tuple(input.shape)}, but needs {layout} or [time, features]"
        self._check(input.ndim in dimensions, text)
        features = input.shape[-1]
        self._check(features == self.input_size, f"input has {features} features, but input_size={self.input_size}")
        self._check_dtype("input", input)

    def _check_dtype(self, name: str, value: Tensor) -> None:
        dtype = self._weights("_l0")[0].dtype
        self._check(value.dtype == dtype, f"{name} is {value.dtype}, but the weights are {dtype}", TypeError)

    def _check(self, valid: bool, text: str, error: type[Exception] = ValueError) -> None:
        if not valid:
            raise error(f"{type(self).__name__}: {text}")


class RNN(_Recurrent):
    """Elman's network: the state is a squashed sum of what comes in and what was.

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)          or relu instead of tanh

    Args:
        input_size: features of the input at each step.
        hidden_size: features of the state h.
        num_layers: layers on top of each other; each reads the hidden states of the one below.
        nonlinearity: "tanh" or "relu".
        bias: with b_ih and b_hh.
        batch_first: sequences are `[batch, time, features]` instead of `[time, batch, features]`; states stay as they are.
        dropout: the probability with which training zeroes each output of every layer but the last.
        bidirectional: each layer also reads the sequence backwards; both outputs are concatenated.
        device: where the parameters live.
        dtype: their dtype.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: the parameters of layer 0, those of the backward direction end
            in `_reverse`; `[hidden_size, input_size]`, `[hidden_size, hidden_size]`, `[hidden_size]`, `[hidden_size]`.

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.nonlinearity = nonlinearity

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        activation = tanh if self.nonlinearity == "tanh" else relu
        return (activation(from_input + from_state),)


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997): gates decide what a memory c keeps, takes in and shows.

        i, f, o = σ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)         input, forget and output gate, each with its own rows
        g       = tanh( … the same sum … )                         what could be remembered
        c_t     = f ⊙ c_{t-1} + i ⊙ g
        h_t     = o ⊙ tanh(c_t)                                    with proj_size: W_hr (o ⊙ tanh(c_t))

    Args:
        input_size: features of the input at each step.
        hidden_size: features of the memory c, and of h without `proj_size`.
        num_layers: layers on top of each other; each reads the hidden states of the one below.
        bias: with b_ih and b_hh.
        batch_first: sequences are `[batch, time, features]` instead of `[time, batch, features]`; states stay as they are.
        dropout: the probability with which training zeroes each output of every layer but the last.
        bidirectional: each layer also reads the sequence backwards; both outputs are concatenated.
        proj_size: features that h is projected to, fewer than `hidden_size`; 0 for no projection.
        device: where the parameters live.
        dtype: their dtype.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: the parameters of layer 0, those of the backward direction end
            in `_reverse`; `4 · hidden_size` rows each, in the order i, f, g, o.
        weight_hr_l0: W_hr, `[proj_size, hidden_size]`.

    Raises:
        TypeError: a size is not an integer, or a flag is not a bool.
        ValueError: a size is not positive, `dropout` is not from 0 to 1, or `proj_size` is not smaller than `hidden_size`.
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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  two states instead of one
        self, input: Input, hx: Shaped[Tensor, "..."] | Sequence[Tensor] | None = None
    ) -> tuple[Output, tuple[Float[Tensor, "stack *batch out"], Float[Tensor, "stack *batch hidden"]]]:
        """The hidden state of the last layer at every step, and h and c of every layer after its last step.

        Args:
            input: as `RNN` takes it.
            hx: (h_0, c_0), each shaped as `RNN`'s `hx`; h_0 has `proj_size` features if there is a projection.

        Returns:
            output: as `input`, with the features of h, `directions` times; packed if `input` is.
            (h_n, c_n): the states after the last step, shaped as `hx`.

        Raises:
            TypeError: `input` is not a tensor, `hx` not a pair of tensors, or one not of the dtype of the weights.
            ValueError: `input` or one of `hx` has the wrong shape, or `input` has no time steps.
        """
        if hx is not None:
            pair = isinstance(hx, tuple | list) and len(hx) == 2 and all(isinstance(state, Tensor) for state in hx)
            self._check(pair, f"hx must be a pair of tensors (h_0, c_0), got {type(hx).__name__}", TypeError)
        output, (hidden, memory) = self._run(input, hx)
        return output, (hidden, memory)

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        i, f, g, o = (from_input + from_state).chunk(4, dim=-1)
        memory = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(memory), memory


class GRU(_Recurrent):
    """Gated recurrent unit (Cho et al., 2014): one gate mixes the old state with a new one, another filters what it sees.

        r   = σ(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)             reset gate
        z   = σ(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)             update gate
        n   = tanh(W_in x_t + b_in + r ⊙ (W_hn h_{t-1} + b_hn))    the new state
        h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}

    The paper resets before it multiplies, W_hn (r ⊙ h_{t-1}); PyTorch and this layer reset after it.

    Args:
        input_size: features of the input at each step.
        hidden_size: features of the state h.
        num_layers: layers on top of each other; each reads the hidden states of the one below.
        bias: with b_ih and b_hh.
        batch_first: sequences are `[batch, time, features]` instead of `[time, batch, features]`; states stay as they are.
        dropout: the probability with which training zeroes each output of every layer but the last.
        bidirectional: each layer also reads the sequence backwards; both outputs are concatenated.
        device: where the parameters live.
        dtype: their dtype.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: the parameters of layer 0, those of the backward direction end
            in `_reverse`; `3 · hidden_size` rows each, in the order r, z, n.

    Raises:
        TypeError: a size is not an integer, or a flag is not a bool.
        ValueError: a size is not positive, or `dropout` is not from 0 to 1.
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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def _cell(self, from_input: Gates, from_state: Gates, state: State) -> State:
        input_r, input_z, input_n = from_input.chunk(3, dim=-1)
        state_r, state_z, state_n = from_state.chunk(3, dim=-1)
        r = sigmoid(input_r + state_r)
        z = sigmoid(input_z + state_z)
        n = tanh(input_n + r * state_n)
        return ((1 - z) * n + z * state[0],)


def _pad(
    rows: Float[Tensor, "active features"], active: Bool[Tensor, "time batch"]
) -> Float[Tensor, "time batch features"]:
    """Set `rows` at the places where `active` is true, step by step, and zeros elsewhere; `x[active]` undoes it."""
    padded = rows.new_zeros(*active.shape, rows.shape[-1])
    return padded.masked_scatter(active[..., None], rows)
