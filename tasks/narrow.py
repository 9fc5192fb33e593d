"""Narrow: few training scans, for generators, judges and downstream networks alike."""

import pyarrow as pa
import pyarrow.compute as pc
from prefect import task

from storage import keys
from storage.records import Ref
from tasks.connect import open_store
from tasks.ingest import KEPT
from tasks.quality.arms import few
from tasks.reuse import Done, reuse

ALGORITHM = 1
STEP = "narrow"


@task(name="narrow", task_run_name="narrow")
def narrow(store_url: str, scans: Ref, images: float, seed: int) -> Done:
    """Keep the first `images` of the training split (up to 1 a share), whole groups, and set the others aside; the
    scans for validation and test stay. The Ref is a table like that of `scans`."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        table = store.open_table(scans.key)
        train = table.filter(KEPT & (pc.field("split") == "train")).select(["id", "group", "label"]).to_pylist()
        taken = few([row["group"] for row in train], [row["label"] for row in train], images, seed)
        left_out = {row["id"] for row, is_taken in zip(train, taken, strict=True) if not is_taken}
        rows = [
            {**row, "verdict": "set aside", "reasons": [*row["reasons"], f"not among the first {images:g} to train on"]}
            if row["id"] in left_out
            else row
            for row in table.to_pylist()
        ]
        narrowed = pa.Table.from_pylist(rows, schema=table.schema)
        file = keys.step_file(STEP, key, "scans.parquet")
        digest = store.put_table(file, narrowed)
        counts = {"train": int(taken.sum()), "left out": len(left_out)}
        return Ref(key=file, sha256=digest, rows=narrowed.num_rows, counts=counts)

    return reuse(store, STEP, ALGORITHM, {"images": images, "seed": seed}, [scans.sha256], make)
