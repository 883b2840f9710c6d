"""torchdata's StatefulDataLoader, PyTorch's loader with a state that can be saved."""

from torchdata.stateful_dataloader import StatefulDataLoader as DataLoader  # pyright: ignore[reportMissingImports]

__all__ = ["DataLoader"]
