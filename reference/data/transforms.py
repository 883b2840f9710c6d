"""Chapters 03 and 04: from a picture to a tensor."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


class ToTensor:
    """An 8-bit RGB or grey picture as a float32 tensor `[channels, height, width]`, each byte divided by 255.

    Raises:
        TypeError: what came is not a Pillow picture.
        ValueError: the picture's mode is neither RGB nor L; the text names it.
    """

    def __call__(self, picture: Image.Image) -> Float[Tensor, "channels height width"]:
        if not isinstance(picture, Image.Image):
            raise TypeError(f"ToTensor: picture must be a PIL image, got {type(picture).__name__}")
        if picture.mode not in ("RGB", "L"):
            raise ValueError(f"ToTensor: picture has mode {picture.mode}; convert it to RGB or L first")
        pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1)
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)

    def __repr__(self) -> str:
        return "ToTensor()"
