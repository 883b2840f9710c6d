"""Chapter 20: `predict`, for images and folders."""

import itertools
import math
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from reference import inference
from reference.models import Ocean
from spec.support.assertions import rejects
from spec.support.cifar_archives import CLASSES
from spec.support.clauses import clause
from spec.support.images import pixels_of, random_image
from spec.support.prediction import EXACT_SCORES, NAMES, assert_answer, by_the_recipe, noise, softmax
from spec.support.strategies import given, whole

Predict = Callable[..., Iterator[Any]]


@pytest.fixture
def ocean() -> Ocean:
    """The tutorial's network."""
    return Ocean()


# `predict` with images


def exact_network() -> nn.Sequential:
    """A network with scores that are multiples of 1/64 below 2⁸, so that all its sums are exact in float32."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with torch.no_grad():
        network[1].weight.copy_(whole(10, 3072, seed=1, dtype=torch.float32, largest=2) / 64)  # pyright: ignore[reportCallIssue]
        network[1].bias.copy_(whole(10, seed=2, dtype=torch.float32, largest=20) / 64)  # pyright: ignore[reportCallIssue]
    return network


def exact_shares(path: Path) -> dict[str, float]:
    """The right answers of `exact_network`, in plain Python."""
    layer = exact_network()[1].cpu()
    with Image.open(path) as image:
        bits = [value / 255 for channel in pixels_of(image) for row in channel for value in row]
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)  # pyright: ignore[reportCallIssue]
    return dict(
        zip(
            NAMES, softmax([math.fsum(map(float.__mul__, weights, bits)) + bias for weights, bias in rows]), strict=True
        )
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, float]]:
    """Eight images, and their right answers."""
    folder = tmp_path_factory.mktemp("noise")
    return {path: exact_shares(path) for path in (noise(folder / f"{seed}.png", seed) for seed in range(8))}


@clause("20.predict.recipe")
@pytest.mark.parametrize("top_k", [1, 3, 10, 99])
def test_probabilities_are_the_softmax_of_scores_in_the_order_of_class_names(
    predict: Predict, images: dict[Path, dict[str, float]], top_k: int
) -> None:
    answers = list(predict(exact_network(), NAMES, list(images), top_k=top_k))
    for answer, (path, expected) in zip(answers, images.items(), strict=True):
        assert_answer(answer, path, expected, min(top_k, 10), EXACT_SCORES)


@clause("20.predict.recipe")
def test_the_probabilities_of_all_classes_sum_to_one(predict: Predict, images: dict[Path, Any]) -> None:
    for answer in predict(exact_network(), NAMES, list(images), top_k=10):
        assert math.fsum(share for _, share in answer.classes) == pytest.approx(1, abs=EXACT_SCORES)


def spirited(network: Ocean) -> Ocean:
    """The network in float64 with larger weights, so that its answers differ between images."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network.double()


@clause("20.predict.recipe", "20.predict.images")
@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (32, 32)), ("RGB", (70, 50)), ("L", (20, 300)), ("P", (33, 32)), ("1", (70, 50))]
)
def test_images_are_converted_resized_and_scaled_as_in_the_recipe(
    predict: Predict, ocean: Ocean, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    network, path = spirited(ocean), tmp_path / "it.png"
    random_image(mode, *size, seed=0).save(path)
    expected, tolerance = by_the_recipe(network, path)
    assert tolerance < 1e-4
    [answer] = predict(network, NAMES, [path], top_k=10)
    assert_answer(answer, path, expected, 10, tolerance)


@clause("20.predict.images")
def test_an_opaque_alpha_channel_does_not_change_the_prediction(predict: Predict, ocean: Ocean, tmp_path: Path) -> None:
    image = random_image("RGB", 40, 30, seed=0)
    image.save(tmp_path / "without.png")
    image.putalpha(255)
    image.save(tmp_path / "with.png")
    one, other = predict(spirited(ocean), NAMES, [tmp_path / "without.png", tmp_path / "with.png"], batch_size=1)
    assert one.classes == other.classes


@clause("20.predict.images")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_images_of_every_mode_are_predicted(predict: Predict, tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"it.{'tiff' if mode in ('CMYK', 'F') else 'png'}"
    random_image(mode, 40, 30, seed=0).save(path)
    [answer] = predict(exact_network(), NAMES, [path])
    assert (answer.error, len(answer.classes)) == (None, 3)


@clause("20.predict.images")
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (5000, 4000)], ids=lambda size: "x".join(map(str, size))
)
def test_images_of_every_size_are_predicted(predict: Predict, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size, 1).save(tmp_path / "it.png")  # one bit a pixel: the file and the image stay small
    [answer] = predict(exact_network(), NAMES, [tmp_path / "it.png"])
    assert (answer.error, len(answer.classes)) == (None, 3)


