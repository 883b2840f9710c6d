"""Operations with a derivative of their own."""

import inspect
from typing import Any

import torch


class Function(torch.autograd.Function):
    """`torch.autograd.Function`, quicker to call: the signature of `forward`, which PyTorch looks at in every call
    where there is a `setup_context`, is looked at once."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
