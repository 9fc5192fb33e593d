"""Tests mirror the tree. `real_data` finds the optional real scans."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def real_data(name: str) -> Path:
    """Folder of a real dataset under `SONOFORGE_DATA`, else `../shared/data`; skips where it is absent."""
    root = Path(os.environ.get("SONOFORGE_DATA", REPOSITORY.parent / "shared" / "data")) / name
    if not root.is_dir():
        pytest.skip(f"no real scans at {root}: set SONOFORGE_DATA to the folder that holds {name}/")
    return root
