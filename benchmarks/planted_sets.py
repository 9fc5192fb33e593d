"""Planted failures of whole sets: half of the real patients are compared with a spoiled set of the other half.

Every draw splits BUSI's lesions by group into real images to compare with and images that play the synthetic set, as
they are (whoever flags that raises a false alarm) and spoiled. A score flags a set when the 95 % interval of its
multiple of the real-vs-real floor lies on the bad side of 1; `kid` when its permutation p is 0.05 or less;
`fid_infinity` when its interval lies above 0. The draws share one pool of images, so they are not independent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.image_failures import blurred, noise_for_speckle
from benchmarks.planted_images import scans
from benchmarks.planting import Row
from storage.records import SetScore
from tasks import sources
from tasks.imaging import letterbox
from tasks.quality import HIGHER_IS_BETTER, SET_SCORES, extractors
from tasks.quality.evidence import SetEvidence, Space
from tasks.quality.judge import HEALTHY, Pictures
from tasks.quality.resampling import group_halves
from tasks.sources import phantom

SIZE = 100
SCORES = [name for name in SET_SCORES if name not in ("classifier_score", "detector_auc")]
"""Those that need no trained judge."""
ANY = "any set score"
FOREIGN = ("phantom", "fetal head")
"""Versions that are not of the pool's own pictures."""

Rows = list[tuple[str, int]]
"""A set: by version of the pictures ("as is", "blurred" …) and number of the picture."""


@dataclass(frozen=True)
class Pool:
    """Every picture in every version, as every extractor sees it."""

    labels: Sequence[str]
    groups: Sequence[str]
    features: Mapping[str, Mapping[str, NDArray[np.float64]]]  # by extractor, by version
    identities: Mapping[str, str]

    def side(self, extractor: str, rows: Rows) -> NDArray[np.float64]:
        """Features of a set, (n, d)."""
        return np.stack([self.features[extractor][version][row] for version, row in rows])


@dataclass(frozen=True)
class Failure:
    """What is planted, and the score that is meant to catch it. `spoiled` makes the sets."""

    what: str
    score: str


FAILURES = [
    Failure("diversity collapsed: 5 images, each 20 times, mirrored or brightened", "coverage"),
    Failure("diversity collapsed: 25 images, each 4 times, mirrored or brightened", "coverage"),
    Failure("a kind left out: malignant images only", "kid"),
    Failure("every image blurred, sigma 1 px of 128", "speckle_frechet"),
    Failure("half of the images blurred, sigma 1 px of 128", "speckle_frechet"),
    Failure("white noise for speckle in every image", "speckle_frechet"),
    Failure("white noise for speckle in half of the images", "speckle_frechet"),
    Failure("half of the images replaced by phantoms", "kid"),
    Failure("a fifth of the images replaced by phantoms", "kid"),
    Failure("a fifth of the images replaced by fetal heads", "fid"),
]


def spoiled(pool: Pool, images: NDArray[np.intp]) -> list[Rows]:
    """A set for every entry of `FAILURES`, of these images in their random order."""
    first = images[:SIZE].tolist()
    looks = ("as is", "mirrored", "brighter", "mirrored and brighter")
    malignant = [row for row in images.tolist() if pool.labels[row] == "malignant"][:SIZE]

    def mixed(version: str, share: float) -> Rows:
        few = round(share * SIZE)
        replaced = range(few) if version in FOREIGN else first[:few]
        return [(version, row) for row in replaced] + [("as is", row) for row in first[few:]]

    return [
        [(look, row) for row in first[:5] for look in looks] * 5,
        [(look, row) for row in first[:25] for look in looks],
        [("as is", row) for row in malignant],
        mixed("blurred", 1),
        mixed("blurred", 0.5),
        mixed("noisy", 1),
        mixed("noisy", 0.5),
        mixed("phantom", 0.5),
        mixed("phantom", 0.2),
        mixed("fetal head", 0.2),
    ]


