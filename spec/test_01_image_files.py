"""Chapter 01: hostile image files: containers with another image inside, formats that are opened, special files, and
the memory that decoding takes. Images of all kinds are specified in `test_01_dataset.py`.
"""

import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reference
from reference.data import images
from reference.data.images import HUGE, LARGEST_FILE, LARGEST_IMAGE, LARGEST_WHOLE, is_image_name, open_image
from reference.errors import InputError
from reference.inference import predict
from spec.support.clauses import clause


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def white_png(width: int, height: int, depth: int = 1, kind: int = 0) -> bytes:
    """A PNG of zeros, compressed by a factor of a thousand: 8 pixels per byte for grey of depth 1."""
    row = 1 + (width * depth * {0: 1, 2: 3, 6: 4}[kind] + 7) // 8
    packer, parts = zlib.compressobj(9), []
    block = bytes(row * max(1, 2**20 // row))
    for start in range(0, row * height, len(block)):
        parts.append(packer.compress(block[: row * height - start]))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = b"".join(parts) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ico(inner: bytes, kind: int = 1) -> bytes:
    return struct.pack("<HHH", 0, kind, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def icns(inner: bytes) -> bytes:
    entry = b"ic10" + (len(inner) + 8).to_bytes(4) + inner
    return b"icns" + (len(entry) + 8).to_bytes(4) + entry


def blp(inner: bytes) -> bytes:
    """A BLP1 file that contains a JPEG; its header gives a size of 16×16."""
    header = b"BLP1" + struct.pack("<iIIIii", 0, 0, 16, 16, 5, 0)
    offset = len(header) + 128 + 4
    table = struct.pack("<16I", offset, *[0] * 15) + struct.pack("<16I", len(inner), *[0] * 15)
    return header + table + struct.pack("<I", 0) + inner


def saved(width: int, height: int, kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind, **options)
    return file.getvalue()


WIDE, HIGH = 5000, 3400  # 17,000,000 pixels, above the limit of 2**24
INSIDE: dict[str, Callable[[int, int], bytes]] = {
    "PNG in ICO": lambda width, height: ico(white_png(width, height)),
    "PNG in ICNS": lambda width, height: icns(white_png(width, height)),
    "JPEG 2000 in ICNS": lambda width, height: icns(saved(width, height, "JPEG2000")),
    "JPEG in BLP": lambda width, height: blp(saved(width, height, "JPEG")),
}


@clause("01.image.container")
@pytest.mark.parametrize("container", INSIDE)
@pytest.mark.slow
def test_an_image_inside_a_container_is_bounded_before_it_is_decoded(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"bomb.{container.rpartition(' ')[2].lower()}"
    path.write_bytes(INSIDE[container](WIDE, HIGH))
    decoded: list[int] = []

    def refuse(size: tuple[int, int], *_: object) -> None:
        decoded.append(size[0] * size[1])
        raise AssertionError(f"{size} is being decoded")

    for name in ("PngImagePlugin.PngImageFile", "JpegImagePlugin.JpegImageFile", "Jpeg2KImagePlugin.Jpeg2KImageFile"):
        Image.init()
        monkeypatch.setattr(f"PIL.{name}.load_prepare", lambda image: refuse(image.size))
    with pytest.raises(InputError, match=r"bomb\..*: not a readable image \(.*16,777,216 pixels that are allowed\)"):
        open_image(path)
    assert decoded == []
    # the suffix does not determine the format
    (tmp_path / "bomb.png").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="16,777,216 pixels"):
        open_image(tmp_path / "bomb.png", (32, 32))


@clause("01.image.container")
@pytest.mark.parametrize("container", ["PNG in ICO", "PNG in ICNS"])
def test_icons_are_read(container: str, tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "icon").write_bytes(INSIDE[container](1024, 1024) if "ICNS" in container else ico(white_png(256, 256)))
    assert open_image(tmp_path / "icon").size in ((1024, 1024), (256, 256))
    assert before == Image.MAX_IMAGE_PIXELS


@clause("01.image.container")
def test_an_image_with_the_first_bytes_of_a_container_is_read(tmp_path: Path) -> None:
    """TGA has no signature: one with a colour map of kind 1 may begin as ICO does."""
    (tmp_path / "a.tga").write_bytes(saved(8, 6, "TGA", "L"))
    assert open_image(tmp_path / "a.tga").size == (8, 6)
    (tmp_path / "b.tga").write_bytes(b"\0\0\1\0" + b"nonsense" * 4)
    with pytest.raises(InputError, match=r"b\.tga: not a readable image \(.+\)$"):
        open_image(tmp_path / "b.tga")


# -------------------------------------------------------------------------------------------------- memory, measured

MEASURE = """
import sys
from reference.data.images import open_image
from PIL import Image
Image.init()
def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
before = peak()
try:
    open_image(sys.argv[1], (32, 32))
    print("read", end=" ")
except ValueError as error:
    print("refused", end=" ")
print(peak() - before)
"""


def bomb(kind: str) -> bytes:
    """A small file that claims about the largest number of pixels of its format, or more."""
    side = 10_000
    if kind == "PNG in ICO":
        return ico(white_png(60_000, 60_000))
    if kind == "PNG in ICNS":
        return icns(white_png(60_000, 60_000))
    if kind == "DIB in ICO":
        return ico(struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 1, 0, 0, 0, 0, 0, 0) + bytes(8))
    if kind == "DIB in CUR":
        return ico(struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 1, 0, 0, 0, 0, 0, 0) + bytes(8), 2)
    if kind == "PNG":
        return white_png(20_000, 20_000)
    if kind == "RGBA PNG":
        return white_png(side, side, 8, 6)
    if kind == "progressive JPEG":
        return saved(side, side, "JPEG", progressive=True)
    if kind == "GIF":
        return saved(side, side, "GIF", "L")
    if kind == "GIF with a large frame":
        return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    if kind == "TIFF":
        return saved(side, side, "TIFF", "L", compression="tiff_deflate")
    if kind == "TIFF with large tiles":
        made = saved(64, 64, "TIFF", "L", compression="tiff_lzw")
        return made.replace(struct.pack("<HHII", 278, 4, 1, 64), struct.pack("<HHII", 278, 4, 1, 2**31 - 1))
    if kind == "WebP":
        return saved(side, side, "WEBP", lossless=True, method=0)
    if kind == "DDS":
        words = (124, 0x1007, 16_000, 16_000, 0, 0, 0, *[0] * 11, 32, 0x40, 0, 24, 0xFF0000, 0xFF00, 0xFF, 0)
        return b"DDS " + struct.pack("<31I", *words, 0x1000, *[0] * 4)[:124]
    if kind == "QOI":
        return b"qoif" + struct.pack(">IIBB", 16_000, 16_000, 4, 0) + b"\xfd" * 5_000_000
    if kind == "FITS":
        cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 16000", "NAXIS2  = 16000", "END")
        return "".join(card.ljust(80) for card in cards).encode().ljust(2880)
    raise AssertionError(kind)


@pytest.mark.slow
@clause("01.image.memory")
@pytest.mark.parametrize(
    "kind",
    [
        *("PNG in ICO", "PNG in ICNS", "DIB in ICO", "DIB in CUR", "PNG", "RGBA PNG", "progressive JPEG", "GIF"),
        *("GIF with a large frame", "TIFF", "TIFF with large tiles", "WebP", "DDS", "QOI", "FITS"),
    ],
)
def test_decoding_takes_bounded_memory(kind: str, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of memory is read from /proc")
    (tmp_path / "bomb.png").write_bytes(bomb(kind))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "bomb.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    answer, kibibytes = done.stdout.split()
    print(kind, answer, int(kibibytes) // 1024, "MiB of", len(bomb(kind)) // 1024, "KiB")
    assert int(kibibytes) <= 2 * 2**20


def headed(kind: str, width: int, height: int) -> bytes:
    """The header of an image of that size, and no pixels."""
    if kind == "PNG":
        return white_png(1, 1).replace(struct.pack(">II", 1, 1), struct.pack(">II", width, height))
    file = saved(16, 16, kind.removeprefix("progressive "), progressive=kind.startswith("progressive"))
    if kind.endswith("JPEG"):
        return file.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", height, width), 1)
    if kind == "BMP":
        return file.replace(struct.pack("<ii", 16, 16), struct.pack("<ii", width, height), 1)
    if kind == "JPEG2000":
        return file.replace(struct.pack(">II", 16, 16), struct.pack(">II", height, width), 1)
    if kind == "QOI":
        return file.replace(struct.pack(">II", 16, 16), struct.pack(">II", width, height), 1)
    raise AssertionError(kind)


def several_scans(file: bytes) -> bytes:
    """A JPEG with the header of its first scan replaced by one of a single component."""
    place = file.index(b"\xff\xda")
    return file[:place] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(100)


@clause("01.image.limit")
@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("JPEG", LARGEST_IMAGE),
        ("JPEG2000", LARGEST_WHOLE * 2 // 3),
        ("progressive JPEG", LARGEST_WHOLE),
        ("several scans JPEG", LARGEST_WHOLE),
        ("BMP", LARGEST_IMAGE),
    ],
)
def test_the_limit_of_pixels_follows_from_how_a_format_is_decoded(kind: str, limit: int, tmp_path: Path) -> None:
    height = 20_000
    content = headed(kind.removeprefix("several scans "), limit // height + 1, height)
    (tmp_path / "a").write_bytes(several_scans(content) if kind.startswith("several") else content)
    with pytest.raises(InputError, match=rf"pixels, at most {limit:,} are allowed"):
        open_image(tmp_path / "a")
    assert (LARGEST_IMAGE, LARGEST_WHOLE, HUGE, LARGEST_FILE) == (400_000_000, 100_000_000, 2**24, 2**30)


# ----------------------------------------------------------------------------------------------------------- formats

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def iptc(inner: bytes) -> bytes:
    """IPTC/NAA: records of one field each, and an image of any format at the end."""

    def field(record: int, dataset: int, data: bytes) -> bytes:
        return bytes([0x1C, record, dataset]) + len(data).to_bytes(2) + data

    size = field(3, 20, (10).to_bytes(2)) + field(3, 30, (10).to_bytes(2))
    return field(3, 60, b"\1\0") + size + field(3, 120, b"\1") + field(8, 10, inner)


OTHERS: dict[str, bytes] = {
    "EPS": EPS,
    "EPS with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS,
    "IPTC": iptc(EPS),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 100, 100, 72) + bytes(6) + b"\1\0\t\0" + bytes(80),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "GRIB": b"GRIB" + bytes(3) + b"\1" + bytes(100),
    "MPEG": b"\0\0\1\xb3" + bytes(100),
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000),
}


@clause("01.image.formats")
@pytest.mark.parametrize("kind", OTHERS)
def test_a_format_that_pillow_does_not_decode_by_itself_is_not_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: object, **_: object) -> None:
        raise AssertionError(f"{arguments} is being started")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    for name in ("a.png", "a.jpg", "a.eps"):
        (tmp_path / name).write_bytes(OTHERS[kind])
        with pytest.raises(InputError, match=r"not a readable image \(no image format is recognized\)"):
            open_image(tmp_path / name)


