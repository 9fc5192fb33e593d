"""What the commands that run flows share."""

import os
from collections.abc import Sequence
from pathlib import Path


def quiet() -> None:
    """Before libraries are imported: no telemetry, and no log beside our own words, unless asked otherwise."""
    if os.environ.get("SONOFORGE_LOG") == "json":  # one object a line, as Prefect writes them
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER", "json")
        os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # 20 is too few on a busy machine


def copy_out(store: str, key: str, names: Sequence[str], folder: Path) -> None:
    """Files that lie beside `key` in the store, to a local folder."""
    from tasks.connect import open_store

    opened = open_store(store)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(opened.read(f"{key.rsplit('/', 1)[0]}/{name}"))