def rows(data: Path, quick: bool) -> Iterator[Row]:
    """Each failure against the score meant for it, against the score that finds it best, and against all together."""
    pictures = scans(data)
    lesions = pictures.select(np.array([label != HEALTHY for label in pictures.labels]))
    pool = described(lesions, heads(data, lesions.images.shape[1]))
    draws = 4 if quick else 20
    rng = np.random.default_rng(0)
    clean: list[set[str]] = []
    found: list[list[set[str]]] = [[] for _ in FAILURES]
    for seed, (real, images) in enumerate(group_halves(pool.groups, len(pool.groups), draws, rng)):
        reference: Rows = [("as is", row) for row in real.tolist()]
        clean.append(flagging(pool, reference, [("as is", row) for row in images[:SIZE].tolist()], seed))
        for flags, planted in zip(found, spoiled(pool, images), strict=True):
            flags.append(flagging(pool, reference, planted, seed))
    for failure, flags in zip(FAILURES, found, strict=True):
        counts = {name: sum(name in each for each in flags) for name in SCORES}
        alarms = {name: sum(name in each for each in clean) for name in SCORES}
        best = max(SCORES, key=lambda name: counts[name] - alarms[name])
        note = f"{SIZE} images against {len(pool.groups)} lesions' other half; flagged in {draws} draws by "
        note += ", ".join(f"{name} {counts[name]}" for name in SCORES)
        for gate in dict.fromkeys([failure.score, best]):
            yield Row(failure.what, gate, draws, counts[gate], draws, alarms[gate], note)
        together, false = sum(bool(each) for each in flags), sum(bool(each) for each in clean)
        yield Row(failure.what, ANY, draws, together, draws, false, "no correction for asking many scores")


def described(lesions: Pictures, foreign: Pictures) -> Pool:
    """The features of all versions; every picture is spoiled once."""
    rng = np.random.default_rng(0)
    none = lesions.select(np.zeros(0, np.intp))
    mirrored = replace(lesions, images=lesions.images[:, :, ::-1].copy(), masks=lesions.masks[:, :, ::-1].copy())
    versions = {
        "as is": lesions,
        "mirrored": mirrored,
        "brighter": brighter(lesions),
        "mirrored and brighter": brighter(mirrored),
        "blurred": blurred(1.0, inside=False)(lesions, none, rng),
        "noisy": noise_for_speckle(inside=False)(lesions, none, rng),
        "phantom": phantoms(SIZE // 2, lesions.images.shape[1]),
        "fetal head": foreign,
    }
    known = {"main": extractors.load(extractors.ExtractorParams())}
    known |= {name: load() for name, load in extractors.SPACES.items()}
    features = {
        name: {version: extractor.features(seen.images, seen.masks) for version, seen in versions.items()}
        for name, extractor in known.items()
    }
    return Pool(lesions.labels, lesions.groups, features, {name: each.identity for name, each in known.items()})


def brighter(pictures: Pictures) -> Pictures:
    """Grey levels as a gain a tenth higher would show them."""
    return replace(pictures, images=(pictures.images * 1.1).clip(0, 255).astype(np.uint8))


def phantoms(count: int, px: int) -> Pictures:
    """Simulated lesions, half of them malignant."""
    labels = ["benign", "malignant"] * (count // 2)
    drawn = [phantom.draw(label, 7, patient, 0, px) for patient, label in enumerate(labels)]
    pairs = [letterbox(each.image, each.mask, px) for each in drawn]
    images = np.stack([pair.image for pair in pairs])
    masks = np.stack([pair.mask for pair in pairs if pair.mask is not None])
    return Pictures(images, masks, labels, [f"phantom {patient}" for patient in range(len(labels))])


def heads(data: Path, px: int) -> Pictures:
    """Fetal heads of HC18, with their filled outlines."""
    source = sources.at("hc18", data / "hc18")
    scans = [scan for scan in sources.read(source) if scan.image is not None and scan.mask is not None][: SIZE // 5]
    pairs = [letterbox(scan.image, scan.mask, px) for scan in scans if scan.image is not None]
    masks = np.stack([pair.mask for pair in pairs if pair.mask is not None])
    images, names = np.stack([pair.image for pair in pairs]), [str(scan.group) for scan in scans]
    return Pictures(images, masks, ["head"] * len(scans), names)


def flagging(pool: Pool, real: Rows, synthetic: Rows, seed: int) -> set[str]:
    """Names of the scores that flag a set."""
    spaces = {
        name: Space(pool.side(name, real), pool.side(name, synthetic), identity)
        for name, identity in pool.identities.items()
    }
    groups = [
        [f"{version} {row}" if version in FOREIGN else pool.groups[row] for version, row in side]
        for side in (real, synthetic)
    ]
    main = spaces["main"]
    evidence = SetEvidence(
        real=main.real,
        synthetic=main.synthetic,
        real_groups=groups[0],
        synthetic_groups=groups[1],
        extractor=main.extractor,
        seed=seed,
        radiomic=spaces["radiomics"],
        speckle=spaces["speckle"],
    )
    return {name for name in SCORES if flagged(SET_SCORES[name](evidence))}


def flagged(score: SetScore) -> bool:
    """Whether a score says that a set differs from real ones for the worse."""
    if score.name == "kid":
        return score.p is not None and score.p <= 0.05
    if score.name == "fid_infinity":
        return score.low is not None and score.low > 0
    if score.name in HIGHER_IS_BETTER:
        return score.over_floor_high is not None and score.over_floor_high < 1
    return score.over_floor_low is not None and score.over_floor_low > 1
