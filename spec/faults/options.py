"""Chapters 08 to 14: components in which every option works alone, but not in combination with another one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec.faults import Fault

FILE = "test_13_options.py::"


class DilationIsLostWithGroups(Fault):
    """Dilation is ignored with groups."""

    caught_by = FILE + "test_options_of_convolution_together"
    says = r"conv2d \{.*'groups': 2.*\}"

    @staticmethod
    def conv2d(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        return F.conv2d(input, weight, bias, stride, padding, 1 if groups > 1 else dilation, groups)

    Conv2d = nn.Conv2d


class CircularPaddingForgetsTheBias(Fault):
    """The bias is not added with circular padding."""

    caught_by = FILE + "test_options_of_convolution_together"
    says = r"Conv2d \{.*'circular'.*\}"

    conv2d = staticmethod(F.conv2d)

    class Conv2d(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            found = super().forward(input)
            if self.padding_mode == "circular" and self.bias is not None:
                return found - self.bias[:, None, None]
            return found


class TheLayerForgetsCeilMode(Fault):
    """MaxPool2d does not pass ceil_mode on."""

    caught_by = FILE + "test_options_of_maximum_pooling_together"
    says = r"MaxPool2d \{.*'ceil_mode': True"

    max_pool2d = staticmethod(F.max_pool2d)

    class MaxPool2d(nn.MaxPool2d):
        def forward(self, input: Tensor) -> Any:
            return F.max_pool2d(
                input, self.kernel_size, self.stride, self.padding, self.dilation, False, self.return_indices
            )


class CeilModeIsLostWithDilation(Fault):
    """ceil_mode is ignored with dilation."""

    caught_by = FILE + "test_options_of_maximum_pooling_together"
    says = r"max_pool2d \{.*'ceil_mode': True"

    MaxPool2d = nn.MaxPool2d

    @staticmethod
    def max_pool2d(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        return F.max_pool2d(
            input, kernel_size, stride, padding, dilation, ceil_mode and dilation == 1, return_indices=return_indices
        )


class TheDivisorForgetsItsPadding(Fault):
    """divisor_override is ignored with padding."""

    caught_by = FILE + "test_options_of_mean_pooling_together"
    says = r"AvgPool2d \{.*'divisor_override': 3"

    avg_pool2d = staticmethod(F.avg_pool2d)

    class AvgPool2d(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            divisor = None if self.padding != 0 else self.divisor_override
            return F.avg_pool2d(
                input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad, divisor
            )


class TheAverageOfAllBatchesStopsAtTheThird(Fault):
    """With momentum=None, later batches have the weight 1/3 instead of 1/n."""

    caught_by = FILE + "test_options_of_batch_norm_together"
    says = r"batch 4: the running mean differs"

    class BatchNorm2d(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            if self.momentum is None and self.track_running_stats and self.training:
                self.num_batches_tracked.clamp_(max=2)  # pyright: ignore[reportOptionalMemberAccess]
            return super().forward(input)


class SmoothingCountsWhatIsIgnored(Fault):
    """In the loss layer, label smoothing is applied to ignored targets too."""

    caught_by = FILE + "test_options_of_cross_entropy_together"
    says = r"CrossEntropyLoss \{.*'ignore_index': [14].*'label_smoothing': 0.25"

    cross_entropy = staticmethod(F.cross_entropy)

    class CrossEntropyLoss(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            ignored = -100 if self.label_smoothing and not target.is_floating_point() else self.ignore_index
            return F.cross_entropy(
                input,
                target,
                self.weight,
                ignore_index=ignored,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )


class TheWeightedMeanCountsWhatIsIgnored(Fault):
    """With class weights, the mean divides by the number of all targets."""

    caught_by = FILE + "test_options_of_nll_loss_together"
    says = r"nll_loss \{'reduction': 'mean', 'weight': True"

    NLLLoss = nn.NLLLoss

    @staticmethod
    def nll_loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Tensor:
        if weight is None or reduction != "mean":
            return F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
        total = F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction="sum")
        return total / weight[target].sum()


class TheBackwardProjectionIsTheForwardOne(Fault):
    """With proj_size, both directions use the projection of the first direction."""

    caught_by = FILE + "test_options_of_lstm_together"
    says = r"LSTM \{.*'bidirectional': True.*'proj_size': 2"

    class LSTM(nn.LSTM):
        def forward(self, *args: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            if self.proj_size and self.bidirectional:
                with torch.no_grad():
                    for layer in range(self.num_layers):
                        own = getattr(self, f"weight_hr_l{layer}")
                        getattr(self, f"weight_hr_l{layer}_reverse").copy_(own + 1)
            return super().forward(*args)


class GivenStatesAreForOneLayer(Fault):
    """All layers use the initial state of the first layer."""

    caught_by = FILE + "test_options_of_gru_together"
    says = r"GRU \{'num_layers': [23].*'state': True"

    class GRU(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            if hx is not None and self.num_layers > 1:
                hx = torch.cat([hx[: len(hx) // self.num_layers]] * self.num_layers)
            return super().forward(input, hx)


class DropoutIsAfterTheLastLayerToo(Fault):
    """Dropout is also applied to the output."""

    caught_by = FILE + "test_dropout_of_recurrent_layers_is_between_them_and_not_after_the_last"
    says = r"RNN with dropout=1.0: the output differs"

    LSTM, GRU = nn.LSTM, nn.GRU

    class RNN(nn.RNN):
        def forward(self, *args: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            output, last = super().forward(*args)
            return F.dropout(output, self.dropout, self.training), last


class GroupsForgetTheScale(Fault):
    """With enable_gqa, the default scale is always used."""

    caught_by = FILE + "test_options_of_attention_together"
    says = r"scaled_dot_product_attention \{.*'scale': 0.25, 'enable_gqa': True"

    @staticmethod
    def scaled_dot_product_attention(*args: Any, scale: Any = None, enable_gqa: bool = False, **options: Any) -> Any:
        return F.scaled_dot_product_attention(
            *args, scale=None if enable_gqa else scale, enable_gqa=enable_gqa, **options
        )


class WeightsOfHeadsAreAveragedWithMasks(Fault):
    """With key_padding_mask, the attention weights are always averaged."""

    caught_by = FILE + "test_options_of_multihead_attention_together"
    says = r"MultiheadAttention \{.*'average_attn_weights': False, 'key_padding_mask': '"

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(self, *args: Any, average_attn_weights: bool = True, **options: Any) -> Any:
            average = average_attn_weights or options.get("key_padding_mask") is not None
            return super().forward(*args, average_attn_weights=average, **options)


class NormFirstForgetsTheMask(Fault):
    """With norm_first, the mask is not passed to the attention."""

    caught_by = FILE + "test_options_of_the_encoder_layer_together"
    says = r"TransformerEncoderLayer \{.*'norm_first': True"

    class TransformerEncoderLayer(nn.TransformerEncoderLayer):
        def forward(self, src: Tensor, src_mask: Tensor | None = None, **options: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(src, None if self.norm_first else src_mask, **options)


class FrequencyForgetsThePadding(Fault):
    """With scale_grad_by_freq, the padding row gets a gradient."""

    caught_by = FILE + "test_options_of_embedding_together"
    says = r"Embedding \{.*'scale_grad_by_freq': True\}: the gradient differs"

    class Embedding(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            padding = None if self.scale_grad_by_freq else self.padding_idx
            return F.embedding(
                input, self.weight, padding, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
            )


class AnEmptySequentialTakesNothing(Fault):
    """insert refuses the index 0 of an empty container."""

    caught_by = FILE + "test_a_layer_is_inserted_into_an_empty_sequential"
    says = r"IndexError"

    class Sequential(nn.Sequential):
        def insert(self, index: int, module: nn.Module) -> Any:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range")
            return super().insert(index, module)
