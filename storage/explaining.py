"""One clear storage error from whatever an operating system or a library raised, without the secrets it may quote."""

import errno
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StorageError, StoreFullError, StoreUnavailableError

_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL|API_KEY|CONNECTION_STRING")
_SECRET_TEXT = re.compile(
    r"(?i)((?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|secret[a-z_]*|[a-z_]*token"
    r"|password)['\"]?\s*[=:]\s*['\"]?)[^\s&'\"<>,]+"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
_USER = re.compile(r"(://)[^/@\s]*@")
_HIDDEN = "[hidden]"


def explained(error: Exception, doing: str, where: str, secrets: frozenset[str] = frozenset()) -> StorageError:
    """The storage error that says what went wrong while `doing` something to `where`, and what to do.

    `secrets` are texts that no message may hold, besides those of the environment.
    """
    what = f"cannot {doing} {where}"
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or error_code(error) in ("QuotaExceeded", "InsufficientStorage"):
        return StoreFullError(
            f"{what}: no space left on the device. Free some space or choose another place, then run the "
            "same command again: what is finished is kept"
        )
    what = f"{what}: {scrubbed(_first_line(error), secrets)}"
    if isinstance(error, PermissionError) or number == errno.EROFS or http_status(error) in (401, 403):
        return StoreUnavailableError(
            f"{what}. Check the permissions (on S3, the AWS_* variables and the bucket's policy), or choose "
            "another place"
        )
    return StoreUnavailableError(
        f"{what}. Check that the place is there and reachable (on S3, AWS_ENDPOINT_URL and the other AWS_* "
        "variables), or choose another; what is finished is kept"
    )


def cause(error: Exception, secrets: frozenset[str] = frozenset()) -> Exception | None:
    """The error itself where a traceback may show it; None where it, or what led to it, quotes a secret.

    Use: ``raise explained(error, …) from cause(error)``.
    """
    for link in _chain(error):
        text = f"{link} {link!r}"
        if scrubbed(text, secrets) != text:
            return None
    return error


def scrubbed(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """A text without keys, tokens, signatures and user names in URLs.

    >>> scrubbed("GET https://h/b?X-Amz-Signature=ab12&x=1 failed for AKIA0123456789ABCDEF")
    'GET https://h/b?X-Amz-Signature=[hidden]&x=1 failed for [hidden]'
    """
    known = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name.upper())} | secrets
    for value in sorted(known, key=len, reverse=True):
        if len(value) >= 8:  # shorter ones are words of any message
            text = text.replace(value, _HIDDEN)
    text = _SECRET_TEXT.sub(rf"\1{_HIDDEN}", text)
    return _USER.sub(rf"\1{_HIDDEN}@", _KEY_ID.sub(_HIDDEN, text))


def error_code(error: BaseException) -> str | None:
    """S3's own code of an error from botocore, such as "NoSuchBucket"; else None."""
    code = _response(error).get("Error", {})
    return code.get("Code") if isinstance(code, dict) else None


def http_status(error: BaseException) -> int | None:
    """The HTTP status of an error from botocore; else None."""
    metadata = _response(error).get("ResponseMetadata", {})
    return metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None


def _response(error: BaseException) -> dict[str, object]:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Errors of this machine's disk while a file is written to it."""
    try:
        yield
    except (StorageError, FileNotFoundError):
        raise
    except OSError as error:
        raise explained(error, "write", str(path)) from error
