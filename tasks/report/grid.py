"""One picture of many samples, for places that show a PNG and nothing else."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from tasks.imaging import Grey, Mask, letterbox
from tasks.report.pictures import with_outline

Example = tuple[Grey, Mask | None, str]
"""Image, mask, label."""

_GAP = 6
_CAPTION = 16
_BACKGROUND = (24, 26, 30)
_INK = (214, 218, 224)


def contact_sheet(
    real: Sequence[Example],
    synthetic: Sequence[Example],
    columns: int = 6,
    px: int = 128,
    outlines: bool = True,
) -> bytes:
    """PNG: rows of real examples, then rows of synthetic ones, each with its label beneath.

    Args:
        real: image, mask, label; none is allowed.
        synthetic: as `real`.
        columns: pictures in a row.
        px: side of a picture, in pixels.
        outlines: whether masks are drawn.
    """
    parts = [(name, list(examples)) for name, examples in (("real", real), ("synthetic", synthetic)) if examples]
    if not parts:
        raise ValueError("no examples to show: give at least one real or synthetic image")
    heights = [_CAPTION + -(-len(examples) // columns) * (px + _CAPTION + _GAP) for _, examples in parts]
    sheet = Image.new("RGB", (columns * (px + _GAP) + _GAP, sum(heights) + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for (name, examples), height in zip(parts, heights, strict=True):
        draw.text((_GAP, top), f"{name} ({len(examples)})", fill=_INK)
        for index, (image, mask, label) in enumerate(examples):
            fitted = letterbox(image, mask, px)
            left = _GAP + index % columns * (px + _GAP)
            y = top + _CAPTION + index // columns * (px + _CAPTION + _GAP)
            sheet.paste(with_outline(fitted.image, fitted.mask if outlines else None), (left, y))
            draw.text((left, y + px + 2), label, fill=_INK)
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
