"""What becomes of a thing on a server by what people did to it since the last time."""

from typing import Any

import pytest

from flows.reconciling import Line, Memory, Thing, settle


class Server:
    """One thing, which the server keeps in its own spelling."""

    def __init__(self) -> None:
        self.there: dict[str, Any] | None = None
        self.writes = 0

    def put(self, fields: Any) -> None:
        self.writes += 1
        self.there = {**(self.there or {}), **{name: str(value).upper() for name, value in fields.items()}}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def memory() -> Memory:
    return {}


def run(server: Server, memory: Memory, *, reset: bool = False, **wanted: str) -> Line:
    def create() -> None:
        server.put(wanted)

    thing = Thing("pool", "a", wanted, lambda: server.there, create, server.put, frozenset({"code"}))
    return settle(thing, memory, reset=reset)


def test_the_second_time_nothing_is_written_though_the_server_spells_it_otherwise(
    server: Server, memory: Memory
) -> None:
    assert run(server, memory, about="x", code="y").state == "created"
    assert run(server, memory, about="x", code="y") == Line(kind="pool", name="a", state="kept")
    assert server.writes == 1


def test_what_sonoforge_changes_is_updated_alone(server: Server, memory: Memory) -> None:
    run(server, memory, about="x", code="y")
    assert run(server, memory, about="new", code="y").note == "changed: about"
    assert server.there == {"about": "NEW", "code": "Y"}
    assert run(server, memory, about="new", code="y").state == "kept"


def test_what_a_person_changed_stays_until_a_reset_also_when_sonoforge_changes_it(
    server: Server, memory: Memory
) -> None:
    run(server, memory, about="x", code="y")
    server.there = {"about": "mine", "code": "Y"}
    for about in ("x", "new"):
        assert run(server, memory, about=about, code="y").note == "changed by hand, stays so: about"
    assert server.there["about"] == "mine"
    assert run(server, memory, reset=True, about="new", code="y").state == "updated"
    assert server.there["about"] == "NEW"
    assert run(server, memory, about="new", code="y").note == ""


def test_what_a_person_changed_back_follows_sonoforge_again(server: Server, memory: Memory) -> None:
    run(server, memory, about="x", code="y")
    server.there = {"about": "mine", "code": "Y"}
    run(server, memory, about="x", code="y")
    server.there = {"about": "X", "code": "Y"}
    assert run(server, memory, about="new", code="y").note == "changed: about"


def test_what_is_sonoforges_own_follows_it_whatever_people_did(server: Server, memory: Memory) -> None:
    run(server, memory, about="x", code="y")
    server.there = {"about": "X", "code": "mine"}
    assert run(server, memory, about="x", code="y").note == "changed: code"
    assert server.there["code"] == "Y"


def test_what_was_there_before_the_first_time_stays(server: Server, memory: Memory) -> None:
    server.there = {"about": "theirs", "code": "theirs"}
    line = run(server, memory, about="x", code="y")
    assert (line.state, line.note) == ("updated", "changed: code; changed by hand, stays so: about")
    assert server.there == {"about": "theirs", "code": "Y"}


def test_what_a_person_deleted_stays_away_until_a_reset(server: Server, memory: Memory) -> None:
    run(server, memory, about="x", code="y")
    server.there = None
    assert run(server, memory, about="x", code="y").state == "left out"
    assert server.there is None
    assert run(server, memory, reset=True, about="x", code="y").state == "created"
