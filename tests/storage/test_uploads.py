import hashlib
from typing import Any

import pytest

from storage.uploads import agrees, part_bytes


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


WHOLE = [_md5(b"whole")]
PARTS = [_md5(b"one"), _md5(b"two")]


@pytest.mark.parametrize(
    ("head", "digests", "expected"),
    [
        ({"ETag": f'"{WHOLE[0].hex()}"'}, WHOLE, True),
        ({"ETag": f'"{WHOLE[0].hex().upper()}"'}, WHOLE, True),
        ({"ETag": f'"{WHOLE[0].hex()}"'}, [_md5(b"other")], False),
        ({"ETag": f'"{_md5(b"".join(PARTS)).hex()}-2"'}, PARTS, True),
        ({"ETag": f'"{_md5(b"".join(PARTS)).hex()}-3"'}, PARTS, False),
        ({"ETag": f'"{WHOLE[0].hex()}"'}, PARTS, False),
        ({"ETag": f'"{_md5(b"".join(WHOLE)).hex()}-1"'}, WHOLE, False),
        ({"ETag": '"no digest"'}, WHOLE, True),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms"}, WHOLE, True),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "AES256"}, WHOLE, False),
        ({"ETag": f'"{"0" * 32}"', "SSECustomerAlgorithm": "AES256"}, WHOLE, True),
        ({"ETag": '"no digest"', "ContentLength": 4}, WHOLE, False),
    ],
)
def test_size_and_etag_tell_what_arrived(head: dict[str, Any], digests: list[bytes], expected: bool) -> None:
    assert agrees({"ContentLength": 5, **head}, 5, digests) is expected


@pytest.mark.parametrize("size", [0, 1, 10**9, 10**12, 5 * 10**12])
def test_no_file_needs_more_parts_than_s3_takes(size: int) -> None:
    assert size <= part_bytes(size) * 10_000
    assert part_bytes(size) <= 5 * 2**30
