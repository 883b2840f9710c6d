"""Chapter 05: downloading a file once: from several mirrors, resumable, and verified before it gets its name.

A partial file is called `NAME.part`, and `NAME.part.json` records the version of the file that it belongs to. With
`NAME.lock`, empty and left there, a second process waits for the first.

A mirror may be hostile. It cannot fill the disk (`largest`), fill the memory (`ANSWER`) or block the download for ever
(`Pace`): the download continues with the next mirror.
"""

import hashlib
import io
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib import request
from urllib.error import HTTPError, URLError

from filelock import FileLock
from tqdm import tqdm

from reference.errors import InputError
from reference.files import read_regular

ATTEMPTS = 4  # for each mirror
PAUSE = 1.0  # seconds before the second attempt, one more before each later one
TIMEOUT = 30.0  # seconds without a byte, for the whole answer before the file begins, and for each `LEAST_RATE` check
LEAST_RATE = 4096  # bytes of the file per second, averaged over `TIMEOUT`; CIFAR-10 takes 12 hours at this rate
ANSWER = 1 << 20  # bytes of everything before the file: status lines, headers, redirections with their bodies
LARGEST_DOWNLOAD = 1 << 30  # bytes of a file of unknown size
REASON = 200  # characters of a server's message that an error quotes
SIDECAR = 1 << 16  # bytes of `NAME.part.json`
CHUNK = 1 << 18  # bytes
PASSING = frozenset({408, 416, 429, 500, 502, 503, 504})  # statuses that may change on another attempt


class TransferError(Exception):
    """The transfer from a mirror failed; `passing` is True if the next attempt may succeed."""

    def __init__(self, reason: str, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class Pace:
    """The time limits for a mirror: the response headers within `TIMEOUT`, then at least `LEAST_RATE` bytes per second.

    A timeout of the socket alone is not enough: it restarts with each byte, so that one byte a second, an endless
    sequence of `100 Continue` or endless trailers never reach it.
    """

    def __init__(self) -> None:
        self.answer_left: int | None = ANSWER
        self.last = 0.0
        self.renew()

    def renew(self) -> None:
        """Begin the next period of `TIMEOUT` seconds."""
        self.deadline, self.gained = time.monotonic() + TIMEOUT, 0

    def begin_file(self) -> None:
        """The answer is complete, and the bytes of the file follow."""
        self.answer_left = None
        self.renew()

    def left(self) -> float:
        """Seconds until the deadline; raises `overdue` when there are none."""
        if (left := self.deadline - time.monotonic()) <= 0:
            raise self.overdue()
        return left

    def arrived(self, count: int) -> None:
        """Count `count` bytes received through the connection; raises TransferError if the headers are too long."""
        self.last = time.monotonic()
        if self.answer_left is not None:
            self.answer_left -= count
            if self.answer_left < 0:
                raise TransferError(f"the answer takes more than {ANSWER:,} bytes before the file", passing=False)

    def delivered(self, count: int) -> None:
        """Count `count` bytes as a part of the file."""
        self.gained += count
        if self.gained >= LEAST_RATE * TIMEOUT:
            self.renew()

    def overdue(self) -> Exception:
        """The error at the deadline: a silent connection may recover, a slow mirror is abandoned for the next one."""
        if time.monotonic() - self.last > TIMEOUT / 2:
            return TimeoutError("timed out")
        if self.answer_left is not None:
            return TransferError(f"no complete answer within {TIMEOUT:g} seconds", passing=False)
        return TransferError(f"slower than {LEAST_RATE:,} bytes a second", passing=False)


class PacedSocket(io.RawIOBase):
    """The bytes that a connection receives, under a `Pace`."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, pace: Pace) -> None:
        self.raw, self.sock, self.pace = raw, sock, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self.sock.settimeout(self.pace.left())
        try:
            count = cast(Any, self.raw).readinto(buffer)
        except TimeoutError:
            raise self.pace.overdue() from None
        self.pace.arrived(count)
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class PacedResponse(HTTPResponse):
    """A response of a server; each of its bytes is read under `pace`."""

    def __init__(self, sock: socket.socket, *args: Any, pace: Pace, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.pace = pace
        self.fp = io.BufferedReader(PacedSocket(cast(Any, self.fp).detach(), sock, pace))


class PacedHandler(request.HTTPHandler, request.HTTPSHandler):
    """Opens http and https addresses under one `pace`, redirections included."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def connection(self, kind: type[HTTPConnection], host: str, **options: Any) -> HTTPConnection:
        """A connection to `host` with `PacedResponse` as its response class, also for the response of a proxy."""
        made = kind(host, **options)
        made.response_class = cast(Any, partial(PacedResponse, pace=self.pace))
        return made

    def http_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(cast(Any, partial(self.connection, HTTPConnection)), req)

    def https_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(cast(Any, partial(self.connection, HTTPSConnection)), req)


class Redirections(request.HTTPRedirectHandler):
    """Follows redirections; if the body of a redirection cannot be read to its end, the connection is closed."""

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except Exception:  # a TransferError in its body, or a target that is not an address
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class Version(NamedTuple):
    """The version of the file that a partial file belongs to: `size` bytes at `url`, identified by `mark`."""

    url: str
    mark: str  # the ETag, or the time of the last change
    size: int


def download(
    urls: Sequence[str],
    destination: str | Path,
    md5: str | None,
    *,
    sha256: str | None = None,
    largest: int = LARGEST_DOWNLOAD,
    progress: bool = True,
) -> Path:
    """Download a file from the first working address in `urls`, unless it exists already.

    A broken transfer is resumed, in this call or a later one, if the server proves that its file is still the same. A
    file at `destination` with another MD5 stays until the right one has arrived to replace it.

    Args:
        urls: http or https addresses of the same file, in the order to try them.
        destination: the path of the file; missing folders above it are made.
        md5: the MD5 of the right file, 32 hexadecimal digits in upper or lower case; `None` accepts any file.
        sha256: the first hexadecimal digits of the SHA-256 of the right file, or all of them; `None` accepts any file.
        largest: the largest size in bytes; a mirror that sends more is abandoned for the next one.
        progress: show a bar with the bytes on standard error.

    Returns:
        `destination`.

    Raises:
        InputError: an address is not http or https, `md5` or `sha256` is not hexadecimal (both before anything is
            transferred), or no address delivered the right file; the message gives the reason for each.
        OSError: the file cannot be written, for instance because the disk is full. The received bytes are kept.
    """
    destination = Path(destination)
    sums = Checksums(md5_digits(md5), hexadecimal(sha256, "sha256", range(1, 65)))
    for url in urls:
        if not url.lower().startswith(("http://", "https://")):
            raise InputError(f"cannot download from {url!r}: the address must start with http:// or https://")
    if destination.is_file() and sums.problem(destination) is None:
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f"{destination.name}.part")
    reasons = []
    with FileLock(destination.with_name(f"{destination.name}.lock")):
        if destination.is_file() and sums.problem(destination) is None:  # downloaded by the process that held the lock
            return destination
        for url in urls:
            try:
                fetch(url, part, progress, largest)
            except TransferError as error:
                reasons.append(f"{url}: {error}")
                continue
            problem = sums.problem(part)
            if problem is None:
                os.replace(part, destination)
                forget(part)
                return destination
            reasons.append(f"{url}: wrong checksum, {problem}")
            forget(part)
        if not remembered(part):  # a part that cannot be resumed is useless
            forget(part)
    kept = f"; run again to continue {part}" if remembered(part) else ""
    raise InputError(f"cannot download {destination.name}: {'; '.join(reasons) or 'no address given'}{kept}")