@clause("01.image.formats")
def test_unsupported_formats_have_no_image_extension() -> None:
    for name in ("a.eps", "a.ps", "a.iim", "a.wmf", "a.emf", "a.bufr", "a.grib", "a.h5", "a.mpg", "a.fpx", "a.mic"):
        assert not is_image_name(name), name
    for name in ("a.jpg", "a.mpo", "a.ico", "a.icns", "a.psd", "a.dds", "a.qoi", "a.fits", "a.jp2", "a.tga"):
        assert is_image_name(name), name
    opened = {*images.BY_ROWS, *images.AS_A_WHOLE, *images.RARE}
    Image.init()
    assert set(Image.OPEN) - opened == {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"} | (
        {"FPX", "MIC"} & set(Image.OPEN)
    )


# ------------------------------------------------------------------------------------------------------ regular files


def special(kind: str, folder: Path) -> Path:
    """A file of the given type called x.png."""
    path = folder / "x.png"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        before = Path.cwd()
        os.chdir(folder)  # an address has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("x.png")  # the file stays
        os.chdir(before)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a terminal":
        path.symlink_to("/dev/tty")
    else:
        path.write_bytes(saved(8, 8, "PNG"))
        with open(path, "r+b") as file:
            file.truncate(5 * 2**30)
    return path


