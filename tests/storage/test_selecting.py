import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptFileError, SelectionError
from storage.formats import parquet
from storage.selecting import BATCH_ROWS, Condition, select, select_places
from tests.fakes.samples import table

ROWS = pa.table(
    {
        "id": [f"s-{number}" for number in range(6)],
        "split": ["train", "val", "test", "train", None, "val"],
        "label": ["benign", "malignant", None, "normal", "é'x", "malignant"],
        "dice": pa.array([0.9, float("nan"), None, 1.0, -1.0, 0.25], pa.float32()),
        "seed": pa.array([0, 1, 2, None, 2**40, -3], pa.int64()),
        "reasons": pa.array([["a"], [], None, ["b", "a"], [None], ["c"]], pa.list_(pa.string())),
    }
)


def chosen(where: str, rows: pa.Table = ROWS) -> list[int]:
    (batch,) = rows.to_batches()
    return [number for number, holds in enumerate(Condition(where, rows.schema).holds(batch).to_pylist()) if holds]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("label = 'malignant'", [1, 5]),
        ("label = 'malignant' and dice > 0.2", [1, 5]),  # in SQL, NaN is the largest number
        ("dice >= 0.9", [0, 1, 3]),  # 0.9 is rounded as the column is
        ("dice = 0.9", [0]),
        ("isnan(dice)", [1]),
        ("label <> 'malignant'", [0, 3, 4]),  # NULL is neither
        ("not (label = 'malignant')", [0, 3, 4]),
        ("label is null or dice is null", [2]),
        ("label is not distinct from null", [2]),
        ("split = 'train'", [0, 3]),
        ("split in ('val', 'test') and seed < 2", [1, 5]),
        ("'a' in reasons", [0, 3]),
        ("list_contains(reasons, 'a') and len(reasons) = 1", [0]),
        ("len(reasons) = 0", [1]),
        ("reasons[1] = 'b'", [3]),
        ("reasons is null", [2]),
        ("seed between -3 and 1", [0, 1, 5]),
        ("seed % 2 = 1 or abs(seed) = 3", [1, 5]),
        ("label like 'mal%' or label ~ '^n'", [1, 3, 5]),
        ("LABEL ILIKE 'BEN%'", [0]),
        ("\"label\" = 'benign'", [0]),
        ("label = 'é''x'", [4]),
        ("case when dice > 0.5 then seed = 0 else false end", [0]),
        ("try_cast(label as int) is null", [0, 1, 2, 3, 4, 5]),
        ("coalesce(dice, 1) = 1", [2, 3]),
        ("true", [0, 1, 2, 3, 4, 5]),
        ("null::boolean", []),
        ("label = 'benign' -- the good ones", [0]),
        ("length(label) > 6 and seed * 2 < 3 and -dice < 0", [5]),
    ],
)
def test_a_condition_chooses_what_sql_says(where: str, expected: list[int]) -> None:
    assert chosen(where) == expected


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("lable = 'benign'", "no column 'lable' at character 1: did you mean label?"),
        ('label = "malignant"', "text stands in single quotes: 'malignant'"),
        ("rows.label = 'a'", "no column 'rows.label'"),
        ("label == = 'a'", r"syntax error at or near \"=\" at character 10, label == ⟨here⟩= 'a'"),
        ("'é' = = label", "at character 7"),
        ("label = 'a' order by id", 'near "order" at character 13'),
        ("label = 'a", "unterminated"),
        ("label = 'a'; drop table metadata", 'near ";"'),
        ("label", "true or false for a row, but this is string"),
        ("null", "true or false"),
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("-- nothing", "true or false"),
        ("label > 3", "cannot be evaluated: Binder Error"),
        ("label::int = 3", "Could not convert string 'benign'"),
        ("label ~ '('", "missing \\)"),
        ("seed / 0 > upper(label)", "cannot be evaluated"),
        ("(" * 3000 + "true" + ")" * 3000, "depth"),
        ("not " * 900 + "true", "nested|depth|evaluated"),
        ("true" + " and true" * 5000, "at most 20000"),
        ("foor(dice) = 1", "may not call foor\\(\\) at character 1: did you mean floor"),
    ],
)
def test_what_cannot_be_understood_is_pointed_at(where: str, said: str) -> None:
    with pytest.raises(SelectionError, match=said) as raised:
        chosen(where)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


