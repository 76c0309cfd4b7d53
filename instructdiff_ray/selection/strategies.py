"""The strategies: InstructDiff, and the baselines that it is judged against, over the same pool.

A strategy gives each sample a value, says which end of the values is kept, and names the scores
that it needs, by role; `score.py` computes those that are not in storage yet. Values are computed a
bucket of the pool at a time and depend on the sample alone; only ZIP (compression.py) looks at the
set.

| role          | scores of                                                            |
|---------------|----------------------------------------------------------------------|
| base          | the base model                                                       |
| calibrated    | the calibrated model                                                 |
| alone         | the base model, of the response without its prompt                   |
| small         | `baseline.small_model`, prompt and response                          |
| small_alone   | the same, of the response alone                                      |
| rating-M-K    | the rating by model M of `baseline.rating_models` under wording K    |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from instructdiff_ray.pool.sampling import draw

BASE, CALIBRATED, ALONE, SMALL, SMALL_ALONE = "base", "calibrated", "alone", "small", "small_alone"
RATING = "rating"
# SelectIT's α: how much disagreement between wordings costs.
DISAGREEMENT = 0.2
WORDINGS = 5


@dataclass(frozen=True)
class Bucket:
    """Some samples of the pool: rows of its index, and the scores of each role, aligned with it.

    seed: for what is drawn; weights: of the rating models, by their number of parameters.
    """

    index: pa.Table
    scores: Mapping[str, pa.Table]
    seed: int
    weights: Sequence[float] = (1.0,)

    def score(self, role: str, measure: str) -> np.ndarray:
        """[N], nats; NaN where there is none."""
        column = self.scores[role][measure]
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=float)

    def tokens(self, column: str) -> np.ndarray:
        """[N], a count of tokens from the index."""
        return np.asarray(self.index[column].to_numpy(), dtype=float)


@dataclass(frozen=True)
class Strategy:
    """value: a bucket → [N] fp64; None: of the whole set, compression.py.

    end: of the values that is kept: lowest, middle or highest; None: `select.entropy` says it.
    roles: of the scores that are needed; `rating` stands for those of all models and wordings.
    below: samples whose value is not below this are never selected.
    """

    value: Callable[[Bucket], np.ndarray] | None
    end: str | None
    roles: tuple[str, ...] = ()
    below: float | None = None

    @property
    def calibrates(self) -> bool:
        return CALIBRATED in self.roles


def delta_nll(bucket: Bucket) -> np.ndarray:
    """ΔNLL = NLL_cal − NLL_base (paper, Eq. 1)."""
    return bucket.score(CALIBRATED, "nll") - bucket.score(BASE, "nll")


def delta_ppl(bucket: Bucket) -> np.ndarray:
    """ΔPPL = exp(NLL_cal) − exp(NLL_base): the paper's ablation of the filter."""
    return np.exp(bucket.score(CALIBRATED, "nll")) - np.exp(bucket.score(BASE, "nll"))


def delta_entropy(bucket: Bucket) -> np.ndarray:
    """ΔH = H_base − H_cal (paper, Eq. 2)."""
    return bucket.score(BASE, "entropy") - bucket.score(CALIBRATED, "entropy")


def drawn(bucket: Bucket) -> np.ndarray:
    """Random: uniform without replacement. Each id's keyed hash, so that the draw depends on seed
    and samples alone; apart from the warm-up subset's."""
    key, ids = f"random {bucket.seed}", bucket.index["sample_id"].to_pylist()
    return np.array([draw(i, key) >> 16 for i in ids], dtype=float)  # 48 bits: exact in fp64


def perplexity(bucket: Bucket) -> np.ndarray:
    """PPL = exp(NLL_base(y | x)), over the response (Marion et al., 2023)."""
    return np.exp(bucket.score(BASE, "nll"))


def entropy(bucket: Bucket) -> np.ndarray:
    """H_base(x, y), over the whole vocabulary, mean over the response."""
    return bucket.score(BASE, "entropy")


def response_length(bucket: Bucket) -> np.ndarray:
    """|y|, tokens (Zhao et al., 2024: long is more for alignment)."""
    return bucket.tokens("response_tokens")


