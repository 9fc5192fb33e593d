from pathlib import Path

import pytest

from tests.tasks.documents import described


@pytest.fixture(scope="session")
def described_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet and COCO of 30 planned rows; not to be changed."""
    return described.fill(tmp_path_factory.mktemp("described"))
