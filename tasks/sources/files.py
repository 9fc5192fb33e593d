"""Reading files that strangers made: what every source shares.

Nothing here raises for one bad file: it comes back with the reason, and the source makes a row of it.
A missing or empty root is the caller's mistake and raises.
"""

import csv
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.imaging import Grey, Mask, colour_cast, to_grey

LIMIT_PX = 64_000_000
"""Largest picture decoded, pixels: 30 times a full-HD frame. Larger headers are bombs or mistakes."""

COLOURED_SHARE = 1e-4
"""Share of pixels with colour from which a picture counts as overlaid. BUSI's smallest coloured sticker covers
1.1e-4 of its image; pictures without colour measure exactly 0."""

COLOURED_PX = 40
"""And at least so many pixels: a stray JPEG pixel is no overlay."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
"""File names taken for pictures."""

_LITTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Picture:
    """A decoded file: `pixels` uint8 of shape (h, w) or (h, w, 3), or None with the reason in `defect`."""

    pixels: NDArray[np.uint8] | None
    defect: str = ""


def open_picture(file: Path | bytes) -> Picture:
    """Decode a picture of any mode into 8 bits; transparency is laid on black. Never raises for its content.

    `file` is where it lies, or what it holds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Pillow's other warnings are about metadata (EXIF, ICC, transparency) and never change the pixels.
        warnings.filterwarnings("ignore", category=UserWarning)
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                width, height = image.size
                if width * height > LIMIT_PX:
                    return Picture(None, f"too large: {width} × {height} px, at most {LIMIT_PX:,} px are decoded")
                return Picture(_eight_bits(image))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Picture(None, f"too large: header claims more than {LIMIT_PX:,} px")
        except Image.UnidentifiedImageError:
            size = len(file) if isinstance(file, bytes) else file.stat().st_size
            return Picture(None, "unreadable: not a picture" if size else "unreadable: empty file")
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
            return Picture(None, f"unreadable: {' '.join(str(error).split())[:120]}")


def open_grey(path: Path) -> tuple[Grey | None, tuple[str, ...]]:
    """Grey levels of a picture and its defects: unreadable (then no image), or a coloured overlay."""
    picture = open_picture(path)
    if picture.pixels is None:
        return None, (picture.defect,)
    cast = colour_cast(picture.pixels)
    coloured = cast >= COLOURED_SHARE and round(cast * picture.pixels[..., 0].size) >= COLOURED_PX
    return to_grey(picture.pixels), (f"marks: coloured overlay on {cast:.2%} of the pixels",) if coloured else ()


def open_mask(file: Path | bytes, shape: tuple[int, ...]) -> tuple[Mask | None, tuple[str, ...]]:
    """True where any channel is in the upper half, or None with the reason: unreadable, or not of `shape`."""
    picture = open_picture(file)
    name = "of the row" if isinstance(file, bytes) else file.name
    if picture.pixels is None:
        return None, (f"mask {name} {picture.defect}",)
    bright = picture.pixels >= 128
    mask = bright if bright.ndim == 2 else np.any(bright, axis=-1)
    return fit_shape(mask, name, shape)


def fit_shape(mask: Mask, name: str, shape: tuple[int, ...]) -> tuple[Mask | None, tuple[str, ...]]:
    """`mask` if it has `shape` (h, w), else None and the reason. Never resized: which corner fits is a guess."""
    if mask.shape != shape:
        found, expected = f"{mask.shape[1]} × {mask.shape[0]}", f"{shape[1]} × {shape[0]}"
        return None, (f"mask {name} is {found} px, its image {expected} px",)
    return mask, ()


def require_root(root: Path, layout: str) -> Path:
    """`root` if it is a folder that holds something, else a ValueError that shows the expected layout."""
    root = root.expanduser()
    if not root.exists():
        found = "does not exist"
    elif not root.is_dir():
        found = "is a file"
    elif not any(root.iterdir()):
        found = "is empty"
    else:
        return root
    raise ValueError(f"source root {root} {found}; expected a folder laid out as {layout}")


def listed(folder: Path) -> list[Path]:
    """Files directly in `folder`, sorted by name, without hidden files and the litter of file managers."""
    found = [path for path in folder.iterdir() if path.is_file()]
    return sorted(p for p in found if not p.name.startswith(".") and p.name.lower() not in _LITTER)


def read_csv(path: Path, delimiter: str = ",", required: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of a csv file with a header, cells and names stripped, byte-order mark removed.

    Raises:
        ValueError: a column of `required` is absent, or the file is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save the table as UTF-8 csv") from error
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in required if name not in header]
    if missing:
        raise ValueError(f"{path} has columns {header}; missing {missing} (delimiter {delimiter!r})")
    return [{name: cell.strip() for name, cell in zip(header, line, strict=False)} for line in lines if any(line)]


def digest_folder(root: Path) -> str:
    """sha256 over the relative paths and bytes of every file under `root`, hidden ones left out."""
    total = hashlib.sha256()
    for path in _walk(root):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def _walk(root: Path) -> Iterator[Path]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name.lower() not in _LITTER)
    visible = (p for p in files if not any(part.startswith(".") for part in p.relative_to(root).parts))
    yield from sorted(visible, key=lambda path: path.relative_to(root).as_posix())


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels as uint8. Deeper grey keeps the depth it uses: 12 bits in a 16-bit file are not turned black."""
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        levels = np.asarray(image).astype(np.float64)
        levels = np.nan_to_num(levels).clip(0)
        depth = next((bits for bits in (8, 12, 16) if levels.max(initial=0) < 2**bits), 32)
        return (levels * (255 / (2**depth - 1))).round().astype(np.uint8)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))
