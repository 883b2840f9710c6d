"""The tutorial's 49 listings, each run completely: the result is that of its clause.

`spec/support/listings.py` holds them. A listing "holds" if it runs as printed, or fails as it announces.
It is "refuted" if it fails. "imprecise" and "version-dependent" ones run under a condition; the tests run both cases.
"""

import io
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.models import VGG16_Weights
from torchvision.transforms.functional import to_pil_image

from spec.support.clauses import CLAUSES, clause
from spec.support.listings import LAYERS, LISTINGS, PHOTOGRAPH, Outcome, run, write_cifar10, write_photograph

VERDICTS = {"holds": True, "refuted": False}
"""Whether a listing of that verdict runs to its end as printed."""
ANNOUNCED = (738,)
"""The listings that fail according to the tutorial."""
IMPORTS = f"import torch\nfrom torch import nn\n{LAYERS}"


def clause_of(first: int) -> str:
    """The clause of the listing that begins at a line."""
    (name,) = (entry.id for entry in CLAUSES.values() if entry.id.endswith(f".listing.at_{first}"))
    return name


def as_printed(first: int, folder: Path, names: dict[str, Any] | None = None) -> Outcome:
    """Run a listing as printed, and compare its success with its verdict."""
    outcome = run(LISTINGS[first][1], folder, names)
    verdict = CLAUSES[clause_of(first)].verdict
    if first not in ANNOUNCED and verdict in VERDICTS:
        assert (outcome.error is None) == VERDICTS[verdict], outcome.error
    return outcome


def fails(outcome: Outcome, kind: type[Exception], line: int, match: str = "") -> None:
    """Assert that it ended with this error at this line of the tutorial."""
    assert type(outcome.error) is kind, repr(outcome.error)
    assert re.search(match, str(outcome.error)), outcome.error
    assert outcome.line == line


def test_all_49_listings_have_a_clause_with_line_numbers_and_a_test() -> None:
    assert len(LISTINGS) == 49
    assert {first: CLAUSES[clause_of(first)].lines for first in LISTINGS} == {
        first: (first, last) for first, (last, _) in LISTINGS.items()
    }
    assert {CLAUSES[clause_of(first)].kind for first in LISTINGS} == {"listing"}
    own = Path(__file__).read_text(encoding="utf-8")
    assert [first for first in LISTINGS if f'.listing.at_{first}"' not in own] == []


# 01


@clause("01.listing.at_37")
def test_the_data_set_of_chapter_01_stops_at_the_missing_colon(tmp_path: Path) -> None:
    fails(as_printed(37, tmp_path), SyntaxError, 62, "expected ':'")


# 02


@clause("02.listing.at_87")
def test_the_listing_of_the_line_writes_a_hundred_events(tmp_path: Path) -> None:
    outcome = as_printed(87, tmp_path)
    assert outcome.event_files("02testTB/logs") == 1
    events = outcome.board("02testTB/logs").Scalars("y=2x")
    assert [(event.step, event.value) for event in events] == [(i, 2.0 * i) for i in range(100)]


@contextmanager
def served(words: list[str], folder: Path) -> Iterator[None]:
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@clause("02.listing.at_100")
@pytest.mark.slow
def test_the_two_commands_of_chapter_02_write_and_serve_the_events(tmp_path: Path) -> None:
    (tmp_path / "02testTB").mkdir()
    (tmp_path / "02testTB/testTB.py").write_text(LISTINGS[87][1], encoding="utf-8")
    write, serve = (line.split() for line in LISTINGS[100][1].splitlines() if line)
    assert (write[0], serve[0]) == ("python", "tensorboard")
    subprocess.run([sys.executable, "-W", "ignore", *write[1:]], cwd=tmp_path, check=True)
    words = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", *serve[1:], "--load_fast=false"]
    port = 20_000 + time.time_ns() % 20_000  # the listing's 6007 may be taken on this machine
    with served([word.replace("--port=6007", f"--port={port}") for word in words], tmp_path):
        content, end = b"", time.monotonic() + 60
        while b"y=2x" not in content:
            assert time.monotonic() < end, content
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=5) as answer:
                    content = answer.read()
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)


