"""The browser of the other pages."""

from tests.tasks.report.conftest import browser

__all__ = ["browser"]
