"""The strategies: InstructDiff, and the baselines that it is judged against, over the same pool.

A strategy gives each sample a value, says which end of the values is kept, and names the scores
that it needs; scoring computes those that are not in storage yet. Values are computed a partition
of the pool at a time. Most depend on the sample alone; a strategy that looks at the set as a whole
(ZIP) first puts the set in order, and a sample's value is its place there.

| scores      | of                                                                             |
|-------------|--------------------------------------------------------------------------------|
| base        | the base model                                                                 |
| calibrated  | the calibrated model; where there are several, the mean of their scores        |
| alone       | the base model, of the response without its prompt                             |
| ending      | the calibrated model, of the end behind the response                           |
| small       | `baseline.small_model`, prompt and response                                    |
| small_alone | the same, of the response alone                                                |
| rating-M-K  | the rating by model M of `baseline.rating_models` under wording K              |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from instructdiff_ray.pool.sampling import draw
from instructdiff_ray.selection.select import EXCLUDED, NOT_TOP
from instructdiff_ray.selection.zip_greedy import zip_order, zip_unique_order

BASE, CALIBRATED, ALONE, ENDING = "base", "calibrated", "alone", "ending"
SMALL, SMALL_ALONE = "small", "small_alone"
# SelectIT's α: how much disagreement between wordings costs.
DISAGREEMENT = 0.2
WORDINGS = 5


def repeat_scores(repeat: int) -> str:
    """The name of the scores by the calibrated model of one repeat."""
    return f"{CALIBRATED}-{repeat}" if repeat else CALIBRATED


def is_repeat(name: str) -> bool:
    """Whether the scores of this name are a calibrated model's."""
    return name.split("-")[0] == CALIBRATED


def rating_scores(model: int, wording: int) -> str:
    """The name of the ratings by one model under one wording."""
    return f"rating-{model}-{wording}"


@dataclass(frozen=True)
class StrategyBatch:
    """Some samples of the pool: rows of its index, and their scores by name, aligned with it.

    seed: for what is drawn; weights: of the rating models, by their number of parameters.
    order: of a strategy that has one, the place of each sample in it by id.
    """

    index: pa.Table
    scores: Mapping[str, pa.Table]
    seed: int
    weights: Sequence[float] = (1.0,)
    order: Mapping[str, int] = field(default_factory=dict)

    def score(self, name: str, measure: str) -> np.ndarray:
        """[N], nats; NaN where there is none."""
        column = self.scores[name][measure]
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=float)

    def tokens(self, column: str) -> np.ndarray:
        """[N], a count of tokens from the index."""
        return np.asarray(self.index[column].to_numpy(), dtype=float)


@dataclass(frozen=True)
class Strategy:
    """How samples are ranked.

    value: a batch → [N] fp64. A strategy that reads the calibrated model's scores is ranked by ΔH
        within the band of ΔNLL (ranking.py), whose value this must be.

    end: of the values that is kept: lowest, middle or highest; None: `select.entropy` says it.
    scores: the names of the scores that are needed, ratings aside.
    wordings: of SelectIT's question, of whose ratings the value is made; 0: of none.
    rating_models: whether all of `baseline.rating_models` rate, and not the base model alone.
    order: texts of a domain → positions in the order in which they are taken, for a strategy that
        looks at the set as a whole; one that is taken twice counts twice in the budget.
    below: samples whose value is not below this are never selected.
    never_selected: the fate of these.
    """

    value: Callable[[StrategyBatch], np.ndarray]
    end: str | None
    scores: tuple[str, ...] = ()
    wordings: int = 0
    rating_models: bool = False
    order: Callable[[Sequence[bytes]], Iterator[int]] | None = None
    below: float | None = None
    never_selected: str = EXCLUDED

    @property
    def calibrates(self) -> bool:
        return CALIBRATED in self.scores


def delta_nll(batch: StrategyBatch) -> np.ndarray:
    """ΔNLL = NLL_cal − NLL_base (paper, Eq. 1)."""
    return batch.score(CALIBRATED, "nll") - batch.score(BASE, "nll")


def delta_ppl(batch: StrategyBatch) -> np.ndarray:
    """ΔPPL = exp(NLL_cal) − exp(NLL_base): the paper's ablation of the filter."""
    return np.exp(batch.score(CALIBRATED, "nll")) - np.exp(batch.score(BASE, "nll"))


def delta_entropy(batch: StrategyBatch) -> np.ndarray:
    """ΔH = H_base − H_cal (paper, Eq. 2)."""
    return batch.score(BASE, "entropy") - batch.score(CALIBRATED, "entropy")


