"""A store with a version and the scans it held out, and files as the page saves them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage import steps
from storage.images import encode_grey, pixels_sha256
from storage.records import SCAN_SCHEMA, Ref
from storage.store import Store
from storage.versions import publish
from tasks.ingest import STEP
from tasks.reader_study import Answer, Answers, Key, Shown
from tasks.reader_study.answers import checksum
from tests.fakes.samples import table
from tests.storage.published import write

PX = 32
LABELS = ("benign", "malignant", "normal")


def store_with_version(root: Path, rows: int = 60, scans: int = 60) -> Store:
    """demo@1 of `rows` kept rows, one group for three of them, and the scans of the step that it was made from."""
    store = Store(root / "store")
    made = table(rows, PX, only_kept=True)
    key = "0" * 32
    listed = [_scan(number) for number in range(scans)]
    file = f"builds/{STEP}/{key}/scans.parquet"
    digest = store.put_table(file, pa.Table.from_pylist(listed, schema=SCAN_SCHEMA))
    steps.finish(store, STEP, key, Ref(key=file, sha256=digest, rows=scans))
    folder = root / "version"
    folder.mkdir()
    about = write(folder, made, tars=False).model_copy(update={"inputs": [f"builds/{STEP}/{key}"]})
    publish(store, "demo", folder, about)
    return store


def _scan(number: int) -> dict[str, object]:
    """Two of a patient; every fourth patient trained, every fifth scan was set aside, some carry marks."""
    rng = np.random.default_rng([5, number])
    image = np.clip(rng.rayleigh(60, (PX, PX)), 0, 255).astype(np.uint8)
    return dict.fromkeys(SCAN_SCHEMA.names) | {
        "id": f"scan-{number:03d}",
        "image": {"bytes": encode_grey(image), "path": f"scan-{number:03d}.png"},
        "label": LABELS[number // 2 % 3],
        "file": f"clinic/{number}.png",
        "group": f"patient-{number // 2}",
        "split": "train" if number // 2 % 4 == 0 else ("val", "test")[number // 2 % 2],
        "sha256": pixels_sha256(image),
        "verdict": "set aside" if number % 5 == 4 else "kept",
        "reasons": ["marks: 2 caliper crosses"] if number % 11 == 3 else [],
    }


def made_key(side: int, again: int = 0, seed: int = 0) -> Key:
    """A key of `side` real and as many synthetic pictures; `again` of them, of both sides, are shown twice."""
    rng = np.random.default_rng(seed)
    ids = [f"{number:012x}" for number in rng.permutation(2 * side)]
    pictures = [
        Shown(
            id=id,
            truth="real" if number < side else "synthetic",
            name=f"n{number}",
            label="benign",
            group=f"g{number}",
        )
        for number, id in enumerate(ids)
    ]
    return Key(
        dataset="demo@1",
        digest="0" * 64,
        real="scans",
        seed=seed,
        px=PX,
        salt="00",
        pictures=sorted(pictures, key=lambda one: one.id),
        again=sorted(ids[side - again // 2 : side + again - again // 2]),
    )


def answered(key: Key, say: Callable[[Shown], int], reader: str = "", seed: int = 0) -> Answers:
    """What the page would save of a reader who answers as `say` does."""
    rng = np.random.default_rng(seed)
    known = {one.id: one for one in key.pictures}
    order = [str(id) for id in rng.permutation(sorted(known))] + key.again
    answers = [
        Answer(
            id=id,
            showing=1 + (id in order[:place]),
            place=place,
            answer=say(known[id]),
            ms=int(rng.integers(900, 4000)),
            changes=0,
        )
        for place, id in enumerate(order)
    ]
    content = Answers(
        format="sonoforge-reader-answers-1",
        study=key.study(),
        session=f"{reader}{seed:016x}",
        reader=reader,
        experience="",
        began="2026-01-05T09:00:00.000Z",
        saved="2026-01-05T09:20:00.000Z",
        finished=True,
        order=order,
        answers=answers,
        checksum="",
    )
    return sealed(content)


def sealed(file: Answers, **changes: object) -> Answers:
    """The answers, changed, with the checksum that then is theirs."""
    changed = Answers.model_validate(file.model_dump() | changes)
    return changed.model_copy(update={"checksum": checksum(changed)})


def written(folder: Path, key: Key, readers: Sequence[Answers]) -> list[Path]:
    """The key, and a file of each reader."""
    (folder / "study.key.json").write_text(key.model_dump_json())
    files = [folder / f"reader{number}.json" for number in range(len(readers))]
    for file, answers in zip(files, readers, strict=True):
        file.write_text(json.dumps(answers.model_dump(), ensure_ascii=False))
    return files