@clause("20.predict.size")
def test_predict_accepts_another_image_size(predict: Predict, tmp_path: Path) -> None:
    shapes = []

    class Listening(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape))
            return torch.zeros(len(images), 10)

    paths = [noise(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    list(predict(Listening(), NAMES, paths, size=(8, 16), batch_size=2))
    assert shapes == [(2, 3, 8, 16), (1, 3, 8, 16)]


@clause("20.predict.batches")
@given(
    order=st.lists(st.integers(0, 7), max_size=12),
    batch_size=st.integers(1, 13),
    broken=st.sets(st.integers(0, 11), max_size=3),
)
def test_batch_size_and_order_do_not_change_predictions(
    predict: Predict, images: dict[Path, dict[str, float]], order: list[int], batch_size: int, broken: set[int]
) -> None:
    paths = [list(images)[number] for number in order]
    asked = [path.with_name("absent.png") if place in broken else path for place, path in enumerate(paths)]
    answers = list(predict(exact_network(), NAMES, asked, batch_size=batch_size))
    assert [Path(answer.image) for answer in answers] == asked
    for answer, path in zip(answers, asked, strict=True):
        if path in images:
            assert_answer(answer, path, images[path], 3, EXACT_SCORES)
        else:
            assert answer.classes == []
            assert "absent.png" in answer.error


@clause("20.predict.streams")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_predict_reads_an_endless_iterator_batch_by_batch(
    predict: Predict, images: dict[Path, Any], batch_size: int
) -> None:
    asked = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(images):
            asked.append(path)
            yield path

    answers = predict(exact_network(), NAMES, endless(), batch_size=batch_size)
    for answered in range(1, 10):
        next(answers)
        assert answered <= len(asked) < answered + batch_size, f"asked for more than a batch: {len(asked)} images"


@clause("20.predict.streams")
def test_predicted_images_are_released_from_memory(predict: Predict, images: dict[Path, Any]) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    pixels, count = 256 * 256 * 3, 24
    answers = predict(network, NAMES, itertools.islice(itertools.cycle(images), count), size=(256, 256), batch_size=2)
    next(answers)
    tracemalloc.start()
    try:
        assert sum(1 for _ in answers) == count - 1
        assert tracemalloc.get_traced_memory()[1] < count * pixels / 4
    finally:
        tracemalloc.stop()


class Moody(nn.Module):
    """A network that returns its mode as scores, and records whether gradients are enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.zeros(10))
        self.gradients: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.gradients.append(torch.is_grad_enabled())
        self.first(images)
        score = torch.zeros(len(images), 10) + self.weight
        score[:, 0] = 5.0 * (self.training or self.first.training or self.second.training)
        score[:, 1] = 1.0
        return score


@clause("20.predict.mode")
@pytest.mark.parametrize("training", [(True, True), (True, False), (False, True), (False, False)])
def test_predict_uses_evaluation_mode_and_restores_the_mode(
    predict: Predict, images: dict[Path, Any], training: tuple[bool, bool]
) -> None:
    """The mode is restored between two answers, after the caller stops early, and after an error."""
    network = Moody()
    network.train(training[0])
    network.first.train(training[1])  # as a batch norm that is frozen
    before = network.first.running_mean.clone()  # pyright: ignore[reportOptionalMemberAccess]

    def modes() -> list[bool]:
        return [network.training, network.first.training, network.second.training]

    asked = [training[0], training[1], training[0]]
    answers = predict(network, NAMES, list(images), batch_size=2)
    assert modes() == asked
    for _ in range(3):
        assert next(answers).classes[0][0] == "class b"
        assert modes() == asked
    del answers
    assert modes() == asked
    assert torch.equal(network.first.running_mean, before)  # pyright: ignore[reportArgumentType]
    with rejects(naming="class names"):
        list(predict(network, NAMES[:9], list(images)))
    assert modes() == asked


@clause("20.predict.gradients")
def test_predict_keeps_no_gradients_and_restores_grad_mode(predict: Predict, images: dict[Path, Any]) -> None:
    network = Moody()
    for _ in predict(network, NAMES, list(images), batch_size=4):
        assert torch.is_grad_enabled()
    assert network.gradients == [False, False]


@clause("20.predict.unreadable")
def test_an_unreadable_image_is_reported_and_the_rest_is_predicted(
    predict: Predict, images: dict[Path, dict[str, float]], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_text("no image")
    whole_image = next(iter(images))
    (tmp_path / "cut.png").write_bytes(whole_image.read_bytes()[:-500])
    paths = [whole_image, *(tmp_path / name for name in ("broken.png", "absent.png", "cut.png")), whole_image]
    answers = list(predict(exact_network(), NAMES, paths))
    assert [answer.error is None for answer in answers] == [True, False, False, False, True]
    for answer, path in zip(answers[1:4], paths[1:4], strict=True):
        assert path.name in answer.error
        assert "\n" not in answer.error
    assert_answer(answers[4], whole_image, images[whole_image], 3, EXACT_SCORES)


@clause("20.predict.finite")
def test_nan_scores_are_an_error(predict: Predict, images: dict[Path, Any]) -> None:
    class Spoilt(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scores = torch.zeros(len(images), 10)
            scores[0, 3] = torch.nan
            scores[1, 3] = torch.inf
            return scores

    answers = list(predict(Spoilt(), NAMES, list(images)[:3]))
    assert [answer.classes == [] for answer in answers] == [True, True, False]
    assert "0.png" in answers[0].error
    assert "not finite" in answers[0].error


@clause("20.predict.network")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_predict_uses_the_dtype_of_the_network(
    predict: Predict, images: dict[Path, dict[str, float]], dtype: torch.dtype
) -> None:
    path = next(iter(images))
    [answer] = predict(exact_network().to(dtype), NAMES, [path])
    # scores of up to 2³ in the network's dtype; products and images are exact, PyTorch sums bfloat16 in float32
    error = 2**3 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    assert_answer(answer, path, images[path], 3, math.expm1(2 * error) + EXACT_SCORES)


@clause("20.predict.network")
def test_a_network_without_parameters_can_predict(predict: Predict, images: dict[Path, Any]) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the mean red, green and blue
    [answer] = predict(network, ["red", "green", "blue"], list(images)[:1])
    assert len(answer.classes) == 3


@clause("20.predict.arguments")
def test_one_path_may_be_given_alone_and_as_a_string(predict: Predict, images: dict[Path, dict[str, float]]) -> None:
    path = next(iter(images))
    for asked in (path, str(path), [str(path)]):
        [answer] = predict(exact_network(), NAMES, asked)
        assert_answer(answer, path, images[path], 3, EXACT_SCORES)


@clause("20.predict.arguments")
@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_impossible_batch_size_and_top_k_are_rejected_before_prediction(
    predict: Predict, wrong: dict[str, int]
) -> None:
    with rejects(naming=next(iter(wrong))):
        predict(exact_network(), NAMES, [], **wrong)


@clause("20.predict.arguments")
@pytest.mark.parametrize("count", [9, 11])
def test_another_number_of_names_than_scores_is_rejected(predict: Predict, images: dict[Path, Any], count: int) -> None:
    with rejects(naming=rf"{count} class names"):
        list(predict(exact_network(), [str(number) for number in range(count)], list(images)))


@clause("20.predict.calibration")
def test_probabilities_order_the_classes_but_are_not_calibrated(predict: Predict, images: dict[Path, Any]) -> None:
    """The scores times eight: the same classes with probabilities close to 1."""
    network, sure = exact_network(), exact_network()
    with torch.no_grad():
        for parameter in sure.parameters():
            parameter.mul_(8)
    for one, other in zip(*(predict(n, NAMES, list(images), top_k=10) for n in (network, sure)), strict=True):
        assert [name for name, _ in one.classes] == [name for name, _ in other.classes]
        assert other.classes[0][1] > one.classes[0][1]


@clause("20.recipe.dog_and_cat")
@pytest.mark.parametrize(("number", "animal"), [(5, "dog"), (3, "cat")])
def test_a_network_with_the_highest_score_at_index_5_predicts_dog(
    predict: Predict, images: dict[Path, Any], number: int, animal: str
) -> None:
    # chapter 20, lines 2122 and 2128: tensor([5]) is a dog, tensor([3]) a cat; the author's images and weights are not
    # available
    network = exact_network()
    with torch.no_grad():
        network[1].bias[number] = 100  # pyright: ignore[reportIndexIssue]
    [answer] = predict(network, CLASSES, next(iter(images)), top_k=1)
    assert answer.classes[0][0] == animal


# Folders


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of images and other files."""
    root = tmp_path / "photos"
    for name in ("b.png", "B.JPG", "a.png", "10.png", "9.png", ".hidden.png", "notes.txt", "2024/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (root / name).write_text("no image")
        else:
            noise(root / name, seed=len(name))
    for name in ("2023/june/y.png", "2023/z.png", ".thumbnails/t.png", "empty/.keep"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(root / "a.png", seed=0)
        (root / name).write_bytes((root / "a.png").read_bytes())
    (root / "2023" / "back").symlink_to(root, target_is_directory=True)
    (root / "2023" / "link.png").symlink_to(root / "a.png")
    (root / "2023" / "nowhere.png").symlink_to(root / "gone.png")
    return root


IN_ORDER = [
    *("10.png", "9.png", "B.JPG", "a.png", "b.png"),
    *("2023/link.png", "2023/nowhere.png", "2023/z.png", "2023/june/y.png", "2024/x.png"),
]


@clause("20.predict.folders")
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_folders_are_expanded_to_images_sorted_by_name_then_subfolders(
    predict: Predict, tree: Path, batch_size: int
) -> None:
    """Code point by code point; hidden ones and other files are left out, links to folders are not followed."""
    answers = list(predict(exact_network(), NAMES, [tree], batch_size=batch_size))
    assert [Path(answer.image).relative_to(tree).as_posix() for answer in answers] == IN_ORDER
    assert [Path(answer.image).name for answer in answers if answer.error] == ["nowhere.png"]
    for answer in answers:
        if not answer.error:
            assert_answer(answer, Path(answer.image), exact_shares(Path(answer.image)), 3, EXACT_SCORES)


@clause("20.predict.folders")
def test_files_and_folders_are_answered_in_the_order_of_the_arguments(predict: Predict, tree: Path) -> None:
    (tree / "a.png").rename(tree / "no-extension")
    asked = [tree / "2024", tree / ".hidden.png", str(tree / "2023" / "june"), tree / "no-extension", tree / "2024"]
    answers = list(predict(exact_network(), NAMES, asked, batch_size=2))
    assert [Path(answer.image).name for answer in answers] == [
        *("x.png", ".hidden.png", "y.png", "no-extension", "x.png")
    ]  # fmt: skip
    assert [answer.error for answer in answers] == [None] * 5


@clause("20.predict.folders")
def test_answers_are_drawn_in_rows_of_up_to_six(tree: Path) -> None:
    widths = {}
    for count in (2, 6, 7):
        widths[count] = inference.draw_answers([(tree / "9.png", "cat", 0.5)] * count, ("cat", "dog")).width
    assert widths[7] == widths[6] > 2.5 * widths[2]


@clause("20.predict.folders")
def test_a_folder_without_images_is_reported_and_the_rest_is_predicted(predict: Predict, tree: Path) -> None:
    answers = list(predict(exact_network(), NAMES, [tree / "empty", tree / "9.png"]))
    assert Path(answers[0].image) == tree / "empty"
    assert "no images" in answers[0].error
    assert answers[1].error is None


@clause("20.predict.folders")
def test_an_unreadable_folder_is_reported_and_the_rest_is_predicted(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user who runs the tests may have all permissions, so the system's error is simulated."""
    real = os.scandir

    def refusing(folder: str | os.PathLike[str]) -> Any:
        if Path(folder).name == "june":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    answers = list(inference.predict(exact_network(), NAMES, tree))
    assert [answer.image.relative_to(tree).as_posix() for answer in answers] == [
        "2023/june" if name == "2023/june/y.png" else name for name in IN_ORDER
    ]
    assert "june: this folder cannot be read (Permission denied)" in str(answers[-2].error)
