"""Chapter 05: the download of CIFAR-10."""

import contextlib
import errno
import hashlib
import http.server
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.data import download as downloading
from reference.data.cifar10 import CIFAR10, cifar10_pair
from reference.data.download import download
from reference.errors import InputError
from spec.support.cifar_archives import (
    ARCHIVE,
    TRAIN,
    SmallCifar10,
    members,
    small_cifar10,
    write_archive,
    write_folder,
)
from spec.support.cifar_checks import images_of, refusal
from spec.support.clauses import clause


@pytest.fixture(scope="module")
def small() -> SmallCifar10:
    return small_cifar10()


# Download


@dataclass
class Answer:
    """The response of the server to one request: that of a correct server with these differences."""

    content: bytes | None = None  # instead of the server's
    status: int | None = None  # this status
    cut: int | None = None  # the connection ends after this number of bytes
    stall: bool = False  # ... or the server stops sending there
    ranges: bool = True  # a request for a range gets this range
    marks: dict[str, str] | None = None  # instead of the server's ETag
    headers: dict[str, str] = field(default_factory=dict)  # instead of the true headers


class Server(http.server.ThreadingHTTPServer):
    """A server of one file on this machine. Each request consumes one of `answers`; after that it is a correct server.

    `requests` records (path, Range, If-Range) of each, `sent` the bytes of each answer's body.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.marks = {"ETag": '"version 1"'}
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.sent: list[int] = []
        self.closing = threading.Event()
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{ARCHIVE}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server = self.server
        answer = server.answers.pop(0) if server.answers else Answer()
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        server.requests.append((self.path, wanted, condition))
        if answer.status is not None:
            self.send_error(answer.status)
            return
        content = server.content if answer.content is None else answer.content
        marks = server.marks if answer.marks is None else answer.marks
        start = 0
        if wanted and answer.ranges and condition in marks.values():
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # pyright: ignore[reportOptionalSubscript]
            if start >= len(content):
                self.send_error(416)
                return
        headers = {"Content-Length": str(len(content) - start), **marks}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:][: answer.cut]
        server.sent.append(len(body))  # before the client is notified, so that the order is that of the requests
        self.send_response(206 if start else 200)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if answer.stall:
            self.wfile.flush()
            server.stalled.set()
            server.closing.wait(30)

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Log nothing."""