def drawn(batch: StrategyBatch) -> np.ndarray:
    """Random: uniform without replacement. Each id's keyed hash, so that the draw depends on seed
    and samples alone; apart from the warm-up subset's."""
    key, ids = f"random {batch.seed}", batch.index["sample_id"].to_pylist()
    return np.array([draw(i, key) >> 16 for i in ids], dtype=float)  # 48 bits: exact in fp64


def perplexity(batch: StrategyBatch) -> np.ndarray:
    """PPL = exp(NLL_base(y | x)), over the response (Marion et al., 2023)."""
    return np.exp(batch.score(BASE, "nll"))


def entropy(batch: StrategyBatch) -> np.ndarray:
    """H_base(x, y), over the whole vocabulary, mean over the response."""
    return batch.score(BASE, "entropy")


def response_length(batch: StrategyBatch) -> np.ndarray:
    """|y|, tokens (Zhao et al., 2024: long is more for alignment)."""
    return batch.tokens("response_tokens")


def instruction_length(batch: StrategyBatch) -> np.ndarray:
    """|x|, tokens of instruction and input, without the template."""
    return batch.tokens("instruction_tokens")


def length_ratio(batch: StrategyBatch) -> np.ndarray:
    """|x| / |y|, tokens of instruction (and input) over tokens of the response."""
    return batch.tokens("instruction_tokens") / batch.tokens("response_tokens")


def ifd(batch: StrategyBatch) -> np.ndarray:
    """Instruction-following difficulty, NLL(y | x) / NLL(y), under the base model (Li et al., 2024,
    *From Quantity to Quality*; Cherry_LLM's code). Above 1 the instruction does not help.

    y alone stands behind `template.response_prompt`. An NLL(y) of 0 leaves nothing to ask for: ∞.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = batch.score(BASE, "nll") / batch.score(ALONE, "nll")
    return np.where(np.isnan(value), np.inf, value)


def superfiltering(batch: StrategyBatch) -> np.ndarray:
    """exp(NLL(y | x) − NLL(y)), a ratio of perplexities, under a small model (Li et al., 2024,
    *Superfiltering*). GPT-2 has no token before y alone, so y's first token is scored with x only,
    as in the authors' code."""
    return np.exp(batch.score(SMALL, "nll") - batch.score(SMALL_ALONE, "nll"))


def selectit_token(batch: StrategyBatch) -> np.ndarray:
    """SelectIT, token level (Liu et al., 2024): S = b · (1/(K−1)) Σ_j |r_b − r_j| under one wording
    of the rating line; r and b as in rating.py. The authors draw the wording; here it is the
    first."""
    return batch.score(rating_scores(0, 0), "rating")


def selectit_sentence(batch: StrategyBatch) -> np.ndarray:
    """SelectIT, sentence level: mean of the token level over the K wordings, divided by
    1 + α · their population standard deviation, α = 0.2."""
    return _sentence_level(batch, 0)


def selectit(batch: StrategyBatch) -> np.ndarray:
    """SelectIT, model level: Σ_m w_m S_sentence,m over the rating models, w_m the model's share of
    all their parameters."""
    levels = [w * _sentence_level(batch, m) for m, w in enumerate(batch.weights)]
    return np.asarray(np.sum(levels, axis=0))


def place_in_order(batch: StrategyBatch) -> np.ndarray:
    """Where the strategy's order has the sample; ∞ where it was not taken."""
    ids = batch.index["sample_id"].to_pylist()
    return np.array([batch.order.get(i, np.inf) for i in ids], dtype=float)


def _sentence_level(batch: StrategyBatch, model: int) -> np.ndarray:
    ratings = [batch.score(rating_scores(model, k), "rating") for k in range(WORDINGS)]
    return np.asarray(np.mean(ratings, axis=0) / (1 + DISAGREEMENT * np.std(ratings, axis=0)))


def _by_order(order: Callable[[Sequence[bytes]], Iterator[int]]) -> Strategy:
    return Strategy(place_in_order, "lowest", order=order, below=np.inf, never_selected=NOT_TOP)


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
    "selectit_token": Strategy(selectit_token, "highest", wordings=1),
    "selectit_sentence": Strategy(selectit_sentence, "highest", wordings=WORDINGS),
    "selectit": Strategy(selectit, "highest", wordings=WORDINGS, rating_models=True),
    "zip": _by_order(zip_order),
    "zip_unique": _by_order(zip_unique_order),
}
