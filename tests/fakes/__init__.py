"""Tiny datasets in each source's own layout, generated, never real."""

from tests.fakes.busbra import busbra
from tests.fakes.busi import busi
from tests.fakes.busuclm import busuclm
from tests.fakes.folder import folder
from tests.fakes.hc18 import hc18

__all__ = ["busbra", "busi", "busuclm", "folder", "hc18"]
