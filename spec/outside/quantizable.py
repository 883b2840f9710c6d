"""PyTorch's quantizable layers, before quantization."""

from torch.ao.nn.quantizable import LSTM, MultiheadAttention

__all__ = ["LSTM", "MultiheadAttention"]
