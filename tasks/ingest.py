"""Ingest: read a source, screen every file, write one row for each."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import pyarrow.compute as pc
from prefect import task

from storage import keys
from storage.images import decode_grey, decode_mask
from storage.records import Ref
from storage.store import Store
from tasks import sources, track
from tasks.connect import open_store
from tasks.imaging import Grey, Mask
from tasks.reuse import Done, reuse
from tasks.screening.screen import ScreenParams, to_table
from tasks.screening.screen import screen as screen_scans
from tasks.sources import SourceParams

ALGORITHM = 2
STEP = "ingest"
KEPT = pc.field("verdict") == "kept"


@task(name="ingest", task_run_name="ingest")
def ingest(store_url: str, source: SourceParams, screen: ScreenParams, seed: int) -> Done:
    """Read `source`, set aside what cannot be used, split by group; the Ref is `scans.parquet`."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        scans = list(sources.read(source))
        with track.track(STEP, len(scans)):
            screened = screen_scans(scans, screen, seed, source.dataset, partial(track.advance, STEP))
        table = to_table(screened)
        file = keys.step_file(STEP, key, "scans.parquet")
        digest = store.put_table(file, table)
        kept = table.filter(KEPT)
        counts = Counter(str(label) for label in kept["label"].to_pylist())
        counts["set aside"] = table.num_rows - kept.num_rows
        return Ref(key=file, sha256=digest, rows=table.num_rows, counts=dict(counts))

    params = {
        "source": source.model_dump(mode="json", exclude={"root"}),
        "screen": screen.model_dump(mode="json"),
        "seed": seed,
    }
    return reuse(store, STEP, ALGORITHM, params, [sources.digest(source)], make)


@dataclass(frozen=True)
class KeptScan:
    """One ingested scan that was not set aside."""

    id: str
    image: Grey
    mask: Mask | None
    label: str
    organ: str
    dataset: str
    group: str
    split: str
    pixel_mm: float | None


def kept_scans(store: Store, scans: Ref) -> list[KeptScan]:
    """The scans that were kept, in order of id."""
    table = store.open_table(scans.key)
    rows = table.filter(KEPT).sort_by("id").to_pylist()
    return [
        KeptScan(
            id=row["id"],
            image=decode_grey(row["image"]["bytes"]),
            mask=None if row["mask"] is None else decode_mask(row["mask"]["bytes"]),
            label=row["label"],
            organ=row["organ"],
            dataset=row["dataset"],
            group=row["group"],
            split=row["split"],
            pixel_mm=row["pixel_mm"],
        )
        for row in rows
    ]
