import numpy as np
import pytest

from tasks.imaging.keypoints import Keypoints, describe
from tasks.screening import matching
from tests.fakes.pictures import picture

SHAPE = (200, 240)


def described(images):
    return [Keypoints(one.xy, one.level, one.vectors.astype(np.float16)) for one in map(describe, images)]


@pytest.fixture(scope="module")
def pictures():
    """Ten strangers, then a part of the third, and the fifth mirrored."""
    images = [picture(seed, SHAPE)[0] for seed in range(10)]
    return described([*images, images[2][20:, 30:], images[4][:, ::-1]])


def strongest(proposals):
    """Pairs with many matches."""
    return {(one.i, one.j, one.turn) for one in proposals if len(one.left) > 20}


def test_copies_are_proposed_with_the_turn_that_makes_them_agree(pictures):
    found = strongest(matching.proposals(pictures))
    assert found == {(2, 10, (False, False)), (4, 11, (True, False))}


def test_inverted_lists_propose_what_comparing_all_proposes(pictures, monkeypatch):
    exact = {(one.i, one.j, one.turn): len(one.left) for one in matching.proposals(pictures)}
    monkeypatch.setattr(matching, "_EXACT", 0)
    listed = {(one.i, one.j, one.turn): len(one.left) for one in matching.proposals(pictures)}
    assert listed.keys() <= exact.keys()
    for pair in strongest(matching.proposals(pictures)):
        assert listed[pair] > 0.8 * exact[pair]


def test_what_every_picture_shows_proposes_no_more_matches_than_a_few_a_spot(pictures, monkeypatch):
    monkeypatch.setattr(matching, "_STRONGEST", 2)
    same = [pictures[0]] * 8
    matches = sum(len(one.left) for one in matching.proposals(same) if not any(one.turn))
    spots = len(pictures[0].xy)
    assert matches <= 2 * 8 * spots
    assert matches < 28 * spots


def test_nothing_is_proposed_among_pictures_without_spots():
    nothing = Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.int16), np.zeros((0, 128), np.float16))
    assert list(matching.proposals([])) == list(matching.proposals([nothing, nothing])) == []
