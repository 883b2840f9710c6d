"""Chapter 01: `LabeledFolder`, the labelled folder of images; and how images are opened."""

import os
import pickle
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from reference.data import images
from reference.data.images import HUGE, LARGEST_IMAGE, decode_image, is_image_name, open_image
from reference.data.labeled_folder import LabeledFolder as ReferenceFolder
from reference.errors import InputError
from spec.support.assertions import rejects
from spec.support.clauses import clause


def gradient(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth image without two equal rows or columns, uint8 [height, width, channels]."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [(rows * (3 + k) + columns * (7 - k) + 40 * k) % 256 for k in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def draw(path: Path, height: int = 6, width: int = 8, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient(height, width)).save(path, **options)
    return path


def pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    image = open_image(path, size)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# ---------------------------------------------------------------------------------------------------------- pixels


@clause("01.image.pixels")
def test_an_rgb_image_is_returned_unchanged(tmp_path: Path) -> None:
    assert np.array_equal(pixels(draw(tmp_path / "a.png")), gradient(6, 8))


@clause("01.image.pixels")
def test_one_pixel_images_are_loaded(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]
    assert pixels(tmp_path / "a.png", (2, 3)).tolist() == [[[1, 2, 3]] * 3] * 2


@clause("01.image.pixels")
@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "LAB", "P", "RGB"])
def test_modes_without_alpha_convert_to_rgb_as_in_pillow(mode: str, tmp_path: Path) -> None:
    source = Image.fromarray(gradient(6, 8))
    source.convert(mode).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as stored:
        assert stored.mode == mode
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(pixels(tmp_path / "a.tif"), expected)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A colour with `alpha` over white, rounded to the nearest integer."""
    a = alpha[..., None].astype(float) / 255
    return np.rint(colour.astype(float) * a + 255 * (1 - a)).astype(int)


@clause("01.image.pixels")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_rgba_images_are_composited_over_white(suffix: str, tmp_path: Path) -> None:
    colour, alpha = gradient(16, 16), np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.dstack([colour, alpha])).save(
        tmp_path / f"a{suffix}",
        **({"lossless": True, "exact": True} if suffix == ".webp" else {}),  # pyright: ignore[reportArgumentType]
    )
    assert np.array_equal(pixels(tmp_path / f"a{suffix}"), over_white(colour, alpha))


@clause("01.image.pixels")
@pytest.mark.parametrize("mode", ["HSV", "RGBa", "PA"])
def test_rare_image_modes_are_converted_to_rgb(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Image.new(mode, (2, 1))
    values = {"HSV": [(0, 255, 255), (0, 0, 128)], "RGBa": [(100, 0, 0, 255), (0, 0, 0, 0)], "PA": [(1, 255), (1, 0)]}
    opened.putdata(values[mode])
    if mode == "PA":
        opened.putpalette([0, 0, 0, 100, 0, 0])
    monkeypatch.setattr(Image, "open", lambda *_, **__: opened)
    first, second = pixels(draw(tmp_path / "a.png"))[0].tolist()
    assert first == ([255, 0, 0] if mode == "HSV" else [100, 0, 0])
    assert second == ([128] * 3 if mode == "HSV" else [255] * 3)


@clause("01.image.pixels")
def test_la_images_are_composited_over_white(tmp_path: Path) -> None:
    grey, alpha = gradient(16, 16, 1)[..., 0], np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), over_white(np.dstack([grey] * 3), alpha))


@clause("01.image.pixels")
def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=1)
    assert pixels(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


@clause("01.image.pixels")
def test_palette_with_alpha_is_composited_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=bytes([255, 128, 0]))
    middle = [round(c * 128 / 255 + 255 * 127 / 255) for c in (40, 50, 60)]
    assert pixels(tmp_path / "a.png").tolist() == [[[10, 20, 30], middle, [255, 255, 255]]]


@clause("01.image.pixels")
@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9)), ("I;16", 700)])
def test_transparent_colour_of_an_image_becomes_white(mode: str, colour: Any, tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), colour)
    image.save(tmp_path / "a.png", transparency=colour)
    assert pixels(tmp_path / "a.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


@clause("01.image.scale")
@pytest.mark.parametrize("dtype", ["<u2", ">u2"], ids=["I;16", "I;16B"])
def test_16_bit_images_are_scaled_to_8_bits(dtype: str, tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 255, 256, 32767, 32768, 65406, 65407, 65535]])
    Image.fromarray(values.astype(dtype)).save(tmp_path / "a.tif")
    # 65535 / 255 = 257: each grey level covers 257 values, and 129 is nearer to 257 than to 0
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 1, 1, 1, 127, 128, 254, 255, 255]


@clause("01.image.scale")
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0.0, 0.5, 1.0], [0, 128, 255], id="0 to 1"),
        pytest.param([0.0, 0.25, 0.5], [0, 64, 128], id="dark, 0 to 1"),
        pytest.param([0.0, 100.0, 255.0], [0, 100, 255], id="0 to 255"),
        pytest.param([3.0, 100.0, 200.0], [3, 100, 200], id="dark, 0 to 255"),
        pytest.param([0.0, 25700.0, 65535.0], [0, 100, 255], id="0 to 65535"),
        pytest.param([-1.0, 0.0, 3.0], [0, 64, 255], id="negative: darkest to lightest"),
        pytest.param([1e6, 1.5e6, 2e6], [0, 128, 255], id="beyond 16 bits: darkest to lightest"),
        pytest.param([1e6, 1e6, 1e6], [0, 0, 0], id="all alike beyond 16 bits: black"),
        pytest.param([np.nan, 0.5, np.inf], [0, 128, 255], id="not a number is black, infinity is white"),
        pytest.param([np.nan, np.nan, np.nan], [0, 0, 0], id="nothing but not a number"),
    ],
)
def test_float_images_are_scaled_from_the_value_range(values: list[float], expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 1].tolist() == expected


@clause("01.image.scale")
@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 100, 255], [0, 100, 255]), ([0, 25700, 65535], [0, 100, 255]), ([-(2**31), 0, 2**31 - 1], [0, 128, 255])],
)
def test_32_bit_integer_images_are_scaled_to_8_bits(values: list[int], expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(np.array([values], np.int32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 2].tolist() == expected


ORIENTED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}  # EXIF 2.3, tag 0x0112: where row 0 and column 0 of the stored image belong


@clause("01.image.orientation")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied_exactly_once(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    path = draw(tmp_path / f"a{suffix}", 16, 24, exif=exif, **options)
    expected = ORIENTED[orientation](gradient(16, 24)).astype(int)
    assert pixels(path).shape == expected.shape
    # JPEG of the best quality still rounds, especially at the jumps of the gradient
    tolerance = 12 if suffix == ".jpg" else 0
    assert abs(pixels(path) - expected).max() <= tolerance
    assert not open_image(path).getexif(), "a viewer would turn it a second time"


@clause("01.image.pixels")
def test_images_with_damaged_metadata_are_read(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", exif=b"Exif\0\0XX\x00\x99nonsense")
    assert np.array_equal(pixels(path), gradient(6, 8))


@clause("01.image.first_frame")
@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_animations_load_the_first_frame(suffix: str, tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if suffix == ".webp" else {}
    red.save(tmp_path / f"a{suffix}", save_all=True, append_images=[blue], **options)  # pyright: ignore[reportArgumentType]
    with Image.open(tmp_path / f"a{suffix}") as stored:
        assert getattr(stored, "n_frames", 1) == 2
    assert pixels(tmp_path / f"a{suffix}").tolist() == [[[255, 0, 0]] * 4] * 4


# ---------------------------------------------------------------------------------------------------------- resizing


@clause("01.image.size")
@pytest.mark.parametrize("size", [(32, 32), (5, 7), (1, 1), (100, 3)], ids=str)
@pytest.mark.parametrize("stored", [(48, 64), (7, 5), (1, 1), (33, 1)], ids=str)
def test_size_is_height_and_width_and_resizing_is_pillows_bilinear(
    stored: tuple[int, int], size: tuple[int, int], tmp_path: Path
) -> None:
    path = draw(tmp_path / "a.png", *stored)
    expected = Image.fromarray(gradient(*stored)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels(path, size), np.asarray(expected))


@clause("01.image.size")
def test_resizing_equals_torchvisions_resize(tmp_path: Path) -> None:
    from torchvision.transforms import Resize

    path = draw(tmp_path / "a.png", 48, 64)
    assert np.array_equal(pixels(path, (20, 30)), np.asarray(Resize((20, 30))(Image.fromarray(gradient(48, 64)))))


@clause("01.image.orientation")
def test_exif_orientation_is_applied_before_resizing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = draw(tmp_path / "a.png", 40, 90, exif=exif)
    upright = Image.fromarray(np.ascontiguousarray(np.rot90(gradient(40, 90), -1)))
    assert np.array_equal(pixels(path, (32, 20)), np.asarray(upright.resize((20, 32), Image.Resampling.BILINEAR)))


@pytest.fixture
def huge_from_a_quarter_megapixel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HUGE == 16 * 2**20
    monkeypatch.setattr("reference.data.images.HUGE", 2**18)


@clause("01.image.size")
@pytest.mark.usefixtures("huge_from_a_quarter_megapixel")
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_huge_image_differs_from_the_plain_recipe_only_slightly(suffix: str, tmp_path: Path) -> None:
    small = Image.fromarray(gradient(16, 16)).resize((1300, 1100), Image.Resampling.BICUBIC)
    small.save(tmp_path / f"a{suffix}", compress_level=1)
    plain = Image.open(tmp_path / f"a{suffix}").resize((32, 24), Image.Resampling.BILINEAR)
    assert abs(pixels(tmp_path / f"a{suffix}", (24, 32)) - np.asarray(plain).astype(int)).max() <= 4


@clause("01.image.size")
@pytest.mark.usefixtures("huge_from_a_quarter_megapixel")
@pytest.mark.parametrize("size", [(16, 16), None], ids=["resized", "full size"])
@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA"])
@pytest.mark.slow
def test_a_huge_image_is_converted_to_rgb_the_same_in_every_strip(
    mode: str, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    height, width = 1280, 1100  # the lower half is white
    if mode == "RGBA":
        image, expected = Image.new(mode, (width, height), (100, 0, 0, 255)), [100, 0, 0]
        image.paste((0, 0, 0, 0), (0, height // 2, width, height))
    else:
        top = 65535 if mode == "I;16" else 1
        image, expected = Image.new(mode, (width, height), 0), [0, 0, 0]
        image.paste(top, (0, height // 2, width, height))
    image.save(tmp_path / "a.tif")
    found = pixels(tmp_path / "a.tif", size)
    middle, border = len(found) // 2, 0 if size is None else 1  # resizing mixes the two rows at the border
    assert (found[: middle - border] == expected).all()
    assert (found[middle + border :] == 255).all()


@clause("01.image.size")
@pytest.mark.usefixtures("huge_from_a_quarter_megapixel")
def test_a_long_thin_image_is_not_reduced_below_the_requested_size(tmp_path: Path) -> None:
    Image.fromarray(np.tile(gradient(20, 1), (1, 20_000, 1))).save(tmp_path / "a.png", compress_level=1)
    found = pixels(tmp_path / "a.png", (20, 4))
    assert np.array_equal(found, np.tile(gradient(20, 1), (1, 4, 1)))


@clause("01.image.limit")
def test_pillow_max_image_pixels_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = draw(tmp_path / "a.png", 6, 8)
    assert pixels(path).shape == (6, 8, 3)
    with pytest.raises(InputError):
        open_image(tmp_path / "missing.png")
    assert Image.MAX_IMAGE_PIXELS == 10


@clause("01.image.limit")
def test_pillow_max_image_pixels_is_unchanged_after_many_threads(tmp_path: Path) -> None:
    path, before = draw(tmp_path / "a.png"), Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [open_image(path) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@clause("01.image.limit")
def test_in_a_forked_process_no_other_thread_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Pillow's warnings would not be suppressed there."""
    monkeypatch.setattr(images, "_decoding", 1)  # a thread of the parent decodes
    images._opening.acquire()  # as before a fork
    images._forked()
    with images._without_warnings():
        assert images._SILENT in warnings.filters
    assert images._SILENT not in warnings.filters


