"""The training set: encoded where the pool is read, and mapped from disk by the workers.

Its text passes through neither the driver nor a worker, and no worker holds it in its own memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.template import Encoded, training_example
from instructdiff_ray.pool.dataset import KeepIds, read_pool, stream
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.sample import Part
from instructdiff_ray.storage.filesystem import Folder, join

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
    ]
)
IGNORED = -100  # label without a loss


def write_examples(
    pool: Pool, sample_ids: Iterable[str], encoding: EncoderSpec, folder: Folder
) -> list[str]:
    """Encode these samples of the pool with Ray Data into files of the folder; gives their names.

    Raises UserError where a sample can't be encoded.
    """
    ids = ray.put(np.array(sorted(sample_ids), dtype="S"))
    dataset = (
        read_pool(pool, ["sample_id", "parts"])
        .map_batches(KeepIds(ids), batch_size=None, batch_format="pyarrow")
        .map_batches(WriteExamples(encoding, folder), batch_size=None, batch_format="pyarrow")
    )
    # Only these count: a task that died may have left a file that another wrote again.
    receipts = stream(dataset, "training set")
    return [name for receipt in receipts for name in receipt["file"].to_pylist()]


class WriteExamples:
    """Writes a block of pool rows as training examples; gives the file's name, one row."""

    def __init__(self, encoding: EncoderSpec, folder: Folder) -> None:
        self.encoding = encoding
        self.folder = folder

    def __call__(self, rows: pa.Table) -> pa.Table:
        if not rows.num_rows:
            return pa.table({"file": pa.array([], pa.string())})
        table = pa.concat_tables(
            self._examples(batch) for batch in rows.to_batches(max_chunksize=1024)
        )
        name, sink = f"{uuid4().hex}.arrow", pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
        self.folder.write_bytes(name, sink.getvalue().to_pybytes())
        return pa.table({"file": [name]})

    def _examples(self, rows: pa.RecordBatch) -> pa.Table:
        encoder, max_length = self.encoding.encoder(), self.encoding.max_length
        eos, chat = encoder.tokenizer.eos_token_id, self.encoding.template.chat
        samples = [[Part(**part) for part in parts] for parts in rows["parts"].to_pylist()]
        examples = []
        for encoded in encoder.encode(samples):
            if not isinstance(encoded, Encoded):
                # The pool's own model encoded all at ingest; this is another's tokenizer.
                raise UserError(
                    f"{self.encoding.model.path} can't be trained on a selected sample"
                    f" ({encoded.reason}: {encoded.detail}); select again with a"
                    " calibrate.max_length that suits both models, or data.over_long=truncate"
                )
            examples.append(training_example(encoded, eos, chat, max_length))
        columns = [[example[name] for example in examples] for name in SCHEMA.names[1:]]
        return pa.table([rows["sample_id"], *columns], schema=SCHEMA)


class Examples:
    """The training set in the order of its ids, on this machine's disk: a map-style dataset.

    tokens: of all samples together; longest, longest_response: tokens of a sample, and tokens with
    a loss of a sample, at most.
    """

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        """folder: a local one, which holds the files of these names."""
        tables = [pa.ipc.open_file(pa.memory_map(join(folder, n))).read_all() for n in names]
        self.table = pa.concat_tables(tables)
        self.order = np.argsort(self.table["sample_id"].to_numpy().astype("S"))
        lengths = pc.list_value_length(self.table["input_ids"])
        self.tokens, self.longest = int(pc.sum(lengths).as_py()), int(pc.max(lengths).as_py())
        self.longest_response = max(map(_most_labels, self.table["labels"].chunks))
        self.fillers = 0

    def fill_up(self, multiple: int) -> None:
        """Add samples without a loss, up to whole steps; the sampler spreads them over the epoch.

        Else accelerate would fill up an epoch's last step with samples of its first, as many as the
        workers ask for: and the model would depend on their number.
        """
        self.fillers = -len(self.order) % multiple

    def __len__(self) -> int:
        return len(self.order) + self.fillers

    def __getitem__(self, position: int) -> dict[str, list[int]]:
        if position >= len(self.order):
            return {"input_ids": [0], "labels": [IGNORED]}
        row = int(self.order[position])
        return {name: self.table[name][row].as_py() for name in ("input_ids", "labels")}


def _most_labels(samples: pa.ListArray) -> int:
    """Labels with a loss that one of these samples has at most."""
    with_loss = pc.not_equal(samples.flatten(), IGNORED).to_numpy(zero_copy_only=False)
    of_sample = pc.list_parent_indices(samples).to_numpy()
    return int(np.bincount(of_sample, with_loss).max())
