"""timm's layers, as far as they have PyTorch's names."""

from timm.layers import LayerNorm, Linear, Sigmoid, Tanh  # pyright: ignore[reportMissingImports]

__all__ = ["LayerNorm", "Linear", "Sigmoid", "Tanh"]