CONTENT = random.Random(1).randbytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    with serving(CONTENT) as server:
        yield server


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def failure(urls: list[str], destination: Path, md5: str | None = MD5) -> str:
    with pytest.raises(InputError) as caught:
        download(urls, destination, md5, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@clause("05.download.whole")
def test_a_complete_download_leaves_only_an_empty_lock(server: Server, tmp_path: Path) -> None:
    destination = tmp_path / "new" / "folder" / "file"
    assert download([server.url], destination, MD5, progress=False) == destination
    assert destination.read_bytes() == CONTENT
    assert left_behind(destination.parent) == {"file", "file.lock"}
    assert (destination.parent / "file.lock").read_bytes() == b""
    assert server.requests == [(f"/{ARCHIVE}", None, None)]


@clause("05.download.bar")
def test_progress_bar_counts_bytes_and_can_be_disabled(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download([server.url], tmp_path / "one", MD5)
    shown = capsys.readouterr()
    assert "one: 100%" in shown.err
    assert "1.00M/1.00M" in shown.err
    assert shown.out == ""
    server.answers = [Answer(cut=400_000)]
    download([server.url], tmp_path / "resumed", MD5)
    assert capsys.readouterr().err.count("1.00M/1.00M") == 1, "the bar of the second part begins where the first ended"
    download([server.url], tmp_path / "two", MD5, progress=False)
    assert capsys.readouterr() == ("", "")


@clause("05.download.whole")
@pytest.mark.parametrize("md5", [MD5, None], ids=["the right file", "any file where none is asked for"])
def test_a_file_that_is_there_is_not_downloaded_again(md5: str | None, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    download([server.url], tmp_path / "file", md5, progress=False)
    assert server.requests == []
    assert left_behind(tmp_path) == {"file"}


@clause("05.download.whole")
def test_a_wrong_file_stays_until_the_right_one_has_arrived(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"something else")
    server.answers = [Answer(status=404)]
    failure([server.url], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"something else"
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.resumed")
@pytest.mark.parametrize(
    "marks", [{"ETag": '"v1"'}, {"Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"}], ids=["ETag", "Last-Modified"]
)
def test_a_broken_connection_is_resumed(marks: dict[str, str], server: Server, tmp_path: Path) -> None:
    server.marks = marks
    server.answers = [Answer(cut=400_000), Answer(cut=500_000)]
    download([server.url], tmp_path / "file", MD5, largest=len(CONTENT), progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    (mark,) = marks.values()
    assert [request[1:] for request in server.requests] == [
        (None, None),
        ("bytes=400000-", mark),
        ("bytes=900000-", mark),
    ]
    assert server.sent == [400_000, 500_000, 100_000]


@clause("05.download.resumed")
def test_a_later_call_resumes_an_abandoned_download(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=1000)] * downloading.ATTEMPTS
    text = failure([server.url], tmp_path / "file")
    assert text == (
        f"cannot download file: {server.url}: the connection broke after 4,000 of 1,000,000 bytes; "
        f"run again to continue {tmp_path / 'file.part'}"
    )
    assert left_behind(tmp_path) == {"file.part", "file.part.json", "file.lock"}
    server.sent.clear()
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert server.sent == [996_000]
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.resumed")
def test_a_silent_server_counts_as_a_broken_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_file = downloading.Pace.begin_file

    def begin_with_a_short_limit(pace: downloading.Pace) -> None:
        once.setattr(downloading, "TIMEOUT", 0.2)  # not before the file begins: a busy server answers later
        begin_file(pace)

    server.answers = [Answer(cut=300_000, stall=True)]
    with monkeypatch.context() as once:
        once.setattr(downloading, "ATTEMPTS", 1)
        once.setattr(downloading.Pace, "begin_file", begin_with_a_short_limit)
        assert "the connection broke (timed out)" in failure([server.url], tmp_path / "file")
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == [300_000, 700_000]


@clause("05.download.rate")
def test_each_timeout_of_bytes_at_the_least_rate_begins_the_next_period() -> None:
    pace, least = downloading.Pace(), int(downloading.LEAST_RATE * downloading.TIMEOUT)
    pace.delivered(least - 1)
    assert pace.gained == least - 1
    pace.delivered(1)
    assert pace.gained == 0


@clause("05.download.rate")
def test_the_error_at_the_deadline_tells_a_silent_server_from_a_slow_one() -> None:
    pace = downloading.Pace()
    assert isinstance(pace.overdue(), TimeoutError), "nothing has arrived"
    pace.arrived(1)
    assert str(pace.overdue()).startswith("no complete answer within")
    assert getattr(pace.overdue(), "passing") is False, "the next mirror follows"  # noqa: B009
    pace.begin_file()
    assert str(pace.overdue()).startswith("slower than")
    pace.last -= 0.45 * downloading.TIMEOUT
    assert str(pace.overdue()).startswith("slower than")
    pace.last -= 0.1 * downloading.TIMEOUT
    assert isinstance(pace.overdue(), TimeoutError), "silent for more than half of the time"


OTHER = random.Random(2).randbytes(1_000_000)
NOT_CONTINUED = {
    "the server ignores ranges": [Answer(cut=400_000), Answer(ranges=False)],
    "the file has changed": [Answer(OTHER, cut=400_000, marks={"ETag": '"old"'})],
    "the server sends a part of a changed file": [
        Answer(OTHER, cut=400_000, marks={"ETag": '"old"'}),
        Answer(marks={"X-Old": '"old"', "ETag": '"new"'}),
    ],
    "the server does not say which file the part is of": [Answer(cut=400_000), Answer(headers={"ETag": ""})],
    "the server sends another part": [
        Answer(cut=400_000),
        Answer(headers={"Content-Range": "bytes 399999-999999/1000000"}),
    ],
    "the whole has another size": [
        Answer(cut=400_000),
        Answer(headers={"Content-Range": "bytes 400000-999998/999999"}),
    ],
    "the file has become shorter": [
        Answer(CONTENT + OTHER, cut=1_500_000),
        Answer(),
    ],
    "the mark is weak": [Answer(cut=400_000, marks={"ETag": 'W/"v"'})],
    "there is no mark": [Answer(cut=400_000, marks={})],
    "there is no length": [Answer(OTHER, cut=400_000, headers={"Transfer-Encoding": "chunked"})],
}


@clause("05.download.same_file")
@pytest.mark.parametrize("case", NOT_CONTINUED)
def test_parts_of_different_versions_are_not_joined(case: str, server: Server, tmp_path: Path) -> None:
    server.answers = list(NOT_CONTINUED[case])
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent[-1] == len(CONTENT), "from the beginning"
    assert left_behind(tmp_path) == {"file", "file.lock"}


@clause("05.download.resumed")
def test_a_full_response_to_a_range_request_is_accepted(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=400_000), Answer(ranges=False)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert server.sent == [400_000, 1_000_000]


@clause("05.download.same_file")
def test_partial_downloads_without_a_validator_restart(server: Server, tmp_path: Path) -> None:
    server.marks = {"ETag": 'W/"weak"'}
    server.answers = [Answer(cut=400_000)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert [request[1:] for request in server.requests] == [(None, None), (None, None)]


@clause("05.download.same_file")
def test_a_part_from_one_mirror_is_not_continued_from_another(server: Server, tmp_path: Path) -> None:
    with serving(OTHER) as first:
        first.answers = [Answer(cut=400_000), *[Answer(status=503)] * downloading.ATTEMPTS]
        download([first.url, server.url], tmp_path / "file", MD5, progress=False)
    assert server.requests == [(f"/{ARCHIVE}", None, None)]
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.same_file")
@pytest.mark.parametrize("sidecar", ["", '["http://', "[1, 2]", "7", '{"a": 1}', '["x", "y", "z"]', "\udcff"])
def test_a_partial_download_with_a_broken_note_restarts(sidecar: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(OTHER[:1000])
    (tmp_path / "file.part.json").write_bytes(sidecar.encode(errors="surrogateescape"))
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [(f"/{ARCHIVE}", None, None)]


@clause("05.download.whole")
def test_a_complete_unverified_part_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    (tmp_path / "file.part.json").write_text(json.dumps([server.url, '"version 1"', len(CONTENT)]))
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == []


@clause("05.download.mirrors")
def test_a_mirror_without_the_file_is_followed_by_the_next(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=404)]
    download([server.url, server.url + "?second"], tmp_path / "file", MD5, progress=False)
    assert [request[0] for request in server.requests] == [f"/{ARCHIVE}", f"/{ARCHIVE}?second"]


@clause("05.download.mirrors")
def test_a_mirror_with_a_temporary_error_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Answer(status=500), Answer(status=503)]
    pauses: list[float] = []
    monkeypatch.setattr(downloading, "PAUSE", 0.001)
    monkeypatch.setattr(downloading.time, "sleep", pauses.append)
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert len(server.requests) == 3
    assert pauses == [0.001, 0.002], "the pause grows with each attempt"


@clause("05.download.mirrors")
@pytest.mark.parametrize("status", [408, 416, 429, 500, 502, 503, 504])
def test_every_status_that_may_change_is_tried_again(
    status: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Answer(status=status)]
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert len(server.requests) == 2


@clause("05.download.mirrors")
def test_a_mirror_with_another_file_is_followed_by_the_next(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(OTHER)]
    download([server.url, server.url + "?second"], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.mirrors")
def test_when_all_mirrors_fail_the_error_gives_each_reason(server: Server, tmp_path: Path) -> None:
    wrong = hashlib.md5(OTHER).hexdigest()
    server.answers = [Answer(OTHER), Answer(status=404), *[Answer(status=503)] * downloading.ATTEMPTS]
    with serving(b"") as gone:
        nowhere = gone.url
    a, b, c = (f"{server.url}?{name}" for name in "abc")
    text = failure([a, b, c, nowhere], tmp_path / "file")
    assert text == (
        f"cannot download file: {a}: wrong checksum, MD5 {wrong} instead of {MD5}; "
        f"{b}: the server answered 404 Not Found; "
        f"{c}: the server answered 503 Service Unavailable; {nowhere}: no connection ([Errno {errno.ECONNREFUSED}] "
        f"{os.strerror(errno.ECONNREFUSED)})"
    )
    assert left_behind(tmp_path) == {"file.lock"}, "what has the wrong checksum is of no use"
    assert failure([], tmp_path / "file") == "cannot download file: no address given"


@clause("05.download.mirrors")
@pytest.mark.parametrize(
    ("length", "reason"),
    [
        ("1000001", "the connection broke after 1,000,000 of 1,000,001 bytes"),
        ("999999", f"wrong checksum, MD5 {hashlib.md5(CONTENT[:999_999]).hexdigest()} instead of {MD5}"),
    ],
    ids=["too long", "too short"],
)
def test_a_wrong_content_length_is_an_error(length: str, reason: str, server: Server, tmp_path: Path) -> None:
    server.marks = {}
    server.answers = [Answer(headers={"Content-Length": length})] * downloading.ATTEMPTS
    assert failure([server.url], tmp_path / "file") == f"cannot download file: {server.url}: {reason}"
    assert not (tmp_path / "file").exists()


@clause("05.download.addresses")
@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "data:,x", "/etc/passwd", "http:/x", ""])
def test_only_http_and_https_addresses_are_requested(url: str, server: Server, tmp_path: Path) -> None:
    assert failure([server.url, url], tmp_path / "file") == (
        f"cannot download from {url!r}: the address must start with http:// or https://"
    )
    assert server.requests == []
    assert left_behind(tmp_path) == set()


@clause("05.download.addresses")
@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://127.0.0.1:port/", "http://127.0.0.1/a b", "http://\u0100/\u0100"]
)
def test_an_invalid_url_is_reported_like_other_failures(url: str, server: Server, tmp_path: Path) -> None:
    assert failure([url], tmp_path / "file").startswith(f"cannot download file: {url}: no connection (")


@clause("05.download.addresses")
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/file"])
def test_a_redirection_leads_only_to_http_and_https(target: str, tmp_path: Path, server: Server) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", server.url if self.path == "/good" else target)
            self.end_headers()

        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Log nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as redirecting:
        thread = threading.Thread(target=redirecting.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{redirecting.server_address[1]}"
        try:
            text = failure([f"{url}/bad"], tmp_path / "file")
            download([f"{url}/good"], tmp_path / "file", MD5, progress=False)
        finally:
            redirecting.shutdown()
            thread.join()
    assert f"cannot download file: {url}/bad: " in text
    assert "not allowed" in text or "unknown url type: ftp" in text
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.whole")
def test_a_full_disk_error_names_the_file_and_keeps_received_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 600_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def opened(path: Path, mode: str = "r", **settings: Any) -> Any:
        return Full(path, "ab") if mode == "ab" else genuine(path, mode, **settings)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", opened)
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "file.part"))) as caught:
            download([server.url], tmp_path / "file", MD5, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, InputError)
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").read_bytes()
    assert kept == CONTENT[: len(kept)] != b""
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent[-1] == len(CONTENT) - len(kept)


