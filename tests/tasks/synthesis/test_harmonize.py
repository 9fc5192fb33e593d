"""The last stage: what it may change, what it puts behind a lesion, and whether its adapter repairs seams."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from tasks.imaging import Grey, Mask
from tasks.sources import phantom
from tasks.synthesis import Donor, Draft, Tools, harmonize, posterior, seams
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import latents, lora, sample
from tests.fakes.drafts import drafts, ellipse, sector

PX = 32
LEARNED = harmonize.Params(steps=2, strength=0.5, posterior="learned")


class Forgetful:
    """No checkpoints."""

    def latest(self) -> None:
        return None

    def save(self, step: int, data: bytes) -> None:
        pass


def adapter(base: bases.Base, seed: int) -> bytes:
    """LoRA weights that do something, however little they have learned."""
    image, _ = sector(PX)
    pairs = seams.pairs([lora.Example(image, ellipse(PX, 14, 16, 4, 6), "benign")], 2, seed)
    params = seams.Params(steps=2, warmup=0, batch=2, rank=2, learning_rate=0.5)
    return lora.train(base, pairs, [], "breast", params, seed, Forgetful(), lambda _: None).weights


@pytest.fixture(scope="module")
def tools(inpainting_base: bases.Base) -> Tools:
    shadowed, bright = posterior.Behind(-50.0, 90.0), posterior.Behind(40.0, 90.0)
    donors = [
        Donor("m", ellipse(PX, 14, 16, 4, 6), "malignant", "p1", behind=shadowed),
        Donor("b", ellipse(PX, 14, 16, 4, 6), "benign", "p2", behind=bright),
    ]
    return Tools(base=inpainting_base, adapters={}, donors=donors, harmonizer=adapter(inpainting_base, 1))


def lesions(count: int, label: str, seed: int = 0) -> list[Draft]:
    """Drafts as the lesion stage leaves them: a dark lesion somewhere, its region three pixels wider."""
    background, _ = sector(PX, seed)
    made: list[Draft] = []
    for draft in drafts(count, background, label):
        rng = np.random.default_rng([draft.seed, seed])
        row, column = rng.integers(10, 16), rng.integers(12, 20)
        mask, region = ellipse(PX, row, column, 3, 4), ellipse(PX, row, column, 5, 6)
        made.append(replace(draft, image=np.where(mask, 20, background).astype(np.uint8), mask=mask, region=region))
    return made


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_adapter", [True, False])
def test_outside_the_region_the_background_is_bit_identical(tools: Tools, seed: int, with_adapter: bool) -> None:
    used = tools if with_adapter else replace(tools, harmonizer=None)
    before = [*lesions(3, "benign", seed), *lesions(3, "malignant", seed)]
    for draft, given in zip(harmonize.apply(LEARNED, before, used), before, strict=True):
        assert draft.region is not None
        assert given.region is not None
        np.testing.assert_array_equal(draft.image[~draft.region], draft.background[~draft.region])
        assert draft.region[given.region].all()
        assert not draft.region.all()
        assert draft.lineage["outside_changed_px"] == 0


def test_the_region_grows_down_with_the_zone_behind_the_lesion(tools: Tools) -> None:
    none = replace(tools, donors=[replace(donor, behind=None) for donor in tools.donors])
    zones = harmonize.apply(LEARNED, lesions(4, "malignant"), tools)
    plain = harmonize.apply(LEARNED, lesions(4, "malignant"), none)
    for zone, without in zip(zones, plain, strict=True):
        assert zone.region is not None
        assert without.region is not None
        assert zone.region[without.region].all()
        rows = np.flatnonzero((zone.region & ~without.region).any(axis=1))
        assert len(rows) > 4
        assert rows.min() > np.flatnonzero(without.region.any(axis=1)).min() + 4


@pytest.mark.parametrize(("label", "change"), [("benign", 40.0), ("malignant", -50.0)])
def test_a_learned_zone_reads_like_those_of_its_class(
    tools: Tools, label: str, change: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harmonize, "redraw", lambda jobs, *_: [job.image for job in jobs])
    monkeypatch.setattr(harmonize, "reconstruct", lambda jobs, *_: [job.image for job in jobs])
    read: list[float] = []
    for draft in harmonize.apply(LEARNED, lesions(8, label), tools):
        assert draft.mask is not None
        found = posterior.behind(draft.image, draft.mask, draft.background > 0)
        if found is not None:
            read.append(found.change)
    assert len(read) > 4
    assert np.mean(read) == pytest.approx(change, abs=10)


def test_one_adapter_serves_every_label_and_is_named_in_the_row(tools: Tools) -> None:
    own = adapter(tools.base, 2)
    with_own = replace(tools, adapters={"benign": own, "malignant": own})
    assert tools.harmonizer is not None
    for label in ("benign", "malignant"):
        one = harmonize.apply(LEARNED, lesions(1, label), tools)[0]
        other = harmonize.apply(LEARNED, lesions(1, label), with_own)[0]
        untrained = harmonize.apply(LEARNED, lesions(1, label), replace(with_own, harmonizer=None))[0]
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.image != untrained.image).any()
        assert one.lineage["harmonizer_digest"] == hashlib.sha256(tools.harmonizer).hexdigest()
        assert untrained.lineage["harmonizer_digest"] is None


def test_drafts_do_not_depend_on_their_company(tools: Tools) -> None:
    together = harmonize.apply(LEARNED, [*lesions(3, "benign"), *lesions(2, "malignant")], tools)
    for draft, given in zip(together, [*lesions(3, "benign"), *lesions(2, "malignant")], strict=True):
        alone = harmonize.apply(LEARNED, [given], replace(tools, batch=1))[0]
        np.testing.assert_array_equal(draft.region, alone.region)
        assert np.abs(draft.image.astype(int) - alone.image).max() <= 2


@pytest.mark.slow
def test_a_trained_adapter_brings_unseen_seams_nearer_to_what_they_were() -> None:
    base = bases.load("embedded")
    learned, unseen = (seams.pairs(phantoms(first, count), 2, first) for first, count in ((0, 24), (100, 8)))
    params = seams.Params(steps=80, warmup=8, batch=4, learning_rate=2e-3, targets="transformer")
    trained = lora.train(base, learned, [], "breast", params, 3, Forgetful(), lambda _: None).weights
    assert error(base, unseen, trained) < 0.99 * error(base, unseen, None)


def phantoms(first: int, count: int) -> list[lora.Example]:
    """Simulated scans with their lesions."""
    made: list[lora.Example] = []
    for patient in range(first, first + count):
        drawn = phantom.draw("benign" if patient % 2 else "malignant", 5, patient, 0, 128)
        assert drawn.mask is not None
        made.append(lora.Example(drawn.image, drawn.mask, "benign" if patient % 2 else "malignant"))
    return made


def error(base: bases.Base, pairs: list[lora.Example], weights: bytes | None) -> float:
    """Mean absolute difference to the unspoiled pictures in the rings of pairs redrawn at low strength."""
    images, holes = np.stack([sides(pair)[0] for pair in pairs]), np.stack([sides(pair)[1] for pair in pairs])
    redrawn = sample.inpaint(
        base,
        images,
        holes,
        [latents.prompt("breast", pair.label) for pair in pairs],
        list(range(len(pairs))),
        steps=20,
        guidance=1.0,
        strength=0.3,
        adapter=weights,
    )
    perfect = np.stack([pair.image for pair in pairs])
    return float(np.abs(redrawn.astype(float) - perfect)[holes].mean())


def sides(pair: lora.Example) -> tuple[Grey, Mask]:
    assert pair.flawed is not None
    assert pair.hole is not None
    return pair.flawed, pair.hole
