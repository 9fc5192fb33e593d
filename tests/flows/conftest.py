"""A small recipe and an undisturbed build of it, for every test of what builds do."""

from pathlib import Path
from typing import Any

import pytest

from flows.build_dataset import BuildResult, build_dataset
from flows.recipe import parse
from tests.fakes.base import make_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that runs in seconds: random weights, so its pictures are noise; everything else is real."""
    base = make_base(tmp_path_factory.mktemp("base"), channels=9)
    return {
        "name": "tiny",
        "seed": 3,
        "source": {"dataset": "phantom", "count": 40, "px": 64},
        "screen": {"px": 64},
        "base": str(base),
        "lora": {"steps": 4, "warmup": 1, "batch": 2, "validate_every": 2, "checkpoint_every": 2, "rank": 2},
        "decoder": {"steps": 2, "warmup": 1, "batch": 2, "crop": 32},
        "harmonizer": {"steps": 2, "warmup": 1, "batch": 2, "rank": 2, "flaws_per_scan": 1},
        "judges": {
            "classifier": {"steps": 4},
            "segmenter": {"steps": 4},
            "detector": {"steps": 4},
            "critic": {"generated": 10, "training": {"steps": 4}},
        },
        "plan": {"samples": 12, "shard": 4},
        "audit": {"scans": 8, "levels": 1},
        "stages": [
            {"stage": "layout"},
            {"stage": "lesion", "steps": 2},
            {"stage": "harmonize", "steps": 2},
            {"stage": "levels"},
        ],
        "curate": [{"score": "lesion_contrast", "min": 0.05}],
    }


@pytest.fixture(scope="session")
def built(
    tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Path, BuildResult]:
    """The store and the result of an undisturbed build of `tiny`."""
    store = tmp_path_factory.mktemp("store")
    return store, build_dataset(recipe=parse(tiny), store=str(store))


@pytest.fixture
def ray_without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of tests ask for no token, which Ray would keep in the home folder.

    All of a process or none: Ray's client remembers what the first cluster asked for.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