@clause("05.download.resumed")
def test_an_interrupt_leaves_a_part_that_can_be_continued(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Answer(cut=400_000)]
    genuine = downloading.receive

    def interrupted(response: Any) -> bytes:
        if chunk := genuine(response):
            return chunk
        raise KeyboardInterrupt

    with monkeypatch.context() as keyboard:
        keyboard.setattr(downloading, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:400_000]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == [400_000, 600_000]


PROCESS = """
import sys
from reference.data.download import download
print("ready", flush=True)
sys.stdin.readline()
download([sys.argv[1]], sys.argv[2], sys.argv[3], progress=False)
print("done")
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


@pytest.mark.slow
@clause("05.download.whole")
def test_two_processes_download_once(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=400_000, stall=True)]  # the first holds the lock while the second starts
    processes = [start(server.url, tmp_path / "file", MD5) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"  # pyright: ignore[reportOptionalMemberAccess]
        process.stdin.write("\n")  # pyright: ignore[reportOptionalMemberAccess]
        process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
    assert server.stalled.wait(30)
    server.closing.set()
    for process in processes:
        assert process.communicate(timeout=60)[0] == "done\n"
        assert process.returncode == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sum(server.sent) == len(CONTENT)


@pytest.mark.slow
@clause("05.download.resumed")
def test_a_killed_process_leaves_a_part_that_can_be_continued(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=400_000, stall=True)]
    process = start(server.url, tmp_path / "file", MD5)
    process.stdin.write("\n")  # pyright: ignore[reportOptionalMemberAccess]
    process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
    assert server.stalled.wait(30)
    process.kill()
    process.communicate()
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").read_bytes() if (tmp_path / "file.part").exists() else b""
    assert kept == CONTENT[: len(kept)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == [400_000, len(CONTENT) - len(kept)]


# The data set and its download


@clause("05.cifar10.download")
def test_download_fetches_the_archive_and_reads_it(small: SmallCifar10, server: Server, tmp_path: Path) -> None:
    md5 = write_archive(tmp_path / "there", members(small.files))
    server.content = (tmp_path / "there" / ARCHIVE).read_bytes()
    settings: dict[str, Any] = {"mirrors": [server.url], "archive_md5": md5, "progress": False}
    for train, names in ((True, TRAIN), (False, ("test_batch",))):
        dataset = CIFAR10(tmp_path / "here", train=train, download=True, **settings)
        assert torch.equal(dataset.images, images_of(small, *names))
    assert [len(part) for part in cifar10_pair(tmp_path / "here", download=True, **settings)] == [30, 6]
    assert len(server.requests) == 1
    (tmp_path / "here" / ARCHIVE).write_bytes(b"damaged")
    assert "wrong checksum" in refusal(tmp_path / "here", archive_md5=md5)
    assert len(CIFAR10(tmp_path / "here", download=True, **settings)) == 30
    assert len(server.requests) == 2


@clause("05.cifar10.download")
def test_download_leaves_an_unpacked_folder_alone(small: SmallCifar10, server: Server, tmp_path: Path) -> None:
    write_folder(tmp_path, small.files)
    assert len(CIFAR10(tmp_path, download=True, mirrors=[server.url], archive_md5=None)) == 30
    assert server.requests == []


@clause("05.cifar10.download")
def test_download_never_replaces_a_file_that_was_named_as_the_archive(server: Server, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(b"years of work")
    assert "wrong checksum" in refusal(tmp_path / "thesis", download=True, mirrors=[server.url], archive_md5=MD5)
    assert (tmp_path / "thesis").read_bytes() == b"years of work"


@clause("05.cifar10.download")
def test_a_failed_download_gives_the_reason(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=404)]
    text = refusal(tmp_path, download=True, mirrors=[server.url], archive_md5=MD5)
    assert text == f"cannot download {ARCHIVE}: {server.url}: the server answered 404 Not Found"
