"""The scoring actor: holds the models, takes a block of tokenised samples, gives their scores."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pyarrow as pa
import torch

from instructdiff_ray.batching import token_batches
from instructdiff_ray.errors import UserError
from instructdiff_ray.models import DTYPES, Model
from instructdiff_ray.scoring import SampleScorer


class Scorer:
    """A Ray Data actor. Its models share every prepared batch.

    models: role → model; precision: fp32 | bf16; tokens_per_batch: padded tokens of one forward
    pass; actors_per_node: how many may share this machine's cores, without a GPU; gpu: use one.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        precision: str,
        tokens_per_batch: int,
        actors_per_node: int,
        gpu: bool,
    ) -> None:
        # As configured: Ray hides no GPU from an actor that reserved none.
        if gpu:
            device = torch.device("cuda")
        else:
            device = torch.device("cpu")
            # Ray gives a worker one thread for each CPU that it reserves; a scorer may have more.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors_per_node))
        self.tokens_per_batch = tokens_per_batch
        self.scorers = {
            role: SampleScorer(model.load(DTYPES[precision], device))
            for role, model in models.items()
        }

    def __call__(self, block: pa.Table) -> pa.Table:
        """block: (sample_id, input_ids, response) rows.

        Gives each row once: sample_id, response_tokens, tokens, and for each role `<role>_nll` and
        `<role>_entropy`.
        Raises UserError naming samples whose score is not finite.
        """
        ids = block["input_ids"].to_pylist()
        response = block["response"].to_pylist()
        lengths = [len(tokens) for tokens in ids]
        columns: dict[str, list[float]] = {
            f"{role}_{score}": [0.0] * len(ids)
            for role in self.scorers
            for score in ("nll", "entropy")
        }
        for batch in token_batches(lengths, self.tokens_per_batch):
            batch_ids, batch_response = [ids[i] for i in batch], [response[i] for i in batch]
            for role, scorer in self.scorers.items():
                nll, entropy = scorer.score(batch_ids, batch_response)
                for position, row in enumerate(batch):
                    columns[f"{role}_nll"][row] = float(nll[position])
                    columns[f"{role}_entropy"][row] = float(entropy[position])
        scores = pa.table(
            {
                "sample_id": block["sample_id"],
                "response_tokens": pa.array(map(sum, response), pa.int32()),
                "tokens": pa.array(lengths, pa.int64()),
                **{name: pa.array(values, pa.float64()) for name, values in columns.items()},
            }
        )
        _check_finite(scores, list(columns))
        return scores


def _check_finite(scores: pa.Table, columns: list[str]) -> None:
    for name in columns:
        values = torch.from_numpy(scores[name].to_numpy())
        if not (finite := torch.isfinite(values)).all():
            bad = scores["sample_id"].filter(pa.array((~finite).numpy())).to_pylist()
            raise UserError(
                f"{name} is not finite for {len(bad)} samples of a block, first {bad[0]}; the model"
                " overflows, try cluster.precision=fp32 or look at these samples"
            )
