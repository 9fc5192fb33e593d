"""Prefect for every test that runs a flow: one temporary server a session, nothing shared with the user's own."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.fixtures import ceph_server, moto_server, s3_endpoint, shared_folder

__all__ = ["ceph_server", "moto_server", "prefect_server", "s3_endpoint", "shared_folder"]

_HOME = tempfile.mkdtemp(prefix="sonoforge-tests-")
# Before Prefect is imported anywhere: its settings are read once.
os.environ["PREFECT_HOME"] = _HOME
os.environ["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] = str(Path(_HOME) / "results")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PREFECT_API_URL", None)
# Networks here are tiny: threads wait for each other longer than they work, most of all where builds run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A throwaway Prefect API on a temporary database."""
    from tests.servers import api  # imports Prefect

    with api.running(tmp_path_factory.mktemp("prefect")):
        yield
