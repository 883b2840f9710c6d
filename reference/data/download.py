"""Chapter 05: fetching a file once: from several mirrors, resumable, and verified before it gets its name.

While it grows the file is called `NAME.part`, and `NAME.part.json` remembers what it is the beginning of. `NAME.lock`,
empty and left there, lets a second process wait for the first.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib import request
from urllib.error import HTTPError, URLError

from filelock import FileLock
from tqdm import tqdm

from reference.errors import InputError

ATTEMPTS = 4  # for each mirror
PAUSE = 1.0  # seconds before the second attempt, one more before each later one
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18  # bytes
PASSING = frozenset({408, 416, 429, 500, 502, 503, 504})  # statuses that may be others when asked again


class TransferError(Exception):
    """A mirror did not deliver; `passing` says whether the next attempt may succeed."""

    def __init__(self, reason: str, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class Version(NamedTuple):
    """What a partial file is the beginning of: `size` bytes behind `url`, which the server calls `mark`."""

    url: str
    mark: str  # the ETag, or the time of the last change
    size: int


def download(urls: Sequence[str], destination: str | Path, md5: str | None, *, progress: bool = True) -> Path:
    """Fetch a file from the first of `urls` that delivers it, unless it is there already.

    A broken connection is taken up where it broke, in this call or a later one, if the server proves that its file is
    still the same. A file at `destination` with another MD5 stays until the right one has arrived to replace it.

    Args:
        urls: http or https addresses of the same file, in the order to try them.
        destination: the path of the file; missing folders above it are made.
        md5: the MD5 of the right file, in hexadecimal digits; `None` accepts any file.
        progress: show a bar with the bytes on standard error.

    Returns:
        `destination`.

    Raises:
        InputError: an address is not of http or https, or no address delivered the right file; says why each did not.
        OSError: the file cannot be written, the disk is full for instance. What has arrived is kept.
    """
    destination = Path(destination)
    for url in urls:
        if not url.lower().startswith(("http://", "https://")):
            raise InputError(f"cannot download from {url!r}: the address must start with http:// or https://")
    if destination.is_file() and is_right(destination, md5):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f"{destination.name}.part")
    reasons = []
    with FileLock(destination.with_name(f"{destination.name}.lock")):
        if destination.is_file() and is_right(destination, md5):  # fetched by the process we waited for
            return destination
        for url in urls:
            try:
                fetch(url, part, progress)
            except TransferError as error:
                reasons.append(f"{url}: {error}")
                continue
            if is_right(part, md5):
                os.replace(part, destination)
                forget(part)
                return destination
            reasons.append(f"{url}: wrong checksum, MD5 {md5_of(part)} instead of {md5}")
            forget(part)
    kept = f"; run again to continue {part}" if remembered(part) else ""
    raise InputError(f"cannot download {destination.name}: {'; '.join(reasons) or 'no address given'}{kept}")


def fetch(url: str, part: Path, progress: bool) -> None:
    """Bring `part` to the whole file behind `url` in up to `ATTEMPTS` transfers; TransferError when that fails."""
    for attempt in range(1, ATTEMPTS):
        try:
            return transfer(url, part, progress)
        except TransferError as error:
            if not error.passing:
                raise
        time.sleep(PAUSE * attempt)
    return transfer(url, part, progress)


def transfer(url: str, part: Path, progress: bool) -> None:
    """One request: the rest of `part` if the server proves that it belongs to it, the whole file otherwise."""
    headers = {"User-Agent": "ocean-spec"}
    version, start = remembered(part), 0
    if version is not None and version.url == url:
        start = part.stat().st_size
        headers |= {"Range": f"bytes={start}-", "If-Range": version.mark}
        if start == version.size:  # only the checksum was missing
            return
    with connect(url, headers, part) as response:
        if response.status != 206:  # the server ignores ranges, or holds another version now
            forget(part)
            start, version = 0, version_of(response, url)
        elif version is None or not continues(response, version, start):
            forget(part)
            raise TransferError("the server sent another part than the one asked for", passing=True)
        try:
            if start == 0 and version is not None:
                sidecar(part).write_text(json.dumps(version))
            append(response, part, start, progress)
        except OSError as error:  # the disk's: what goes wrong in the network comes as TransferError
            raise OSError(error.errno, error.strerror, os.fspath(part)) from error


def append(response: HTTPResponse, part: Path, start: int, progress: bool) -> None:
    """Write what arrives behind the first `start` bytes of `part`."""
    total = None if response.length is None else start + response.length  # None: the server does not say
    name = part.name.removesuffix(".part")
    with (
        part.open("ab") as file,
        tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while chunk := receive(response):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        arrived = file.tell()
    if total is not None and arrived < total:
        raise TransferError(f"the connection broke after {arrived:,} of {total:,} bytes", passing=True)


def connect(url: str, headers: dict[str, str], part: Path) -> HTTPResponse:
    """Send the request; TransferError when there is no answer, or none with a file."""
    opener = request.OpenerDirector()  # not build_opener's, which follows a redirection to ftp:
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPRedirectHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    try:
        return opener.open(request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the file has become shorter than what was kept of it
            forget(part)
        raise TransferError(f"the server answered {error.code} {error.reason}", error.code in PASSING) from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address at all
        reason = error.reason if isinstance(error, URLError) else error
        raise TransferError(f"no connection ({reason})", isinstance(error, OSError)) from error


def receive(response: HTTPResponse) -> bytes:
    """The next bytes, at most `CHUNK`, none at the end; TransferError when the connection breaks."""
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise TransferError(f"the connection broke ({error})", passing=True) from error


def version_of(response: HTTPResponse, url: str) -> Version | None:
    """What the server says about its file; `None` if that is too little to continue it later."""
    tag = response.headers.get("ETag", "")
    mark = tag if tag.startswith('"') else response.headers.get("Last-Modified")  # a weak tag, W/"…", proves nothing
    return Version(url, mark, response.length) if mark and response.length is not None else None


def continues(response: HTTPResponse, version: Version, start: int) -> bool:
    """Whether a 206 answer is the rest of that version from `start` on: the server itself must say so."""
    same = version.mark in (response.headers.get("ETag"), response.headers.get("Last-Modified"))
    return same and response.headers.get("Content-Range") == f"bytes {start}-{version.size - 1}/{version.size}"


def sidecar(part: Path) -> Path:
    """Where the `Version` of a partial file is kept."""
    return part.with_name(f"{part.name}.json")


def remembered(part: Path) -> Version | None:
    """What `part` is the beginning of; `None` when there is nothing that can be continued."""
    try:
        url, mark, size = json.loads(sidecar(part).read_text())
        return Version(url, mark, size) if 0 < part.stat().st_size <= size else None
    except (FileNotFoundError, ValueError, TypeError):  # the last two: a killed process left half a sidecar
        return None


def forget(part: Path) -> None:
    """Remove a partial file, its sidecar first: other bytes must never pass for the beginning of that version."""
    sidecar(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def is_right(path: Path, md5: str | None) -> bool:
    """Whether the file has that MD5; `None` asks for none."""
    return md5 is None or md5_of(path) == md5


def md5_of(path: Path) -> str:
    """The MD5 of a file in hexadecimal digits, which tells whole from damaged; against malice it proves nothing."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
