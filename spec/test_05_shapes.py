"""Chapter 05: the embedded data set `Shapes`: its images, their reproducibility, and networks that can learn it."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

from spec.support.assertions import rejects
from spec.support.clauses import clause

Make = Callable[..., Any]

# SHA-256 of the images' bytes for seed 0, recorded when the definition was final. A changed pixel changes the data set
# on which every published figure was measured.
TRAIN_DIGEST = "ae7e18adb121cbd18e65912210d34359bccb519cf619473a2a69cf18326bbbc4"
TEST_DIGEST = "76bbaab0b10a7a9e9125086acb28dce97e77c7864ff0ea53348732359a9b4e18"


@pytest.fixture(scope="module")
def train(Shapes: Make) -> Any:
    return Shapes()


@pytest.fixture(scope="module")
def test(Shapes: Make) -> Any:
    return Shapes(train=False)


def digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


# The oracle: the drawing rule again, one pixel at a time in Python's own integers.

MASK = 2**64 - 1

INSIDE: dict[str, Callable[[int, int], bool]] = {
    "circle": lambda u, v: u**2 + v**2 <= 1521,
    "ring": lambda u, v: 1296 <= u**2 + v**2 <= 2809,
    "square": lambda u, v: -34 <= u <= 34 and -34 <= v <= 34,
    "triangle": lambda u, v: v <= 41 and v + 2 * u >= -56 and v - 2 * u >= -56,
    "plus": lambda u, v: (abs(u) <= 12 and abs(v) <= 54) or (abs(v) <= 12 and abs(u) <= 54),
    "cross": lambda u, v: abs(u) <= 46 and abs(v) <= 46 and (abs(u - v) <= 15 or abs(u + v) <= 15),
    "bars": lambda u, v: -44 <= u <= 44 and (-40 <= v <= -14 or 14 <= v <= 40),
    "hourglass": lambda u, v: -48 <= v <= 48 and -abs(v) <= u <= abs(v),
    "crescent": lambda u, v: u**2 + v**2 <= 2809 and not (u - 26) ** 2 + v**2 <= 1521,
    "corner": lambda u, v: -44 <= u <= 44 and -44 <= v <= 44 and (u <= -12 or v <= -12),
}


def splitmix64(state: int, number: int) -> int:
    z = (state + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def drawn_one_pixel_at_a_time(seed: int, train: bool, index: int) -> tuple[list[int], int]:
    """The 3·32·32 values of an image, channel by channel and row by row, and its class number."""
    state = splitmix64(2 * seed + (0 if train else 1), 0)
    block = [splitmix64(state, 398 * i) for i in range(index - index % 10, index - index % 10 + 10)]
    target = sorted(block).index(block[index % 10])
    inside = INSIDE[list(INSIDE)[target]]

    w = [splitmix64(state, 398 * index + k) for k in range(398)]
    size, left, top, k, turns = 20 + w[1] % 9, w[2] % 19 - 9, w[3] % 19 - 9, w[4] % 9 - 4, w[5] % 4
    a = (1024 - k * k) * 16384 // ((1024 + k * k) * size)
    b = 64 * k * 16384 // ((1024 + k * k) * size)
    for _ in range(turns):
        a, b = -b, a
    grain = b"".join(word.to_bytes(8, "little") for word in w[14:])

    values = []
    for c in range(3):
        ground, figure = w[6 + c] % 64, 192 + w[9 + c] % 64
        for row in range(32):
            for column in range(32):
                x, y = 2 * column - 31, 2 * row - 31
                u = (a * (x - left) + b * (y - top)) >> 8
                v = (a * (y - top) - b * (x - left)) >> 8
                light = ((w[12] % 25 - 12) * x + (w[13] % 25 - 12) * y) >> 5
                speck = (grain[1024 * c + 32 * row + column] >> 3) - 16
                value = (figure if inside(u, v) else ground) + light + speck
                values.append(min(max(value, 0), 255))
    return values, target


@clause("05.shapes.rule")
def test_oracle_generator_is_splitmix64() -> None:
    # The first outputs for state 1234567 in the generator's published test vectors.
    assert [splitmix64(1234567, number) for number in range(2)] == [6457827717110365317, 3203168211198807973]


@clause("05.shapes.rule")
@pytest.mark.parametrize(
    ("seed", "part", "index"),
    [(0, "train", i) for i in range(10)]  # one of each class
    + [(0, "train", 4321), (0, "test", 0), (0, "test", 1999), (7, "train", 12), (2**63 - 1, "test", 3)],
)
def test_an_image_follows_the_drawing_rule(Shapes: Make, seed: int, part: str, index: int) -> None:
    shapes = Shapes(train=part == "train", size=index + 1, seed=seed)
    values, target = drawn_one_pixel_at_a_time(seed, part == "train", index)
    assert shapes.targets[index].item() == target
    assert shapes.images[index].flatten().tolist() == values


@clause("05.shapes.rule")
def test_the_default_images_are_the_recorded_ones(Shapes: Make, train: Any, test: Any) -> None:
    assert digest(train.images) == TRAIN_DIGEST
    assert digest(test.images) == TEST_DIGEST


PROGRAM = """
import hashlib, torch
{import_line}
torch.manual_seed(5)
shapes = Shapes(size=1005, seed=3)
print(torch.get_num_threads(), hashlib.sha256(shapes.images.numpy().tobytes()).hexdigest(), shapes.targets.tolist())
"""


@pytest.mark.slow
@clause("05.shapes.everywhere")
def test_another_process_with_other_settings_draws_the_same(Shapes: Make) -> None:
    here = Shapes(size=1005, seed=3)
    threads = 2 if torch.get_num_threads() == 1 else 1
    program = PROGRAM.format(import_line=Shapes._import_line)  # pyright: ignore[reportFunctionMemberAccess]
    environment = os.environ | {"PYTHONHASHSEED": "99", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{threads} {digest(here.images)} {here.targets.tolist()}"


@clause("05.shapes.everywhere")
def test_drawing_leaves_torch_s_generator_alone(Shapes: Make) -> None:
    before = torch.get_rng_state()
    Shapes(size=10)
    assert torch.equal(torch.get_rng_state(), before)


@clause("05.shapes.beginning")
@pytest.mark.parametrize("size", [1, 9, 10, 199, 200, 201, 1000])
def test_a_smaller_data_set_is_the_beginning_of_a_larger_one(Shapes: Make, train: Any, size: int) -> None:
    few = Shapes(size=size)
    assert torch.equal(few.images, train.images[:size])
    assert torch.equal(few.targets, train.targets[:size])


@clause("05.shapes.size")
def test_there_are_9600_training_and_2000_test_images_of_3x32x32_bytes(Shapes: Make, train: Any, test: Any) -> None:
    for shapes, count in [(train, 9600), (test, 2000)]:
        assert len(shapes) == count
        assert shapes.images.dtype == torch.uint8
        assert shapes.images.shape == (count, 3, 32, 32)
        assert shapes.images.is_contiguous()
        assert shapes.targets.dtype == torch.int64
        assert shapes.targets.shape == (count,)


@clause("05.shapes.classes")
def test_the_ten_classes_have_names(Shapes: Make, train: Any) -> None:
    assert train.classes == tuple(INSIDE)
    assert len(set(train.classes)) == 10


@clause("05.shapes.balance")
def test_every_block_of_ten_has_every_class_once(Shapes: Make, train: Any, test: Any) -> None:
    for shapes in (train, test):
        blocks = shapes.targets.reshape(-1, 10).sort(dim=1).values
        assert torch.equal(blocks, torch.arange(10).expand_as(blocks))


@clause("05.shapes.mixed")
def test_the_order_of_the_classes_is_mixed(Shapes: Make, train: Any) -> None:
    blocks = train.targets.reshape(-1, 10)
    # 960 blocks out of 10! = 3,628,800 orders: 960² / 2 / 10! = 0.13 pairs of equal ones are expected.
    assert len(blocks.unique(dim=0)) >= 960 - 4
    # Each class is at each position 96 times on average, standard deviation √(960 · 0.1 · 0.9) = 9.3; five of them.
    places = torch.stack([one_hot(blocks[:, place], 10).sum(0) for place in range(10)])
    assert (places - 96).abs().max() <= 46


@clause("05.shapes.disjoint")
def test_no_image_occurs_twice_within_or_between_train_and_test(Shapes: Make, train: Any, test: Any) -> None:
    images = {image.numpy().tobytes() for shapes in (train, test) for image in shapes.images}
    assert len(images) == len(train) + len(test)


@clause("05.shapes.seeds")
def test_different_seeds_draw_different_images_in_a_different_order(Shapes: Make) -> None:
    one, other = Shapes(size=100, seed=1), Shapes(size=100, seed=2)
    assert (one.images != other.images).flatten(1).any(dim=1).all()
    assert not torch.equal(one.targets, other.targets)


@clause("05.shapes.seeds")
def test_images_of_different_seeds_and_splits_do_not_overlap(Shapes: Make) -> None:
    """For the seeds 0 to 31, large seeds and random seeds, both parts are drawn, and no image is in two of them."""
    generator = np.random.default_rng(0)
    seeds = {*range(32), *(2**k for k in (16, 31, 32, 62)), 2**63 - 1, *generator.integers(0, 2**63, 27).tolist()}
    drawn: dict[bytes, tuple[int, bool]] = {}
    for seed in seeds:
        for part in (True, False):
            for image in Shapes(part, size=2, seed=seed).images:
                assert (before := drawn.setdefault(image.numpy().tobytes(), (seed, part))) == (seed, part), before
    assert len(drawn) == 2 * 2 * len(seeds)


@clause("05.shapes.size")
def test_pixel_values_span_0_to_255(Shapes: Make, train: Any) -> None:
    assert train.images.min() == 0
    assert train.images.max() == 255


@clause("05.shapes.items")
def test_an_item_is_an_image_and_a_class_number(Shapes: Make, train: Any) -> None:
    image, target = train[3]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert image.getpixel((5, 7)) == tuple(train.images[3, :, 7, 5].tolist())
    assert type(target) is int
    assert target == train.targets[3]


@clause("05.shapes.items")
def test_transforms_are_applied_when_an_item_is_taken(Shapes: Make) -> None:
    shapes = Shapes(True, lambda image: image.size, lambda target: -target, size=10)
    assert [shapes[i] for i in range(10)] == [((32, 32), -target) for target in shapes.targets.tolist()]


@clause("05.shapes.items")
@pytest.mark.parametrize("index", [10, -11, 10**6])
def test_an_item_beyond_the_end_is_an_index_error(Shapes: Make, index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index}"):
        Shapes(size=10)[index]


@clause("05.shapes.rejects")
@pytest.mark.parametrize("size", [0, -1, True, False])
def test_a_size_that_is_not_positive_is_refused_by_name(Shapes: Make, size: int) -> None:
    with rejects(naming=rf"size.*positive.*{size!r}"):
        Shapes(size=size)


@clause("05.shapes.rejects")
@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_a_seed_out_of_range_is_refused_by_name(Shapes: Make, seed: int) -> None:
    with rejects(naming=rf"seed.*{seed!r}"):
        Shapes(size=10, seed=seed)


@clause("05.shapes.rejects")
@pytest.mark.parametrize("parameter", ["size", "seed"])
@pytest.mark.parametrize("value", [2.0, "10"])
def test_a_size_or_seed_of_another_type_is_refused_by_name(Shapes: Make, parameter: str, value: Any) -> None:
    with rejects(naming=parameter):
        Shapes(**{"size": 10, parameter: value})


# Learning the data set


def best_linear_accuracy(train_features: Tensor, train: Any, test_features: Tensor, test: Any) -> float:
    """The best test accuracy among the linear classifiers of least squares, regularized lightly to heavily (ridge)."""
    mean = train_features.mean(dim=0)
    centred = train_features - mean
    moments = centred.T @ centred
    products = centred.T @ (one_hot(train.targets, 10) - 0.1)
    accuracies = []
    for strength in (0.01, 1.0, 10.0):
        penalty = strength * moments.diagonal().mean() * torch.eye(len(moments))
        weight = torch.cholesky_solve(products, torch.linalg.cholesky(moments + penalty))
        predicted = ((test_features - mean) @ weight).argmax(dim=1)
        accuracies.append((predicted == test.targets).double().mean().item())
    return max(accuracies)


def pixels(shapes: Any) -> Tensor:
    return shapes.images.flatten(1) / 255


def brightness(shapes: Any) -> Tensor:
    return shapes.images.float().mean(dim=1).flatten(1) / 255


def mean_colour(shapes: Any) -> Tensor:
    return shapes.images.float().mean(dim=(2, 3)) / 255


def colour_histogram(shapes: Any) -> Tensor:
    """The share of the pixels in each of 8 equal ranges of each channel, `[n, 3 · 8]`."""
    levels = (shapes.images // 32).flatten(2).numpy()
    counts = np.stack([np.count_nonzero(levels == level, axis=2) for level in range(8)], axis=2)
    return torch.from_numpy(counts).flatten(1) / 1024


@pytest.mark.slow
@clause("05.shapes.linear")
@pytest.mark.parametrize("features", [pixels, brightness])
def test_linear_model_accuracy_is_below_60_percent(
    Shapes: Make, train: Any, test: Any, features: Callable[[Any], Tensor]
) -> None:
    accuracy = best_linear_accuracy(features(train), train, features(test), test)
    assert 0.2 < accuracy < 0.6  # better than chance (0.1): the classifier itself works


@clause("05.shapes.colour")
@pytest.mark.parametrize("features", [mean_colour, pytest.param(colour_histogram, marks=pytest.mark.slow)])
def test_class_is_not_predictable_from_colour(
    Shapes: Make, train: Any, test: Any, features: Callable[[Any], Tensor]
) -> None:
    accuracy = best_linear_accuracy(features(train), train, features(test), test)
    # Chance is 0.1, standard deviation over 2,000 images √(0.1 · 0.9 / 2000) = 0.0067; half of one in ten above it.
    assert accuracy < 0.15


@pytest.mark.slow
@clause("05.shapes.learnable")
@pytest.mark.timeout(1800)  # 1,500 training steps; a minute or so on two cores, and no limit worth a false alarm
def test_the_tutorials_network_and_recipe_pass_90_percent(Shapes: Make, train: Any, test: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10)),
        )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(10):
        for images, targets in zip(train.images.split(64), train.targets.split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images / 255), targets).backward()
            optimizer.step()
    with torch.no_grad():
        hits = sum(
            int((network(x / 255).argmax(1) == y).sum())
            for x, y in zip(test.images.split(500), test.targets.split(500), strict=True)
        )
    assert hits / len(test) > 0.9
