"""torchdata's loader, which can be saved in the middle of an epoch."""

from torchdata.stateful_dataloader import StatefulDataLoader  # pyright: ignore[reportMissingImports]


class DataLoader(StatefulDataLoader):
    """The loader under the name that tests ask for."""
