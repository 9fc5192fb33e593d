"""Export formats: one file each, listed here."""

from tasks.formats import coco, parquet

FORMATS = {
    "parquet": parquet,  # always written: the others are made from it
    "coco": coco,
}
"""Formats a recipe may name. Each has a `write` that fills a folder and returns the rows of each file."""