@clause("02.listing.at_115")
def test_the_listing_of_the_array_writes_the_photograph(tmp_path: Path) -> None:
    write_photograph(tmp_path, "01test/dataset/train/ants_image/0013035.jpg")
    (event,) = as_printed(115, tmp_path).board("01test/logs").Images("img test")
    assert (event.step, event.width, event.height) == (1, *PHOTOGRAPH)


@clause("02.writer.name")
def test_there_is_no_summarywrite() -> None:
    # chapter 02, line 84
    with pytest.raises(ImportError, match="cannot import name 'Summarywrite'"):
        exec("from torch.utils.tensorboard import Summarywrite", {})
    exec("from torch.utils.tensorboard import SummaryWriter", {})


@clause("02.add_image.opencv")
def test_an_array_of_blue_green_red_exchanges_red_and_blue_on_the_board(tmp_path: Path) -> None:
    # chapter 02, line 85
    red = np.array(Image.new("RGB", (2, 2), (255, 0, 0)))
    assert red[0, 0].tolist() == [255, 0, 0]  # numpy.array keeps the order of the channels
    opencv = red[..., ::-1]  # as OpenCV reads the file of that image
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        writer.add_image("as it is", opencv, dataformats="HWC")
        writer.add_image("reversed", opencv[..., ::-1].copy(), dataformats="HWC")
    board = Outcome("", None, 0, {}, [], tmp_path).board("logs")
    assert pixel(board.Images("as it is")[0]) == (0, 0, 255)
    assert pixel(board.Images("reversed")[0]) == (255, 0, 0)


def pixel(event: Any) -> Any:
    """The first pixel of a logged image."""
    return Image.open(io.BytesIO(event.encoded_image_string)).getpixel((0, 0))


# 03, 04


@clause("03.listing.at_146")
def test_the_two_lines_on_gradients_lack_a_tensor(tmp_path: Path) -> None:
    fails(as_printed(146, tmp_path), NameError, 147, "'tensor_img' is not defined")


@clause("03.listing.at_153")
def test_the_listing_of_totensor_prints_and_writes_the_tensor(tmp_path: Path) -> None:
    write_photograph(tmp_path, "01test/dataset/train/ants_image/0013035.jpg")
    outcome = as_printed(153, tmp_path)
    assert outcome.out.startswith("tensor([[[0.3137, 0.3137, 0.3137,")
    (event,) = outcome.board("01test/logs").Images("tensor img")
    assert (event.step, event.width, event.height) == (1, *PHOTOGRAPH)


@clause("04.listing.at_188", "04.board.after_close")
def test_the_listing_of_normalize_writes_the_second_image_after_close(tmp_path: Path) -> None:
    write_photograph(tmp_path, "test/train/ants_image/0013035.jpg")
    outcome = as_printed(188, tmp_path)
    printed = outcome.out.splitlines()
    assert re.fullmatch(r"<PIL\.JpegImagePlugin\.JpegImageFile image mode=RGB size=768x512 at 0x\w+>", printed[0])
    assert printed[1:] == ["tensor(0.3137)", "tensor(-1.3725)"]
    assert outcome.event_files("test/logs") == 2  # lines 203 and 213: the second write opens a second file
    board = outcome.board("test/logs")
    assert {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]} == {
        "ToTensor": [0],
        "Normalize": [1],
    }