@clause("01.image.limit")
def test_an_image_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_that_claims(20_001, 20_000))
    with pytest.raises(InputError, match=r"bomb.png: .*20001×20000 = 400,020,000 pixels, at most 400,000,000"):
        open_image(tmp_path / "bomb.png")
    assert LARGEST_IMAGE == 400_000_000


# ---------------------------------------------------------------------------------------------------------- bad input


def jpeg(tmp_path: Path) -> bytes:
    return draw(tmp_path / "whole.jpg", 64, 64).read_bytes()


BROKEN: dict[str, Callable[[Path], bytes]] = {
    "empty.png": lambda _: b"",
    "text.png": lambda _: b"this is no image\n" * 20,
    "cut.jpg": lambda tmp: jpeg(tmp)[:700],
    "header.jpg": lambda tmp: jpeg(tmp)[:20],
    "cut.png": lambda tmp: draw(tmp / "whole.png", 64, 64).read_bytes()[:-60],
    "chunk.png": lambda tmp: draw(tmp / "whole.png").read_bytes().replace(b"IDAT", b"IDAX"),
    "cut.tif": lambda tmp: draw(tmp / "whole.tif", 64, 64).read_bytes()[:500],
    "cut.gif": lambda tmp: draw(tmp / "whole.gif", 64, 64).read_bytes()[:850],
    "cut.webp": lambda tmp: draw(tmp / "whole.webp", 64, 64).read_bytes()[:60],
    "cut.bmp": lambda tmp: draw(tmp / "whole.bmp", 64, 64).read_bytes()[:100],
    "zeros.jpg": lambda _: bytes(5000),
}


