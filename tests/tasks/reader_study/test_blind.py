"""The page is blinded: whatever is not the picture is the same for real and synthetic ones."""

import base64
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from storage.images import decode_grey
from storage.store import Store
from tasks import blind as module
from tasks import ingest
from tasks.blind import BlindParams, Screening, blind
from tasks.reader_study import Key
from tasks.reader_study.blinding import encode, identity
from tasks.report.reader_study import render
from tasks.screening.screen import ScreenParams, screen
from tasks.sources import read
from tasks.sources.folder import Params as FolderParams
from tests.fakes.folder import folder
from tests.fakes.pictures import picture, save, with_calipers
from tests.fakes.samples import table
from tests.tasks.reader_study.studies import PX, store_with_version

SEED = 31415926535


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_version(tmp_path_factory.mktemp("blind"))


def made(store: Store, out: Path, *real: str | Screening, **params: Any) -> tuple[module.Blind, str, Key]:
    params = {"seed": SEED, "images": 6} | params
    found = blind("demo@1", store.url, list(real), out, BlindParams.model_validate(params))
    return found, out.read_text(), Key.model_validate_json(Path(found.key).read_text())


def held(html: str) -> dict[str, Any]:
    """What the page holds as data."""
    match = re.search(r'<script type="application/json" id="page">(.*?)</script>', html, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def chunks(png: bytes) -> list[tuple[bytes, int]]:
    """Types and sizes of a PNG's chunks."""
    found, at = [], 8
    while at < len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        found.append((png[at + 4 : at + 8], size))
        at += size + 12
    return found


def test_the_key_tells_what_every_picture_is(store: Store, tmp_path: Path) -> None:
    found, html, key = made(store, tmp_path / "study.html", repeats=4)
    rows = {row["id"]: row for row in table(60, PX, only_kept=True).to_pylist()}
    page = held(html)
    assert sorted(page["pictures"]) == [one.id for one in key.pictures]
    assert (found.real, found.synthetic, found.again, found.labels) == (6, 6, 4, dict.fromkeys(found.labels, 2))
    for one in key.pictures:
        shown = decode_grey(base64.b64decode(page["pictures"][one.id]))
        if one.truth == "synthetic":
            assert np.array_equal(shown, decode_grey(rows[one.name]["image"]["bytes"]))
            assert (one.group, one.label) == (rows[one.name]["group"], rows[one.name]["label"])
        else:
            number = int(one.name.removeprefix("scan-"))
            assert number // 2 % 4 != 0, "it was trained on"
            assert number % 5 != 4, "it was set aside"
            assert number % 11 != 3, "calipers would tell"
    assert len({one.group for one in key.pictures}) == 12


def test_the_page_holds_nothing_of_the_key(store: Store, tmp_path: Path) -> None:
    _, html, key = made(store, tmp_path / "study.html", repeats=4, per_group=2)
    page = held(html)
    assert page.keys() == {"study", "rounds", "pictures"}
    without_pictures = re.sub(r'"[A-Za-z0-9+/=]{200,}"', '""', html)
    names = [text for one in key.pictures for text in (one.name, one.group)]
    told = [key.dataset, key.digest, key.salt, str(SEED), "scan-", "demo", "clinic", "phantom", ".key.json", *names]
    assert [text for text in told if text in without_pictures] == []
    words = json.dumps(page | {"pictures": sorted(page["pictures"])})
    assert [text for text in ("real", "synthetic", "benign", "malignant", "normal") if text in words] == []
    for part in page["rounds"]:
        assert part == sorted(part) or set(key.again) & set(part), "an order that only ids decide"


def test_pictures_are_files_of_one_kind_and_size(store: Store, tmp_path: Path) -> None:
    _, html, _ = made(store, tmp_path / "study.html")
    files = [base64.b64decode(text) for text in held(html)["pictures"].values()]
    assert len({tuple(chunks(file)) for file in files}) == 1
    assert {kind for kind, _ in chunks(files[0])} == {b"IHDR", b"IDAT", b"IEND"}
    assert len({file[:33] for file in files}) == 1, "size, depth and colour"
    smooth, speckle = np.zeros((96, 96), np.uint8), np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8)
    assert chunks(encode(smooth)) == chunks(encode(speckle)), "however well they would compress"
    with pytest.raises(ValueError, match=r"pictures are \[2, 3\] bytes long; blinded ones must all be of one length"):
        render("s", [["a", "b"]], {"a": b"12", "b": b"123"}, ["real", "synthetic"])


def test_the_order_of_ids_knows_nothing_of_the_truth() -> None:
    # 400 studies of 10 + 10 pictures, the real ones brighter: places of real ones are as those of synthetic ones.
    rng = np.random.default_rng(1)
    p_values: list[float] = []
    for seed in range(400):
        images = [np.clip(rng.normal(120 if k < 10 else 60, 20, (8, 8)), 0, 255).astype(np.uint8) for k in range(20)]
        order = np.argsort(np.argsort([identity(image, seed) for image in images]))
        p_values.append(float(mannwhitneyu(order[:10], order[10:]).pvalue))
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08
    assert identity(images[0], 1) != identity(images[0], 2)


