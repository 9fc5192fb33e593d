"""One rig runs the same tests on memory, a local folder and two S3 servers."""

import uuid
from pathlib import Path

import pytest

from storage.store import Store
from tests.servers.fixtures import moto_server as moto_server
from tests.servers.fixtures import s3_endpoint as s3_endpoint
from tests.servers.fixtures import shared_folder as shared_folder
from tests.servers.moto import BUCKET as BUCKET
from tests.servers.supervisor import Server


@pytest.fixture
def s3_environment(moto_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that a user sets for the quick server; a URL below its bucket."""
    return _chosen(moto_server, monkeypatch)


@pytest.fixture
def ceph_environment(ceph_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that a user sets for the real server; a URL below its bucket."""
    return _chosen(ceph_server, monkeypatch)


@pytest.fixture(params=["moto", "ceph"])
def s3(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Endpoint, and URL of an empty store in its bucket, of each S3 server; the environment is set for it."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server.endpoint, _chosen(server, request.getfixturevalue("monkeypatch"))


@pytest.fixture(params=["memory", "local", "moto", "ceph"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty store of each kind."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "local":
        return str(tmp_path / "store")
    return _chosen(request.getfixturevalue(f"{request.param}_server"), request.getfixturevalue("monkeypatch"))


@pytest.fixture
def store(url: str) -> Store:
    """An empty store of each kind."""
    return Store(url)


def _chosen(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket}/{uuid.uuid4().hex}"
