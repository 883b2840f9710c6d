"""A loader without `__len__`, like loaders that read from a stream: only the tests of the length may fail."""

from typing import Any

import reference


class DataLoader:
    """The reference's loader, without its length."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loader = reference.DataLoader(*args, **options)

    def __iter__(self) -> Any:
        return iter(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)
