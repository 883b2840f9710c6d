"""Chapter 05: downloads from hostile mirrors end within limits of disk, memory and time, and continue with the next
mirror.

Ordinary downloads are specified in `test_05_cifar10_download.py`. Here a mirror is a function with the connection as
its argument.
"""

import contextlib
import hashlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reference.data import cifar10
from reference.data import download as downloading
from reference.data.cifar10 import CIFAR10, OFFICIAL_MD5, cifar10_pair
from reference.data.download import download
from reference.errors import InputError
from spec.support.cifar_archives import ARCHIVE, members, small_cifar10, write_archive
from spec.support.clauses import clause

Mirror = Callable[[socket.socket], None]

CONTENT = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.contextmanager
def serving(mirror: Mirror) -> Iterator[tuple[str, list[bytes]]]:
    """The address of `mirror` on this machine, and the first line of each request that it received."""
    lines: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            lines.append(connection.recv(65536).partition(b"\r\n")[0])
            mirror(connection)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/file", lines
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def good(connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT)


@pytest.fixture
def good_mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes]]]:
    """A working mirror, with short time limits and a size limit of 1,000,000 bytes."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    monkeypatch.setattr(downloading, "TIMEOUT", 0.4)
    with serving(good) as mirror:
        yield mirror


def repeat(start: bytes, again: bytes, pause: float = 0.0) -> Mirror:
    """A mirror that sends `start` and then repeats `again` for two minutes."""

    def mirror(connection: socket.socket) -> None:
        connection.sendall(start)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            connection.sendall(again)
            time.sleep(pause)

    return mirror


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ELSEWHERE = b"HTTP/1.1 302 Found\r\nLocation: /other\r\n"

LARGER = {
    "endless chunks": repeat(CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
    "no length": repeat(OK + b"\r\n", bytes(1 << 16)),
    "the length says so": repeat(OK + b"Content-Length: 5000000000\r\n\r\n", bytes(1 << 16)),
}
SLOW = {
    "one byte at a time": repeat(OK + b"Content-Length: 300000\r\n\r\n", b"x", 0.05),
    "one small chunk at a time": repeat(CHUNKED, b"1\r\nx\r\n", 0.05),
    "endless trailers": repeat(CHUNKED + b"0\r\n", b"X-More: 1\r\n"),
    "a chunk's length, digit by digit": repeat(CHUNKED, b"0", 0.05),
}
NO_ANSWER = {
    "status line, byte by byte": repeat(b"HTTP/1.1 200 ", b"O", 0.05),
    "headers, byte by byte": repeat(OK + b"X-Long: ", b"x", 0.05),
    "100 Continue, slowly": repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "100 Continue": repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "100 Continue with headers": repeat(b"", b"HTTP/1.1 100 Continue\r\n" + b"X: 1\r\n" * 50 + b"\r\n"),
    "headers": repeat(OK, b"X-More: 1\r\n" * 100),
    "a redirection with an endless body": repeat(ELSEWHERE + b"\r\n", bytes(1 << 16)),
    "a redirection, byte by byte": repeat(ELSEWHERE + b"Content-Length: 300000\r\n\r\n", b"x", 0.05),
    "a redirection in a circle": lambda connection: connection.sendall(ELSEWHERE + b"Content-Length: 0\r\n\r\n"),
}


def refused_then_next(mirror: Mirror, good_mirror: tuple[str, list[bytes]], tmp_path: Path) -> str:
    """The error of `mirror`, from a download from it alone and from one that continues with the good mirror."""
    with serving(mirror) as (url, requests):
        began = time.monotonic()
        with pytest.raises(InputError) as caught:
            download([url], tmp_path / "alone", MD5, largest=1_000_000, progress=False)
        # 4 attempts of 0.4 seconds, or one; the machine that runs this may be busy
        assert time.monotonic() - began < 20
        download([url, good_mirror[0]], tmp_path / "file", MD5, largest=1_000_000, progress=False)
        assert requests
    assert (tmp_path / "file").read_bytes() == CONTENT
    return str(caught.value)


@clause("05.download.size")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("mirror", LARGER)
def test_a_mirror_that_sends_too_many_bytes_is_abandoned(
    mirror: str, good_mirror: tuple[str, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    genuine = downloading.forget

    def forget(part: Path) -> None:
        written.append(part.stat().st_size if part.exists() else 0)
        genuine(part)

    monkeypatch.setattr(downloading, "forget", forget)
    reason = refused_then_next(LARGER[mirror], good_mirror, tmp_path)
    assert "at most 1,000,000" in reason or "more than the 1,000,000 bytes" in reason
    assert max(written) <= 1_000_000
    assert not (tmp_path / "alone.part").exists()


@clause("05.download.size")
def test_cifar_10_is_within_the_size_limits() -> None:
    # https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz answers with Content-Length: 170498071
    assert cifar10.OFFICIAL_SIZE == 170_498_071 < cifar10.ARCHIVE_LIMIT < downloading.LARGEST_DOWNLOAD


@clause("05.download.size")
@pytest.mark.parametrize("md5", [OFFICIAL_MD5, OFFICIAL_MD5.upper(), "0" * 32], ids=["official", "capitals", "another"])
def test_the_archive_of_cifar_10_is_bounded(md5: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(mirrors: object, archive: Path, md5: str, *, largest: int, progress: bool) -> None:
        asked[md5] = largest

    monkeypatch.setattr(cifar10, "fetch", fetch)
    for make in (CIFAR10, cifar10_pair):
        with pytest.raises((InputError, FileNotFoundError)):
            make(tmp_path, download=True, archive_md5=md5)
        assert asked == {md5.lower(): 170_498_071 if md5.lower() == OFFICIAL_MD5 else cifar10.ARCHIVE_LIMIT}


@clause("05.download.rate")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("mirror", SLOW)
@pytest.mark.slow
def test_a_mirror_below_the_minimum_rate_is_abandoned(
    mirror: str, good_mirror: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    assert "slower than 4,096 bytes a second" in refused_then_next(SLOW[mirror], good_mirror, tmp_path)


@clause("05.download.rate")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("mirror", NO_ANSWER)
@pytest.mark.slow
def test_a_mirror_with_an_incomplete_response_is_abandoned(
    mirror: str, good_mirror: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    reason = refused_then_next(NO_ANSWER[mirror], good_mirror, tmp_path)
    told = ("no complete answer within 0.4 seconds", "the answer takes more than 1,048,576 bytes before the file")
    pythons = ("got more than 100 headers", "would lead to an infinite loop")
    assert any(words in reason for words in (*told, *pythons))


@clause("05.download.rate")
@pytest.mark.slow
def test_a_steady_mirror_may_take_longer_than_the_timeout(good_mirror: tuple[str, list[bytes]], tmp_path: Path) -> None:
    def steady(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(CONTENT))
        for start in range(0, len(CONTENT), 20_000):  # in 0.9 seconds, more than twice the timeout
            connection.sendall(CONTENT[start : start + 20_000])
            time.sleep(0.06)

    with serving(steady) as (url, requests):
        download([url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(requests) == 1


@clause("05.download.checksum_text")
@pytest.mark.parametrize("written", [str.upper, str.title, lambda text: f" {text}\n"], ids=["upper", "title", "spaces"])
def test_a_checksum_may_be_written_in_capitals(
    written: Callable[[str], str], good_mirror: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    for _ in range(2):
        download([good_mirror[0]], tmp_path / "file", written(MD5), progress=False)
        assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(good_mirror[1]) == 1
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    download([good_mirror[0]], tmp_path / "other", None, sha256=written(sha256[:8]), progress=False)
    assert (tmp_path / "other").read_bytes() == CONTENT


@clause("05.download.checksum_text")
def test_cifar_10_takes_a_checksum_in_capitals(tmp_path: Path) -> None:
    small = small_cifar10()
    md5 = write_archive(tmp_path, members(small.files))
    assert len(CIFAR10(tmp_path, archive_md5=md5.upper())) == 30
    assert [len(part) for part in cifar10_pair(tmp_path, archive_md5=md5.upper())] == [30, 6]
    assert (tmp_path / ARCHIVE).exists()


@clause("05.download.checksum_text")
@pytest.mark.parametrize("wrong", ["", "0" * 31, "0" * 33, "g" * 32, "md5", "٠" * 32, "c58f\x1b[2J"], ids=ascii)
def test_an_impossible_checksum_is_rejected_before_any_transfer(
    wrong: str, good_mirror: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    for attempt in (
        lambda: download([good_mirror[0]], tmp_path / "file", wrong, progress=False),
        lambda: CIFAR10(tmp_path, download=True, mirrors=[good_mirror[0]], archive_md5=wrong),
        lambda: cifar10_pair(tmp_path, download=True, mirrors=[good_mirror[0]], archive_md5=wrong),
    ):
        with pytest.raises(InputError, match="must be 32 hexadecimal digits, got ") as caught:
            attempt()
        assert str(caught.value).isprintable()
    with pytest.raises(InputError, match="sha256 must be 1 to 64 hexadecimal digits"):
        download([good_mirror[0]], tmp_path / "file", None, sha256=wrong + "x", progress=False)
    assert good_mirror[1] == []
    assert list(tmp_path.iterdir()) == []


@clause("05.download.text")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 \x1b[2J\x1b]0;PWNED\x07gone\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 " + b"gone " * 10_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"\x1b[2J\x1b]0;PWNED\x07\xe2\x80\xae\r\n\r\n",
        b"HTTP/1.1 302 \x1b[2J\r\nLocation: ftp://\x1b[2J\x07/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /" + b"a" * 60_000 + b"\x07\r\nContent-Length: 0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n\x1b[2Jzz\r\n",
    ],
    ids=["reason", "long reason", "status line", "redirection", "long redirection", "chunk"],
)
def test_the_reason_given_by_a_server_is_one_short_printable_line(
    answer: bytes, good_mirror: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    with serving(lambda connection: connection.sendall(answer)) as (url, _), pytest.raises(InputError) as caught:
        download([url], tmp_path / "file", MD5, progress=False)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


PLANTED = {
    "brackets inside each other": "[" * 60_000,
    "a mark that is a list": '["URL", ["x"], 300000]',
    "a mark with a line end": json.dumps(["URL", 'x"\r\nX-More: 1', 300_000]),
    "a mark beyond Latin-1": '["URL", "\u0100", 300000]',
    "a size that is a text": '["URL", "x", "300000"]',
    "sparse": "",
}


@clause("05.download.same_file")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [*PLANTED, "a FIFO", "a folder"])
def test_a_planted_resume_note_does_not_block_the_download(
    kind: str, good_mirror: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(b"others wrote this")
    note = tmp_path / "file.part.json"
    if kind == "a FIFO":
        os.mkfifo(note)
    elif kind == "a folder":
        note.mkdir()
        with pytest.raises(OSError, match=r"file\.part\.json"):
            download([good_mirror[0]], tmp_path / "file", MD5, progress=False)
        return
    else:
        note.write_text(PLANTED[kind].replace("URL", good_mirror[0]))
        if kind == "sparse":
            os.truncate(note, 2**40)
    download([good_mirror[0]], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert {path.name for path in tmp_path.iterdir()} == {"file", "file.lock"}