def instruction_length(bucket: Bucket) -> np.ndarray:
    """|x|, tokens of instruction and input, without the template."""
    return bucket.tokens("instruction_tokens")


def length_ratio(bucket: Bucket) -> np.ndarray:
    """|x| / |y|, tokens of instruction (and input) over tokens of the response."""
    return bucket.tokens("instruction_tokens") / bucket.tokens("response_tokens")


def ifd(bucket: Bucket) -> np.ndarray:
    """Instruction-following difficulty, NLL(y | x) / NLL(y), under the base model (Li et al., 2024,
    *From Quantity to Quality*; Cherry_LLM's code). Above 1 the instruction does not help.

    y alone stands behind `template.response_prompt`. An NLL(y) of 0 leaves nothing to ask for: ∞.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = bucket.score(BASE, "nll") / bucket.score(ALONE, "nll")
    return np.where(np.isnan(value), np.inf, value)


def superfiltering(bucket: Bucket) -> np.ndarray:
    """exp(NLL(y | x) − NLL(y)), a ratio of perplexities, under a small model (Li et al., 2024,
    *Superfiltering*). GPT-2 has no token before y alone, so y's first token is scored with x only,
    as in the authors' code."""
    return np.exp(bucket.score(SMALL, "nll") - bucket.score(SMALL_ALONE, "nll"))


def selectit_token(bucket: Bucket) -> np.ndarray:
    """SelectIT, token level (Liu et al., 2024): S = b · (1/(K−1)) Σ_j |r_b − r_j| under one wording
    of the rating line; r and b as in rating.py. The authors draw the wording; here it is the
    first."""
    return bucket.score(f"{RATING}-0-0", RATING)


def selectit_sentence(bucket: Bucket) -> np.ndarray:
    """SelectIT, sentence level: mean of the token level over the K wordings, divided by
    1 + α · their population standard deviation, α = 0.2."""
    return _sentence_level(bucket, 0)


def selectit(bucket: Bucket) -> np.ndarray:
    """SelectIT, model level: Σ_m w_m S_sentence,m over the rating models, w_m the model's share of
    all their parameters."""
    levels = [w * _sentence_level(bucket, m) for m, w in enumerate(bucket.weights)]
    return np.asarray(np.sum(levels, axis=0))


def _sentence_level(bucket: Bucket, model: int) -> np.ndarray:
    ratings = [bucket.score(f"{RATING}-{model}-{k}", RATING) for k in range(WORDINGS)]
    return np.asarray(np.mean(ratings, axis=0) / (1 + DISAGREEMENT * np.std(ratings, axis=0)))


INSTRUCTDIFF = "instructdiff"
STRATEGIES = {
    INSTRUCTDIFF: Strategy(delta_entropy, None, (BASE, CALIBRATED)),
    "random": Strategy(drawn, "lowest"),
    "ppl_min": Strategy(perplexity, "lowest", (BASE,)),
    "ppl_mid": Strategy(perplexity, "middle", (BASE,)),
    "ppl_max": Strategy(perplexity, "highest", (BASE,)),
    "entropy_min": Strategy(entropy, "lowest", (BASE,)),
    "entropy_mid": Strategy(entropy, "middle", (BASE,)),
    "entropy_max": Strategy(entropy, "highest", (BASE,)),
    "response_length": Strategy(response_length, "highest"),
    "instruction_length": Strategy(instruction_length, "highest"),
    "length_ratio_max": Strategy(length_ratio, "highest"),
    "length_ratio_min": Strategy(length_ratio, "lowest"),
    # The authors drop what is above 1 and keep 1.
    "ifd": Strategy(ifd, "highest", (BASE, ALONE), below=np.nextafter(1.0, 2.0)),
    "superfiltering": Strategy(superfiltering, "highest", (SMALL, SMALL_ALONE), below=1.0),
    "selectit_token": Strategy(selectit_token, "highest", (f"{RATING}-0-0",)),
    "selectit_sentence": Strategy(
        selectit_sentence, "highest", tuple(f"{RATING}-0-{k}" for k in range(WORDINGS))
    ),
    "selectit": Strategy(selectit, "highest", (RATING,)),
    "zip": Strategy(None, "lowest"),
    "zip_unique": Strategy(None, "lowest"),
}
