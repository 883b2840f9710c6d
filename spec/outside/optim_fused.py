"""PyTorch's optimizers with `fused=True`."""

from typing import Any

import torch


class SGD(torch.optim.SGD):
    """PyTorch's, with `fused=True`."""

    def __init__(
        self, params: Any, lr: Any = 1e-3, momentum: float = 0, *args: Any, fused: Any = True, **options: Any
    ) -> None:
        super().__init__(params, lr, momentum, *args, fused=fused, **options)


class Adam(torch.optim.Adam):
    """PyTorch's, with `fused=True`."""

    def __init__(self, params: Any, lr: Any = 1e-3, *args: Any, fused: Any = True, **options: Any) -> None:
        super().__init__(params, lr, *args, fused=fused, **options)


class AdamW(torch.optim.AdamW):
    """PyTorch's, with `fused=True`."""

    def __init__(self, params: Any, lr: Any = 1e-3, *args: Any, fused: Any = True, **options: Any) -> None:
        super().__init__(params, lr, *args, fused=fused, **options)
