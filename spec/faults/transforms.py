"""Chapters 03 and 04: transforms that are wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reference.data import transforms as right
from spec.faults import Fault

TO_TENSOR = "test_03_transforms.py::"
IN_USE = "test_04_transforms_in_use.py::"


class DividesBy256(Fault):
    """The bytes are divided by 256 instead of 255."""

    caught_by = f"{TO_TENSOR}test_black_is_0_and_white_is_1"
    says = r"got        0\.99609375\n.*expected   1\.0"

    class ToTensor(right.ToTensor):
        def __call__(self, image: Any) -> Tensor:
            return super().__call__(image) * 255 / 256


class MultipliesInsteadOfDividing(Fault):
    """The bytes are multiplied by the rounded 1 / 255, which rounds twice."""

    caught_by = f"{TO_TENSOR}test_each_of_the_256_bytes_is_divided_not_multiplied"
    says = r"126 of 256 numbers differ"

    class ToTensor(right.ToTensor):
        def __call__(self, image: Any) -> Tensor:
            tensor = super().__call__(image)
            return (tensor * 255).round() * (1 / 255)


class ChannelsComeLast(Fault):
    """The result has the layout of Pillow and NumPy, with channels last."""

    caught_by = f"{TO_TENSOR}test_to_tensor_is_constructed_then_called"
    says = r"torch\.Size\(\[2, 3, 3\]\) == \(3, 2, 3\)"

    class ToTensor(right.ToTensor):
        def __call__(self, image: Any) -> Tensor:
            return super().__call__(image).permute(1, 2, 0)


class ScalesFloatsToo(Fault):
    """Floats from 0 to 1 are divided by 255."""

    caught_by = f"{TO_TENSOR}test_an_array_is_rows_columns_and_channels_and_only_bytes_are_scaled"
    says = r"the result (has dtype|differs)"

    class ToTensor(right.ToTensor):
        def __call__(self, image: Any) -> Tensor:
            tensor = super().__call__(image)
            return tensor if getattr(image, "dtype", np.uint8) == np.uint8 else tensor / 255


class TakesTheColoursOfAPalette(Fault):
    """Images of mode P are converted to colours, although ToTensor gives palette indices."""

    caught_by = f"{TO_TENSOR}test_to_tensor_takes_the_indices_of_palette_images"
    says = r"has shape \[3, 1, 2\], expected \[1, 1, 2\]"

    class ToTensor(right.ToTensor):
        def __call__(self, image: Any) -> Tensor:
            return super().__call__(image.convert("RGB") if image.mode == "P" else image)


class DividesByTheVariance(Fault):
    """Division by the variance, as the tutorial states."""

    caught_by = f"{IN_USE}test_normalize_divides_by_the_standard_deviation_not_by_the_variance"
    says = r"got        8\.0\n.*expected   4\.0"

    class Normalize(right.Normalize):
        def forward(self, tensor: Tensor) -> Tensor:
            variance = [deviation**2 for deviation in self.std]
            return right.Normalize(self.mean, variance, self.inplace)(tensor)


class NormalizesAllChannelsAsTheFirst(Fault):
    """All channels are normalized with the mean and the standard deviation of the first channel."""

    caught_by = f"{IN_USE}test_normalize_is_the_formula_channel_by_channel"
    says = r"the result differs"

    class Normalize(right.Normalize):
        def forward(self, tensor: Tensor) -> Tensor:
            return right.Normalize(self.mean[0], self.std[0], self.inplace)(tensor)


class NormalizesInPlaceAlways(Fault):
    """The input is overwritten."""

    caught_by = f"{IN_USE}test_normalize_is_the_formula_channel_by_channel"
    says = r"the input afterwards differs|assert .* is .* == False|result is given_pixels"

    class Normalize(right.Normalize):
        def forward(self, tensor: Tensor) -> Tensor:
            return right.Normalize(self.mean, self.std, inplace=True)(tensor)


class DividesBeforeItSubtracts(Fault):
    """input / std − mean."""

    caught_by = f"{IN_USE}test_normalize_divides_by_the_standard_deviation_not_by_the_variance"
    says = r"got        5\.0\n.*expected   4\.0"

    class Normalize(right.Normalize):
        def forward(self, tensor: Tensor) -> Tensor:
            return right.Normalize(0.0, self.std)(tensor) - torch.tensor(self.mean).reshape(-1, 1, 1)


def _with_size(size: Callable[[Any], Any]) -> type:
    """`Resize` with another interpretation of its size."""

    class Resize(right.Resize):
        def __init__(self, requested: Any, *args: Any, **options: Any) -> None:
            super().__init__(size(requested), *args, **options)

    return Resize


class OneNumberMakesASquare(Fault):
    """One number gives a square, as the tutorial's comment states."""

    caught_by = f"{IN_USE}test_resize_to_one_number_makes_no_square"
    says = r"\(256, 256\) == \(384, 256\)"
    Resize = _with_size(lambda size: (size, size) if isinstance(size, int) else size)


