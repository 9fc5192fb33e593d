"""What is wrong with scans: duplicates, marks, conflicts; and how they are split."""

from tasks.screening.findings import Findings, inspect, kind_of, to_csv
from tasks.screening.screen import Screened, ScreenParams, screen, to_table

__all__ = ["Findings", "ScreenParams", "Screened", "inspect", "kind_of", "screen", "to_csv", "to_table"]
