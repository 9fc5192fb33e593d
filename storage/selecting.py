"""Choose rows of a version by what its thin tables say of them, a few thousand rows in memory at a time.

A condition is SQL as DuckDB reads it, and comes from people: it is parsed first, and only a boolean expression over
the table's columns is let through. It never sees a file, a setting or another table: DuckDB gets batches of Arrow,
with external access off and its configuration locked.
"""

import difflib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import CorruptFileError, SelectionError
from storage.parquet_limits import check_columns, check_limits
from storage.records import SPLITS, Record, Split

BATCH_ROWS = 2048
"""Rows of a thin table in memory at a time."""

_BEFORE, _AFTER = "SELECT (\n", "\n) AS keep FROM metadata"
_LONGEST = 20_000  # characters of a condition
_KINDS = {
    "BETWEEN",
    "CASE",
    "CAST",
    "COLLATE",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "OPERATOR",
    "TYPE",
}
_FUNCTIONS = {
    "+", "-", "*", "/", "//", "%", "^", "**", "||", "~~", "!~~", "~~*", "!~~*", "~~~", "abs", "ceil", "ceiling",
    "char_length", "concat", "contains", "ends_with", "exp", "floor", "greatest", "if", "ifnull", "isfinite",
    "isinf", "isnan", "least", "left", "len", "length", "like_escape", "list_contains", "list_extract", "list_has",
    "list_has_all", "list_has_any", "list_value", "ln", "log", "log10", "log2", "lower", "ltrim", "not_like_escape",
    "nullif", "position", "pow", "power", "prefix", "regexp_extract", "regexp_full_match", "regexp_matches",
    "right", "round", "row", "rtrim", "sign", "split_part", "sqrt", "starts_with", "strlen", "strpos", "substr",
    "substring", "suffix", "trim", "trunc", "upper",
}  # fmt: skip
"""What a condition may call: plain functions of one row, none of which makes much of little."""


class Selection(Record):
    """Which part of a version is wanted, and how it is laid out."""

    format: Literal["parquet", "coco", "webdataset"] = "parquet"
    split: Split | None = None
    where: str | None = None

    @property
    def whole(self) -> bool:
        """Whether every row is wanted."""
        return self.split is None and self.where is None

    def __str__(self) -> str:
        said = [f"--format {self.format}"]
        said += [f"--split {self.split}"] if self.split is not None else []
        said += [f"--where {self.where!r}"] if self.where is not None else []
        return " ".join(said)


