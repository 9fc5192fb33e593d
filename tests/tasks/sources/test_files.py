import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.sources.files import digest_folder, listed, open_grey, open_mask, open_picture, read_csv, require_root


def png_header(width, height):
    """A PNG of a few bytes whose header claims any size."""
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", ihdr), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def saved(path, array, mode=None):
    Image.fromarray(array, mode).save(path) if mode is None else Image.fromarray(array).convert(mode).save(path)
    return path


@pytest.mark.parametrize("side", [8001, 9500, 14_000, 30_000])
def test_a_bomb_is_refused_by_its_header_alone(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    picture = open_picture(tmp_path / "bomb.png")
    assert picture.pixels is None
    assert "too large" in picture.defect


def test_a_truncated_png_is_unreadable_with_the_reason(tmp_path):
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    image, defects = open_grey(path)
    assert image is None
    assert defects[0].startswith("unreadable: ")


@pytest.mark.parametrize("content", [b"hello, I am text", b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_unreadable(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert open_picture(tmp_path / "a.png").defect.startswith("unreadable: ")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "I"])
def test_every_mode_of_a_grey_picture_gives_the_same_levels(tmp_path, mode):
    grey = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(4, axis=1)
    image, defects = open_grey(saved(tmp_path / ("a.tif" if mode == "I" else "a.png"), grey, mode))
    assert defects == ()
    np.testing.assert_array_equal(image, grey)


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_grey_keeps_the_depth_it_uses(tmp_path, bits):
    levels = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    image, _ = open_grey(saved(tmp_path / "a.png", levels))
    np.testing.assert_allclose(image.ravel(), np.arange(256), atol=1)


def test_transparent_pixels_are_black_whatever_colour_they_hide(tmp_path):
    pixels = np.full((10, 10, 4), 200, np.uint8)
    pixels[:5, :, 3] = 0
    pixels[5:, :, 3] = 255
    image, _ = open_grey(saved(tmp_path / "a.png", pixels))
    assert image[:5].max() == 0
    assert image[5:].min() == 200


def test_a_small_coloured_overlay_is_a_mark_and_grey_as_rgb_is_none(tmp_path):
    pixels = np.full((200, 200, 3), 90, np.uint8)
    assert open_grey(saved(tmp_path / "grey.png", pixels))[1] == ()
    pixels[10:20, 10:20] = (250, 220, 30)
    image, defects = open_grey(saved(tmp_path / "colour.png", pixels))
    assert image is not None
    assert defects[0].startswith("marks: coloured overlay")


def test_a_mask_of_another_size_is_refused_and_says_both_sizes(tmp_path):
    mask, problems = open_mask(saved(tmp_path / "m.png", np.zeros((20, 30), np.uint8)), (20, 31))
    assert mask is None
    assert problems == ("mask m.png is 30 × 20 px, its image 31 × 20 px",)


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_a_root_that_cannot_be_read_says_what_was_expected(tmp_path, what):
    root = tmp_path / what
    if what == "file":
        root.write_text("x")
    elif what == "empty":
        root.mkdir()
    with pytest.raises(ValueError, match="expected a folder laid out as THIS WAY"):
        require_root(root, "THIS WAY")


def test_tables_lose_byte_order_mark_and_stray_blanks(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffImage; Label \r\na.png; Normal\r\n\r\n".encode())
    assert read_csv(tmp_path / "t.csv", ";", ("Image",)) == [{"Image": "a.png", "Label": "Normal"}]
    with pytest.raises(ValueError, match="missing"):
        read_csv(tmp_path / "t.csv", ",", ("Image",))


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("file,label\né,benign".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_csv(tmp_path / "t.csv")


def test_the_digest_sees_names_and_bytes_but_not_litter(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"1")
    first = digest_folder(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"2")
    (tmp_path / "Thumbs.db").write_bytes(b"2")
    assert digest_folder(tmp_path) == first
    assert [path.name for path in listed(tmp_path / "a")] == ["x.png"]
    (tmp_path / "a" / "x.png").write_bytes(b"2")
    assert digest_folder(tmp_path) != first
