"""Bring files to S3: in parts, each with its MD5, and compare what arrived."""

import base64
import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from storage.explaining import error_code

Request = Callable[..., Any]
"""Sends a request, named like the method of botocore's client, until it is answered; once for `repeat=False`."""

PART = 16 * 2**20
"""Bytes of a part: larger files are uploaded in parts of this size, or so large that 9,000 parts are enough."""

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".yaml": "text/plain; charset=utf-8",
}
_PARTS_AT_ONCE = 3  # an upload holds one more than this in memory


def part_bytes(size: int) -> int:
    """Bytes of each part of a file but the last: a file of this size or less is no multipart upload.

    >>> part_bytes(10**9) // 2**20, part_bytes(10**12) // 2**20
    (16, 106)
    """
    return max(PART, -(-size // (9000 * 2**20)) * 2**20)


def content_type(key: str) -> str:
    """What a web server in front of the bucket says that an object is: browsers show a page and save all else.

    >>> content_type("demo/objects/ab12.html"), content_type("demo/objects/ab12.parquet")
    ('text/html; charset=utf-8', 'application/octet-stream')
    """
    return _TYPES.get(PurePosixPath(key).suffix, "application/octet-stream")


def put(request: Request, key: str, data: bytes, **options: Any) -> bytes:
    """One PUT; the MD5 it carried."""
    digest = md5(data)
    request("put_object", Key=key, Body=data, ContentMD5=_encoded(digest), ContentType=content_type(key), **options)
    return digest


def upload(request: Request, key: str, path: Path, part: int) -> list[bytes]:
    """Send a file in parts; the MD5 of each. Whether it arrived, `agrees` tells."""
    if path.stat().st_size <= part:
        return [put(request, key, path.read_bytes())]
    begun = request("create_multipart_upload", Key=key, ContentType=content_type(key))
    where = {"Key": key, "UploadId": begun["UploadId"]}
    digests: list[bytes] = []
    try:
        tags = _send_parts(request, where, path, part, digests)
        numbered = {"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]}
        request("complete_multipart_upload", **where, MultipartUpload=numbered)
    except BaseException as error:
        if error_code(error) != "NoSuchUpload":  # that is a lost answer: the first try completed it
            _abandon(request, where)
            raise
    return digests


def agrees(head: dict[str, Any], size: int, digests: list[bytes]) -> bool:
    """Whether an object's size and ETag are those of bytes with these MD5s of parts.

    An ETag that is no such digest, as with a key of a key service, says nothing: then the size decides.
    """
    if int(head["ContentLength"]) != size:
        return False
    if head.get("ServerSideEncryption") not in (None, "AES256") or "SSECustomerAlgorithm" in head:
        return True
    found, _, count = head["ETag"].strip('"').lower().partition("-")
    if not re.fullmatch("[0-9a-f]{32}", found):
        return True
    if len(digests) == 1:
        return (found, count) == (digests[0].hex(), "")
    return (found, count) == (md5(b"".join(digests)).hex(), str(len(digests)))


def pieces(path: Path, part: int) -> Iterator[bytes]:
    """The parts of a file; one of no bytes where it is empty."""
    with path.open("rb", buffering=0) as file:
        yield file.read(part)
        while piece := file.read(part):
            yield piece


def md5(data: bytes) -> bytes:
    """What S3 compares an upload with."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def _send_parts(request: Request, where: dict[str, str], path: Path, part: int, digests: list[bytes]) -> list[str]:
    """The server's tags of the parts; their MD5s are appended to `digests`."""

    def send(number: int, data: bytes, digest: bytes) -> str:
        return request("upload_part", **where, PartNumber=number, Body=data, ContentMD5=_encoded(digest))["ETag"]

    tags: list[str] = []
    running: deque[Future[str]] = deque()
    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        try:
            for number, data in enumerate(pieces(path, part), 1):
                if len(running) == _PARTS_AT_ONCE:
                    tags.append(running.popleft().result())
                digests.append(md5(data))
                running.append(pool.submit(send, number, data, digests[-1]))
            return tags + [future.result() for future in running]
        finally:
            for future in running:
                future.cancel()


def _abandon(request: Request, where: dict[str, str]) -> None:
    """Free the parts that arrived; what cannot be freed now is for the bucket's lifecycle rule."""
    try:
        request("abort_multipart_upload", repeat=False, **where)
    except (BotoCoreError, ClientError, OSError):
        return


def _encoded(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