@clause("01.image.rejects")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_with_the_reason_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name](tmp_path))
    with pytest.raises(InputError, match=rf"{name}: not a readable image \(.+\)$") as caught:
        open_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)


@clause("01.image.rejects")
def test_a_missing_file_and_a_directory_are_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.png: not a readable image \(No such file or directory\)"):
        open_image(tmp_path / "no.png")
    with pytest.raises(InputError, match=r"not a readable image \(Is a directory\)"):
        open_image(tmp_path)


@clause("01.image.rejects")
def test_file_names_with_line_breaks_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\\nb é\.png: not a readable image"):
        open_image(tmp_path / "a\nb é.png")


@clause("01.image.rejects")
@pytest.mark.parametrize(
    "fault",
    [MemoryError(), SyntaxError("broken PNG"), zlib.error("bad"), EOFError(), KeyError(3)],
    ids=["MemoryError", "SyntaxError", "zlib.error", "EOFError", "KeyError"],
)
def test_decoder_errors_become_input_errors(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise fault

    path = draw(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_end", fail)
    with pytest.raises(InputError, match=r"a\.png: not a readable image \(.+\)") as caught, open(path, "rb") as file:
        decode_image(file, path)
    assert caught.value.__cause__ is fault


@clause("01.image.extensions")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[
            (name, True)
            for name in ("a.jpg", "A.JPG", "b.JPeg", "c.png", "d.webp", "e.tif", "f.gif", "g.bmp", "h i.avif")
        ],
        *[
            (name, False)
            for name in (".a.jpg", "._a.jpg", "a.txt", "a", "jpg", "a.jpg.part", "Thumbs.db", "a.pdf", "a.h5")
        ],
    ],
)
def test_images_are_recognized_by_the_extension(name: str, expected: bool) -> None:
    assert is_image_name(name) is expected