@clause("04.listing.at_222", "04.board.after_close")
@pytest.mark.slow
def test_the_listing_of_resize_and_crop_writes_thirteen_images_in_four_files(tmp_path: Path) -> None:
    write_photograph(tmp_path, "test/train/ants_image/0013035.jpg")
    outcome = as_printed(222, tmp_path)
    assert "\n(768, 512)\n" in outcome.out
    assert outcome.event_files("test/logs") == 4
    board = outcome.board("test/logs")
    shapes = {tag: {(event.height, event.width) for event in board.Images(tag)} for tag in board.Tags()["images"]}
    assert shapes == {
        "ToTensor": {(512, 768)},
        "Resize": {(512, 512)},
        "Resize_2": {(512, 768)},
        "RandomCrop": {(512, 512)},
    }
    assert [event.step for event in board.Images("RandomCrop")] == list(range(10))


# 05, 06


@clause("05.listing.at_277")
def test_the_first_listing_of_chapter_05_loads_the_training_set_twice(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset1", train=85, test=80)
    outcome = as_printed(277, tmp_path)
    assert outcome.error is None
    assert [len(outcome.names[name]) for name in ("train_set", "test_set")] == [85, 85]


@clause("05.listing.at_284")
def test_the_second_listing_of_chapter_05_writes_the_first_ten_training_images(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "dataset")
    outcome = as_printed(284, tmp_path)
    events = outcome.board("01test/logs").Images("test torchvison compose")
    assert [(event.step, event.width, event.height) for event in events] == [(i, 32, 32) for i in range(10)]
    first = to_pil_image(outcome.names["train_set"][0][0])
    assert pixel(events[0]) == first.getpixel((0, 0))


@clause("06.listing.at_324")
@pytest.mark.slow
def test_the_listing_of_the_loader_writes_the_full_batches_of_two_epochs(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "dataset", test=200)
    outcome = as_printed(324, tmp_path)
    assert outcome.out == "torch.Size([3, 32, 32])\n0\n"
    board = outcome.board("test/logs")
    tags = board.Tags()["images"]
    assert tags == ["Epoch: 0", "Epoch: 1"]
    # 200 images are three full batches of 64; the last 8 are left out
    assert [[event.step for event in board.Images(tag)] for tag in tags] == [[0, 1, 2], [0, 1, 2]]


# 07 to 11


@clause("07.listing.at_375")
def test_the_listing_of_the_skeleton_prints_two(tmp_path: Path) -> None:
    assert as_printed(375, tmp_path).out == "tensor(2.)\n"


@clause("08.listing.at_416")
def test_the_listing_of_conv2d_prints_both_matrices(tmp_path: Path) -> None:
    # lines 445 to 447 and 451 to 455
    first = [[10, 12, 12], [18, 16, 16], [13, 9, 3]]
    second = [[1, 3, 4, 10, 8], [5, 10, 12, 12, 6], [7, 18, 16, 16, 8], [11, 13, 9, 3, 4], [14, 13, 9, 7, 4]]
    printed = "".join(f"{torch.tensor([[rows]])}\n" for rows in (first, second))
    assert as_printed(416, tmp_path).out == printed


@clause("09.listing.at_488")
def test_the_listing_of_the_convolution_prints_shapes_and_writes_both_sides(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset")
    outcome = as_printed(488, tmp_path)
    # lines 537 to 543; of 80 images the second batch is the last one, of 16
    assert outcome.out.splitlines() == [
        "Ocean(",
        "  (conv1): Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1))",
        ")",
        *(f"torch.Size([{n}, {rest}])" for n in (64, 16) for rest in ("3, 32, 32", "6, 30, 30")),
    ]
    assert logged(outcome, "test/logs") == {"before conv2d": [0, 1], "after conv2d": [0, 1]}


@clause("09.listing.at_535")
def test_the_output_of_chapter_09_is_no_python(tmp_path: Path) -> None:
    fails(as_printed(535, tmp_path), SyntaxError, 538)


@clause("10.listing.at_572")
def test_the_listing_of_the_pooling_writes_both_sides(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset")
    outcome = as_printed(572, tmp_path)
    assert logged(outcome, "test/maxlogs") == {"input": [0, 1], "output": [0, 1]}
    assert outcome.names["ocean"](torch.zeros(64, 3, 32, 32)).shape == (64, 3, 10, 10)


@clause("11.listing.at_633")
def test_the_listing_of_relu_prints_shape_and_tensor(tmp_path: Path) -> None:
    # lines 665 to 667
    assert as_printed(633, tmp_path).out == ("torch.Size([1, 1, 2, 2])\ntensor([[[[1., 0.],\n          [0., 3.]]]])\n")


@clause("11.listing.at_676")
def test_the_listing_of_sigmoid_writes_both_sides(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset")
    assert logged(as_printed(676, tmp_path), "test/maxlogs") == {"input_Sigmoid": [0, 1], "output_Sigmoid": [0, 1]}


def logged(outcome: Outcome, logs: str) -> dict[str, list[int]]:
    """The steps of each tag of images."""
    board = outcome.board(logs)
    return {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]}


# 12, 13


@clause("12.listing.at_738")
def test_the_listing_of_the_linear_layer_fails_at_the_last_batch_as_announced(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset")
    outcome = as_printed(738, tmp_path)
    fails(outcome, RuntimeError, 760, r"mat1 and mat2 shapes cannot be multiplied \(1x49152 and 196608x10\)")
    assert outcome.out.splitlines() == [
        *("torch.Size([64, 3, 32, 32])", "torch.Size([1, 1, 1, 196608])", "torch.Size([1, 1, 1, 10])"),
        *("torch.Size([16, 3, 32, 32])", "torch.Size([1, 1, 1, 49152])"),
    ]


@clause("12.listing.at_781", "12.listing.not_called")
def test_the_listing_of_flatten_prints_shapes_without_calling_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(nn.Linear, "forward", lambda *_: called.append("Linear"))
    write_cifar10(tmp_path, "test/dataset")
    outcome = as_printed(781, tmp_path)
    # lines 814 to 823
    assert outcome.out.splitlines() == [
        *("torch.Size([64, 3, 32, 32])", "torch.Size([196608])"),
        *("torch.Size([16, 3, 32, 32])", "torch.Size([49152])"),
    ]
    assert isinstance(outcome.names["ocean"], nn.Module)  # line 806 makes it
    assert called == []


@clause("13.listing.at_847")
def test_the_listing_without_sequential_fails_at_the_class_statement(tmp_path: Path) -> None:
    fails(as_printed(847, tmp_path), TypeError, 854, r"module\(\) takes at most 2 arguments \(3 given\)")


@clause("13.listing.at_847")
def test_the_listing_without_sequential_needs_two_more_corrections(tmp_path: Path) -> None:
    text = LISTINGS[847][1].replace("nn.modules", "nn.Module")
    fails(run(text, tmp_path), TypeError, 884, "takes 1 positional argument but 2 were given")
    text = text.replace("ocean = Ocean  #", "ocean = Ocean()  #")
    assert isinstance(run(text, tmp_path).error, NotImplementedError)
    head, inner = text.split("\n        def forward")
    body, rest = inner.split("\n\nocean")
    outcome = run(
        f"{head}\n    def forward{body.replace(chr(10) + ' ' * 12, chr(10) + ' ' * 8)}\n\nocean{rest}", tmp_path
    )
    assert outcome.error is None
    assert outcome.out.endswith("torch.Size([64, 10])\n")


@clause("13.listing.at_890")
@pytest.mark.slow
def test_the_listing_with_sequential_prints_and_writes_the_graph(tmp_path: Path) -> None:
    outcome = as_printed(890, tmp_path)
    assert outcome.out.startswith("Ocean(\n  (model1): Sequential(\n    (0): Conv2d(3, 32, ")
    assert outcome.out.endswith("torch.Size([64, 10])\n")
    assert outcome.event_files("test/maxlogs") == 1
    assert outcome.board("test/maxlogs").Tags()["graph"]


# 14, 15


@clause("14.listing.at_965")
def test_the_listing_of_the_l1_loss_prints_the_value(tmp_path: Path) -> None:
    assert as_printed(965, tmp_path).out == "tensor(0.6667)\n"  # line 983


@clause("14.listing.at_996")
def test_the_listing_of_the_mse_loss_prints_the_value(tmp_path: Path) -> None:
    assert as_printed(996, tmp_path).out == "tensor(4.)\n"  # line 1015


@clause("14.listing.at_1026", "14.listing.unused")
def test_the_value_of_the_cross_entropy_listing_does_not_depend_on_the_unused_tensors(tmp_path: Path) -> None:
    assert as_printed(1026, tmp_path).out == "tensor(1.1019)\n"  # line 1048
    text = LISTINGS[1026][1]
    for numbers in ("[1, 2, 3]", "[1, 2, 5]"):
        assert text.count(numbers) == 1
        text = text.replace(numbers, "[7, 8, 9]")
    assert run(text, tmp_path).out == "tensor(1.1019)\n"


@clause("14.listing.at_1053")
def test_the_listing_of_backward_prints_ok_for_each_image(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset", test=20)
    outcome = as_printed(1053, tmp_path)
    assert outcome.out == "ok\n" * 20
    assert outcome.names["ocean"].model1[8].out_features == 64


@clause("15.listing.at_1102", "15.listing.test_set")
@pytest.mark.slow
def test_the_listing_of_the_optimizer_prints_twenty_sums_and_trains_on_the_test_set(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/dataset", train=10, test=80)
    outcome = as_printed(1102, tmp_path)
    lines = outcome.out.splitlines()
    assert len(lines) == 20
    assert all(re.fullmatch(r"tensor\(\d+\.\d{4}, grad_fn=<AddBackward0>\)", line) for line in lines)
    assert len(outcome.names["data"]) == 80  # line 1111: train=False
    assert outcome.names["data"].train is False


# 16, 17


@clause("16.listing.at_1169")
@pytest.mark.parametrize("online", [False, True], ids=["without a network", "with the weights"])
def test_the_listing_of_vgg16_needs_the_weights(online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    if online:
        with torch.device("meta"):
            weights = torchvision.models.vgg16().state_dict()
        monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda *_, **__: weights)
    write_cifar10(tmp_path, "test/dataset")
    with torch.device("meta"):  # networks without numbers: there are 138 million in each
        outcome = as_printed(1169, tmp_path)
    assert len([text for text in outcome.warnings if "deprecated since 0.13" in text]) == 4
    if not online:
        fails(outcome, URLError, 1180, "no network")
        return
    assert outcome.error is None
    assert outcome.out.count("VGG(") == 2
    assert "\n  (7): Linear(in_features=1000, out_features=10, bias=True)\n)\n" in outcome.out
    assert outcome.out.endswith("(6): Linear(in_features=4096, out_features=10, bias=True)\n  )\n)\n")


@clause("16.listing.at_1193")
def test_the_output_of_chapter_16_is_no_python(tmp_path: Path) -> None:
    fails(as_printed(1193, tmp_path), SyntaxError, 1195)


@clause("17.listing.at_1301")
def test_the_listing_of_method_1_is_refused_by_default_and_runs_with_weights_only_false(tmp_path: Path) -> None:
    with torch.device("meta"):
        fails(as_printed(1301, tmp_path), UnpicklingError, 1310, "Weights only load failed")
        trusting = LISTINGS[1301][1].replace('method1.pth")  #', 'method1.pth", weights_only=False)  #')
        outcome = run(trusting, tmp_path)
    assert outcome.error is None
    assert outcome.out.startswith("VGG(\n  (features): Sequential(\n")


@clause("17.listing.at_1318")
def test_the_listing_of_method_2_saves_a_bound_method_and_loading_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        fails(as_printed(1318, tmp_path), UnpicklingError, 1328, "Weights only load failed")
        trusting = LISTINGS[1318][1].replace('method2.pth")  # 1328', 'method2.pth", weights_only=False)  # 1328')
        outcome = run(trusting, tmp_path)
    assert outcome.error is None
    assert outcome.out.startswith("<bound method Module.state_dict of VGG(")


@clause("17.listing.at_1339", "17.listing.at_1368", "17.listing.at_1388")
def test_the_listings_of_the_pitfall_lack_imports(tmp_path: Path) -> None:
    fails(as_printed(1339, tmp_path), NameError, 1342, "'nn' is not defined")
    fails(as_printed(1368, tmp_path), NameError, 1369, "'torch' is not defined")
    fails(as_printed(1388, tmp_path), NameError, 1389, "'nn' is not defined")


@clause("17.listing.at_1339", "17.listing.at_1368", "17.listing.at_1388")
def test_the_listings_of_the_pitfall_with_imports_save_fail_and_define(tmp_path: Path) -> None:
    assert run(IMPORTS + LISTINGS[1339][1], tmp_path).error is None
    assert (tmp_path / "ocean_save_method1.pth").is_file()
    loads = "import torch\n" + LISTINGS[1368][1]
    fails(run(loads, tmp_path), FileNotFoundError, 1369, "test/ocean_save_method1.pth")
    loads = loads.replace("test/", "")
    fails(run(loads, tmp_path), UnpicklingError, 1369, "Weights only load failed")
    loads = loads.replace('.pth")', '.pth", weights_only=False)')
    fails(run(loads, tmp_path), AttributeError, 1369, r"Can't get attribute 'Ocean' on <module '__main__'")
    outcome = run(IMPORTS + LISTINGS[1388][1] + loads, tmp_path)
    assert outcome.error is None
    assert outcome.names["ocean"](torch.ones(2, 3, 32, 32)).shape == (2, 10)


@clause("17.listing.at_1374")
def test_the_error_of_chapter_17_is_no_python(tmp_path: Path) -> None:
    fails(as_printed(1374, tmp_path), SyntaxError, 1375)


@clause("17.listing.at_1384")
def test_the_placeholder_of_chapter_17_is_no_module(tmp_path: Path) -> None:
    fails(as_printed(1384, tmp_path), ModuleNotFoundError, 1385, "No module named 'xxxx'")


# 18 to 21


@clause("18.listing.at_1415")
def test_the_listing_of_model_py_prints_the_output_shape(tmp_path: Path) -> None:
    assert as_printed(1415, tmp_path).out == "torch.Size([64, 10])\n"


def trained(first: int, folder: Path, *changes: tuple[str, str], images: int = 592, epochs: int = 10) -> Outcome:
    """Run a training, as printed or with changes, on a few images, and check its output and files.

    Args:
        first: The listing.
        folder: Its working folder.
        changes: Pairs of a text in the listing and its replacement.
        images: The size of the training set; both sizes leave a last batch of 16, as 50,000 do.
        epochs: The expected number of epochs.
    """
    write_cifar10(folder, "test/data", train=images, test=80)
    (folder / "model.py").write_text(LISTINGS[1415][1], encoding="utf-8")
    text = LISTINGS[first][1]
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    outcome = run(text, folder) if changes else as_printed(first, folder)
    if outcome.error is not None:
        raise outcome.error
    steps = epochs * -(-images // 64)
    lines = outcome.out.splitlines()
    seconds = [float(line) for line in lines if re.fullmatch(r"\d+\.\d+", line)]
    assert len(seconds) == (steps // 100 if "time() - start" in text else 0)
    lines = [line for line in lines if not re.fullmatch(r"\d+\.\d+", line)]
    assert lines[:2] == [f"训练数据集的长度为：{images}", "测试数据集的长度为：80"]
    assert [line for line in lines if "轮训练开始" in line] == [
        f"-------第 {i} 轮训练开始-------" for i in range(1, epochs + 1)
    ]
    every = [line for line in lines if re.fullmatch(r"训练次数：\d+, Loss: \d+\.\d+", line)]
    assert [int(line[5:].partition(",")[0]) for line in every] == list(range(100, steps + 1, 100))
    assert lines.count("模型已保存") == epochs
    assert len(lines) == 2 + 4 * epochs + len(every)
    board = outcome.board("test/logs_train")
    expected = {"test_loss": list(range(epochs)), "test_accuracy": list(range(epochs))}
    if steps >= 100:
        expected["train_loss"] = list(range(100, steps + 1, 100))
    assert {tag: [event.step for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]} == expected
    return outcome


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


@clause("18.listing.at_1451", "18.listing.checkpoints")
@pytest.mark.slow
def test_train_py_runs_ten_epochs(tmp_path: Path) -> None:
    trained(1451, tmp_path)
    assert files(tmp_path) == {f"ocean_{i}.pth" for i in range(10)}


@clause("19.listing.at_1569")
@pytest.mark.slow
def test_the_listing_of_method_1_runs_with_a_gpu_or_without(tmp_path: Path) -> None:
    trained(1569, tmp_path)
    assert files(tmp_path) == {f"ocean_{i}.pth" for i in range(10)}


@clause("19.listing.at_1726")
def test_the_line_with_a_leading_blank_is_an_indentation_error(tmp_path: Path) -> None:
    fails(as_printed(1726, tmp_path), IndentationError, 1727, "unexpected indent")


@clause("19.listing.at_1732", "19.listing.at_1739")
def test_the_lines_on_devices_lack_torch_and_leave_the_second_device(tmp_path: Path) -> None:
    fails(as_printed(1732, tmp_path), NameError, 1733, "'torch' is not defined")
    fails(as_printed(1739, tmp_path), NameError, 1740, "'torch' is not defined")
    left = [run("import torch\n" + LISTINGS[first][1], tmp_path).names["device"] for first in (1732, 1739)]
    assert left == [torch.device("cuda:0"), torch.device("cuda:1")]


@clause("19.listing.at_1744", "20.listing.at_1911", "19.listing.hard_coded", "20.recipe.device")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and cuda:0 is one")
@pytest.mark.parametrize(("first", "line"), [(1744, 1800), (1911, 1967)])
def test_the_listings_with_cuda_0_fail_where_the_network_is_moved(first: int, line: int, tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test/data")
    outcome = as_printed(first, tmp_path)
    assert isinstance(outcome.error, RuntimeError | AssertionError)  # without a driver, without CUDA
    assert re.search("NVIDIA|CUDA", str(outcome.error))
    assert outcome.line == line


@clause("19.listing.at_1744")
@pytest.mark.slow
def test_the_listing_of_method_2_runs_ten_epochs_on_a_device_that_is_there(tmp_path: Path) -> None:
    trained(1744, tmp_path, ('"cuda:0"', '"cpu"'))
    assert files(tmp_path) == {f"ocean_{i}.pth" for i in range(10)}


@clause("20.listing.at_1911", "20.listing.at_2060", "20.recipe.fifty_epochs", "20.recipe.file_name")
@pytest.mark.slow
def test_fifty_epochs_leave_fifty_files_and_the_check_asks_for_another(tmp_path: Path) -> None:
    outcome = trained(1911, tmp_path, ('"cuda:0"', '"cpu"'), images=80, epochs=50)
    # lines 1988 and 2050: number 9 is of the tenth epoch, number 49 is the network as the training left it
    assert files(tmp_path) == {f"ocean_{i}_pp.pth" for i in range(50)}
    write_photograph(tmp_path, "test/images/dog2.jpg")
    fails(as_printed(2060, tmp_path), FileNotFoundError, 2102, r"\./ocean_9_p\.pth")
    checks = {}
    for number in (9, 49):
        text = LISTINGS[2060][1].replace("ocean_9_p.pth", f"ocean_{number}_pp.pth")
        fails(run(text, tmp_path), UnpicklingError, 2102, "Weights only load failed")
        checks[number] = run(text.replace("map_location", "weights_only=False, map_location"), tmp_path)
        assert checks[number].error is None
        assert re.search(r"\ntensor\(\[\[.+\]\]\)\ntensor\(\[\d\]\)\n$", checks[number].out, re.DOTALL)
    last = outcome.names["ocean"].state_dict()
    for number, same in ((9, False), (49, True)):
        state = checks[number].names["model"].state_dict()
        assert all(torch.equal(value, last[name]) for name, value in state.items()) is same


@clause("20.listing.at_2060")
def test_the_check_of_chapter_20_as_printed_finds_no_file(tmp_path: Path) -> None:
    write_photograph(tmp_path, "test/images/dog2.jpg")
    outcome = as_printed(2060, tmp_path)
    fails(outcome, FileNotFoundError, 2102, r"\./ocean_9_p\.pth")
    assert outcome.out.startswith("<PIL.Image.Image image mode=RGB size=768x512 at ")
    assert "\ntensor([[[" in outcome.out


@clause("21.listing.at_2154", "21.listing.at_2158", "21.listing.at_2163")
def test_the_cells_of_chapter_21_need_the_first_cell_of_the_session(tmp_path: Path) -> None:
    for first, line in ((2158, 2159), (2163, 2164)):
        fails(as_printed(first, tmp_path), NameError, line, "'torch' is not defined")
    session = as_printed(2154, tmp_path).names
    session = {"torch": session["torch"]}
    assert as_printed(2158, tmp_path, session).out == f"{torch.__version__}\n"
    assert as_printed(2163, tmp_path, session).out == f"{torch.cuda.is_available()}\n"


@clause("18.print.format")
def test_train_py_with_ten_images_prints_the_number_of_images(tmp_path: Path) -> None:
    # chapter 18, line 1468: 如果train_data_size=10, 训练数据集的长度为：10
    outcome = trained(1451, tmp_path, ("range(10)", "range(1)"), images=10, epochs=1)
    assert outcome.out.startswith("训练数据集的长度为：10\n测试数据集的长度为：80\n")


class Clock:
    """A `time` module that records the step of each call."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def time(self) -> float:
        names = sys._getframe(1).f_globals
        self.asked.append(names["steps"])
        return float(len(self.asked))


@clause("19.listing.end_time", "20.recipe.end_time", "21.timer.end_time")
@pytest.mark.parametrize("first", [1744, 1911, 2173])
@pytest.mark.slow
def test_the_listings_with_a_timer_never_record_the_end_time(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch of 250 steps and 80 steps of testing: the time is read at the beginning and at steps 100 and 200."""
    clock = Clock()
    monkeypatch.setitem(sys.modules, "time", clock)
    write_cifar10(tmp_path, "test/data", train=250, test=80)
    epochs = 50 if first == 1911 else 10
    text = LISTINGS[first][1]
    for before, after in (('"cuda:0"', '"cpu"'), ("batch_size=64", "batch_size=1"), (f"range({epochs})", "range(1)")):
        assert before in text or before == '"cuda:0"'
        text = text.replace(before, after)
    outcome = run(text.replace("is_available()", "is_available() and False"), tmp_path)
    assert outcome.error is None, outcome.error
    assert clock.asked == [0, 100, 200]
    assert outcome.names["steps"] == 250
    assert re.findall(r"^\d\.\d$", outcome.out, re.MULTILINE) == ["1.0", "2.0"]
    # at full size the last step of fifty epochs is timed, but not the test after it; of ten epochs not even that
    steps = len(DataLoader(range(50_000), batch_size=64))  # pyright: ignore[reportArgumentType]
    assert [steps * epochs % 100 for epochs in (10, 50)] == [20, 0]


@clause("21.listing.at_2173", "21.epochs.files")
@pytest.mark.slow
def test_the_listing_for_colab_runs_ten_epochs_and_leaves_ten_files(tmp_path: Path) -> None:
    trained(2173, tmp_path)
    assert files(tmp_path) == {f"ocean_{i}.pth" for i in range(10)}
