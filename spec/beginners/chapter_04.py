"""Transforms of images."""

import random

import numpy as np
import torch


class ToTensor:
    def __call__(self, image):
        array = np.array(image)
        if array.ndim == 2:
            array = array[:, :, None]
        return torch.tensor(array).permute(2, 0, 1).float() / 255


class Normalize:
    def __init__(self, mean, std):
        self.mean = mean
        self.std = std

    def __call__(self, image):
        out = torch.zeros_like(image)
        for channel in range(image.shape[0]):
            out[channel] = (image[channel] - self.mean[channel]) / self.std[channel]
        return out


class Resize:
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        width, height = image.size
        if isinstance(self.size, int):
            if width < height:
                new_width, new_height = self.size, int(self.size * height / width)
            else:
                new_width, new_height = int(self.size * width / height), self.size
        else:
            new_height, new_width = self.size
        return image.resize((new_width, new_height))


class RandomCrop:
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        left = random.randint(0, image.width - width)
        top = random.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image
