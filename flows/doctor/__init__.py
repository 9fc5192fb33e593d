"""Checks of a set-up, end to end: this machine, the store, a recipe's weights, the Prefect server.

Each check yields what it found; nothing is changed, and what the store is tried with is deleted again. Every part has
its time: a server or a disk that does not answer holds up none of the others.
"""

import contextvars
import getpass
import threading
from collections.abc import Callable, Iterator, Sequence

from flows.doctor.findings import LEVELS, Finding, Level

SERVER_S = 60.0
STORE_S = 30.0
MACHINE_S = 60.0
RECIPE_S = 600.0
"""Seconds for a recipe: a base of the hub may have to be fetched."""


def examine(store: str, recipe: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """Check everything, each part in a thread of its own.

    Args:
        store: as a build gets it.
        recipe: a file, or the name of one of ours.
        overrides: `path.to.field=value`, as a build gets them.
    """
    parts = [
        _Part("machine", MACHINE_S, lambda: _machine(store)),
        _Part("store", STORE_S, lambda: _store(store)),
        _Part("recipe", RECIPE_S, lambda: _recipe(recipe, overrides)),
        _Part("server", SERVER_S, _server),
    ]
    return [finding for part in parts for finding in part.findings()]


def worst(findings: Sequence[Finding]) -> Level:
    """The worst level among them; ok for none."""
    return LEVELS[max((LEVELS.index(finding.level) for finding in findings), default=0)]


class _Part:
    """Checks that run at once with others, and that nobody waits for longer than `seconds`."""

    def __init__(self, name: str, seconds: float, check: Callable[[], Iterator[Finding]]) -> None:
        self._name, self._seconds, self._check = name, seconds, check
        self._found: list[Finding] = []
        inside = contextvars.copy_context()  # Prefect's settings are in it
        self._thread = threading.Thread(target=inside.run, args=(self._run,), daemon=True, name=f"doctor: {name}")
        self._thread.start()

    def _run(self) -> None:
        try:
            for finding in self._check():
                self._found.append(finding)
        except Exception as error:  # noqa: BLE001 - what one part trips over must not hide what the others found
            said = f"the check itself failed: {type(error).__name__}: {error}"
            advice = "please report it with this line"
            if isinstance(error, PermissionError):
                said = f"{getpass.getuser()} may not use {error.filename}"
                advice = "run this as its owner, or give it to who runs this; PREFECT_HOME names Prefect's folder"
            self._found.append(Finding(check=self._name, level="failure", found=said, advice=advice))

    def findings(self) -> list[Finding]:
        """What it found so far, once it has ended or its time is up."""
        self._thread.join(self._seconds)
        found = list(self._found)
        if self._thread.is_alive():
            said = f"no answer within {self._seconds:.0f} s; what stands above was found before"
            found.append(Finding(check=self._name, level="failure", found=said, advice="try again when it is idle"))
        return found


# Imported in the threads: torch and Prefect take seconds, side by side.


def _machine(store: str) -> Iterator[Finding]:
    from flows.doctor.machine import check_machine

    return check_machine(store)


def _store(store: str) -> Iterator[Finding]:
    from flows.doctor.stores import check_store

    return check_store(store)


def _recipe(recipe: str, overrides: Sequence[str]) -> Iterator[Finding]:
    from flows.doctor.bases import check_recipe

    return check_recipe(recipe, overrides)


def _server() -> Iterator[Finding]:
    from flows.doctor.server import check_server

    return check_server()
