"""The one schema that the JSON rows of a selection have together, if there is one.

Loaders of data sets guess the columns from the first megabytes of a file, and fail where later rows
have others; a data set's card can say them beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import json as pa_json

Feature = dict[str, Any]


class RowSchema:
    """Taken together from rows as they pass by."""

    def __init__(self) -> None:
        self._schema: pa.Schema | None = pa.schema([])

    def add(self, rows: Sequence[str]) -> None:
        """rows: the JSON text of an object each."""
        if self._schema is None or not rows:
            return
        data = "\n".join(rows).encode()
        try:
            # One block: a row must not reach over its end.
            options = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
            schema = pa_json.read_json(pa.BufferReader(data), options).schema
            self._schema = pa.unify_schemas([self._schema, schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of, say, numbers and texts
            self._schema = None

    def features(self) -> list[Feature] | None:
        """The columns as `dataset_info` in a data set's card has them; None where the rows have no
        schema in common."""
        if self._schema is None:
            return None
        return _features(self._schema)


def _features(fields: Iterable[pa.Field]) -> list[Feature] | None:
    features = []
    for field in fields:
        kind = _kind(field.type)
        if kind is None:
            return None
        features.append({"name": field.name, **kind})
    return features or None  # a struct without fields has no name in a card


def _kind(data_type: pa.DataType) -> Feature | None:
    if pa.types.is_list(data_type):
        item = _kind(data_type.value_type)
        # A list of a plain type, or of structs, is written without its item's own heading.
        return item and {"list": item if "list" in item else next(iter(item.values()))}
    if pa.types.is_struct(data_type):
        fields = _features(data_type)
        return None if fields is None else {"struct": fields}
    return {"dtype": "float64" if pa.types.is_float64(data_type) else str(data_type)}
