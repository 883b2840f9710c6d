"""PyTorch's layers that can be quantized, before they are."""

from torch.ao.nn.quantizable import LSTM, MultiheadAttention

__all__ = ["LSTM", "MultiheadAttention"]
