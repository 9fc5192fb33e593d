"""What happens to a scan between two entries of a dataset: cropped, resized, brightened, drawn on, turned."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from tasks.imaging import Grey

Change = Callable[[Grey, np.random.Generator], Grey]


def same(image: Grey, _: np.random.Generator) -> Grey:
    """An exact copy."""
    return image.copy()


def cropped(image: Grey, rng: np.random.Generator) -> Grey:
    """55 to 95 % of the area, anywhere."""
    height, width = image.shape
    y, x = (round(side * np.sqrt(rng.uniform(0.55, 0.95))) for side in (height, width))
    top, left = rng.integers(0, height - y + 1), rng.integers(0, width - x + 1)
    return image[top : top + y, left : left + x]


def resized(image: Grey, rng: np.random.Generator) -> Grey:
    """0.5 to 1.6 times as large, width and height up to 8 % apart, as careless resizing does."""
    factor, stretch = rng.uniform(0.5, 1.6), rng.uniform(0.92, 1.08)
    size = round(image.shape[1] * factor * stretch), round(image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def brightened(image: Grey, rng: np.random.Generator) -> Grey:
    """Gamma 0.6 to 1.6, contrast and brightness changed, clipped."""
    levels = 255 * (np.arange(256) / 255) ** rng.uniform(0.6, 1.6) * rng.uniform(0.8, 1.3) + rng.uniform(-15, 25)
    return np.clip(levels, 0, 255).astype(np.uint8)[image]


def compressed(image: Grey, rng: np.random.Generator) -> Grey:
    """JPEG at quality 25 to 80."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=int(rng.integers(25, 81)))
    return np.asarray(Image.open(data))


def marked(image: Grey, rng: np.random.Generator) -> Grey:
    """Two to four calipers, a dotted line between two of them, and a line of text."""
    drawn = Image.fromarray(image)
    draw = ImageDraw.Draw(drawn)
    height, width = image.shape
    at = [(rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height) for _ in range(int(rng.integers(2, 5)))]
    for x, y in at:
        draw.line((x - 6, y, x + 6, y), fill=230, width=2)
        draw.line((x, y - 6, x, y + 6), fill=230, width=2)
    for share in np.linspace(0, 1, 30):
        x, y = (one * (1 - share) + two * share for one, two in zip(at[0], at[1], strict=True))
        draw.point((x, y), fill=230)
    place = rng.uniform(0.05, 0.6) * width, rng.uniform(0.1, 0.85) * height
    draw.text(place, "RT BREAST UOQ", fill=235, font_size=max(10, height // 25))
    return np.asarray(drawn)


def noisy(image: Grey, rng: np.random.Generator) -> Grey:
    """White noise of 3 to 8 grey levels."""
    return np.clip(image + rng.normal(0, rng.uniform(3, 8), image.shape), 0, 255).astype(np.uint8)


def mirrored(image: Grey, rng: np.random.Generator) -> Grey:
    """Left and right exchanged, now and then top and bottom."""
    return np.ascontiguousarray(image[::-1] if rng.random() < 0.2 else image[:, ::-1])


def in_a_row(*changes: Change) -> Change:
    """Several changes, one after the other."""

    def change(image: Grey, rng: np.random.Generator) -> Grey:
        for one in changes:
            image = one(image, rng)
        return image

    return change


CHANGES: dict[str, Change] = {
    "exact copy": same,
    "cropped to 55-95 %": cropped,
    "resized 0.5-1.6": resized,
    "gamma 0.6-1.6, contrast": brightened,
    "calipers and text": marked,
    "JPEG 25-80": compressed,
    "noise of 3-8 grey levels": noisy,
    "flipped": mirrored,
    "cropped, resized, gamma": in_a_row(cropped, resized, brightened),
    "cropped, gamma, calipers, JPEG": in_a_row(cropped, brightened, marked, compressed),
    "flipped, cropped, resized, JPEG": in_a_row(mirrored, cropped, resized, compressed),
    "all of it": in_a_row(mirrored, cropped, resized, brightened, marked, noisy, compressed),
}
