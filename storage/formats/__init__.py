"""Export formats: one file each, listed here."""

from storage.formats import coco, parquet, webdataset

FORMATS = {
    "parquet": parquet,  # always written: the others are made from it
    "coco": coco,
    "webdataset": webdataset,
}
"""Formats a recipe may name. Each has a `write` that fills a folder and says what it wrote, by path."""
