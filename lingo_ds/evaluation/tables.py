"""What predictions look like in a file: one row per sequence, or one per variant."""

import numpy as np
import pyarrow as pa

from lingo_ds.data.records import Chunk
from lingo_ds.data.variants import Variant, VariantChunk


class SequenceTable:
    """Columns id, label (the most probable class) and one probability per class.

    Attributes:
        unit: what a row is.
        schema: the columns.
    """

    unit = "sequences"

    def __init__(self, classes: int, *, numbered: bool):
        """Takes the task's classes, and whether ids are integers."""
        id_type = pa.int64() if numbered else pa.string()
        probabilities = [(f"probability_{c}", pa.float32()) for c in range(classes)]
        self.schema = pa.schema([("id", id_type), ("label", pa.int64()), *probabilities])

    def rows(self, chunk: Chunk, probabilities: np.ndarray) -> pa.Table:
        """The rows of a chunk; `probabilities` is (n, classes) float32."""
        return _table([chunk.ids, probabilities.argmax(1), *probabilities.T], self.schema)


class VariantTable:
    """Columns of the variant, the labels of its two windows, and of each class ref, alt and alt - ref.

    Attributes:
        unit: what a row is.
        schema: the columns.
    """

    unit = "variants"

    def __init__(self, classes: int):
        """Takes the task's classes."""
        text, whole = pa.string(), pa.int64()
        columns = [("chrom", text), ("pos", whole), ("id", text), ("ref", text), ("alt", text)]
        columns += [("label_ref", whole), ("label_alt", whole)]
        names = [f"probability_{c}_{of}" for c in range(classes) for of in ("ref", "alt", "delta")]
        self.schema = pa.schema([*columns, *((name, pa.float32()) for name in names)])

    def rows(self, chunk: VariantChunk, probabilities: np.ndarray) -> pa.Table:
        """The rows of a chunk; `probabilities` is (windows, classes) float32."""
        at_ref, at_alt = np.array(chunk.places).T
        ref, alt = probabilities[at_ref], probabilities[at_alt]
        variants = [[getattr(one, name) for one in chunk.variants] for name in Variant._fields]
        values = np.stack([ref, alt, alt - ref], axis=2).reshape(len(ref), -1)
        return _table([*variants, ref.argmax(1), alt.argmax(1), *values.T], self.schema)


def _table(columns: list, schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
