"""Fixtures of the servers, for every test: `tests/conftest.py` takes them up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import ceph, moto
from tests.servers.supervisor import Server, serving, skip_without


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-gw") else base


@pytest.fixture(scope="session")
def moto_server(shared_folder: Path) -> Iterator[Server]:
    """moto's S3 server, gone when the tests end."""
    skip_without(moto.missing(), "pip install 'moto[server]'")
    with serving("moto", shared_folder / "moto") as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(shared_folder: Path) -> Iterator[Server]:
    """A Ceph object gateway, gone when the tests end."""
    skip_without(ceph.missing(), f"apt-get install --no-install-recommends {ceph.PACKAGES}")
    with serving("ceph", shared_folder / "ceph") as server:
        yield server


@pytest.fixture(scope="session")
def s3_endpoint(moto_server: Server) -> str:
    """Address of the quick server."""
    return moto_server.endpoint
