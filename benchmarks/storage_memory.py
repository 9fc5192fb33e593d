"""Peak memory of one operation, in a process of its own: `python -m benchmarks.storage_memory publish …`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

Operation = Literal["publish", "list", "filter", "diff", "pull", "pull where"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


def peak(operation: Operation, store: Path, *arguments: str | Path) -> int:
    """The most memory, in bytes, that a fresh Python takes for an operation on a store; its imports included.

    Args:
        operation: publish DATASET SAMPLES COUNT; list; filter NAME; diff NAME NAME; pull NAME OUT; pull where NAME OUT.
        store: a local one.
        arguments: as said.
    """
    command = [sys.executable, "-m", "benchmarks.storage_memory", operation, str(store), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout)


def _run(operation: Operation, root: str, arguments: list[str]) -> None:
    from benchmarks import storage_data
    from storage import comparing, open_version, pulling, versions
    from storage.formats import parquet
    from storage.store import Store

    store = Store(root)
    match operation:
        case "publish":
            dataset, samples, count = arguments
            with store.staging() as folder:
                written = parquet.write(storage_data.streamed(Path(samples)), folder)
                versions.publish(store, dataset, folder, storage_data.about(int(count), written))
        case "list":
            assert list(versions.list_versions(store))
        case "filter":
            with open_version(arguments[0], store) as version:
                assert len(version.metadata(["id", "label"], where=f"{storage_data.SCORE} < 0.01"))
        case "diff":
            first, second = (versions.open_manifest(store, name) for name in arguments)
            assert comparing.compare(store, first, second).rows.changed
        case "pull" | "pull where":
            where = f"{storage_data.SCORE} < 0.01" if operation == "pull where" else None
            pulling.pull(store, versions.open_manifest(store, arguments[0]), Path(arguments[1]), where=where)


def _peak() -> int:
    """Of this process since it was started; `getrusage` would tell its parent's where that was larger."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    asked = sys.argv[1]
    _run(next(each for each in OPERATIONS if each == asked), sys.argv[2], sys.argv[3:])
    print(_peak())