class ResizesWidthFirst(Fault):
    """The size is (width, height), as in Pillow."""

    caught_by = f"{IN_USE}test_random_crop_pair_is_height_and_width"
    says = r"assert \(\d, \d\) == \(\d, \d\)"
    Resize = _with_size(lambda size: size if isinstance(size, int) else tuple(size)[::-1])


class OneNumberIsTheLongerSide(Fault):
    """The size applies to the longer side instead of the shorter one."""

    caught_by = f"{IN_USE}test_resize_to_one_number_sets_the_shorter_side_and_keeps_the_aspect_ratio"
    says = r"torch\.Size\(\[1, \d+, \d+\]\) == \(1, \d+, \d+\)"

    class Resize(right.Resize):
        def _new_size(self, height: int, width: int) -> tuple[int, int]:
            if isinstance(self.size, Sequence) and len(self.size) == 2:
                return super()._new_size(height, width)
            size = self.size if isinstance(self.size, int) else self.size[0]
            return max(1, size * height // max(height, width)), max(1, size * width // max(height, width))


class RoundsTheLongerSide(Fault):
    """The longer side is rounded to the nearest integer instead of down."""

    caught_by = f"{IN_USE}test_resize_to_one_number_sets_the_shorter_side_and_keeps_the_aspect_ratio"
    says = r"torch\.Size\(\[1, \d+, \d+\]\) == \(1, \d+, \d+\)"

    class Resize(right.Resize):
        def _new_size(self, height: int, width: int) -> tuple[int, int]:
            if isinstance(self.size, Sequence) and len(self.size) == 2:
                return super()._new_size(height, width)
            size = self.size if isinstance(self.size, int) else self.size[0]
            return round(size * height / min(height, width)), round(size * width / min(height, width))


class ForgetsToAntialiasTensors(Fault):
    """A tensor is shrunk without antialiasing."""

    caught_by = f"{IN_USE}test_a_resized_tensor_is_the_weighted_means_of_the_definition"
    says = r"the result differs"

    class Resize(right.Resize):
        def forward(self, image: Any) -> Any:
            self.antialias = None
            return super().forward(image)


class CornersAreAligned(Fault):
    """The centres of the corner pixels are aligned instead of the corners of the images."""

    caught_by = f"{IN_USE}test_a_resized_tensor_is_the_weighted_means_of_the_definition"
    says = r"the result differs"

    class Resize(right.Resize):
        def forward(self, image: Any) -> Any:
            if not isinstance(image, Tensor):
                return super().forward(image)
            batch = image.reshape(-1, 1, *image.shape[-2:]).to(torch.float32)
            new = self._new_size(*image.shape[-2:])
            resized = torch.nn.functional.interpolate(batch, size=new, mode="bilinear", align_corners=True)
            return resized.reshape(*image.shape[:-2], *new).to(image.dtype)


class ImagesAreResizedToTheNearest(Fault):
    """The interpolation is Pillow's default instead of bilinear."""

    caught_by = f"{IN_USE}test_a_resized_image_is_the_antialiased_definition_rounded_twice"
    says = r"half a unit along the rows"

    class Resize(right.Resize):
        def forward(self, image: Any) -> Any:
            new = self._new_size(image.height, image.width)
            return image.resize(new[::-1], Image.Resampling.NEAREST)


class BytesAreCutOff(Fault):
    """The result is truncated instead of rounded: 3.9 becomes 3."""

    caught_by = f"{IN_USE}test_resized_bytes_are_the_nearest_whole_numbers"
    says = r"half a unit, and what float32 adds"

    class Resize(right.Resize):
        def forward(self, image: Any) -> Any:
            return super().forward(image.to(torch.float32)).to(image.dtype)  # pyright: ignore[reportAttributeAccessIssue]


class CropsTheMiddle(Fault):
    """The crop is always at the same position."""

    caught_by = f"{IN_USE}test_random_crop_positions_are_equally_likely"
    says = r"assert \[1\] == \[0, 1, 2, 4, 5, 6\]"

    class RandomCrop(right.RandomCrop):
        def forward(self, image: Any) -> Any:
            height, width = image.shape[-2:]
            top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
            return image[..., top : top + self.size[0], left : left + self.size[1]]


class NeverCropsTheLastColumn(Fault):
    """The last position is never drawn, because `randint` excludes its end."""

    caught_by = f"{IN_USE}test_random_crop_positions_are_equally_likely"
    says = r"assert \[0, 1\] == \[0, 1, 2, 4, 5, 6\]"

    class RandomCrop(right.RandomCrop):
        def forward(self, image: Any) -> Any:
            height, width = image.shape[-2:]
            top = int(torch.randint(max(1, height - self.size[0]), (1,)))
            left = int(torch.randint(max(1, width - self.size[1]), (1,)))
            return image[..., top : top + self.size[0], left : left + self.size[1]]


class RoundsAUniformPlace(Fault):
    """The first and the last position are half as likely."""

    caught_by = f"{IN_USE}test_random_crop_positions_are_equally_likely"
    says = r"assert \[.*\d.*\] == \[\]"

    class RandomCrop(right.RandomCrop):
        def forward(self, image: Any) -> Any:
            height, width = image.shape[-2:]
            top = round(torch.rand(1).item() * (height - self.size[0]))
            left = round(torch.rand(1).item() * (width - self.size[1]))
            return image[..., top : top + self.size[0], left : left + self.size[1]]


class CropsWidthFirst(Fault):
    """The size is (width, height), as in Pillow."""

    caught_by = f"{IN_USE}test_largest_crop_of_the_photograph_is_512"
    says = r"crop size \(768, 512\) is larger"

    class RandomCrop(right.RandomCrop):
        def __init__(self, size: Any, *args: Any, **options: Any) -> None:
            super().__init__(size if isinstance(size, int) else size[::-1], *args, **options)


class CropsBeyondTheImage(Fault):
    """A window larger than the image is filled with black instead of being rejected."""

    caught_by = f"{IN_USE}test_random_crop_rejects"
    says = r"was accepted, but must be rejected"

    class RandomCrop(right.RandomCrop):
        def __init__(self, size: Any, *args: Any, **options: Any) -> None:
            super().__init__(size, *args, **options)
            self.pad_if_needed = True


class ReflectsTheLastPixelTwice(Fault):
    """ "reflect" is computed as "symmetric"."""

    caught_by = f"{IN_USE}test_every_crop_is_a_window_of_the_padded_image"
    says = r"no window of the padded image looks like this"

    class RandomCrop(right.RandomCrop):
        def __init__(self, *args: Any, padding_mode: str = "constant", **options: Any) -> None:
            super().__init__(*args, padding_mode=padding_mode.replace("reflect", "symmetric"), **options)


class FlipsUpsideDown(Fault):
    """The flip is vertical."""

    caught_by = f"{IN_USE}test_flip_reverses_columns_and_is_an_involution"
    says = r"assert \[\["

    class RandomHorizontalFlip(right.RandomHorizontalFlip):
        def forward(self, image: Any) -> Any:
            if isinstance(image, Tensor):
                return image.flip(-2)
            return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


class FlipsNever(Fault):
    """`p` is stored and not used."""

    caught_by = f"{IN_USE}test_random_flip_frequency_is_p"
    says = r"assert .* <= "

    class RandomHorizontalFlip(right.RandomHorizontalFlip):
        def forward(self, image: Any) -> Any:
            return image


class FlipsWhereItShouldNot(Fault):
    """The probability of a flip is 1 − p instead of p."""

    caught_by = f"{IN_USE}test_random_flip_frequency_is_p"
    says = r"assert .* <= "

    class RandomHorizontalFlip(right.RandomHorizontalFlip):
        def forward(self, image: Any) -> Any:
            return right.RandomHorizontalFlip(1 - self.p)(image)


class FlipsTheChannels(Fault):
    """The flip reverses the first dimension of a tensor."""

    caught_by = f"{IN_USE}test_flip_reverses_columns_and_is_an_involution"
    says = r"the result differs"

    class RandomHorizontalFlip(right.RandomHorizontalFlip):
        def forward(self, image: Any) -> Any:
            return image.flip(-3) if isinstance(image, Tensor) else super().forward(image)


class ComposesFromTheRight(Fault):
    """The transforms are applied from right to left, as in f ∘ g."""

    caught_by = f"{IN_USE}test_compose_applies_transforms_in_order"
    says = r"assert 31 == 40"

    class Compose(right.Compose):
        def __call__(self, image: Any) -> Any:
            return right.Compose(self.transforms[::-1])(image)  # pyright: ignore[reportIndexIssue]


class ComposesOnlyTheLast(Fault):
    """Every transform gets the original image."""

    caught_by = f"{IN_USE}test_compose_applies_transforms_in_order"
    says = r"assert 30 == 40"

    class Compose(right.Compose):
        def __call__(self, image: Any) -> Any:
            results = [transform(image) for transform in self.transforms]
            return results[-1] if results else image


class ComposePrintsOneLine(Fault):
    """The repr is that of a Python list."""

    caught_by = f"{IN_USE}test_compose_prints_one_transform_a_line"
    says = r"assert 'Compose\(\[resize"

    class Compose(right.Compose):
        def __repr__(self) -> str:
            return f"Compose({self.transforms})"


class DrawsTheColumnFirst(Fault):
    """The column of the window is drawn before its row."""

    caught_by = f"{IN_USE}test_random_crop_row_is_drawn_first_and_only_if_needed"
    says = r"the result differs"

    class RandomCrop(right.RandomCrop):
        def forward(self, image: Any) -> Any:
            rows, columns = self.size
            if tuple(image.shape[-2:]) == (rows, columns):
                return image
            left = int(torch.randint(image.shape[-1] - columns + 1, (1,)))
            top = int(torch.randint(image.shape[-2] - rows + 1, (1,)))
            return image[..., top : top + rows, left : left + columns]
