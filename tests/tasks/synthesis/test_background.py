from dataclasses import replace

import numpy as np
import pytest

from tasks.synthesis import Tools, background
from tasks.synthesis.diffusion.base import Base
from tests.fakes.drafts import drafts, sector

PARAMS = background.Params(steps=2)


@pytest.fixture
def tools(inpainting_base: Base) -> Tools:
    return Tools(base=inpainting_base, adapters={}, donors=[])


def test_a_synthetic_background_replaces_the_scan_and_says_so(tools: Tools) -> None:
    scan, _ = sector(tools.base.px)
    (draft,) = background.draw(PARAMS, drafts(1, scan), tools)
    assert draft.background_kind == "synthetic"
    assert draft.background_id == "healthy-1"
    assert draft.group == "patient-1"
    assert not np.array_equal(draft.background, scan)
    np.testing.assert_array_equal(draft.image, draft.background)
    assert draft.lineage["background_strength"] == PARAMS.strength
    similarity = draft.lineage["background_similarity"]
    assert isinstance(similarity, float)
    assert -1 <= similarity < 1


def test_a_seed_draws_the_same_background_in_any_company(tools: Tools) -> None:
    scan, _ = sector(tools.base.px)
    together = background.draw(PARAMS, drafts(3, scan), tools)
    (alone,) = background.draw(PARAMS, drafts(3, scan)[2:], tools)
    assert len({draft.background.tobytes() for draft in together}) == 3
    difference = together[2].background.astype(int) - alone.background
    assert np.abs(difference).max() <= 2  # another batch size may round differently


def test_the_more_is_redrawn_the_less_the_scan_is_left(tools: Tools) -> None:
    scan, _ = sector(tools.base.px)
    alike = [
        background.draw(background.Params(steps=20, strength=strength), drafts(1, scan), tools)[0].lineage[
            "background_similarity"
        ]
        for strength in (0.05, 1.0)
    ]
    assert alike[0] != alike[1]


def test_an_adapter_of_healthy_tissue_is_the_one_that_draws(tools: Tools) -> None:
    scan, _ = sector(tools.base.px)
    asked: list[object] = []

    class Adapters(dict[str, bytes]):
        def get(self, key: object, default: object = None) -> None:  # pyright: ignore
            asked.append(key)

    background.draw(PARAMS, drafts(1, scan), replace(tools, adapters=Adapters()))
    assert set(asked) == {"normal"}


def test_a_picture_that_the_base_cannot_draw_whole_is_refused(tools: Tools) -> None:
    scan, _ = sector(2 * tools.base.px)
    with pytest.raises(ValueError, match=f"set screen.px to {tools.base.px}"):
        background.draw(PARAMS, drafts(1, scan), tools)


def test_a_copy_is_found_alike_and_black_borders_do_not_count() -> None:
    scan, inside = sector(96)
    other, _ = sector(96, seed=1)
    assert background.similarity(scan, scan) == pytest.approx(1)
    brighter = np.where(inside, np.minimum(scan, 200) + 20, 0).astype(np.uint8)
    assert background.similarity(scan, brighter) > 0.9
    assert abs(background.similarity(scan, other)) < 0.5
    assert background.similarity(np.zeros_like(scan), np.zeros_like(scan)) == 1
