"""Layers of timm."""

from timm.layers import LayerNorm, Linear, Sigmoid, Tanh  # pyright: ignore[reportMissingImports]

__all__ = ["LayerNorm", "Linear", "Sigmoid", "Tanh"]
