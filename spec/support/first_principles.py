"""The names of PyTorch's functions, methods and operators that count as components."""

from fnmatch import fnmatchcase
from functools import cache

FORBIDDEN_NAMES = (
    *("conv1d", "conv2d", "conv3d", "conv_*", "*convolution*", "cudnn_*", "mkldnn_*", "miopen_*"),
    *("max_pool*", "avg_pool*", "adaptive_*pool*", "fractional_max_pool*", "lp_pool*"),
    *("relu", "relu_", "relu6", "leaky_relu*", "prelu", "rrelu*", "threshold", "threshold_", "hardtanh*", "hardswish*"),
    *("elu", "elu_", "celu", "celu_", "selu", "selu_", "gelu", "silu", "mish", "glu", "softplus", "hardsigmoid*"),
    *("sigmoid", "sigmoid_", "expit", "logsigmoid", "log_sigmoid", "log_expit", "tanh", "tanh_"),
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin", "logsumexp", "gumbel_softmax"),
    *("dropout", "dropout_", "dropout[123]d", "*_dropout", "*_dropout_"),
    *("batch_norm*", "native_*norm*", "layer_norm*", "group_norm", "instance_norm", "rms_norm", "local_response_norm"),
    *("embedding*", "rnn_*", "lstm*", "gru", "gru_*", "bilinear"),
    *("*_loss", "*_loss_nd", "*_loss2d", "nll_loss*", "cross_entropy*", "kl_div", "binary_cross_entropy*"),
    *("*scaled_dot_product*", "multi_head_attention_forward", "*_multi_head_attention*"),
)
"""Patterns of the names."""


@cache
def is_component(name: str) -> bool:
    """Whether a function, method or operator of this name computes a component."""
    return any(fnmatchcase(name, pattern) for pattern in FORBIDDEN_NAMES)