KINDS = ["a FIFO", "a socket", "a device", "a terminal", "a sparse file"]


@clause("01.image.regular")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", [False, True], ids=["itself", "a link to it"])
def test_only_regular_files_of_bounded_size_are_opened(kind: str, link: bool, tmp_path: Path) -> None:
    path = special(kind, tmp_path)
    if link:
        (tmp_path / "link.png").symlink_to(path)
        path = tmp_path / "link.png"
    said = f"it is {kind}, not a regular file".replace("terminal", "device")
    if kind == "a sparse file":
        said = "it has 5,368,709,120 bytes, at most 1,073,741,824 are allowed"
    with pytest.raises(InputError) as caught:
        open_image(path)
    assert str(caught.value) == f"{path}: not a readable image ({said})"


@clause("01.image.regular")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [False, True], ids=["in a folder", "named"])
def test_a_special_file_does_not_delay_the_other_images_of_the_batch(kind: str, alone: bool, tmp_path: Path) -> None:
    special(kind, tmp_path)
    (tmp_path / "a.png").write_bytes(saved(8, 8, "PNG"))
    asked = [tmp_path / "a.png", tmp_path / "x.png"] if alone else [tmp_path]
    names = [f"class {i}" for i in range(10)]
    answers = list(predict(reference.Ocean(), names, asked))
    assert [answer.image.name for answer in answers] == ["a.png", "x.png"]
    assert len(answers[0].classes) == 3
    said = str(answers[1].error)
    assert "not a regular file" in said or "5,368,709,120 bytes" in said


@clause("01.image.regular")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
def test_a_labeled_folder_names_a_special_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "ants").mkdir()
    special(kind, tmp_path / "ants")
    dataset = reference.LabeledFolder(tmp_path, "ants")
    with pytest.raises(InputError, match=r"x\.png: not a readable image"):
        dataset[0]


