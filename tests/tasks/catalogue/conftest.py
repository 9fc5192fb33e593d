"""The browser of the pages' tests, a store to look at, and its catalogue."""

from pathlib import Path

import pytest

from storage.store import Store
from tasks.catalogue import rebuild
from tests.tasks.catalogue.stores import populated
from tests.tasks.report.conftest import browser as browser


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two datasets: see `populated`. Nobody changes it."""
    return populated(tmp_path_factory.mktemp("populated"))


@pytest.fixture(scope="module")
def site(store: Store) -> Path:
    """The folder of its catalogue."""
    return Path(rebuild(store)).parent
