"""Does the selection teach more than as many samples drawn at random, or than all of them?

A share of the pool is held out. On the rest, for each seed, a model is fine-tuned on the selection,
on as many random samples (of each domain as many), and on everything; how likely each finds the
held-out responses is the result: the NLL over all their tokens, in nats. Lower is better. Besides,
named benchmark tasks are run on each model.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure

from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError
from instructdiff_ray.evaluation.lm_eval import benchmark
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pipeline import finetune_on, ingest_pool, last_round
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.sampling import lowest_draws
from instructdiff_ray.results.compare import ALL
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.selection.ranking import selected_ids
from instructdiff_ray.storage.filesystem import Folder

MOST_FIELDS = 12
UNTRAINED, SELECTED, RANDOM, FULL = "untrained", "selection", "random", "full pool"


@dataclass(frozen=True)
class Trained:
    """One model's result. samples, tokens: trained on, of their responses; nll: by domain and over
    all, nats a token; benchmarks: by task and metric."""

    arm: str
    seed: int
    samples: int
    tokens: int
    nll: dict[str, float]
    benchmarks: dict[str, float] = field(default_factory=dict)

    def results(self) -> dict[str, float]:
        """All that was found out, by name."""
        return {f"NLL {name}": value for name, value in self.nll.items()} | self.benchmarks


def evaluate(context: RunContext) -> list[Trained]:
    """All arms, all seeds: what the configured strategy selects, random samples, and all."""
    config = context.config
    held_out, rest = ingest_pool(context).divide(config.evaluate.holdout, config.seed)

    def judge(arm: str, seed: int, ids: list[str], model: Model) -> Trained:
        nll = held_out_nll(context, held_out, model)
        results = benchmark(config, model, context.storage, context.progress)
        return Trained(arm, seed, len(ids), response_tokens(rest, ids), nll, results)

    # First, for what can't be scored or run is then known before anything is trained.
    results = [judge(UNTRAINED, config.seed, [], context.target)]
    for seed in range(config.seed, config.seed + config.evaluate.seeds):
        seeded = context.with_seed(seed)
        chosen = selected_ids(last_round(seeded, rest).ranking)
        arms = {SELECTED: chosen, RANDOM: as_many(rest, chosen, seed), FULL: list(rest.ids())}
        for arm, ids in arms.items():
            context.progress.say(f"seed {seed}, {arm}: {len(ids):,} samples")
            results.append(judge(arm, seed, ids, finetune_on(seeded, rest, ids)))
    return results


def as_many(pool: Pool, chosen: Sequence[str], seed: int) -> list[str]:
    """Random samples, of each domain as many as are chosen of it; sorted."""
    wanted = set(chosen)
    drawn: list[str] = []
    for domain in pool.domains():
        ids = list(pool.ids_of(domain.__eq__))
        count = sum(i in wanted for i in ids)
        drawn += lowest_draws(ids, count, f"evaluate {seed}")
    return sorted(drawn)


def response_tokens(pool: Pool, ids: Sequence[str]) -> int:
    """Of these samples of the pool, together."""
    wanted, total = np.array(sorted(ids), dtype="S"), 0
    for index in pool.index(["sample_id", "response_tokens"]):
        total += int(index["response_tokens"].to_numpy()[among(id_array(index), wanted)].sum())
    return total


def held_out_nll(context: RunContext, held_out: Pool, model: Model) -> dict[str, float]:
    """NLL of all response tokens of each domain, and of all, under the model."""
    spec = ScoreSpec("held_out", model, EncoderSpec.of(context.config, context.target))
    stats = ScoringStats()  # apart from what selecting costs
    scores = score(context.config, held_out, [spec], context.storage, context.progress, stats)
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    tables = scores[spec.name].read(["nll", "response_tokens", "reason"])
    for index, rows in zip(held_out.index(["domain"]), tables, strict=True):
        if rows["nll"].null_count:  # or arms would be compared over different samples
            reasons = ", ".join(sorted(set(rows["reason"].drop_null().to_pylist())))
            raise UserError(
                f"{model.trained} can't score every held-out sample ({reasons}); take"
                " cluster.precision=fp32, or a calibrate.max_length that suits it"
            )
        nll, tokens = rows["nll"].to_numpy(), rows["response_tokens"].to_numpy()
        names = np.array(index["domain"].to_pylist())
        for name in np.unique(names):
            mask = names == name
            for key in (name, ALL):
                sums[str(key)] += [float((nll * tokens)[mask].sum()), float(tokens[mask].sum())]
    if len(sums) == 2:  # one domain is all
        del sums[ALL]
    return {name: float(total / count) for name, (total, count) in sorted(sums.items())}


def by_arm(results: Sequence[Trained]) -> dict[str, list[Trained]]:
    """Results of each arm, in the order of their coming."""
    arms: dict[str, list[Trained]] = defaultdict(list)
    for result in results:
        arms[result.arm].append(result)
    return dict(arms)


def as_rows(results: Sequence[Trained]) -> list[list[str]]:
    """A table with its head: mean ± standard deviation over the seeds."""
    names = list(results[0].results())
    rows = [["trained on", "samples", "response tokens", "seeds", *names]]
    for arm, seeds in by_arm(results).items():
        sizes = (fmean(seed.samples for seed in seeds), fmean(seed.tokens for seed in seeds))
        cells = [_spread([seed.results()[name] for seed in seeds]) for name in names]
        rows.append([arm, *(f"{size:,.0f}" for size in sizes), str(len(seeds)), *cells])
    return rows


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{deviation}"


def plot(results: Sequence[Trained]) -> bytes:
    """A PNG: each result a dot, the mean of each arm a line; a field for each domain and metric, of
    which the first are drawn."""
    names, arms = list(results[0].results())[:MOST_FIELDS], by_arm(results)
    figure = Figure(figsize=(0.6 + 2.6 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for place, trained in enumerate(arms.values()):
            values = [result.results()[name] for result in trained]
            axes.plot([place] * len(values), values, "o", color="#7b8794", markersize=5)
            axes.hlines(fmean(values), place - 0.3, place + 0.3, color="#d9730d")
        axes.set_xticks(range(len(arms)), list(arms), rotation=30, ha="right", fontsize=8)
        axes.set_title("\n".join(wrap(name, 30)), fontsize=10)
        if name.startswith("NLL "):
            axes.set_ylabel("nats per token", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def write(folder: Folder, results: Sequence[Trained], about: Mapping[str, object]) -> None:
    """Leave `evaluation.png`, and last `evaluation.json`."""
    folder.write_bytes("evaluation.png", plot(results))
    rows = [asdict(result) for result in results]
    text = json.dumps({**about, "results": rows}, indent=2, ensure_ascii=False)
    folder.write_bytes("evaluation.json", f"{text}\n".encode())
