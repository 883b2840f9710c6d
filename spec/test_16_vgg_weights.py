"""Chapter 16: the trained weights of VGG16, the listing that loads them, and ImageNet."""

import hashlib
import pickle
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

import reference
from reference.errors import InputError
from reference.models.pretrained import read_weights
from spec.support.assertions import rejects
from spec.support.clauses import clause
from spec.support.vgg_networks import PRINTED, PRINTED_REPLACED, Make, firsts, on_meta, tiny_state
from spec.support.zip_lies import LIES

# Trained weights


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in network.state_dict().items():
        assert torch.equal(value.cpu(), state[name]), name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch.hub for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "home" / "hub" / "checkpoints"


def in_cache(cache: Path) -> list[str]:
    """The names of the files in the cache, without the empty lock file for a second process."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock" or path.stat().st_size > 0]


class Publisher:
    """A server for files of this machine that counts the requests for each."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.withheld = 0  # bytes at the end of a file that never arrive
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append(self.path)
                content = publisher.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write((content or b"")[: -publisher.withheld or None])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture
def publisher(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("reference.data.download.PAUSE", 0.0)
    publisher = Publisher()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()


@pytest.fixture
def published(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a weight file to which VGG16_Weights.IMAGENET1K_V1 refers from now on."""
    torch.save(tiny_state(), tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    name = f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    publisher.files[f"/{name}"] = content
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", publisher.address(name))
    return name


@clause("16.listing.pretrained")
def test_the_warning_about_pretrained_names_the_line_of_the_call() -> None:
    with pytest.warns(UserWarning, match="pretrained is deprecated") as caught:
        on_meta(lambda: reference.vgg16(pretrained=False))
    assert caught[0].filename == __file__


@clause("16.weights.enum")
@pytest.mark.slow
def test_trained_weights_are_fetched_once_and_loaded(
    vgg16: Make, published: str, publisher: Publisher, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in (VGG16_Weights.IMAGENET1K_V1, "IMAGENET1K_V1"):
        assert_holds(vgg16(weights=weights, progress=False), tiny_state())
    assert publisher.asked == [f"/{published}"]
    assert in_cache(cache) == [published]
    assert capsys.readouterr().err == ""


@clause("16.weights.enum", "16.vgg16.seed")
@pytest.mark.slow
def test_loading_weights_draws_the_random_numbers_of_torchvision(published: str) -> None:
    """Set the seed, so that a new last layer starts from the same numbers."""
    found = []
    for make in (reference.vgg16, torchvision.models.vgg16):
        torch.manual_seed(5)
        make(weights=VGG16_Weights.DEFAULT, progress=False)
        found.append(torch.rand(3).tolist())
    assert found[0] == found[1]


@clause("16.weights.enum")
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(VGG16_Weights.IMAGENET1K_V1, id="a member"),
        pytest.param("DEFAULT", id="its other name"),
        pytest.param("VGG16_Weights.IMAGENET1K_V1", id="its full name"),
    ],
)
def test_weights_are_accepted_as_enum_member_and_name(
    weights: Any, published: str, publisher: Publisher, cache: Path
) -> None:
    for _ in range(2):
        source, state = read_weights(weights, "VGG16_Weights", progress=False)
        assert firsts(state) == firsts(tiny_state())
        assert source == str(cache / published)
    assert publisher.asked == [f"/{published}"]


@clause("16.weights.enum")
def test_trained_weights_have_a_thousand_classes(vgg16: Make, published: str) -> None:
    with rejects(naming="classifier.6|num_classes"):
        on_meta(vgg16, weights="DEFAULT", num_classes=10, progress=False)


@clause("16.weights.enum")
def test_torchvision_lists_the_documented_weights() -> None:
    """The attributes of the real member: its file, and the content of the file."""
    member = VGG16_Weights.DEFAULT
    assert member is VGG16_Weights.IMAGENET1K_V1
    assert re.fullmatch(r"https://download\.pytorch\.org/models/vgg16-[0-9a-f]{8}\.pth", member.url)
    assert member.meta["num_params"] == 138_357_544
    assert len(member.meta["categories"]) == 1000
    assert member.meta["min_size"] == (32, 32)
    assert (member.transforms().crop_size, member.transforms().resize_size) == ([224], [256])


@clause("16.weights.hash")
@pytest.mark.parametrize("fault", ["another byte", "cut off"])
def test_a_file_with_another_hash_is_refused_and_nothing_is_left(
    vgg16: Make, published: str, publisher: Publisher, cache: Path, fault: str
) -> None:
    if fault == "cut off":
        publisher.withheld = 100
    else:
        publisher.files[f"/{published}"] += b"!"
    with rejects(naming="hash value|IncompleteRead|wrong checksum, SHA-256|connection broke after"):
        on_meta(vgg16, weights="DEFAULT", progress=False)
    assert in_cache(cache) == []


@clause("16.weights.hash")
def test_download_stops_at_the_size_listed_by_torchvision(
    published: str, publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(publisher.files[f"/{published}"])
    meta = VGG16_Weights.IMAGENET1K_V1.value.meta
    for told, fits in ((size / 2**20, True), (size / 2**20 - 0.01, False)):
        monkeypatch.setitem(meta, "_file_size", round(told, 3))
        if fits:
            assert read_weights("DEFAULT", "VGG16_Weights", progress=False)[0] == str(cache / published)
            (cache / published).unlink()
        else:
            with rejects(naming=rf"its file has {size:,} bytes, at most .* are right"):
                read_weights("DEFAULT", "VGG16_Weights", progress=False)
    assert in_cache(cache) == []


@clause("16.weights.hash")
def test_weights_are_fetched_with_the_project_downloader(
    published: str, publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    publisher.withheld = 1
    with rejects(naming="the connection broke after"):
        read_weights("DEFAULT", "VGG16_Weights", progress=False)
    publisher.withheld = 0
    assert read_weights("DEFAULT", "VGG16_Weights", progress=False)[0] == str(cache / published)


@clause("16.weights.cached")
def test_a_damaged_file_in_the_cache_is_named(published: str, publisher: Publisher, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / published).write_bytes(publisher.files[f"/{published}"][:-1])
    with rejects(naming=rf"{re.escape(str(cache / published))} is damaged.*remove it"):
        reference.vgg16(weights="DEFAULT", progress=False)
    assert publisher.asked == []


@clause("16.weights.offline")
@pytest.mark.parametrize("missing", ["no such file", "no server"])
def test_offline_error_names_the_url_and_the_cache_path(
    publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    address = publisher.address("vgg16-397923af.pth")
    if missing == "no server":
        publisher.server.shutdown()
        publisher.server.server_close()
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", address)
    with pytest.raises(InputError) as caught:
        reference.vgg16(weights="DEFAULT", progress=False)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert f"fetch {address} (528 MB, its SHA-256 begins with 397923af)" in said
    assert f"put it at {cache / 'vgg16-397923af.pth'}, or give the path of the file as weights=" in said
    assert in_cache(cache) == []
    # and a file in this place is used if it is the right one
    (cache / "vgg16-397923af.pth").write_bytes(b"")
    with pytest.raises(InputError, match="SHA-256 does not begin with 397923af"):
        reference.vgg16(weights="DEFAULT", progress=False)


@clause("16.weights.unknown")
def test_an_unknown_name_is_refused(vgg16: Make) -> None:
    with pytest.raises((KeyError, ValueError), match="IMAGENET22K"):
        on_meta(vgg16, weights="IMAGENET22K")


@clause("16.weights.unknown")
def test_unknown_weights_error_lists_the_known_names() -> None:
    with rejects(naming="'IMAGENET22K' is unknown; there is IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT"):
        reference.vgg16(weights="IMAGENET22K")
    with rejects(naming="weights must be None, a VGG16_Weights, its name or a path, got 3"):
        reference.vgg16(weights=3)
    with rejects(naming="weights must be None, a VGG16_Weights"):
        reference.vgg16(weights=torchvision.models.VGG11_Weights.DEFAULT)


@clause("16.weights.unknown")
def test_without_torchvision_a_name_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with rejects(naming="weights='DEFAULT' needs torchvision.*pip install torchvision; or give the path"):
        reference.vgg16(weights="DEFAULT")


@clause("16.weights.checked")
@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("it ends too early"), "it ends too early"), (KeyError("x"), "its instructions make no sense")],
    ids=["a checked fault", "another error"],
)
def test_a_damaged_file_of_weights_is_named_with_the_reason(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Any:
        raise error

    torch.save({}, tmp_path / "mine.pth")
    monkeypatch.setattr("reference.models.pretrained.read_zip", failing)
    with pytest.raises(InputError, match=f"mine.pth is damaged or cut off: {reason}$"):
        reference.vgg16(weights=tmp_path / "mine.pth")


@clause("16.weights.file")
def test_the_weights_of_a_file_are_loaded_into_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[dict[str, float]] = []
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda _, state: loaded.append(firsts(state)))
    torch.save(tiny_state(10), tmp_path / "mine.pth")
    on_meta(reference.vgg16, weights=tmp_path / "mine.pth")
    assert loaded == [firsts(tiny_state(10))]


@clause("16.weights.file")
@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False], ids=["today's format", "the format before PyTorch 1.6"])
def test_the_reference_loads_a_state_dict_from_a_file(tmp_path: Path, zipped: bool) -> None:
    torch.save(tiny_state(10), tmp_path / "mine.pth", _use_new_zipfile_serialization=zipped)
    network = reference.vgg16(weights=tmp_path / "mine.pth", dropout=0.25)
    assert_holds(network, tiny_state(10))
    assert "Dropout(p=0.25" in str(network)
    assert all(parameter.requires_grad for parameter in network.parameters())


@clause("16.weights.file")
@pytest.mark.parametrize(
    "change", [torch.Tensor.half, torch.Tensor.bfloat16, nn.Parameter], ids=["half", "bf", "Parameter"]
)
def test_weights_that_float32_holds_exactly_are_accepted(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = tiny_state() | {"features.0.bias": change(torch.ones(64))}
    torch.save(state, tmp_path / "mine.pth")
    source, found = read_weights(str(tmp_path / "mine.pth"), "VGG16_Weights", progress=False)
    expected = on_meta(reference.vgg16).state_dict()
    reference.models.pretrained.check_state(source, found, expected, "VGG16")  # pyright: ignore[reportAttributeAccessIssue]
    assert firsts(found) == firsts(state)


class Trap:
    """Opening it would leave a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tiny_state().items() if key != name}


@clause("16.weights.checked")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(without("features.28.bias"), "'features.28.bias' is missing", id="an entry missing"),
        pytest.param(
            tiny_state() | {"7.weight": torch.ones(10, 1000)}, "'7.weight' does not belong there", id="the tutorial's 7"
        ),
        pytest.param(
            tiny_state() | {"features.0.weight": torch.ones(64, 3, 5, 5)},
            r"features.0.weight has the shape \(64, 3, 5, 5\), not \(64, 3, 3, 3\)",
            id="another shape",
        ),
        pytest.param(
            tiny_state() | {"features.0.bias": torch.ones(64, dtype=torch.float64)},
            "features.0.bias is torch.float64, which torch.float32 does not hold without rounding",
            id="float64",
        ),
        pytest.param(
            tiny_state() | {"features.0.bias": torch.ones(64, dtype=torch.int64)}, "is torch.int64", id="integers"
        ),
        pytest.param(tiny_state() | {"features.0.bias": [0.0]}, "is no tensor but a list", id="a list"),
        pytest.param(tiny_state() | {3: torch.ones(1)}, "3 does not belong there", id="a number as key"),
        pytest.param({"state_dict": tiny_state()}, "'features.0.weight' is missing", id="a dictionary around it"),
        pytest.param({}, "'features.0.weight' is missing", id="nothing"),
        pytest.param(torch.ones(3), "holds a Tensor, not a state dict", id="a tensor"),
        pytest.param(nn.Linear(1, 1), "holds more than tensors", id="a whole module"),
    ],
)
def test_a_file_without_vgg16_weights_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "mine.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=says) as caught:
        reference.vgg16(weights=str(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@clause("16.weights.checked")
def test_a_class_count_other_than_the_files_is_refused(tmp_path: Path) -> None:
    torch.save(tiny_state(), tmp_path / "mine.pth")
    says = r"mine.pth does not hold the weights of a VGG16 for 10 classes: classifier.6.weight has the shape \(1000, "
    with rejects(naming=says):
        reference.vgg16(weights=tmp_path / "mine.pth", num_classes=10)


@clause("16.weights.checked")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[: len(content) // 2], id="cut off"),
        pytest.param(lambda content: b"a letter to my mother", id="text"),
        pytest.param(lambda content: b"\0" * 100, id="zeros"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "mine.pth"
    torch.save(tiny_state(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="damaged") as caught:
        reference.vgg16(weights=path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@clause("16.weights.checked")
@pytest.mark.parametrize("lie", LIES)
def test_an_ambiguous_weights_archive_is_refused(tmp_path: Path, lie: str) -> None:
    """Trained weights are read by the same reader as checkpoints, not by PyTorch's."""
    torch.save({"features.0.weight": torch.arange(6.0)}, tmp_path / "mine.pth")
    (tmp_path / "mine.pth").write_bytes(LIES[lie]((tmp_path / "mine.pth").read_bytes()))
    with pytest.raises(InputError, match=r"mine\.pth (is damaged or cut off|was not read)"):
        reference.vgg16(weights=tmp_path / "mine.pth")


@clause("16.weights.checked")
def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine.pth cannot be read: No such file"):
        reference.vgg16(weights=tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        reference.vgg16(weights=f"{tmp_path}/")


@clause("16.weights.checked")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_in_a_weight_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "mine.pth"
    torch.save(tiny_state() | {"trap": Trap(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="could run code"):
        reference.vgg16(weights=path)
    path.write_bytes(pickle.dumps(Trap(victim)))
    with pytest.raises(InputError, match=r"mine\.pth"):
        reference.vgg16(weights=path)
    assert not victim.exists()


# The listing


@clause("16.listing.pretrained")
def test_pretrained_false_still_means_no_weights_and_warns_twice() -> None:
    # chapter 16, line 1179
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = on_meta(torchvision.models.vgg16, pretrained=False)
    assert [str(warning.message).partition(" 0.13")[0] for warning in caught] == [
        "The parameter 'pretrained' is deprecated since",
        "Arguments other than a weight enum or `None` for 'weights' are deprecated since",
    ]
    assert "`weights=None`" in str(caught[1].message)
    assert str(network) == str(on_meta(torchvision.models.vgg16, weights=None))


@clause("16.listing.pretrained")
def test_pretrained_true_means_the_weights_of_imagenet_and_needs_a_network(
    publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chapter 16, line 1180
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", publisher.address("vgg16-397923af.pth"))
    with (
        pytest.warns(UserWarning, match="'pretrained' is deprecated since 0.13"),
        pytest.warns(UserWarning, match="`weights=VGG16_Weights.IMAGENET1K_V1`"),
        pytest.raises(HTTPError, match="404") as caught,
    ):
        on_meta(torchvision.models.vgg16, pretrained=True)
    caught.value.close()
    assert publisher.asked == ["/vgg16-397923af.pth"]
    assert in_cache(cache) == []


@clause("16.listing.pretrained")
def test_the_reference_takes_pretrained_as_torchvision_does(publisher: Publisher, monkeypatch: Any) -> None:
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", publisher.address("vgg16-397923af.pth"))
    with pytest.warns(UserWarning, match=r"deprecated since torchvision 0\.13; use weights=None"):
        assert str(on_meta(reference.vgg16, pretrained=False)) == str(on_meta(reference.vgg16))
    with pytest.warns(UserWarning, match=r"weights='DEFAULT'"), pytest.raises(InputError, match="404"):
        reference.vgg16(pretrained=True)
    with rejects(naming="pretrained is the old name of weights"):
        reference.vgg16(pretrained=True, weights="DEFAULT")


@clause("16.listing.train_data", "16.listing.pretrained")
@pytest.mark.filterwarnings("ignore:.*deprecated since 0.13:UserWarning")
def test_the_listing_prints_both_networks_without_calling_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The listing's steps, lines 1176 to 1188, with local weights; both outputs are the documented ones."""
    shown = []
    monkeypatch.setattr(
        VGG16_Weights, "get_state_dict", lambda *_, **__: on_meta(torchvision.models.vgg16).state_dict()
    )
    monkeypatch.setattr(torchvision.models.VGG, "forward", lambda _, images: shown.append(images))
    with torch.device("meta"):
        networks = [torchvision.models.vgg16(pretrained=pretrained) for pretrained in (False, True)]
        networks[1].add_module("7", nn.Linear(1000, 10))
        print(networks[1])
        networks[0].classifier[6] = nn.Linear(4096, 10)
        print(networks[0])
    assert capsys.readouterr().out == f"{PRINTED}\n{PRINTED_REPLACED}\n)\n"
    assert shown == []


# ImageNet


@clause("16.imagenet.archives")
def test_imagenet_asks_for_archives_and_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # chapter 16, lines 1162 and 1164
    scipy = ModuleType("scipy")
    scipy.io = ModuleType("scipy.io")  # it imports SciPy before it looks for the archive  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    monkeypatch.setitem(sys.modules, "scipy.io", scipy.io)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something is fetched"))
    for split in ("train", "val"):
        with pytest.raises(RuntimeError, match=r"ILSVRC2012_devkit_t12.tar.gz.*download it externally and place it in"):
            torchvision.datasets.ImageNet(tmp_path, split=split)
    assert list(tmp_path.iterdir()) == []


@clause("16.imagenet.archives")
def test_imagenet_reads_unpacked_images_and_takes_no_download(tmp_path: Path) -> None:
    torch.save(({"n01440764": ("tench",), "n01443537": ("goldfish",)}, []), tmp_path / "meta.bin")
    for name in ("n01443537", "n01440764"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(tmp_path / "val" / name / "1.png")
    images = torchvision.datasets.ImageNet(tmp_path, split="val")
    assert images.classes == [("tench",), ("goldfish",)]
    assert [target for _, target in images] == [0, 1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'download'"):
        torchvision.datasets.ImageNet(tmp_path, split="val", download=True)
