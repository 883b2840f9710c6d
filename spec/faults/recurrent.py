"""Chapter 12: recurrent networks that are wrong."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from spec.faults import Fault


def stepwise(layer: nn.RNNBase, input: Tensor, state: Any, step: Callable[..., Any]) -> tuple[Tensor, Any]:
    """One layer in one direction; `step` computes the next state from the projections of input and state."""
    outputs = []
    for x in input:
        h = state[0] if isinstance(state, tuple) else state
        from_input = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)  # pyright: ignore[reportArgumentType]
        state = step(from_input, F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0), state)  # pyright: ignore[reportArgumentType]
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs).reshape(len(input), -1), state


# RNN


class TheWayBackIsNotTurnedAround(Fault):
    """The outputs of the backward direction are in reverse time order."""

    caught_by = "test_12_recurrent.py::test_bidirectional_second_half_equals_a_pass_over_the_reversed_sequence"
    says = "the second half, read backwards differs"

    class RNN(nn.RNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, final = super().forward(input, hx)
            if self.bidirectional:
                there, back = output.chunk(2, -1)
                output = torch.cat([there, back.flip(0)], -1)
            return output, final


class TheLastLayerIsDroppedToo(Fault):
    """Dropout is also applied after the last layer."""

    caught_by = "test_12_recurrent.py::test_dropout_1_zeroes_the_input_of_the_second_layer"
    says = r"the output differs at index (.|\n)*got        -?0\.0"

    class RNN(nn.RNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, final = super().forward(input, hx)
            return F.dropout(output, self.dropout, self.training), final


class StatesFollowTheBatch(Fault):
    """With batch_first, the states have the batch dimension first too."""

    caught_by = "test_12_recurrent.py::test_batch_first_does_not_change_the_layout_of_states"
    says = r"\[5, 2, 4\](.|\n)*\(2, 5, 4\)"

    class RNN(nn.RNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, final = super().forward(input, hx)
            return output, final.transpose(0, 1) if self.batch_first else final


class ReluIsForgotten(Fault):
    """The nonlinearity is always tanh."""

    caught_by = "test_12_recurrent.py::test_relu_recurrence_of_integers_is_exact"
    says = r"the result differs(.|\n)*expected   \d+\.0"

    class RNN(nn.RNN):
        def __init__(self, *args: Any, nonlinearity: str = "tanh", **options: Any) -> None:
            super().__init__(*args, **options)


# LSTM


class GatedLSTM(nn.LSTM):
    """An LSTM of one layer with a wrong step."""

    def step(self, from_input: Tensor, from_state: Tensor, state: Any) -> Any:
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return stepwise(self, input, hx, self.step)


class GatesLieInAnotherOrder(Fault):
    """The gates have the order i, f, o, g of other libraries."""

    caught_by = "test_12_recurrent.py::test_lstm_gates_input_forget_and_output"
    says = "the result differs"

    class LSTM(GatedLSTM):
        def step(self, from_input: Tensor, from_state: Tensor, state: Any) -> Any:
            i, f, o, g = (from_input + from_state).chunk(4, -1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c


class TheMemoryIsShownAsItIs(Fault):
    """h = o ⊙ c, without tanh."""

    caught_by = "test_12_recurrent.py::test_lstm_gates_input_forget_and_output"
    says = r"the result differs(.|\n)*got        1\.5\nE? *expected   0\.905"

    class LSTM(GatedLSTM):
        def step(self, from_input: Tensor, from_state: Tensor, state: Any) -> Any:
            i, f, g, o = (from_input + from_state).chunk(4, -1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c, c


class TheForgetGateStartsOpen(Fault):
    """The bias of the forget gate is initialized with 1, unlike in PyTorch."""

    caught_by = "test_12_recurrent.py::test_parameters_start_uniform_within_1_over_sqrt_hidden_size"
    says = "bias_ih_l0 beyond 1/√hidden_size"

    class LSTM(nn.LSTM):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            with torch.no_grad():
                for name, bias in self.named_parameters():
                    if name.startswith("bias_ih"):
                        bias.chunk(4)[1].fill_(1)


class ShorterSequencesReadTheirPadding(Fault):
    """The final states of packed sequences are the states after the longest sequence."""

    caught_by = "test_12_recurrent.py::test_packed_sequence_equals_separate_sequences"
    says = r"the last state of sequence \d differs"

    class LSTM(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, final = super().forward(input, hx)
            if isinstance(input, PackedSequence):
                padded, _ = pad_packed_sequence(input)
                _, final = nn.LSTM.forward(self, padded.transpose(0, 1) if self.batch_first else padded, hx)
            return output, final


# GRU


class GatedGRU(nn.GRU):
    """A GRU of one layer with a wrong step."""

    def step(self, from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return stepwise(self, input, hx, self.step)


class TheStateIsResetBeforeTheProduct(Fault):
    """W_hn (r ⊙ h), as in the paper."""

    caught_by = "test_12_recurrent.py::test_gru_gates_reset_and_update"
    says = r"the result differs(.|\n)*got        0\.76\d+\nE? *expected   0\.0"

    class GRU(GatedGRU):
        def step(self, from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
            (input_r, input_z, input_n), (state_r, state_z, _) = from_input.chunk(3, -1), from_state.chunk(3, -1)
            r, z = (input_r + state_r).sigmoid(), (input_z + state_z).sigmoid()
            n = (input_n + F.linear(r * state, self.weight_hh_l0.chunk(3)[2], self.bias_hh_l0.chunk(3)[2])).tanh()  # pyright: ignore[reportCallIssue]
            return (1 - z) * n + z * state


class TheUpdateGateTakesTheNew(Fault):
    """z ⊙ n + (1 - z) ⊙ h, as in other papers."""

    caught_by = "test_12_recurrent.py::test_gru_gates_reset_and_update"
    says = r"the result differs(.|\n)*expected   0\.5"

    class GRU(GatedGRU):
        def step(self, from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
            (input_r, input_z, input_n), (state_r, state_z, state_n) = from_input.chunk(3, -1), from_state.chunk(3, -1)
            r, z = (input_r + state_r).sigmoid(), (input_z + state_z).sigmoid()
            return z * (input_n + r * state_n).tanh() + (1 - z) * state


class ThereIsNoDropout(Fault):
    """The argument is accepted and ignored."""

    caught_by = "test_12_recurrent.py::test_dropout_applies_in_training_only"
    says = "dropout must change what a layer in training gives"

    class GRU(nn.GRU):
        def forward(self, input: Any, hx: Any = None) -> Any:
            self.dropout, kept = 0.0, self.dropout
            try:
                return super().forward(input, hx)
            finally:
                self.dropout = kept


class TheGivenStateIsForgotten(Fault):
    """The initial state is always zero."""

    caught_by = "test_12_recurrent.py::test_final_state_continues_a_split_sequence"
    says = r"the result differs at index \[2, 0, 0\]"

    class GRU(nn.GRU):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(input)
