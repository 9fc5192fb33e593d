"""Random bases of both kinds, made once."""

import pytest

from tasks.synthesis.diffusion import base
from tests.fakes.base import make_base


@pytest.fixture(scope="session")
def inpainting_base(tmp_path_factory: pytest.TempPathFactory) -> base.Base:
    return base.load(str(make_base(tmp_path_factory.mktemp("inpainting"), channels=9)))


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> base.Base:
    return base.load(str(make_base(tmp_path_factory.mktemp("text"), channels=4, prediction="v_prediction")))
