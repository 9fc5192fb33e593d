"""A store: whether it answers, lets itself be written and read, and honours create-only writes."""

import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.doctor.findings import Finding, clock
from storage import keys
from storage.errors import ExclusiveCreateError, StorageError, StoreFullError
from storage.store import Store
from tasks.connect import BLOCK, open_store

PATIENCE_S = 2.0
_QUICK = {"config_kwargs": {"connect_timeout": 3, "read_timeout": 4}}
_CONTENT = b"written by sonoforge doctor, which deletes it again\n"
_UNKNOWN_KEYS = re.compile(
    "InvalidAccessKeyId|SignatureDoesNotMatch|NoCredentials|ExpiredToken|InvalidToken|PartialCredentials"
)


def check_store(where: str) -> Iterator[Finding]:
    """All that publishing and pulling ask of a store; nothing stays in it."""
    try:
        store = open_store(where, patience_s=PATIENCE_S, **_quickly(where))
        folders = len(store.folders())
    except (StorageError, ValueError) as error:
        yield _failed("store", where, error)
        return
    yield Finding(check="store", level="ok", found=f"{store.url} answers; {folders} folders in it")
    local = _local(store)
    missing = local is not None and not local.exists()
    try:
        yield from _use(store)
    finally:
        if local is not None and missing:
            _remove_empty(local)


def _use(store: Store) -> Iterator[Finding]:
    key = f"{keys.SCRATCH}/doctor-{uuid.uuid4().hex}"
    doing = "write"
    try:
        store.put(key, _CONTENT)
        doing = "read"
        found = store.read(key)
        if found != _CONTENT:
            yield Finding(
                check="store: read",
                level="failure",
                found=f"{len(_CONTENT)} bytes were written to {store.uri(key)}, {len(found)} other ones came back",
                advice="something between here and the store damages data: try it without the proxy, then check memory",
            )
            return
        times = [item.modified for item in store.walk(keys.SCRATCH) if item.key == key]
        doing = "delete"
        store.delete(key)
        yield Finding(check="store: write, read, delete", level="ok", found="what was written came back, and is gone")
        doing = "exclusive create"
        store.probe()
    except (StorageError, OSError) as error:
        yield _failed(f"store: {doing}", store.url, error)
        return
    finally:
        if doing == "read":
            with suppress(StorageError):  # what kept it from being read is told
                store.delete(key)
    yield Finding(
        check="store: exclusive create", level="ok", found="of several creators of one object exactly one won"
    )
    for time in times:
        yield clock("store: clock", time)


def _failed(check: str, where: str, error: Exception) -> Finding:
    said = str(error)
    if isinstance(error, StoreFullError):
        advice = f"df -h {where}; sonoforge gc --store {where} --delete"
    elif isinstance(error, ExclusiveCreateError):
        advice = "give --store another server: two publishers on this one would overwrite each other's versions"
    elif where.startswith(BLOCK):
        advice = "sonoforge deploy makes the block; prefect block ls shows those that are there"
    elif where.startswith("s3"):
        advice = f"aws s3 ls {where} with the same AWS_* variables"
        if unknown := _UNKNOWN_KEYS.search(said):
            said = f"the server does not take these credentials ({unknown.group()}): {said}"
            advice = (
                "correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; aws sts get-caller-identity"
            )
    else:
        advice = f"ls -ld {where}"
    return Finding(check=check, level="failure", found=said, advice=advice)


def _quickly(where: str) -> dict[str, Any]:
    return _QUICK if where.startswith(("s3://", "s3a://", BLOCK)) else {}


def _local(store: Store) -> Path | None:
    return None if "://" in store.url else Path(store.url)


def _remove_empty(folder: Path) -> None:
    """A store that was not there is not there afterwards."""
    with suppress(OSError):  # somebody has begun to use it
        (folder / keys.SCRATCH).rmdir()
        folder.rmdir()
