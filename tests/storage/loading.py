"""Reads a version with the workers of a `DataLoader`, as a training script does: arguments URL, fork or spawn."""

import sys
from typing import Any

from storage import open_version


class Area:
    """A transform that pickles."""

    def __call__(self, row: dict[str, Any]) -> tuple[str, int]:
        return row["id"], 0 if row["mask"] is None else int(row["mask"].sum())


def main(url: str, context: str) -> None:
    """Fails unless workers bring what this process reads."""
    from torch.utils import data

    version = open_version("demo", url)
    dataset = version.torch(transform=Area())
    expected = [Area()(row) for row in version.rows(["id", "mask"])]
    assert dataset[0] == expected[0]  # a connection is open before the workers are forked
    loader = data.DataLoader(
        dataset, batch_size=5, num_workers=2, multiprocessing_context=context, collate_fn=list, shuffle=False
    )
    assert len(expected) > 5
    assert [item for batch in loader for item in batch] == expected
    assert version.metadata() is not None  # no worker removed what its parent fetched


if __name__ == "__main__":
    main(*sys.argv[1:])
