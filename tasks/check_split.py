"""Check split: does anything of a fold's test groups lie among what its networks learn from?"""

import hashlib
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task

from storage import keys
from storage.images import encode_grey
from storage.records import IMAGE, LINEAGE_FIELDS, Ref
from storage.store import Store
from tasks import leakage, sources
from tasks.connect import open_store
from tasks.ingest import KEPT
from tasks.reuse import Done, reuse
from tasks.sources import SourceParams
from tasks.study import Fold, kept_ids

ALGORITHM = 2
STEP = "study-leakage"
LOOKED_AT = "looked at"
COLUMNS = ("id", "image", "label", "group", "split", "dataset")


@task(name="check split", task_run_name="check split")
def check_split(store_url: str, fold: Fold, source: SourceParams) -> Done:
    """Look for groups, copies, neighbouring frames and ancestors that lie in more than one split of the scans that
    were kept and of the synthetic images that curation kept, which are training images. The Ref is what
    `leakage.check` found, as JSON, with counts: the pictures looked at, and the leaks by kind.

    Scans are looked at as their source has them: fitted into a small square they have little speckle left, and
    strangers of one scanner, with its interface around them, are then taken for frames of one sweep.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"fold-{key[:8]}.parquet"
            pq.write_table(_everything(store, fold, source), file)
            found = leakage.check([str(file)])
        found = found.model_copy(update={"sets": [f"{sum(found.splits.values())} kept scans and synthetic images"]})
        file = keys.step_file(STEP, key, "leakage.json")
        data = keys.canonical_json(found)
        store.put(file, data)
        counts = {LOOKED_AT: found.looked_at, **found.counts}
        return Ref(key=file, sha256=hashlib.sha256(data).hexdigest(), rows=len(found.spans), counts=counts)

    return reuse(store, STEP, ALGORITHM, {}, fold.digests, make)


def _everything(store: Store, fold: Fold, source: SourceParams) -> pa.Table:
    """The scans and synthetic images, with what they descend from."""
    scans = store.open_table(fold.scans.key).filter(KEPT).select([*COLUMNS, "file"])
    whole = {scan.file: encode_grey(scan.image) for scan in sources.read(source) if scan.image is not None}
    named = [{"bytes": whole[file], "path": file} for file in scans["file"].to_pylist()]
    scans = scans.set_column(COLUMNS.index("image"), "image", pa.array(named, IMAGE)).drop_columns(["file"])
    good = pc.field("id").isin(pa.array(sorted(kept_ids(store, fold)), pa.string()))
    lineage = [name for name, kind in LINEAGE_FIELDS if pa.types.is_string(kind)]
    made = [store.open_table(shard.key).filter(good).select([*COLUMNS, *lineage]) for shard in fold.shards]
    return pa.concat_tables([scans, *made], promote_options="default")
