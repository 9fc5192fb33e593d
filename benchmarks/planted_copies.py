"""Planted copies: real training scans changed as a copy might be, hidden among scans of people not in training.

Each dataset is split by group into training scans and strangers. `copy_search.find` then gets two folders, as the
command `sonoforge copies TRAIN SYNTHETIC` does: nobody tells it what is what. Its limit was chosen on strangers of
BUSI, HC18 and BUS-UCLM, the plants were not looked at for it. False alarms are strangers called copies. Masks lie
beside training scans, but only beside those synthetic pictures whose row says so.
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.planting import Row
from tasks.copy_search import find
from tasks.imaging import Grey, Mask
from tasks.picture_sets import Picture, open_set
from tasks.quality.crops import lesion_box
from tasks.screening.duplicates import find_alike

SETS = {"busi": "BUSI", "bus-uclm": "BUS-UCLM", "hc18": "HC18"}
GATE = "copies"

Rng = np.random.Generator
Change = Callable[[Grey, Rng], Grey]


@dataclass(frozen=True)
class Scan:
    """A scan with its mask (None where it has no lesion), and the group that splits go by."""

    image: Grey
    mask: Mask | None
    group: str


def rows(data: Path, quick: bool) -> Iterator[Row]:
    """One row a kind of copy and dataset that lies in `data`."""
    for folder, name in SETS.items():
        if (data / folder).is_dir():
            scans = _scans([*open_set(str(data / folder)).pictures()], 120 if quick else 800)
            yield from _searched(name, scans, 8 if quick else 25)


def _scans(pictures: Sequence[Picture], most: int) -> list[Scan]:
    """Up to `most` pictures; where the dataset does not know its patients, frames of one scene are a group."""
    pictures = [pictures[k] for k in np.sort(np.random.default_rng(0).permutation(len(pictures))[:most])]
    groups = [picture.group for picture in pictures]
    if not all(groups):
        groups = [f"scene {scene}" for scene in find_alike([picture.image for picture in pictures]).scenes]
    return [
        Scan(picture.image, picture.mask if picture.mask is not None and picture.mask.any() else None, str(group))
        for picture, group in zip(pictures, groups, strict=True)
    ]


def _searched(name: str, scans: Sequence[Scan], count: int) -> Iterator[Row]:
    """Plant `count` copies of each kind, search them, and tell them from the strangers beside them."""
    rng = np.random.default_rng(1)
    groups = sorted({scan.group for scan in scans})
    known = set(np.array(groups)[rng.permutation(len(groups))[: len(groups) // 2]].tolist())
    train = [scan for scan in scans if scan.group in known]
    strangers = [scan for scan in scans if scan.group not in known]
    planted: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for k, scan in enumerate(train):
            _save(root / "train" / f"{k}.png", scan.image, scan.mask)
        for k, scan in enumerate(strangers):
            _save(root / "synthetic" / f"stranger {k}.png", scan.image)
            if scan.mask is not None:
                _save(root / "synthetic" / f"masked {k}.png", scan.image, scan.mask)
        for kind, change in CHANGES.items():
            for n, k in enumerate(rng.permutation(len(train))[:count].tolist()):
                file = f"planted {len(planted)}.png"
                planted[file] = kind
                _save(root / "synthetic" / file, change(train[k].image, np.random.default_rng([2, n])))
        lesions = [scan for scan in train if scan.mask is not None]
        for n, k in enumerate(rng.permutation(len(lesions))[: 2 * count].tolist()):
            other = strangers[int(rng.integers(len(strangers)))].image
            image, mask = pasted(lesions[k], other, np.random.default_rng([3, n]))
            for kind, drawn in ((PASTED, None), (f"{PASTED}, mask given", mask)):
                file = f"planted {len(planted)}.png"
                planted[file] = kind
                _save(root / "synthetic" / file, image, drawn)
        table = find(str(root / "train"), str(root / "synthetic"))
    called = {row.file: row.is_copy for row in table.rows}
    note = f"{len(train)} training scans, limit {table.limit:.2f}"
    alone = [copy for file, copy in called.items() if file.startswith("stranger")]
    masked = [copy for file, copy in called.items() if file.startswith("masked")]
    for kind in dict.fromkeys(planted.values()):
        found = [called[file] for file, its in planted.items() if its == kind]
        clean = masked if kind.endswith("mask given") else alone
        yield Row(f"{name}: {kind}", GATE, len(found), sum(found), len(clean), sum(clean), note)


def _save(path: Path, image: Grey, mask: Mask | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)
    if mask is not None:
        Image.fromarray(mask).save(path.with_name(f"{path.stem}_mask.png"))


def _clipped(pixels: np.ndarray) -> Grey:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def cropped(image: Grey, rng: Rng) -> Grey:
    """70 to 95 % of each side, anywhere."""
    height, width = (round(side * rng.uniform(0.7, 0.95)) for side in image.shape)
    top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def regraded(image: Grey, rng: Rng) -> Grey:
    """Gamma 0.6 to 1.6."""
    return _clipped(255 * (image / 255) ** np.exp(rng.uniform(np.log(0.6), np.log(1.6))))


def compressed(image: Grey, rng: Rng) -> Grey:
    """JPEG at quality 20 to 60."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=int(rng.integers(20, 61)))
    return np.asarray(Image.open(data))


