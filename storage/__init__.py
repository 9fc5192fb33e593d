"""Where datasets live: records, keys, and an fsspec store that writes once. Imports neither Prefect nor torch."""
