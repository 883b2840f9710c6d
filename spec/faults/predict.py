"""Chapter 20: wrong predictions; each lacks one step of the recipe."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from spec.faults import Fault


@dataclass
class Answer:
    image: Path
    classes: list[tuple[str, float]]
    error: str | None = None


class _Recipe:
    """The corrected recipe of the tutorial; each fault changes one step."""

    def files(self, images: Any) -> Iterator[Path]:
        for path in map(Path, [images] if isinstance(images, str | os.PathLike) else images):
            yield from self.folder(path) if path.is_dir() else [path]

    def folder(self, path: Path) -> list[Path]:
        inner = sorted(path.iterdir(), key=lambda entry: entry.name)
        shown = [entry for entry in inner if not entry.name.startswith(".")]
        folders = [entry for entry in shown if entry.is_dir() and not entry.is_symlink()]
        images = [entry for entry in shown if entry.suffix.lower() in (".png", ".jpg")]
        return images + [image for folder in folders for image in self.folder(folder)]

    def read(self, path: Path, size: tuple[int, int]) -> Tensor:
        with Image.open(path) as image:
            pixels = np.array(self.resized(self.converted(image), size))
        return self.scaled(torch.from_numpy(pixels).permute(2, 0, 1))

    def converted(self, image: Image.Image) -> Image.Image:
        return image.convert("RGB")

    def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    def scaled(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 255

    def scores(self, network: nn.Module, images: Tensor) -> Tensor:
        modes = {module: module.training for module in network.modules()}
        network.eval()
        scores = self.judged(network, images)
        for module, mode in modes.items():
            module.training = mode
        return scores

    def judged(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images)

    def shares(self, scores: Tensor) -> Tensor:
        return scores.double().softmax(dim=1)

    def named(self, names: list[str], shares: list[float], top_k: int) -> list[tuple[str, float]]:
        return sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1])[:top_k]

    def __call__(
        self,
        network: nn.Module,
        class_names: Any,
        images: Iterable[Any],
        *,
        top_k: int = 3,
        batch_size: int = 64,
        size: tuple[int, int] = (32, 32),
    ) -> Iterator[Answer]:
        if top_k < 1 or batch_size < 1:
            raise ValueError("top_k and batch_size must be at least 1")
        return self.answers(network, list(class_names), images, top_k, batch_size, size)

    def answers(
        self, network: nn.Module, names: list[str], paths: Any, top_k: int, batch_size: int, size: tuple[int, int]
    ) -> Iterator[Answer]:
        files = self.files(paths)
        while group := list(islice(files, batch_size)):
            errors, images = {}, []
            for place, path in enumerate(group):
                try:
                    images.append(self.read(path, size))
                except OSError as error:
                    errors[place] = f"{path}: {error}"
            rows: Iterator[list[float]] = iter(())
            if images:
                dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
                scores = self.scores(network, torch.stack(images).to(dtype))
                if scores.shape[1] != len(names):
                    raise ValueError(f"{scores.shape[1]} scores, but {len(names)} class names")
                rows = iter(self.shares(scores).tolist())
            for place, path in enumerate(group):
                if place in errors:
                    yield Answer(path, [], errors[place])
                else:
                    yield Answer(path, self.named(names, next(rows), top_k))


def _test(name: str) -> str:
    return f"test_20_inference.py::{name}"


def _called(recipe: type[_Recipe]) -> Any:
    return staticmethod(recipe())


class PixelsAreNotScaled(Fault):
    """The pixels are floats from 0 to 255, which the network accepts without an error."""

    caught_by = _test("test_probabilities_are_the_softmax_of_scores_in_the_order_of_class_names")
    says = r"class \w on \w+\.png"

    class _Wrong(_Recipe):
        def scaled(self, pixels: Tensor) -> Tensor:
            return pixels.double()

    predict = _called(_Wrong)


class ImagesAreNotConverted(Fault):
    """Images are not converted to RGB: a grey image has one channel."""

    caught_by = _test("test_images_of_every_mode_are_predicted")
    says = r"axes|channels|shape|expected|must match"

    class _Wrong(_Recipe):
        def converted(self, image: Image.Image) -> Image.Image:
            return image

    predict = _called(_Wrong)


class TheSmallerSideBecomes32(Fault):
    """Resize(32) instead of Resize((32, 32)), followed by a centre crop."""

    caught_by = _test("test_images_are_converted_resized_and_scaled_as_in_the_recipe")
    says = r"class \w on \w+\.png"

    class _Wrong(_Recipe):
        def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
            factor = max(size[1] / image.width, size[0] / image.height)
            larger = image.resize(
                (round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR
            )
            left, top = (larger.width - size[1]) // 2, (larger.height - size[0]) // 2
            return larger.crop((left, top, left + size[1], top + size[0]))

    predict = _called(_Wrong)


class HeightAndWidthAreExchanged(Fault):
    """The size is (width, height), as in Pillow."""

    caught_by = _test("test_predict_accepts_another_image_size")
    says = r"\(2, 3, 16, 8\)"

    class _Wrong(_Recipe):
        def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
            return image.resize(size, Image.Resampling.BILINEAR)

    predict = _called(_Wrong)


class ReshapeInsteadOfPermute(Fault):
    """The channels are moved to the front by reshape instead of permute."""

    caught_by = _test("test_probabilities_are_the_softmax_of_scores_in_the_order_of_class_names")
    says = r"class \w on \w+\.png"

    class _Wrong(_Recipe):
        def scaled(self, pixels: Tensor) -> Tensor:
            return pixels.permute(1, 2, 0).reshape(pixels.shape).float() / 255

    predict = _called(_Wrong)


class TrainingModeIsKept(Fault):
    """eval() is not called."""

    caught_by = _test("test_predict_uses_evaluation_mode_and_restores_the_mode")
    says = r"'class a' == 'class b'"

    class _Wrong(_Recipe):
        def scores(self, network: nn.Module, images: Tensor) -> Tensor:
            with torch.no_grad():
                return network(images)

    predict = _called(_Wrong)


class EvaluationModeStays(Fault):
    """The mode is not restored after eval(): a continued training has no dropout."""

    caught_by = _test("test_predict_uses_evaluation_mode_and_restores_the_mode")
    says = r"assert \[False, False, False\] == \[True"

    class _Wrong(_Recipe):
        def scores(self, network: nn.Module, images: Tensor) -> Tensor:
            network.eval()
            with torch.no_grad():
                return network(images)

    predict = _called(_Wrong)


class FrozenLayersAreThawed(Fault):
    """train() is called afterwards, also for a batch norm that was in evaluation mode."""

    caught_by = _test("test_predict_uses_evaluation_mode_and_restores_the_mode")
    says = r"assert \[True, True, True\] == \[True, False, True\]"

    class _Wrong(_Recipe):
        def scores(self, network: nn.Module, images: Tensor) -> Tensor:
            before = network.training
            network.eval()
            with torch.no_grad():
                scores = network(images)
            network.train(before)
            return scores

    predict = _called(_Wrong)


class GraphsAreKept(Fault):
    """no_grad() is not used."""

    caught_by = _test("test_predict_keeps_no_gradients_and_restores_grad_mode")
    says = r"\[True, True\] == \[False, False\]"

    class _Wrong(_Recipe):
        def judged(self, network: nn.Module, images: Tensor) -> Tensor:
            return network(images).detach()

    predict = _called(_Wrong)


class GradientsStayOff(Fault):
    """Gradients remain disabled for the caller between two answers."""

    caught_by = _test("test_predict_keeps_no_gradients_and_restores_grad_mode")
    says = r"is_grad_enabled"

    class _Wrong(_Recipe):
        def answers(self, *args: Any) -> Iterator[Answer]:  # pyright: ignore[reportIncompatibleMethodOverride]
            with torch.no_grad():
                yield from super().answers(*args)

    predict = _called(_Wrong)


class SoftmaxIsOverTheBatch(Fault):
    """The softmax is over the images (dim=0) instead of the classes."""

    caught_by = _test("test_batch_size_and_order_do_not_change_predictions")
    says = r"class \w on \w+\.png"

    class _Wrong(_Recipe):
        def shares(self, scores: Tensor) -> Tensor:
            return scores.double().softmax(dim=0)

    predict = _called(_Wrong)


class ScoresAreShares(Fault):
    """Scores are divided by their sum instead of using a softmax."""

    caught_by = _test("test_probabilities_are_the_softmax_of_scores_in_the_order_of_class_names")
    says = r"class \w on \w+\.png"

    class _Wrong(_Recipe):
        def shares(self, scores: Tensor) -> Tensor:
            return scores / scores.sum(dim=1, keepdim=True)

    predict = _called(_Wrong)


class NamesAreSorted(Fault):
    """The class names are sorted alphabetically, for any order of the scores."""

    caught_by = _test("test_a_network_with_the_highest_score_at_index_5_predicts_dog")
    says = r"=="

    class _Wrong(_Recipe):
        def named(self, names: list[str], shares: list[float], top_k: int) -> list[tuple[str, float]]:
            return super().named(sorted(names, reverse=True), shares, top_k)

    predict = _called(_Wrong)


class LeastProbableFirst(Fault):
    """The classes are sorted from the lowest to the highest probability."""

    caught_by = _test("test_probabilities_are_the_softmax_of_scores_in_the_order_of_class_names")
    says = r"the most probable class must come first"

    class _Wrong(_Recipe):
        def named(self, names: list[str], shares: list[float], top_k: int) -> list[tuple[str, float]]:
            return sorted(super().named(names, shares, len(names)), key=lambda pair: pair[1])[:top_k]

    predict = _called(_Wrong)


class TooFewNamesAreTaken(Fault):
    """Scores without a class name are left out silently."""

    caught_by = _test("test_another_number_of_names_than_scores_is_rejected")
    says = r"was accepted"

    class _Wrong(_Recipe):
        def scores(self, network: nn.Module, images: Tensor) -> Tensor:
            return super().scores(network, images)[:, : self.count]

        def answers(self, network: nn.Module, names: list[str], *args: Any) -> Iterator[Answer]:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.count = len(names)
            yield from super().answers(network, names[:10], *args)

    predict = _called(_Wrong)


class EverythingIsReadFirst(Fault):
    """All images are opened before the first batch."""

    caught_by = _test("test_predict_reads_an_endless_iterator_batch_by_batch")
    says = r"asked for more than a batch"

    class _Wrong(_Recipe):
        def files(self, images: Any) -> Iterator[Path]:
            return iter(list(super().files(islice(images, 100))))

    predict = _called(_Wrong)


class EverythingIsRemembered(Fault):
    """The pixels of all images are kept in memory."""

    caught_by = _test("test_predicted_images_are_released_from_memory")
    says = r"get_traced_memory"

    class _Wrong(_Recipe):
        def answers(self, *args: Any) -> Iterator[Answer]:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.memory: list[Any] = []
            yield from super().answers(*args)
            self.memory.clear()

        def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
            resized = super().resized(image, size)
            self.memory.append(np.array(resized))
            return resized

    predict = _called(_Wrong)


class ABrokenImageEndsIt(Fault):
    """Errors of Pillow are passed on."""

    caught_by = _test("test_an_unreadable_image_is_reported_and_the_rest_is_predicted")
    says = r"UnidentifiedImageError|cannot identify"

    class _Wrong(_Recipe):
        def read(self, path: Path, size: tuple[int, int]) -> Tensor:
            try:
                return super().read(path, size)
            except OSError as error:
                raise RuntimeError(str(error)) from error

    predict = _called(_Wrong)


class AnswersMoveUp(Fault):
    """After a broken image, every image gets the answer of the previous one."""

    caught_by = _test("test_batch_size_and_order_do_not_change_predictions")
    says = r"absent\.png|class \w on \w+\.png"

    class _Wrong(_Recipe):
        def answers(self, *args: Any) -> Iterator[Answer]:  # pyright: ignore[reportIncompatibleMethodOverride]
            answers = list(super().answers(*args))
            good = iter([answer.classes for answer in answers if answer.error is None])
            for answer in answers:
                yield Answer(answer.image, next(good, []), None)

    predict = _called(_Wrong)


class NotANumberIsAnAnswer(Fault):
    """Probabilities can be NaN."""

    caught_by = _test("test_nan_scores_are_an_error")
    says = r"\[False, False, False\] == \[True, True, False\]"
    predict = _called(_Recipe)


class FoldersAreNotEntered(Fault):
    """Images in sub-folders are left out."""

    caught_by = _test("test_folders_are_expanded_to_images_sorted_by_name_then_subfolders")
    says = r"2023"

    class _Wrong(_Recipe):
        def folder(self, path: Path) -> list[Path]:
            return [image for image in super().folder(path) if image.parent == path]

    predict = _called(_Wrong)


class CapitalsAreSmallLetters(Fault):
    """The names are sorted without regard to case: b before B."""

    caught_by = _test("test_folders_are_expanded_to_images_sorted_by_name_then_subfolders")
    says = r"B\.JPG"

    class _Wrong(_Recipe):
        def folder(self, path: Path) -> list[Path]:
            return sorted(super().folder(path), key=lambda image: (image.parent != path, image.as_posix().lower()))

    predict = _called(_Wrong)


class HiddenImagesAreAnswered(Fault):
    """Hidden files, such as thumbnails, are included."""

    caught_by = _test("test_folders_are_expanded_to_images_sorted_by_name_then_subfolders")
    says = r"hidden|thumbnails"

    class _Wrong(_Recipe):
        def folder(self, path: Path) -> list[Path]:
            return sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in (".png", ".jpg"))

    predict = _called(_Wrong)


class EmptyFoldersAreSilent(Fault):
    """A folder without images gives no error."""

    caught_by = _test("test_a_folder_without_images_is_reported_and_the_rest_is_predicted")
    says = r"empty|assert"
    predict = _called(_Recipe)
