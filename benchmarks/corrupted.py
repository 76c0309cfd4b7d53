"""How many corrupted pairs does each strategy select? `python -m benchmarks.corrupted MODEL POOL …`

Some samples of each pool are drawn, and a tenth of them is damaged in one of three ways. Then every
strategy selects a tenth. A strategy that is blind to the damage selects a tenth of the damaged.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import ray.data

from benchmarks.common import save
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import BaselineConfig, SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import prepare
from instructdiff_ray.pipeline import ingest_pool, last_round
from instructdiff_ray.pool.dataset import pool_rows
from instructdiff_ray.pool.sampling import floor_share, lowest_draws
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.sample import Part, sample_id
from instructdiff_ray.selection.counts import fate_counts
from instructdiff_ray.selection.ranking import Ranking, selected_ids
from instructdiff_ray.selection.strategies import INSTRUCTDIFF, STRATEGIES

ROWS, SHARE, SEED = 1600, 0.1, 0
# A small model needs larger steps than Table 9 gives to those of billions of parameters.
CALIBRATE = CalibrateConfig(learning_rate=5e-4, epochs=3, global_batch_size=32)
PLAIN = SelectConfig(ratio=0.1, reject_ratio=0.1)
FOLDER = Path("outputs/corrupted")
Sample = list[Part]


def shuffled(samples: Sequence[Sample], words: Sequence[str]) -> list[Sample]:
    """Each sample has the response of the next one."""
    following = [*samples[1:], samples[0]]
    return [
        [*sample[:-1], next_sample[-1]]
        for sample, next_sample in zip(samples, following, strict=True)
    ]


def cut_off(samples: Sequence[Sample], words: Sequence[str]) -> list[Sample]:
    """Only the first half of the response's characters is left."""
    responses = [sample[-1].text for sample in samples]
    return [
        _with_response(sample, response[: (len(response) + 1) // 2])
        for sample, response in zip(samples, responses, strict=True)
    ]


def random_text(samples: Sequence[Sample], words: Sequence[str]) -> list[Sample]:
    """The response has as many words as before, each drawn from all responses of the pool."""
    draw = random.Random(SEED)
    return [
        _with_response(sample, " ".join(draw.choices(words, k=len(sample[-1].text.split()))))
        for sample in samples
    ]


def _with_response(sample: Sample, text: str) -> Sample:
    return [*sample[:-1], Part("response", text)]


DAMAGES: tuple[Callable[[Sequence[Sample], Sequence[str]], list[Sample]], ...] = (
    shuffled,
    cut_off,
    random_text,
)


def variants() -> Iterator[tuple[str, str, SelectConfig]]:
    """The name, strategy and selection settings of all that is compared.

    With one rating model `selectit` is the same as `selectit_sentence`, so it is left out.
    """
    yield INSTRUCTDIFF, INSTRUCTDIFF, PLAIN
    for name, changed in (
        ("with exclude_mismatched", replace(PLAIN, exclude_mismatched=True)),
        ("without the filter", replace(PLAIN, reject_ratio=0)),
        ("middle ΔH", replace(PLAIN, entropy="middle")),
        ("highest ΔH", replace(PLAIN, entropy="highest")),
    ):
        yield f"{INSTRUCTDIFF}, {name}", INSTRUCTDIFF, changed
    for strategy in STRATEGIES:
        if strategy not in (INSTRUCTDIFF, "selectit"):
            yield strategy, strategy, PLAIN


def draw_samples(config: Config, count: int) -> list[Sample]:
    """`count` of the pool's samples, in the order of their ids; a larger draw holds a smaller."""
    pool = ingest_pool(prepare(config, Progress(sys.stderr)))
    ids = lowest_draws(pool.ids(), count, f"corrupted {SEED}")
    tables = pool_rows(pool, ids, ["sample_id", "parts"])
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: row["sample_id"])
    return [[Part(**part) for part in row["parts"]] for row in rows]


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Write the samples, none of them a conversation, as a source file."""
    assert all(len({part.kind for part in sample}) == len(sample) for sample in samples)
    rows = (
        json.dumps({"input": "", **{part.kind: part.text for part in sample}}) for sample in samples
    )
    path.write_text("".join(f"{row}\n" for row in rows))


def measure(config: Config, damaged: set[str]) -> dict[str, dict[str, float]]:
    """For each variant, the share of damaged pairs in its selection, and the share of its selection
    that InstructDiff selects too."""
    figures: dict[str, dict[str, float]] = {}
    instructdiff: set[str] = set()
    for name, strategy, selection in variants():
        variant = replace(config, strategy=strategy, select=selection)
        ranking = select_last(variant)
        if STRATEGIES[strategy].calibrates:
            print(fate_counts(ranking), flush=True)
        pool, chosen = ranking.pool, set(selected_ids(ranking))
        instructdiff = instructdiff or chosen  # the first of the variants
        figures[name] = {
            "pool": len(pool),
            "pool_damaged": len(damaged.intersection(pool.ids())),
            "selected": len(chosen),
            "damaged": len(chosen & damaged),
            "damaged_share": len(chosen & damaged) / len(chosen),
            "overlap_with_instructdiff": len(chosen & instructdiff) / len(chosen),
        }
        if name == "ifd":
            figures[name] |= _mismatched(ranking, damaged)
        print(name, figures[name], flush=True)
    return figures


def _mismatched(ranking: Ranking, damaged: set[str]) -> dict[str, float]:
    """The share that exclude_mismatched may not select, of the damaged pairs and of the others."""
    rejected = set(ranking.rejected["sample_id"].to_pylist())
    mismatched = np.asarray(ranking.table["value"].to_numpy()) >= 1
    scored = (i for i in ranking.pool.ids() if i not in rejected)
    is_damaged = np.array([i in damaged for i in scored])
    return {
        "mismatched_of_damaged": float(mismatched[is_damaged].mean()),
        "mismatched_of_others": float(mismatched[~is_damaged].mean()),
    }


def select_last(config: Config) -> Ranking:
    """The ranking of the last round under this configuration."""
    context = prepare(config, Progress(sys.stderr))
    return last_round(context, ingest_pool(context)).ranking


def start_ray() -> None:
    """Start Ray, without lines of its own on the terminal."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def settings(model: str, path: Path, folder: Path) -> Config:
    """The configuration of every run over this pool; all artifacts go to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Config(
        data=DataConfig(path=str(path)),
        model=ModelConfig(base=model),
        calibrate=CALIBRATE,
        select=PLAIN,
        baseline=BaselineConfig(small_model=model),
        storage=str(folder / "storage"),
    )


def main() -> None:
    """Measure every damage, in each of the pools that the command line names."""
    model, *pools = sys.argv[1:]
    start_ray()
    for path in map(Path, pools):
        folder = FOLDER / path.stem
        config = settings(model, path, folder)
        samples = draw_samples(config, ROWS)
        words = [word for sample in samples for word in sample[-1].text.split()]
        to_damage = samples[: floor_share(SHARE, len(samples))]
        results = {}
        for damage in DAMAGES:
            damaged = damage(to_damage, words)
            name = damage.__name__
            write(folder / f"{name}.jsonl", [*damaged, *samples[len(to_damage) :]])
            data = DataConfig(path=str(folder / f"{name}.jsonl"))
            damaged_ids = {sample_id(sample) for sample in damaged}
            results[name] = measure(replace(config, data=data), damaged_ids)
        save(f"corrupted-{path.stem}", {"rows": len(samples), "results": results})
        print(table(results), flush=True)


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The shares of damaged pairs, with a line for each strategy and a column for each damage."""
    rows = [["strategy", *results]]
    for name in next(iter(results.values())):
        shares = [by_variant[name]["damaged_share"] for by_variant in results.values()]
        rows.append([name, *(f"{100 * share:.1f}" for share in shares)])
    return aligned_table(rows, text_columns=1)


if __name__ == "__main__":
    main()
