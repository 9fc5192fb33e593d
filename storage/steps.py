"""Resume, cache and incremental rebuild in one mechanism: a step is done when its reference exists."""

from storage import keys
from storage.errors import CorruptFileError
from storage.records import Ref
from storage.sealed import read_sealed, seal
from storage.store import Store


def find(store: Store, step: str, key: str) -> Ref | None:
    """What the step made under this key, None where it has not finished.

    Raises:
        CorruptFileError: its reference is damaged, or of a sonoforge that did not seal it yet.
    """
    where = keys.step_ref(step, key)
    try:
        return read_sealed(store, where, Ref)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:
        raise CorruptFileError(
            f"{store.uri(where)} is no whole step reference of this sonoforge: delete it to have the step run again"
        ) from error


def finish(store: Store, step: str, key: str, ref: Ref) -> Ref:
    """Declare a step complete: its reference, create-only, after everything it refers to.

    Returns:
        The reference that stands: this one, or the equal one that somebody running the same step wrote first.

    Raises:
        CorruptFileError: the one that stands has other content, so the step is not deterministic.
    """
    where = keys.step_ref(step, key)
    if store.create(where, seal(ref)):
        return ref
    present = find(store, step, key)
    if present is None or present.sha256 != ref.sha256:
        found = "nothing" if present is None else present.sha256[:12]
        raise CorruptFileError(
            f"step {step} {key} was made twice with different content ({found} is in {store.uri(where)}, "
            f"{ref.sha256[:12]} was made now): the step's version must rise when its code changes"
        )
    return present
