"""What must not be said about how S3 is reached: checked and hushed before the first request."""

import logging
import re
from typing import Any

from botocore.configprovider import ConfiguredEndpointProvider
from botocore.session import Session

_PLAIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?")
_TALKATIVE = ("botocore.auth", "botocore.endpoint", "botocore.parsers")
"""At DEBUG they log session tokens: in what is signed, in the headers sent, in what a token service answers."""


def checked(session: Session, given: dict[str, Any]) -> None:
    """Refuse an endpoint that is no plain address: botocore would quote it, with the password that may be in it.

    Args:
        session: knows the endpoint of the environment and the profile.
        given: the client's own options.

    Raises:
        ValueError: the message does not repeat it.
    """
    configured = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
    stated = given.get("endpoint_url") or configured
    if stated and not _PLAIN.fullmatch(stated):
        raise ValueError(
            "the S3 endpoint (AWS_ENDPOINT_URL, endpoint_url of a profile, or an option) is no plain address and is "
            "not repeated here, for it may hold credentials: expected http(s)://host:port, and the keys in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def hush() -> None:
    """Let no library log credentials, whatever level the program sets for all."""
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))