@clause("01.image.import")
@pytest.mark.slow
def test_importing_does_not_load_every_plugin() -> None:
    code = "import reference.data.images, sys; print('PIL.FliImagePlugin' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# ------------------------------------------------------------------------------------------- the tutorial's listing


MENDED = """
class Images:
    def __init__(self, root, label):
        self.root_dir = root
        self.label_dir = label
        self.names = sorted(listdir(join(root, label)))

    def __getitem__(self, index):
        name = self.names[index]
        image = open_image(join(self.root_dir, self.label_dir, name))
        label = self.label_dir
        return image, label

    def __len__(self):
        return len(self.names)

root, ants_label = "dataset/train", "ants"
ants = Images(root, ants_label)
item, length = ants[0], len(ants)
"""
"""The program of the listing, rewritten."""


def run_listing(changed: str = "", into: str = "") -> dict[str, Any]:
    """Run the listing with one changed line, in a folder with one image called 0.jpg."""
    assert changed in MENDED
    names: dict[str, Any] = {"listdir": lambda _: ["0.jpg"], "open_image": Path, "join": os.path.join}
    exec(compile(MENDED.replace(changed, into, 1) if changed else MENDED, "listing", "exec"), names)
    return names


@clause("01.folder.listing")
def test_the_listing_runs_after_seven_corrections() -> None:
    found = run_listing()
    assert found["item"] == (Path("dataset/train/ants/0.jpg"), "ants")
    assert found["length"] == 1


