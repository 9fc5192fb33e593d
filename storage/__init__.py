"""Where datasets live: records, keys, a store that writes once. Imports neither Prefect nor torch.

People who only read need one name: `from storage import open_version`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.reading import open_version

__all__ = ["open_version"]


def __getattr__(name: str) -> object:
    if name == "open_version":  # late, so that importing one module of the package does not import all
        from storage.reading import open_version

        return open_version
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
