"""At its first use, a store shows that of several creators exactly one wins; else nothing is published to it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage import channels, retractions
from storage.errors import ExclusiveCreateError
from storage.store import Store
from storage.versions import publish
from tests.servers.faults import Faults, FaultyServer, stores
from tests.servers.supervisor import Server
from tests.storage.published import fill

WAYS_OUT = r"AWS S3, Ceph 16 or later, or a local folder"


def test_every_supported_backend_passes_and_keeps_nothing(store: Store) -> None:
    store.probe()
    assert store.list() == []


@pytest.fixture(params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture(params=["ignored", "refused"])
def careless(request: pytest.FixtureRequest, server: Server) -> Iterator[FaultyServer]:
    """A server that does not honour `If-None-Match`: it ignores it, as s3rver, or answers 501, as Swift."""
    with FaultyServer(server.endpoint, conditions=request.param, signer=server) as proxy:
        yield proxy


def test_a_server_without_exclusive_creates_is_refused_quickly_by_name_with_the_way_out(
    careless: FaultyServer, server: Server, tmp_path: Path
) -> None:
    direct, through = stores(server, careless)
    about = fill(tmp_path / "folder", 6)
    began = time.monotonic()
    with pytest.raises(ExclusiveCreateError, match=WAYS_OUT) as caught:
        publish(through, "demo", tmp_path / "folder", about)
    assert time.monotonic() - began < 5
    assert through.url in str(caught.value)
    assert direct.list() == [], "something was published"


def test_nothing_that_relies_on_exclusive_creates_is_done_there(
    careless: FaultyServer, server: Server, tmp_path: Path
) -> None:
    direct, through = stores(server, careless)
    manifest, _ = publish(direct, "demo", tmp_path / "folder", fill(tmp_path / "folder", 6))
    before = direct.list()
    doing: list[Callable[[], Any]] = [
        lambda: channels.move(through, "demo", "production", 1),
        lambda: retractions.retract(through, manifest, "wrong"),
        lambda: publish(through, "demo", tmp_path / "folder", fill(tmp_path / "folder", 3)),
    ]
    for action in doing:
        with pytest.raises(ExclusiveCreateError, match=WAYS_OUT):
            action()
        assert direct.list() == before


def test_a_bad_network_is_not_taken_for_a_bad_server(server: Server) -> None:
    with FaultyServer(server.endpoint, seed=2) as proxy:
        direct, through = stores(server, proxy)
        for round in range(1, 6):
            # moto takes a damaged upload for good: it compares no digests.
            proxy.faults = replace(Faults.of("mixed", 0.3), flip_request=0.0)
            through.probe()
            through._probed = False
            proxy.calm()
            assert direct.list() == [], f"round {round}"
        assert proxy.injected.total() > 5


def test_the_probe_is_made_once_a_store(server: Server) -> None:
    with FaultyServer(server.endpoint) as proxy:
        _, through = stores(server, proxy)
        through.probe()
        asked = proxy.requests
        through.probe()
        assert proxy.requests == asked
