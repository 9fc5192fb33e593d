import errno

import pytest

from storage.errors import StoreFullError, StoreUnavailableError
from storage.explaining import cause, explained, scrubbed


class Refusal(Exception):  # noqa: N818 - stands for botocore's ClientError
    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Refusal("QuotaExceeded", 403)])
def test_a_full_place_is_full_on_a_disk_and_on_a_server(error: Exception) -> None:
    assert isinstance(explained(error, "write", "s3://b/k"), StoreFullError)


@pytest.mark.parametrize("error", [PermissionError("no"), Refusal("AccessDenied", 403), OSError(errno.EROFS, "ro")])
def test_a_refusal_speaks_of_permissions(error: Exception) -> None:
    found = explained(error, "write", "s3://b/k")
    assert isinstance(found, StoreUnavailableError)
    assert "Check the permissions" in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://h/b?X-Amz-Credential={}%2F2026&X-Amz-Signature={}&x=1",
        "https://user:{}@host/bucket",
        "aws_secret_access_key='{}'",
        'Secret: "{}"',
        "https://h/b?AWSAccessKeyId={}&Signature={}&Expires=1",
        "session_token={}",
    ],
)
def test_secrets_are_hidden_by_their_shape(text: str) -> None:
    assert "hunter2hunter2" not in scrubbed(text.replace("{}", "hunter2hunter2"))


def test_secrets_are_hidden_by_their_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from the environment")
    text = "failed with from the environment and an option's value"
    assert scrubbed(text, frozenset({"option's value"})) == "failed with [hidden] and an [hidden]"


def test_ordinary_words_stay() -> None:
    for text in ("sonoforge-tests/demo/versions/3", "NoSuchBucket: the bucket does not exist", "key 'a/b' is absent"):
        assert scrubbed(text) == text


def test_a_cause_that_quotes_a_secret_is_not_chained() -> None:
    plain = OSError("plain")
    assert cause(plain) is plain
    told = OSError("harmless")
    told.__cause__ = OSError("token=abcdefghijkl")
    assert cause(told) is None
