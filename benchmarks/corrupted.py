"""How many corrupted pairs does each strategy select? `python -m benchmarks.corrupted MODEL POOL …`

Of each pool some samples are drawn, and a tenth of them is spoilt in one of three ways; then every
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
from instructdiff_ray.pipeline import Run
from instructdiff_ray.pool.pool import pool_rows
from instructdiff_ray.pool.sampling import floor_share, lowest_draws
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.sample import Part, sample_id
from instructdiff_ray.selection.ranking import Ranking, fate_counts, selected_ids
from instructdiff_ray.selection.strategies import INSTRUCTDIFF, STRATEGIES

ROWS, SHARE, SEED = 1600, 0.1, 0
# A small model needs larger steps than Table 9 gives to those of billions of parameters.
CALIBRATE = CalibrateConfig(learning_rate=5e-4, epochs=3, global_batch_size=32)
PLAIN = SelectConfig(ratio=0.1, reject_ratio=0.1)
FOLDER = Path("outputs/corrupted")
Sample = list[Part]


def shuffled(samples: Sequence[Sample], words: Sequence[str]) -> list[Sample]:
    """Each has the next one's response."""
    return [
        [*one[:-1], other[-1]]
        for one, other in zip(samples, [*samples[1:], samples[0]], strict=True)
    ]


def cut_off(samples: Sequence[Sample], words: Sequence[str]) -> list[Sample]:
    """The first half of the response's characters is left."""
    return [_with_response(one, one[-1].text[: (len(one[-1].text) + 1) // 2]) for one in samples]


def random_text(samples: Sequence[Sample], words: Sequence[str]) -> list[Sample]:
    """As many words, each drawn from all responses of the pool."""
    draw = random.Random(SEED)
    return [
        _with_response(one, " ".join(draw.choices(words, k=len(one[-1].text.split()))))
        for one in samples
    ]


def _with_response(sample: Sample, text: str) -> Sample:
    return [*sample[:-1], Part("response", text)]


DAMAGES: tuple[Callable[[Sequence[Sample], Sequence[str]], list[Sample]], ...] = (
    shuffled,
    cut_off,
    random_text,
)


def variants() -> Iterator[tuple[str, str, SelectConfig]]:
    """Name, strategy and selection of all that is compared.

    With one rating model `selectit` is `selectit_sentence`."""
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
    """So many of the pool's samples, in the order of their ids; fewer are among more."""
    pool = Run(config, Progress(sys.stderr)).ingest()
    ids = lowest_draws(pool.ids(), count, f"corrupted {SEED}")
    tables = pool_rows(pool, ids, ["sample_id", "parts"])
    rows = sorted((row for t in tables for row in t.to_pylist()), key=lambda row: row["sample_id"])
    return [[Part(**part) for part in row["parts"]] for row in rows]


def write(path: Path, samples: Sequence[Sample]) -> None:
    """The samples, none a conversation, as a source file."""
    assert all(len({part.kind for part in one}) == len(one) for one in samples)
    rows = (json.dumps({"input": "", **{p.kind: p.text for p in one}}) for one in samples)
    path.write_text("".join(f"{row}\n" for row in rows))


def measure(config: Config, damaged: set[str]) -> dict[str, dict[str, float]]:
    """For each variant: the share of damaged pairs in its selection, and beside InstructDiff's own
    selection, what both have."""
    found: dict[str, dict[str, float]] = {}
    plain: set[str] = set()
    for name, strategy, selection in variants():
        run = Run(replace(config, strategy=strategy, select=selection), Progress(sys.stderr))
        pool = run.ingest()
        ranking = _select(run)
        chosen = set(selected_ids(ranking))
        plain = plain or chosen
        found[name] = {
            "pool": len(pool),
            "pool_damaged": len(damaged.intersection(pool.ids())),
            "selected": len(chosen),
            "damaged": len(chosen & damaged),
            "damaged_share": len(chosen & damaged) / len(chosen),
            "overlap_with_instructdiff": len(chosen & plain) / len(chosen),
        }
        if name == "ifd":
            found[name] |= _mismatched(ranking, damaged)
        print(name, found[name], flush=True)
    return found


def _mismatched(ranking: Ranking, damaged: set[str]) -> dict[str, float]:
    """What exclude_mismatched may not select: of the damaged pairs, and of the others."""
    rejected = set(ranking.rejected["sample_id"].to_pylist())
    mismatched = np.asarray(ranking.table["value"].to_numpy()) >= 1
    own = np.array([i in damaged for i in ranking.pool.ids() if i not in rejected])
    return {
        "mismatched_of_damaged": float(mismatched[own].mean()),
        "mismatched_of_others": float(mismatched[~own].mean()),
    }


def _select(run: Run) -> Ranking:
    pool = run.ingest()
    if not run.strategy.calibrates:
        return run.select(pool, run.score(pool))
    ranking = run.select(pool, run.score(pool, run.calibrate(pool, run.sample_warmup(pool))))
    print(fate_counts(ranking), flush=True)
    return ranking


def start_ray() -> None:
    """Without lines of its own."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def settings(model: str, path: Path, folder: Path) -> Config:
    """Of every run over this pool; all its artifacts are in the folder."""
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
    """All damages of the named pools."""
    model, *pools = sys.argv[1:]
    start_ray()
    for path in map(Path, pools):
        folder = FOLDER / path.stem
        config = settings(model, path, folder)
        samples = draw_samples(config, ROWS)
        words = [word for one in samples for word in one[-1].text.split()]
        spoilt = samples[: floor_share(SHARE, len(samples))]
        results = {}
        for damage in DAMAGES:
            wrong = damage(spoilt, words)
            name = damage.__name__
            write(folder / f"{name}.jsonl", [*wrong, *samples[len(spoilt) :]])
            data = DataConfig(path=str(folder / f"{name}.jsonl"))
            results[name] = measure(replace(config, data=data), {sample_id(one) for one in wrong})
        save(f"corrupted-{path.stem}", {"rows": len(samples), "results": results})
        print(table(results), flush=True)


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Shares of damaged pairs, a line each strategy, a column each damage."""
    rows = [["strategy", *results]]
    for name in next(iter(results.values())):
        rows.append(
            [name, *(f"{100 * found[name]['damaged_share']:.1f}" for found in results.values())]
        )
    return aligned_table(rows, text_columns=1)


if __name__ == "__main__":
    main()
