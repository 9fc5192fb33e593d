"""Everything storage can refuse to do.

StorageError
├── StoreUnavailableError   the store does not answer, or may not be written
├── StoreFullError          no space left on the device
├── VersionNotFoundError    no such dataset, version or channel (also a FileNotFoundError)
├── RowNotFoundError        no row of that id in the version; the message lists the nearest
├── RetractedError          the version was retracted; the message gives the reason
├── BusyError               somebody else holds what this needs for longer than one should wait
├── SelectionError          a condition, split or column that cannot be, or that no row meets
├── CorruptFileError        bytes differ from the digest their manifest records
├── UnsafePathError         a path from outside that leaves its root
└── ExclusiveCreateError    the backend does not honour create-only writes
"""


class StorageError(Exception):
    """Base of every error raised by `storage`; its message says what was found, expected and what to do."""


class StoreUnavailableError(StorageError, OSError):
    """The store does not answer, or refuses to be written."""


class StoreFullError(StorageError, OSError):
    """No space is left where the store lives."""


class VersionNotFoundError(StorageError, FileNotFoundError):
    """No such dataset or version; the message lists the nearest that exist."""

    def __str__(self) -> str:  # FileNotFoundError would otherwise print the arguments as errno
        return str(self.args[0]) if self.args else ""


class RowNotFoundError(StorageError, LookupError):
    """The version has no row of that id; the message lists the nearest that it has."""


class RetractedError(StorageError, ValueError):
    """The version was retracted: it may be looked at, not pulled, published again or promoted."""


class BusyError(StorageError):
    """Another pull, collection or publisher holds what this one needs; the message names it."""


class SelectionError(StorageError, ValueError):
    """What was asked for is no part of the version; the message points at what is wrong."""


class CorruptFileError(StorageError, ValueError):
    """Bytes read back differ from the digest recorded for them."""


class UnsafePathError(StorageError, ValueError):
    """A path from outside would leave the directory it belongs to."""


class ExclusiveCreateError(StorageError):
    """The backend lets two writers create the same object, so versions on it could be lost."""