HOSTILE = [
    "exists(select 1)",
    "id in (select id from metadata)",
    "id = (select content from read_text('{file}'))",
    "id = any(select unnest(reasons))",
    "read_text('{file}') is not null",
    "getenv('HOME') = 'a'",
    "current_setting('memory_limit') = 'a'",
    "nextval('x') = 1",
    "count(*) > 1",
    "sum(dice) > 1",
    "row_number() over () = 1",
    "true) from read_text('{file}') where (true",
    "true) as keep from read_text('{file}'), metadata where (true",
    "true) as keep from '{file}' -- ",
    "true) as keep from metadata; copy (select 1) to '{file}.out'; select (true",
    "true) as keep from metadata union all select (true",
    "true), (true",
    "true) as a, (true",
    "dice > ?",
    "dice > $limit",
    "columns(*) is null",
    "* is null",
    "repeat('a', 1000000000) = id",
    "list_filter(reasons, lambda r: r = 'a') = reasons",
    "len(range(1000000000)) > 1",
    "main.upper(id) = 'a'",
    "rowid = 1",
    "true) as keep from metadata limit 1 -- ",
    "true) as keep from metadata tablesample 10% -- ",
    "true) as keep from metadata qualify (true",
    "true) as keep from metadata group by (true",
]


@pytest.mark.parametrize("where", HOSTILE)
def test_a_condition_reaches_nothing_but_the_row(where: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("id\ns-0\n")
    with pytest.raises(SelectionError) as raised:
        chosen(where.format(file=secret))
    assert "s-0" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def test_variables_of_the_caller_are_no_tables() -> None:
    other = pa.table({"dice": [1.0]})  # DuckDB would find it by its name
    with pytest.raises(SelectionError):
        chosen("true) as keep from other where (true")
    assert other.num_rows == 1


def test_a_condition_that_needs_too_much_memory_is_refused_not_obeyed() -> None:
    grown = "label"
    for _ in range(60):
        grown = f"concat({grown}, {grown[:200]})" if len(grown) > 300 else f"concat({grown}, {grown}, {grown})"
    with pytest.raises(SelectionError):
        chosen(f"{grown} = 'a'" + " " * 20_000)


COLUMNS: dict[str, list[Any]] = {
    "label": ["benign", "malignant", "normal"],
    "split": ["train", "val", "test"],
    "segmenter_dice": [0.25, 0.5, 0.75, 1.0],
    "lesion_contrast": [0.5, 1.0, 2.0],
    "seed": [3, 17, 40],
}
Expression = tuple[str, Callable[[pd.DataFrame], "pd.Series[Any]"]]


def comparison(column: str, value: Any, sign: str) -> Expression:
    text = f"'{value}'" if isinstance(value, str) else repr(value)

    def holds(frame: pd.DataFrame) -> "pd.Series[Any]":
        values = frame[column].convert_dtypes()
        found = {"=": values == value, "<>": values != value}.get(sign)
        return found if found is not None else {"<": values < value, ">=": values >= value}[sign]

    return f"{column} {sign} {text}", holds


def is_null(column: str) -> Expression:
    return f"{column} is null", lambda frame: frame[column].isna().astype("boolean")


def within(column: str, values: list[Any]) -> Expression:
    return (
        f"{column} in ({', '.join(map(repr, values))})",
        lambda frame: frame[column].isin(values).astype("boolean").mask(frame[column].isna()),
    )


ATOMS = st.one_of(
    *[
        st.builds(comparison, st.just(name), st.sampled_from(values), st.sampled_from(["=", "<>", "<", ">="]))
        for name, values in COLUMNS.items()
    ],
    *[
        st.builds(within, st.just(name), st.lists(st.sampled_from(values), min_size=1))
        for name, values in COLUMNS.items()
    ],
    st.sampled_from(["segmenter_dice", "lesion_contrast", "mask_kind"]).map(is_null),
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda e: (f"not ({e[0]})", lambda frame: ~e[1](frame).astype("boolean"))),
        st.tuples(inner, inner).map(
            lambda p: (
                f"({p[0][0]}) and ({p[1][0]})",
                lambda f: p[0][1](f).astype("boolean") & p[1][1](f).astype("boolean"),
            )
        ),
        st.tuples(inner, inner).map(
            lambda p: (
                f"({p[0][0]}) or ({p[1][0]})",
                lambda f: p[0][1](f).astype("boolean") | p[1][1](f).astype("boolean"),
            )
        ),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    parquet.write(table(60).to_batches(), path)
    return path


@settings(max_examples=120, deadline=None)
@given(EXPRESSIONS, st.sampled_from([None, "train", "val"]))
def test_rows_are_those_that_pandas_chooses(folder: Path, expression: Expression, split: str | None) -> None:
    where, holds = expression
    frame = pd.read_parquet(folder / "metadata.parquet")
    expected = frame[holds(frame).fillna(False).astype(bool)]
    expected = expected if split is None else expected[expected["split"] == split]
    found = [
        id for batch in select(folder / "metadata.parquet", where, split, ["id"]) for id in batch["id"].to_pylist()
    ]
    assert found == expected["id"].tolist()


def test_only_the_columns_asked_for_are_given(folder: Path) -> None:
    batches = list(select(folder / "metadata.parquet", "segmenter_dice > 0", "train", ["label", "id"]))
    assert all(batch.schema.names == ["label", "id"] for batch in batches)
    assert sum(batch.num_rows for batch in batches) > 0
    with pytest.raises(SelectionError, match="no column 'lable': did you mean label"):
        list(select(folder / "metadata.parquet", columns=["lable"]))
    with pytest.raises(SelectionError, match="no split 'training'"):
        list(select(folder / "metadata.parquet", split="training"))


def test_places_are_those_of_the_same_rows(folder: Path, tmp_path: Path) -> None:
    for rows, places in select_places(
        folder / "metadata.parquet", folder / "index.parquet", "label = 'benign'", "train"
    ):
        assert rows["id"].to_pylist() == places["id"].to_pylist()
        assert set(rows["label"].to_pylist()) == {"benign"}
    whole = pq.read_table(folder / "index.parquet")
    for name, wrong in {
        "fewer": whole.slice(1),
        "other order": whole.take(list(reversed(range(whole.num_rows)))),
    }.items():
        pq.write_table(wrong, tmp_path / name)
        with pytest.raises(CorruptFileError, match=r"metadata\.parquet"):
            list(select_places(folder / "metadata.parquet", tmp_path / name))


def test_tables_longer_than_a_batch_keep_their_order(tmp_path: Path) -> None:
    count = 3 * BATCH_ROWS + 17
    rows = pa.table({"id": [f"{n:08d}" for n in range(count)], "split": ["train"] * count, "n": range(count)})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=5000)
    pq.write_table(rows.select(["id"]), tmp_path / "places.parquet", row_group_size=1999)
    found = list(select_places(tmp_path / "rows.parquet", tmp_path / "places.parquet", "n % 1000 = 7"))
    expected = [f"{n:08d}" for n in range(count) if n % 1000 == 7]
    assert [id for rows, _ in found for id in rows["id"].to_pylist()] == expected
    assert [id for _, places in found for id in places["id"].to_pylist()] == expected


def test_a_table_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(CorruptFileError, match=r"metadata\.parquet is no readable Parquet"):
        list(select(tmp_path / "metadata.parquet"))


def test_duckdb_is_imported_only_for_a_condition() -> None:
    code = "import sys, storage.selecting, storage.pulling, storage.reading; assert 'duckdb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