def test_a_seed_chooses_the_same_pictures_and_none_is_random(store: Store, tmp_path: Path) -> None:
    keys = [made(store, tmp_path / f"{k}.html", seed=seed)[2] for k, seed in enumerate((3, 3, 4, None, None))]
    ids = [[one.id for one in key.pictures] for key in keys]
    assert ids[0] == ids[1]
    assert len({tuple(one) for one in ids}) == 4
    assert keys[0].study() != keys[1].study(), "the salt keeps the study's name from giving the key away"


def test_pictures_of_other_sets_are_made_alike(store: Store, tmp_path: Path) -> None:
    real = tmp_path / "clinic"
    for number in range(6):
        save(real / "benign" / f"{number}.png", picture(number, (90 + 5 * number, 120))[0])
    for number in range(2):
        save(real / "benign" / f"small{number}.png", picture(50 + number, (20, 30))[0])
        save(real / "benign" / f"marked{number}.png", with_calipers(picture(60 + number, (120, 150))[0]))
    found, html, key = made(store, tmp_path / "study.html", str(real))
    assert (found.real, found.px, found.labels) == (6, PX, {"benign": 6})
    assert found.notes[:2] == [
        "2 real pictures are not shown: calipers or text are burned in",
        "2 real pictures are not shown: smaller than 32 px: enlarged they would look blurred",
    ]
    assert {one.name for one in key.pictures if one.truth == "real"} == {f"{real}/benign/{k}.png" for k in range(6)}
    files = [base64.b64decode(text) for text in held(html)["pictures"].values()]
    assert len({tuple(chunks(file)) for file in files}) == 1


def test_a_note_says_where_the_frame_alone_tells_the_sides_apart(store: Store, tmp_path: Path) -> None:
    real = tmp_path / "clinic"
    for number in range(6):
        save(real / "benign" / f"{number}.png", picture(number, (90, 120))[0])
    found, _, _ = made(store, tmp_path / "wide.html", str(real))
    assert [note for note in found.notes if "the black bars around the pictures alone tell 100% of pairs" in note]
    assert made(store, tmp_path / "square.html")[0].notes == []


def test_what_the_version_learned_from_is_not_shown(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.images import pixels_sha256
    from tasks.imaging import letterbox

    real = tmp_path / "clinic"
    images = [picture(number, (100, 120))[0] for number in range(5)]
    for number, image in enumerate(images):
        save(real / "malignant" / f"{number}.png", image)
    trained = {pixels_sha256(letterbox(images[2], None, PX).image)}
    monkeypatch.setattr(module, "_trained", lambda *_: trained)
    found, _, key = made(store, tmp_path / "study.html", str(real), images=4)
    assert found.notes[0] == "1 real pictures are not shown: the version learned from them"
    assert f"{real}/malignant/2.png" not in {one.name for one in key.pictures}


def test_digests_of_training_scans_are_those_of_the_version(store: Store) -> None:
    from storage.versions import open_manifest

    listed = module._trained(store, open_manifest(store, "demo"))
    trained = {row["background_id"] for row in table(60, PX).to_pylist() if row["split"] == "train"}
    assert len(listed) >= len(trained) > 0


def test_a_recipe_gives_the_scans_that_it_holds_out(store: Store, tmp_path: Path) -> None:
    source = FolderParams(root=folder(tmp_path / "clinic", n=6))
    toy = Screening("toy", source, ScreenParams(val=0.4, test=0.4), 0)
    found, _, key = made(store, tmp_path / "study.html", toy, images=3)
    assert found.from_real.endswith("pictures of recipe toy")
    split = {row.id: row.split for row in screen(list(read(source)), toy.params, 0, "folder")}
    shown = [split[one.name] for one in key.pictures if one.truth == "real"]
    assert len(shown) == 3
    assert "train" in split.values()
    assert "train" not in shown


def test_the_step_is_the_one_that_ingests() -> None:
    assert module.INGEST == ingest.STEP


def test_synthetic_pictures_do_not_pass_as_real(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="demo@1 holds synthetic pictures"):
        made(store, tmp_path / "study.html", "demo@1")
    assert list(tmp_path.iterdir()) == []


def test_too_few_pictures_are_refused_with_what_would_help(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found \d+ real and as many synthetic .*, 900 of each .* fewer --images"):
        made(store, tmp_path / "study.html", images=900)
    found, _, _ = made(store, tmp_path / "study.html", images=None)
    assert 6 < found.real < 50


def test_nothing_is_written_over_a_study_or_off_this_machine(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path / "study.html")
    with pytest.raises(FileExistsError, match=r"study\.html is there already, and readers may have answered it"):
        made(store, tmp_path / "study.html")
    (tmp_path / "study.html").unlink()
    with pytest.raises(FileExistsError, match=r"study\.key\.json is there already"):
        made(store, tmp_path / "study.html")
    with pytest.raises(ValueError, match="must stay on this machine"):
        made(store, Path("s3://bucket/study.html"))
    with pytest.raises(ValueError, match="there is no folder"):
        made(store, tmp_path / "nowhere" / "study.html")


def test_a_version_whose_scans_are_gone_asks_for_real_pictures(tmp_path: Path) -> None:
    store = store_with_version(tmp_path)
    store.delete(next(key for key in store.list("builds") if key.endswith("ref.json")))
    with pytest.raises(ValueError, match=r"scans that demo@1 was made from are not in the store .*--real FOLDER"):
        made(store, tmp_path / "study.html")
