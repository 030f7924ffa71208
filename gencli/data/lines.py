"""Records of JSON: .jsonl, and .json with an array. What they are examples of, the kinds say (`Kind.from_records`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gencli.dataset import Keys
from gencli.errors import DataError
from gencli.examples import Examples, Numbered, Request, Splits, all_kinds, keys_in, readable, shorten, whole
from gencli.files import read_bytes
from gencli.streams import parse_record
from gencli.tables import decode, unlisted

T = TypeVar("T")


def read_json(path: Path, request: Request) -> Splits:
    """Records, one a line or in one array: what `sample` writes, texts of language modellers, rows of a table."""
    return whole(lambda: _examples(path, request))


def read_fields(path: Path, names: Sequence[str], request: Request) -> tuple[int, list[list[str]], Keys | None]:
    """How many records lack one of these fields, the others' values of each field, as cells of a table, and their keys.

    Raises:
        DataError: one lacks it, and `request.skip_bad` is off; none has all.
    """
    name = str(path)
    lost, records = _records(read_bytes(path), name, request)

    def values(numbered: Numbered) -> list[str]:
        number, record = numbered
        if missing := [field for field in names if record.get(field) is None]:
            raise DataError(f"{name}: record {number} has no {missing[0]!r}; it has {shorten(list(record))}")
        return [str(record[field]) for field in names]

    kept, rows = readable(records, values, request)
    return (lost + len(records) - len(kept), [list(column) for column in zip(*rows, strict=True)],
            keys_in(lambda key: [records[i][1].get(key) for i in kept], names))


def _examples(path: Path, request: Request) -> Examples:
    name = str(path)
    lost, records = _records(read_bytes(path), name, request)
    kinds = [kind for kind in all_kinds() if request.general.kind in (None, kind.name)]
    found = {kind: examples for kind in kinds if (examples := kind.from_records(records, name, request)) is not None}
    asked = {option for option, value in request.options.items() if value not in (None, False)}
    able = [kind for kind in found if asked <= kind.Settings.model_fields.keys()]  # such as --text, which rows lack
    kind = request.choose(able or list(found), name)
    if kind is None:
        keys = shorten(list(dict.fromkeys(key for _, record in records for key in record)))
        raise DataError(f"{name} holds records of {keys or 'nothing'}; expected one of "
                        f"{', '.join(f'{kind.name!r}' for kind in kinds)}, or the columns of a table")
    examples = found[kind]
    examples.skipped += lost
    numbers = range(len(records)) if examples.numbers is None else examples.numbers
    if len(numbers) == len(examples):  # a document has none
        used = [part for name, value in request.settings(kind) if isinstance(value, str) and name != "drop"
                for part in (value, *unlisted(value))]
        examples.keys = keys_in(lambda key: [records[number][1].get(key) for number in numbers], used)
    return examples


def _records(data: bytes, name: str, request: Request) -> tuple[int, list[Numbered]]:
    """How many records cannot be read, and the others.

    Raises:
        DataError: one cannot be, and `request.skip_bad` is off; none can be.
    """
    text = decode(data, name)
    if text.lstrip().startswith("["):
        return _decoded(_array(text, name), _of_entry, f"{name}: entry", request)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return _decoded(lines, lambda line, where: parse_record(line.encode(), where), f"{name}: line", request)


def _array(text: str, name: str) -> list[tuple[int, Any]]:
    try:
        return [*enumerate(json.loads(text), start=1)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}") from error


def _decoded(items: Sequence[tuple[int, T]], read: Callable[[T, str], Mapping[str, Any]], where: str,
             request: Request) -> tuple[int, list[Numbered]]:
    if not items:
        raise DataError(f"{where.partition(': ')[0]} holds no records")
    kept, records = readable(items, lambda item: (item[0], read(item[1], f"{where} {item[0]}")), request)
    return len(items) - len(kept), records


def _of_entry(entry: Any, where: str) -> Mapping[str, Any]:
    """The record that an entry of an array is; one of text alone is a text."""
    if isinstance(entry, str):
        return {next(kind.name for kind in all_kinds() if kind.plain): entry}
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {type(entry).__name__}; expected a JSON object")
    return entry