def fetch(url: str, part: Path, progress: bool, largest: int = LARGEST_DOWNLOAD) -> None:
    """Complete `part` from `url` in up to `ATTEMPTS` transfers; raises TransferError if that fails."""
    for attempt in range(1, ATTEMPTS):
        try:
            return transfer(url, part, progress, largest)
        except TransferError as error:
            if not error.passing:
                raise
        time.sleep(PAUSE * attempt)
    return transfer(url, part, progress, largest)


def transfer(url: str, part: Path, progress: bool, largest: int) -> None:
    """One request: the rest of `part` if the server proves that it has the same version, otherwise the whole file."""
    headers = {"User-Agent": "ocean-spec"}
    version, start = remembered(part), 0
    if version is not None and version.url == url and version.size <= largest:
        start = part.stat().st_size
        headers |= {"Range": f"bytes={start}-", "If-Range": version.mark}
        if start == version.size:  # only the checksum was missing
            return
    with connect(url, headers, part) as response:
        if response.length is not None and start + response.length > largest:
            raise TransferError(f"its file has {start + response.length:,} bytes, at most {largest:,} are right", False)
        if response.status != 206:  # the server ignores ranges, or holds another version now
            forget(part)
            start, version = 0, version_of(response, url)
        elif version is None or not continues(response, version, start):
            forget(part)
            raise TransferError("the server sent another part than the one asked for", passing=True)
        try:
            if start == 0 and version is not None:
                sidecar(part).write_text(json.dumps(version))
            append(response, part, start, progress, largest)
        except OSError as error:  # an error of the disk: errors of the network are raised as TransferError
            raise OSError(error.errno, error.strerror, os.fspath(part)) from error