class Condition:
    """A boolean SQL expression over the columns of a table.

    Args:
        text: for example "label = 'malignant' and classifier_confidence > 0.9". A row for which it is NULL is not
            chosen, as in SQL.
        schema: of the table.

    Raises:
        SelectionError: it is no such expression; the message points at what is wrong.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        import duckdb  # only where something is chosen by a condition

        self._text = text
        self._errors: type[Exception] = duckdb.Error
        self._duckdb: Any = duckdb.connect(
            ":memory:",
            config={
                "threads": "1",  # rows come back in order
                "memory_limit": "512MB",
                "max_temp_directory_size": "0KB",
                "python_enable_replacements": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "enable_external_access": "false",
                "lock_configuration": "true",
            },
        )
        self.columns = self._checked(schema)
        """The columns it mentions, in the table's order."""
        self._try(schema)

    def holds(self, rows: pa.RecordBatch) -> pa.BooleanArray:
        """For each row whether it is chosen; never null."""
        if not self.columns:  # DuckDB takes no table without columns
            table = pa.table({"_": pa.nulls(rows.num_rows, pa.bool_())})
        else:
            table = pa.Table.from_batches([rows.select(self.columns)])
        kept = self._run(table).column("keep").combine_chunks()
        return kept.fill_null(False)

    def _run(self, table: pa.Table) -> pa.Table:
        self._duckdb.register("metadata", table)
        try:
            return self._duckdb.sql(_BEFORE + self._text + _AFTER).to_arrow_table()
        except self._errors as error:
            raise SelectionError(f"--where cannot be evaluated: {_plain(error)}: {_shown(self._text)}") from error
        finally:
            self._duckdb.unregister("metadata")

    def _try(self, schema: pa.Schema) -> None:
        """Run it on no rows, which finds wrong types before anything travels."""
        empty = schema.empty_table().select(self.columns) if self.columns else pa.table({"_": pa.array([], pa.bool_())})
        found = self._run(empty).schema.field("keep").type
        if not pa.types.is_boolean(found):
            raise SelectionError(f"--where must be true or false for a row, but this is {found}: {_shown(self._text)}")

    def _checked(self, schema: pa.Schema) -> list[str]:
        """The columns of the expression, if it is nothing but one."""
        if len(self._text) > _LONGEST:
            raise SelectionError(f"--where has {len(self._text)} characters: at most {_LONGEST} are read")
        if not self._text.strip():
            raise SelectionError("--where is empty: expected a condition such as \"label = 'malignant'\"")
        try:
            parsed, plain = self._parsed(self._text), self._parsed("true")
        except RecursionError:
            raise SelectionError("--where is nested too deeply") from None
        expressions: list[Any] = []
        for tree in (parsed, plain):
            (statement, *more) = tree["statements"]
            expressions.append([] if more else statement["node"].get("select_list"))
            statement["node"]["select_list"] = None
        if _without_places(parsed) != _without_places(plain) or len(expressions[0] or []) != 1:
            raise SelectionError(f"--where must be one condition on the columns of a row: {_shown(self._text)}")
        if expressions[0][0].get("alias") != "keep":
            raise SelectionError(f"--where must be one condition on the columns of a row: {_shown(self._text)}")
        found: set[str] = set()
        names = {name.lower(): name for name in schema.names}
        for node in _nodes(expressions[0][0]):
            self._check(node, names)
            if node["class"] == "COLUMN_REF":
                found.add(names[node["column_names"][0].lower()])
        return [name for name in schema.names if name in found]

    def _check(self, node: dict[str, Any], names: dict[str, str]) -> None:
        if node["class"] not in _KINDS:
            what = {"SUBQUERY": "a query within it", "WINDOW": "a window", "STAR": "*", "LAMBDA": "a lambda"}
            shown = what.get(node["class"], node["class"].lower().replace("_", " "))
            raise SelectionError(f"--where may not hold {shown}{self._at(node)}: expected conditions on columns")
        if node["class"] == "FUNCTION":
            called = node["function_name"]
            if called.lower() not in _FUNCTIONS or node.get("schema") or node.get("catalog"):
                near = difflib.get_close_matches(called, _FUNCTIONS, 3, 0.6)
                advice = f"did you mean {', '.join(near)}?" if near else "docs/store.md lists what may be called"
                raise SelectionError(f"--where may not call {called}(){self._at(node)}: {advice}")
        if node["class"] == "COLUMN_REF":
            column = ".".join(node["column_names"])
            if column.lower() not in names:
                near = difflib.get_close_matches(column.lower(), names, 3, 0.5)
                known = ", ".join(names[name] for name in near or names)
                advice = f"did you mean {known}?" if near else f"it has {known}"
                if f'"{column}"' in self._text:
                    advice += f" (text stands in single quotes: '{column}')"
                raise SelectionError(f"--where: there is no column {column!r}{self._at(node)}: {advice}")

    def _parsed(self, text: str) -> dict[str, Any]:
        query = _BEFORE + text + _AFTER
        try:
            answer = self._duckdb.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()[0][0]
        except self._errors as error:
            raise SelectionError(f"--where cannot be read: {_plain(error)}: {_shown(text)}") from error
        tree: dict[str, Any] = json.loads(answer)
        if tree["error"]:
            # DuckDB counts bytes of UTF-8, people characters.
            before = query.encode()[: int(tree.get("position", 0))].decode(errors="ignore")
            place = min(len(before) - len(_BEFORE), len(text))
            where = f" at character {place + 1}, {_excerpt(text, place)}" if place >= 0 else f": {_shown(text)}"
            raise SelectionError(f"--where: {tree['error_message'].splitlines()[0]}{where}")
        return tree

    def _at(self, node: dict[str, Any]) -> str:
        place = node.get("query_location")
        if not isinstance(place, int) or not len(_BEFORE) <= place < len(_BEFORE) + len(self._text.encode()):
            return ""
        return f" at character {len(self._text.encode()[: place - len(_BEFORE)].decode(errors='ignore')) + 1}"


