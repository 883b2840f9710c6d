"""A folder of images that is listed when it is used for the first time, not when the data set is made."""

from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset


class LabeledFolder(Dataset[Any]):
    """The images of `root_dir/label_dir`, with the folder's name as label."""

    def __init__(self, root_dir: Any, label_dir: str, transform: Any = None) -> None:
        self.folder, self.label_dir, self.transform = Path(root_dir, label_dir), label_dir, transform

    @cached_property
    def paths(self) -> list[Path]:
        """The image files, sorted by name."""
        kinds = Image.registered_extensions()
        return sorted(path for path in self.folder.iterdir() if path.suffix.lower() in kinds)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        return image if self.transform is None else self.transform(image), self.label_dir