@clause("01.listing.colon")
def test_a_missing_colon_after_def_is_a_syntax_error_of_the_file() -> None:
    with pytest.raises(SyntaxError, match="expected ':'") as caught:
        run_listing("def __len__(self):", "def __len__(self)")  # chapter 01, line 62
    assert "__len__" in (caught.value.text or "")


@clause("01.listing.label_name")
def test_ants_label_in_the_listing_is_an_undefined_name() -> None:
    with pytest.raises(NameError, match="'label' is not defined"):
        run_listing("Images(root, ants_label)", "Images(root, label)")  # line 68


@clause("01.listing.arguments")
def test_init_without_parameters_rejects_folder_and_label() -> None:
    with pytest.raises(TypeError, match="takes 1 positional argument but 3 were given"):
        run_listing("def __init__(self, root, label):", "def __init__(self):")  # line 47


@clause("01.listing.root_dot")
def test_root_dir_attribute_needs_an_assignment_in_init() -> None:
    with pytest.raises(AttributeError, match="no attribute 'root'"):
        run_listing("self.root_dir = root", "self.root.dir = root")  # line 48


@clause("01.listing.label_dot")
def test_label_dir_attribute_needs_an_assignment_in_init() -> None:
    with pytest.raises(AttributeError, match="no attribute 'label'"):
        run_listing("self.label_dir = label", "self.label.dir = label")  # line 49


@clause("01.listing.name_dot")
def test_image_name_attribute_is_missing_on_path_strings() -> None:
    with pytest.raises(UnboundLocalError, match="local variable 'image'"):
        run_listing("name = self.names[index]", "image.name = self.names[index]")  # line 55


@clause("01.listing.laber")
def test_a_misspelt_label_is_not_the_label_that_is_returned() -> None:
    with pytest.raises(NameError, match=r"'label' is not defined"):
        run_listing("label = self.label_dir\n", "laber = self.label_dir\n")  # line 58


# ---------------------------------------------------------------------------------------------------- LabeledFolder