def append(response: PacedResponse, part: Path, start: int, progress: bool, largest: int) -> None:
    """Append the received bytes to the first `start` bytes of `part`, which may grow to `largest`."""
    total = None if response.length is None else start + response.length  # None: the server does not report a size
    name = part.name.removesuffix(".part")
    with (
        part.open("ab") as file,
        tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        arrived = start
        while chunk := receive(response):
            arrived += len(chunk)
            if arrived > largest:
                break
            file.write(chunk)
            bar.update(len(chunk))
            response.pace.delivered(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if arrived > largest:
        forget(part)
        raise TransferError(f"its file has more than the {largest:,} bytes that are right", passing=False)
    if total is not None and arrived < total:
        raise TransferError(f"the connection broke after {arrived:,} of {total:,} bytes", passing=True)


def connect(url: str, headers: dict[str, str], part: Path) -> PacedResponse:
    """Send the request; raises TransferError if there is no response, or the response contains no file."""
    opener = request.OpenerDirector()  # the handlers of build_opener would follow a redirection to ftp:
    pace = Pace()
    for handler in (
        request.ProxyHandler(),
        PacedHandler(pace),
        Redirections(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        response = cast(PacedResponse, opener.open(request.Request(url, headers=headers), timeout=TIMEOUT))
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the file has become shorter than the part
            forget(part)
        said = f"{error.code} {str(error.reason)[:REASON]}"
        raise TransferError(f"the server answered {said}", error.code in PASSING) from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address at all
        reason = error.reason if isinstance(error, URLError) else error
        raise TransferError(f"no connection ({str(reason)[:REASON]})", isinstance(error, OSError)) from error
    pace.begin_file()
    return response


def receive(response: HTTPResponse) -> bytes:
    """The next bytes, at most `CHUNK`, none at the end; raises TransferError if the connection breaks."""
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise TransferError(f"the connection broke ({str(error)[:REASON]})", passing=True) from error


def version_of(response: HTTPResponse, url: str) -> Version | None:
    """The server's version of the file; `None` if the answer does not identify it well enough to resume later."""
    tag = response.headers.get("ETag", "")
    # a weak tag, W/"…", does not identify the bytes
    mark = tag if tag.startswith('"') else response.headers.get("Last-Modified")
    return Version(url, mark, response.length) if mark and response.length is not None else None


def continues(response: HTTPResponse, version: Version, start: int) -> bool:
    """Whether a 206 response contains this version from byte `start` on, according to its headers."""
    same = version.mark in (response.headers.get("ETag"), response.headers.get("Last-Modified"))
    return same and response.headers.get("Content-Range") == f"bytes {start}-{version.size - 1}/{version.size}"


def sidecar(part: Path) -> Path:
    """The path of the file that stores the `Version` of a partial file."""
    return part.with_name(f"{part.name}.json")


def remembered(part: Path) -> Version | None:
    """The version that `part` belongs to; `None` if it cannot be resumed."""
    try:
        url, mark, size = json.loads(read_regular(sidecar(part), SIDECAR))
        right = isinstance(url, str) and isinstance(mark, str) and mark.isascii() and mark.isprintable()
        return Version(url, mark, size) if right and 0 < part.stat().st_size <= size else None
    except (OSError, ValueError, TypeError, RecursionError):  # missing, incomplete, or written by another program
        return None


def forget(part: Path) -> None:
    """Remove a partial file, its sidecar first, so that the sidecar never describes other bytes."""
    sidecar(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


class Checksums(NamedTuple):
    """Checksums of the right file: an MD5, and the beginning of a SHA-256; `None` skips a check."""

    md5: str | None
    sha256: str | None = None

    def problem(self, path: Path) -> str | None:
        """A description of the first wrong checksum of `path`, or None if all are right."""
        if self.md5 is not None and (found := md5_of(path)) != self.md5:
            return f"MD5 {found} instead of {self.md5}"
        if self.sha256 is not None and not (found := sha256_of(path)).startswith(self.sha256):
            return f"SHA-256 {found} instead of {self.sha256}{'…' * (len(self.sha256) < 64)}"
        return None


def md5_digits(md5: str | None) -> str | None:
    """`md5` in the form of `md5_of`; raises InputError unless it is `None` or 32 hexadecimal digits."""
    return hexadecimal(md5, "the MD5 of the archive", range(32, 33))


def hexadecimal(digits: str | None, name: str, lengths: range) -> str | None:
    """`digits` stripped and in lower case; raises InputError unless they are hexadecimal and of one of `lengths`."""
    if digits is None:
        return None
    found = digits.strip().lower()
    if not re.fullmatch("[0-9a-f]+", found) or len(found) not in lengths:
        count = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        raise InputError(f"{name} must be {count} hexadecimal digits, got {digits[:REASON]!r}")
    return found


def is_right(path: Path, md5: str | None) -> bool:
    """Whether the file has this MD5; `None` accepts any file."""
    return Checksums(md5_digits(md5)).problem(path) is None


def md5_of(path: Path) -> str:
    """The MD5 of a file in hexadecimal digits: it detects damage, but not a malicious change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