@clause("01.image.regular")
def test_a_file_that_becomes_a_fifo_after_it_was_looked_up_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, path = os.open, special("a FIFO", tmp_path)
    (tmp_path / "a.png").write_bytes(saved(8, 8, "PNG"))
    monkeypatch.setattr(os, "open", lambda name, *rest: genuine(path if str(name).endswith("a.png") else name, *rest))
    with pytest.raises(InputError, match="it is a FIFO, not a regular file"):
        open_image(tmp_path / "a.png")


# ----------------------------------------------------------------------------------------------------------- warnings


def noisy(folder: Path) -> list[Path]:
    """Readable images with a warning of Pillow while opening, decoding or converting."""
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    palette.save(folder / "palette.png", transparency=bytes(range(200)) + bytes(56))
    (folder / "icon.ico").write_bytes(ico(saved(48, 48, "PNG")))
    whole = saved(8, 8, "TIFF", tiffinfo={700: b"x" * 8})
    (folder / "tag.tif").write_bytes(whole)
    exif = Image.Exif()
    exif[0x0112] = 1
    broken = exif.tobytes().replace(struct.pack("<H", 0x0112), struct.pack("<H", 0x0113))[:-6]
    (folder / "exif.jpg").write_bytes(saved(8, 8, "JPEG", exif=broken))
    (folder / "animated.png").write_bytes(
        white_png(8, 8).replace(chunk(b"IEND", b""), b"").replace(b"IDAT", b"IDAT") + chunk(b"IEND", b"")
    )
    return sorted(path for path in folder.iterdir() if path.is_file())


@clause("01.image.warnings")
def test_pillow_warns_when_opening_the_sample_images(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in noisy(tmp_path):
            with contextlib.suppress(Exception), Image.open(path) as image:
                image.load()
                image.getexif()
                image.convert("RGB")
    assert len({str(warning.message)[:20] for warning in caught}) >= 2


@clause("01.image.warnings")
@pytest.mark.parametrize("action", ["error", "always"])
def test_a_readable_image_causes_no_warning_in_any_thread(action: Any, tmp_path: Path) -> None:
    paths, failures = noisy(tmp_path), []

    def read() -> None:
        try:
            for path in paths * 5:
                open_image(path, (32, 32))
        except Exception as error:
            failures.append(error)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        before = list(warnings.filters)
        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert caught == []
        assert list(warnings.filters) == before
        if action == "always":
            warnings.warn("of others", stacklevel=1)
            assert len(caught) == 1


@clause("01.image.warnings")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the libraries of a process")
def test_a_damaged_tiff_writes_nothing_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes its errors directly to the standard error of the process."""
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        mode = "1" if compression == "group4" else "L"
        whole = saved(64, 64, "TIFF", mode, compression=compression)
        for place in range(8, len(whole), 31):
            (tmp_path / "a.tif").write_bytes(whole[:place] + b"\xff\xa5\x5a" + whole[place + 3 :])
            with contextlib.suppress(InputError):
                open_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


# -------------------------------------------------------------------------------------------------- time


@clause("01.image.limit")
@pytest.mark.parametrize("filler", [b" ", b"#", b"# \n", b"\r\n"], ids=["spaces", "one comment", "comments", "lines"])
@pytest.mark.parametrize("kind", [b"P1", b"P4", b"P6", b"Pf"], ids=bytes.decode)
def test_the_header_of_a_ppm_file_is_bounded(kind: bytes, filler: bytes, tmp_path: Path) -> None:
    """Pillow reads the header byte by byte, at one second per MB."""
    (tmp_path / "a.ppm").write_bytes(kind + b" " + filler * (2**22 // len(filler)) + b"\n2 2 255 " + bytes(12))
    began = time.process_time()
    with pytest.raises(InputError, match=r"a\.ppm: not a readable image .its header does not end within 65,536"):
        open_image(tmp_path / "a.ppm")
    assert time.process_time() - began < 1


@clause("01.image.limit")
def test_ppm_files_of_every_kind_are_read(tmp_path: Path) -> None:
    for byte in (b"\0", b"#", b" ", b"\n", b"7"):
        for header, count in (
            (b"P4\n1024 1024\n", 2**17),
            (b"P5 512 512 255\n", 2**18),
            (b"P6 512 512 255\n", 3 * 2**18),
        ):
            (tmp_path / "a.ppm").write_bytes(header + byte * count)
            assert open_image(tmp_path / "a.ppm").width in (512, 1024), (header, byte)
    (tmp_path / "a.ppm").write_bytes(b"P6 # made by hand\n# in two lines\n 300 300 255\n" + bytes(3 * 300 * 300))
    assert open_image(tmp_path / "a.ppm").size == (300, 300)