Folder = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six ants 5 pixels wide and 4 to 9 high, three bees of 8×8."""
    root = tmp_path / "dataset" / "train"
    for i, name in enumerate(["b.png", "a.png", "C.png", "10.png", "9.png", "é.png"]):
        draw(root / "ants" / name, 4 + i, 5)
    for i in range(3):
        draw(root / "bees" / f"{i}.jpg", 8, 8)
    return root


def heights(dataset: Any) -> list[Any]:
    """The items by index, with each image replaced by its height."""
    items = [dataset[i] for i in range(len(dataset))]
    return [(item[0].height, item[1]) if isinstance(item[0], Image.Image) else item for item in items]


ANTS = [(height, "ants") for height in (7, 8, 6, 5, 4, 9)]  # by code point: 10 9 C a b é
BEES = [(8, "bees")] * 3


@clause("01.folder.layout", "01.folder.listing")
@pytest.mark.parametrize("folder", ["dataset/train", "./dataset/train"])
def test_ants_and_bees_folders_are_those_of_the_listing(
    LabeledFolder: Folder, root: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parents[1])
    # chapter 01, lines 67 to 76
    train = LabeledFolder(folder, "ants") + LabeledFolder(folder, "bees")
    assert heights(train) == ANTS + BEES


@clause("01.folder.init")
def test_init_receives_folder_and_label_on_construction(LabeledFolder: Folder, root: Path) -> None:
    kind: Any = LabeledFolder.target  # pyright: ignore[reportFunctionMemberAccess]
    seen = []

    class Watched(kind):
        def __init__(self, *args: Any) -> None:
            seen.append(args)
            super().__init__(*args)

    assert len(Watched(root, "ants")) == 6
    assert seen == [(root, "ants")]


@clause("01.folder.self")
def test_two_data_sets_hold_two_folders_and_no_global_variable(LabeledFolder: Folder, root: Path) -> None:
    names = set(vars(sys.modules[LabeledFolder.target.__module__]))  # pyright: ignore[reportFunctionMemberAccess]
    ants, bees = LabeledFolder(root, "ants"), LabeledFolder(root, "bees")
    assert (ants[0][1], bees[0][1], ants[0][1]) == ("ants", "bees", "ants")
    assert (len(ants), len(bees)) == (6, 3)
    assert set(vars(sys.modules[LabeledFolder.target.__module__])) == names  # pyright: ignore[reportFunctionMemberAccess]
    assert "root_dir" not in names


@clause("01.folder.index", "01.folder.length")
def test_indexing_calls_getitem_and_len_calls_dunder_len(LabeledFolder: Folder, root: Path) -> None:
    kind: Any = LabeledFolder.target  # pyright: ignore[reportFunctionMemberAccess]

    class Called(kind):
        def __getitem__(self, index: int) -> Any:
            return "called", index

        def __len__(self) -> int:
            return 7

    assert Called(root, "ants")[3] == ("called", 3)
    assert len(Called(root, "ants")) == 7


@clause("01.folder.length")
def test_the_length_is_the_number_of_images(LabeledFolder: Folder, root: Path) -> None:
    assert [len(LabeledFolder(root, label)) for label in ("ants", "bees")] == [6, 3]


@clause("01.folder.index", "01.folder.order")
def test_items_are_image_and_folder_name_in_the_order_of_the_file_names(
    LabeledFolder: Folder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *args: sorted(listed(*args), key=str.lower, reverse=True))
    ants = LabeledFolder(root, "ants")
    assert heights(ants) == ANTS
    image, label = ants[4]
    assert (image.mode, label) == ("RGB", "ants")
    assert np.array_equal(np.asarray(image), gradient(4, 5))


@clause("01.folder.images_only")
def test_files_that_are_no_images_are_left_out(LabeledFolder: Folder, root: Path) -> None:
    (root / "ants" / "notes.txt").write_text("ant")
    (root / "ants" / "Thumbs.db").write_bytes(b"\0")
    draw(root / "ants" / ".hidden.png")
    draw(root / "ants" / "more.png" / "inner.png")
    ants = LabeledFolder(root, "ants")
    assert len(ants) == 6
    assert heights(ants) == ANTS


@clause("01.folder.images_only")
def test_links_to_images_are_followed_and_dangling_ones_are_named(LabeledFolder: Folder, root: Path) -> None:
    (root / "bees" / "3.jpg").symlink_to(root / "ants" / "a.png")
    (root / "bees" / "4.jpg").symlink_to(root / "nowhere.png")
    (root / "bees" / "5.jpg").symlink_to(root / "ants")
    bees = LabeledFolder(root, "bees")
    assert len(bees) == 5
    assert np.array_equal(np.asarray(bees[3][0]), gradient(5, 5))
    with pytest.raises((ValueError, OSError), match=r"4\.jpg"):
        bees[4]


@clause("01.folder.indices")
def test_negative_indices_count_from_the_end(LabeledFolder: Folder, root: Path) -> None:
    ants = LabeledFolder(root, "ants")
    assert [ants[-i][0].height for i in range(1, 7)] == [9, 4, 5, 6, 8, 7]
    assert ants[np.int64(2)][0].height == 6


@clause("01.folder.indices")
@pytest.mark.parametrize("index", [6, -7, 100])
def test_an_index_out_of_range_is_rejected(LabeledFolder: Folder, index: int, root: Path) -> None:
    with pytest.raises(IndexError, match=r"index.* out of range"):
        LabeledFolder(root, "ants")[index]


@clause("01.folder.indices")
@pytest.mark.parametrize("index", [slice(0, 2), 1.0, "a", None], ids=repr)
def test_indexing_takes_one_integer_only(LabeledFolder: Folder, index: Any, root: Path) -> None:
    ants = LabeledFolder(root, "ants")
    for dataset in (ants, ants + ants):
        with rejects(naming="integer|indices|slice|not supported between"):
            dataset[index]


@clause("01.folder.transform")
def test_the_transform_is_applied_to_the_image_only(LabeledFolder: Folder, root: Path) -> None:
    assert LabeledFolder(root, "bees", transform=lambda image: image.size)[1] == ((8, 8), "bees")


@clause("01.folder.rejects")
def test_a_missing_folder_is_named(LabeledFolder: Folder, root: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"flies"):
        LabeledFolder(root, "flies")


@clause("01.folder.concatenation")
def test_addition_concatenates_data_sets_associatively(LabeledFolder: Folder, root: Path) -> None:
    a, b = LabeledFolder(root, "ants"), LabeledFolder(root, "bees")
    c = [("x", 1), ("y", 2)]  # any object with a length and items by index
    assert heights((a + b) + c) == heights(a + (b + c)) == ANTS + BEES + c
    assert heights((a + b) + (a + b)) == heights(a + (b + (a + b))) == (ANTS + BEES) * 2
    both = a + b
    assert len(both) == 9
    assert [both[-i][1] for i in range(1, 10)] == ["bees"] * 3 + ["ants"] * 6
    for index in (9, -10):
        with rejects(naming="index.*(range|length)"):
            both[index]


@clause("01.folder.concatenation")
def test_addition_accepts_empty_data_sets(LabeledFolder: Folder, root: Path) -> None:
    nothing: list[int] = []
    assert heights(LabeledFolder(root, "bees") + nothing + [(5, 6)]) == [*BEES, (5, 6)]


@clause("01.folder.workers")
def test_data_set_can_be_pickled(LabeledFolder: Folder, root: Path) -> None:
    both = LabeledFolder(root, "ants") + LabeledFolder(root, "bees")
    assert heights(pickle.loads(pickle.dumps(both))) == ANTS + BEES


@clause("01.folder.descriptors")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_items_keep_no_file_open(LabeledFolder: Folder, root: Path) -> None:
    ants, before = LabeledFolder(root, "ants"), len(os.listdir("/proc/self/fd"))
    kept = [ants[i] for i in range(6)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 6


@pytest.mark.slow
@clause("01.folder.descriptors")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_ten_thousand_items_leave_no_file_open(LabeledFolder: Folder, root: Path) -> None:
    both, before = LabeledFolder(root, "ants") + LabeledFolder(root, "bees"), len(os.listdir("/proc/self/fd"))
    kept = [both[i % 9] for i in range(10_000)]
    assert len(os.listdir("/proc/self/fd")) == before
    (root / "bees" / "0.jpg").write_bytes(b"\xff\xd8\xff broken")
    for _ in range(50):
        with pytest.raises((ValueError, OSError)):
            both[6]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 10_000


# ------------------------------------------------------------------------------------------- the reference's words


def height_of(image: Image.Image) -> int:
    return image.height


@clause("01.folder.rejects")
def test_missing_folder_error_names_the_folder(root: Path) -> None:
    (root / "wasps").mkdir()
    with pytest.raises(InputError, match=r"there is no folder .*flies"):
        ReferenceFolder(root, "flies")
    with pytest.raises(InputError, match=r"wasps holds no images"):
        ReferenceFolder(root, "wasps")
    (root / "bees" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.jpg: not a readable image"):
        ReferenceFolder(root, "bees")[1]


@clause("01.folder.indices")
def test_index_error_names_index_and_length(root: Path) -> None:
    bees = ReferenceFolder(root, "bees")
    with pytest.raises(IndexError, match=r"LabeledFolder: index -4 is out of range for 3 items"):
        bees[-4]
    with pytest.raises(IndexError, match=r"index 6 is out of range for 6 items"):
        (bees + bees)[6]
    with pytest.raises(TypeError, match=r"taken by one integer, got 1\.0"):
        bees[1.0]  # pyright: ignore[reportArgumentType]


@clause("01.folder.concatenation")
@pytest.mark.slow
def test_addition_concatenates_thousands_of_data_sets(root: Path) -> None:
    nothing: list[int] = []
    many = ReferenceFolder(root, "bees", height_of) + nothing
    for i in range(3000):
        many = many + (i,)  # noqa: RUF005
    assert (many[3], many[-1], len(many)) == (0, 2999, 3003)


@clause("01.folder.concatenation")
@pytest.mark.parametrize("other", [3, None, iter([])], ids=["int", "None", "iterator"])
def test_addition_rejects_operands_without_len_and_getitem(other: Any, root: Path) -> None:
    with pytest.raises(TypeError, match=rf"got {type(other).__name__}"):
        ReferenceFolder(root, "bees") + other  # pyright: ignore[reportUnusedExpression]


@pytest.mark.slow
@clause("01.folder.workers")
def test_data_set_can_be_sent_to_worker_processes(root: Path) -> None:
    both = ReferenceFolder(root, "ants", height_of) + ReferenceFolder(root, "bees", height_of)
    loader = DataLoader(both, batch_size=None, num_workers=1, multiprocessing_context="spawn")  # pyright: ignore[reportArgumentType]
    assert [tuple(item) for item in loader] == ANTS + BEES
