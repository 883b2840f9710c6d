"""PyTorch's optimizers with `foreach=True`."""

from typing import Any

import torch


class SGD(torch.optim.SGD):
    """PyTorch's, with `foreach=True`."""

    def __init__(
        self, params: Any, lr: Any = 1e-3, momentum: float = 0, *args: Any, foreach: Any = True, **options: Any
    ) -> None:
        super().__init__(params, lr, momentum, *args, foreach=foreach, **options)


class Adam(torch.optim.Adam):
    """PyTorch's, with `foreach=True`."""

    def __init__(self, params: Any, lr: Any = 1e-3, *args: Any, foreach: Any = True, **options: Any) -> None:
        super().__init__(params, lr, *args, foreach=foreach, **options)


class AdamW(torch.optim.AdamW):
    """PyTorch's, with `foreach=True`."""

    def __init__(self, params: Any, lr: Any = 1e-3, *args: Any, foreach: Any = True, **options: Any) -> None:
        super().__init__(params, lr, *args, foreach=foreach, **options)
