"""Where datasets live: records, keys, a store that writes once. Imports neither Prefect nor torch."""
