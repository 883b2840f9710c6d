"""webdataset's WebLoader, which makes batches by PyTorch's loader: an adapter of three lines."""

from typing import Any

from webdataset import WebLoader  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]


class DataLoader(WebLoader):
    """A pipeline of one stage, with the length of that stage."""

    def __len__(self) -> int:
        return len(self.pipeline[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pipeline"][0], name)