def select(
    metadata: Path, where: str | None = None, split: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a metadata table that are wanted, in its order, in batches that may be empty.

    Args:
        metadata: a Parquet file without pixels, such as a version's `metadata.parquet`, already verified.
        where: a condition (see `Condition`); every row where None.
        split: train, val or test; all where None.
        columns: what the batches hold, in this order; everything where None. Only what is needed is decoded.

    Raises:
        SelectionError: the condition is none, or a split or column is not there.
    """
    with opened(metadata) as table:
        choose = Chooser(table.schema_arrow, where, split, columns)
        for rows in table.iter_batches(BATCH_ROWS, columns=choose.read):
            yield choose.among(rows)[0]


def select_places(
    metadata: Path,
    index: Path,
    where: str | None = None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """As `select`, each batch beside that of `index.parquet`, which says where the same rows' pictures lie.

    Raises:
        CorruptFileError: the two tables do not list the same rows.
    """
    with opened(metadata) as table, opened(index) as places:
        choose = Chooser(table.schema_arrow, where, split, columns)
        if table.metadata.num_rows != places.metadata.num_rows:
            raise CorruptFileError(
                f"metadata.parquet has {table.metadata.num_rows} rows, index.parquet {places.metadata.num_rows}: "
                "the version is damaged; `sonoforge verify` says more"
            )
        located = _in_steps(places.iter_batches(BATCH_ROWS))
        read = list(dict.fromkeys(["id", *choose.read]))
        for rows in table.iter_batches(BATCH_ROWS, columns=read):
            place = located(rows.num_rows)
            if not rows.column("id").equals(place.column("id")):
                raise CorruptFileError("index.parquet lists other rows than metadata.parquet: the version is damaged")
            chosen, kept = choose.among(rows)
            yield chosen, place.filter(kept)


class Chooser:
    """Filters batches of one table by split and condition."""

    def __init__(
        self, schema: pa.Schema, where: str | None, split: str | None, columns: Sequence[str] | None = None
    ) -> None:
        if split is not None and split not in SPLITS:
            raise SelectionError(f"there is no split {split!r}: expected {', '.join(SPLITS)}")
        self._split = split
        self._condition = Condition(where, schema) if where is not None else None
        self._columns = list(columns) if columns is not None else list(schema.names)
        for name in self._columns:
            check_column(name, schema.names)
        if split is not None:
            check_column("split", schema.names)
        needed = {*self._columns, *(["split"] if split is not None else [])}
        needed |= set(self._condition.columns) if self._condition is not None else set()
        self.read = [name for name in schema.names if name in needed]
        """The columns that batches must have."""

    def among(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.BooleanArray]:
        """The rows that are wanted, and for each row whether it is."""
        kept: pa.BooleanArray = pa.repeat(pa.scalar(True), rows.num_rows)
        if self._split is not None:
            same = pc.call_function("equal", [rows.column("split"), pa.scalar(self._split)])
            kept = same.fill_null(False)
        if self._condition is not None:
            kept = pc.call_function("and", [kept, self._condition.holds(rows)])
        return rows.select(self._columns).filter(kept), kept


def check_column(name: str, known: Sequence[str]) -> str:
    """The name itself where there is such a column; else SelectionError with the nearest."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        advice = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise SelectionError(f"there is no column {name!r}: {advice}")
    return name


@contextmanager
def opened(path: Path) -> Generator[pq.ParquetFile]:
    """A Parquet file for reading; what is wrong with it, while the block runs, is a CorruptFileError."""
    try:
        check_limits(path)
        check_columns(path, pq.read_schema(path))
    except ValueError as error:
        raise CorruptFileError(f"{path.name} {error}") from error
    try:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except pa.ArrowException as error:
        raise CorruptFileError(f"{path.name} is no readable Parquet table: {_plain(error)}") from error


def _in_steps(batches: Iterator[pa.RecordBatch]) -> Callable[[int], pa.RecordBatch]:
    """Hands out the next `n` rows, however the batches are cut."""
    left: list[pa.RecordBatch] = []

    def take(count: int) -> pa.RecordBatch:
        while sum(batch.num_rows for batch in left) < count:
            left.append(next(batches))
        rows = pa.concat_batches(left)
        left[:] = [rows.slice(count)]
        return rows.slice(0, count)

    return take


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every part of a parsed expression, itself first."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _without_places(tree: Any) -> Any:
    """A parsed statement without where in the text its parts stood."""
    if isinstance(tree, dict):
        return {name: _without_places(part) for name, part in tree.items() if not name.startswith("query_location")}
    return [_without_places(part) for part in tree] if isinstance(tree, list) else tree


def _excerpt(text: str, place: int) -> str:
    """The surroundings of a character, with a mark before it."""
    start, stop = max(0, place - 30), place + 30
    return f"{'…' * (start > 0)}{text[start:place]}⟨here⟩{text[place:stop]}{'…' * (stop < len(text))}"


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 120 else f"{text[:120]!r}…"


def _plain(error: Exception) -> str:
    """The first line of a library's error, which goes on with queries and files."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
