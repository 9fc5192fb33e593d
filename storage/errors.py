"""Everything storage can refuse to do.

StorageError
├── StoreUnavailableError   the store does not answer, or may not be written
├── StoreFullError          no space left on the device
├── VersionNotFoundError    no such dataset, version or channel (also a FileNotFoundError)
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


class CorruptFileError(StorageError, ValueError):
    """Bytes read back differ from the digest recorded for them."""


class UnsafePathError(StorageError, ValueError):
    """A path from outside would leave the directory it belongs to."""


class ExclusiveCreateError(StorageError):
    """The backend lets two writers create the same object, so versions on it could be lost."""