def resized(image: Grey, rng: Rng) -> Grey:
    """0.4 to 1.6 times as large, width and height up to a tenth apart."""
    factor, stretch = rng.uniform(0.4, 1.6), rng.uniform(0.9, 1.1)
    size = max(8, round(image.shape[1] * factor * stretch)), max(8, round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def noisy(image: Grey, rng: Rng) -> Grey:
    """Gaussian noise of 5 to 15 grey levels."""
    return _clipped(image + rng.normal(0, rng.uniform(5, 15), image.shape))


def blurred(image: Grey, rng: Rng) -> Grey:
    """Gaussian of 0.8 to 1.6 px at 300 px height."""
    return _clipped(ndimage.gaussian_filter(image.astype(np.float32), rng.uniform(0.8, 1.6) * image.shape[0] / 300))


def turned(image: Grey, rng: Rng) -> Grey:
    """Up to 8 degrees, zoomed by 0.85 to 1.15."""
    angle, zoom = np.radians(rng.uniform(-8, 8)), rng.uniform(0.85, 1.15)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre
    # SciPy takes one offset an axis; its stubs know one number only.
    moved = ndimage.affine_transform(image.astype(np.float32), matrix, offset, order=1)  # pyright: ignore[reportArgumentType]
    return _clipped(moved)


def drawn_on(image: Grey, rng: Rng) -> Grey:
    """Eight caliper crosses and a line as of text."""
    out = image.copy()
    height, width = image.shape
    for _ in range(8):
        y, x = rng.integers(7, height - 7), rng.integers(7, width - 7)
        out[y - 6 : y + 7, x] = out[y, x - 6 : x + 7] = 255
    y, x = rng.integers(height - 16), rng.integers(max(1, width - 110))
    text = out[y : y + 16, x : x + 110]
    text[rng.random(text.shape) > 0.6] = 255
    return out


def pasted(scan: Scan, other: Grey, rng: Rng) -> tuple[Grey, Mask]:
    """The lesion of a scan, with a quarter of its size around it, set with soft edges into another picture; and its
    mask there. Mirrored half of the time, sized by 0.85 to 1.15."""
    assert scan.mask is not None
    top, left, side = lesion_box(scan.mask, 0.25)
    window = slice(top, top + side), slice(left, left + side)
    relative = (other.size / scan.image.size) ** 0.5 * rng.uniform(0.85, 1.15)
    px = int(np.clip(side * relative, 8, min(other.shape) - 2))
    part = np.asarray(Image.fromarray(scan.image[window]).resize((px, px), Image.Resampling.BILINEAR))
    mask = np.asarray(Image.fromarray(scan.mask[window]).resize((px, px), Image.Resampling.NEAREST))
    if rng.random() < 0.5:
        part, mask = part[:, ::-1], mask[:, ::-1]
    inner = np.pad(np.ones((px - 2, px - 2)), 1)
    soft = np.clip(np.asarray(ndimage.distance_transform_edt(inner)) / max(2, round(0.08 * px)), 0, 1)
    y, x = rng.integers(other.shape[0] - px + 1), rng.integers(other.shape[1] - px + 1)
    out, drawn = other.astype(np.float32), np.zeros(other.shape, np.bool_)
    place = slice(y, y + px), slice(x, x + px)
    out[place] = soft * part + (1 - soft) * out[place]
    drawn[place] = mask
    return _clipped(out), drawn


def _in_turn(*changes: Change) -> Change:
    def change(image: Grey, rng: Rng) -> Grey:
        for step in changes:
            image = step(image, rng)
        return image

    return change


def _mirrored_or_not(image: Grey, rng: Rng) -> Grey:
    return image[:, ::-1] if rng.random() < 0.5 else image


PASTED = "lesion set into a stranger's scan"
CHANGES: dict[str, Change] = {
    "exact": lambda image, rng: image,
    "mirrored": lambda image, rng: image[:, ::-1],
    "upside down": lambda image, rng: image[::-1],
    "cropped to 70-95 %": cropped,
    "gamma 0.6-1.6": regraded,
    "JPEG 20-60": compressed,
    "resized 0.4-1.6": resized,
    "noise": noisy,
    "blurred": blurred,
    "turned up to 8 degrees": turned,
    "drawn on": drawn_on,
    "mirrored, cropped, regraded, resized, JPEG": _in_turn(_mirrored_or_not, cropped, regraded, resized, compressed),
    "turned, cropped, drawn on, regraded, JPEG": _in_turn(turned, cropped, drawn_on, regraded, compressed),
}
