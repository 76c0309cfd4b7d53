"""How much of what is spoilt does each strategy select, and what do the guards change?

`python -m benchmarks.corrupted MODEL POOL … [--shares 0 0.01 0.05 0.2] [--seeds 0 1 2]
[--strategies random ifd …] [--held-out]`

Some samples of each pool are drawn, and a share of them is spoilt, in equal parts in several ways.
Then every strategy selects a tenth, and InstructDiff under every guard. A strategy that is blind to
the damage selects a tenth of the spoilt samples. `--held-out` spoils in ways on which no guard was
tuned.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import string
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from benchmarks.common import result_path, save
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
from instructdiff_ray.selection.ranking import Ranking, selected_ids
from instructdiff_ray.selection.strategies import INSTRUCTDIFF, STRATEGIES

ROWS = 1000
# A small model needs larger steps than Table 9 gives to those of billions of parameters.
CALIBRATE = CalibrateConfig(learning_rate=5e-4, epochs=3, global_batch_size=32)
PLAIN = SelectConfig(ratio=0.1, reject_ratio=0.1, guard="none")
FOLDER = Path("outputs/corrupted")
Sample = list[Part]
# A response, how to draw, and the words of all responses → the spoilt response.
Damage = Callable[[str, random.Random, Sequence[str]], str]


def random_characters(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """As many characters as before."""
    letters = string.ascii_lowercase + string.digits + string.punctuation + " " * 10
    return "".join(draw.choices(letters, k=len(text)))


def random_words(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """As many words as before, each drawn from all responses of the pool."""
    return " ".join(draw.choices(words, k=len(text.split())))


def cut_off(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """The first half of the characters."""
    return text[: (len(text) + 1) // 2]


def word_order(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """The response's words in another order."""
    return " ".join(draw.sample(text.split(), len(text.split())))


def second_half_characters(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """A good beginning, and random characters behind it."""
    half = cut_off(text, draw, words)
    return half + random_characters(text[len(half) :], draw, words)


def repeated(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """The first fifth of the words, over and over, to the length of the response."""
    few = text.split()[: max(1, len(text.split()) // 5)]
    return " ".join(few * 5)


def escaped(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """As a faulty export leaves it: every character that is no letter as a number."""
    return "".join(c if c.isalpha() else f"&#{ord(c)};" for c in text)


# Of `shuffled` samples the response is another sample's.
SHUFFLED = "shuffled"
TUNED: dict[str, Damage | None] = {
    "characters": random_characters,
    "words": random_words,
    SHUFFLED: None,
    "cut off": cut_off,
}
HELD_OUT: dict[str, Damage | None] = {
    "word order": word_order,
    "half characters": second_half_characters,
    "repeated": repeated,
    "escaped": escaped,
}


def variants(strategies: Sequence[str]) -> Iterator[tuple[str, str, SelectConfig]]:
    """The name, strategy and selection settings of all that is compared; first Algorithm 1."""
    yield INSTRUCTDIFF, INSTRUCTDIFF, PLAIN
    for guard in (["typical"], ["complete"], ["mismatched"], ["typical", "complete"]):
        yield f"{INSTRUCTDIFF}, {' + '.join(guard)}", INSTRUCTDIFF, replace(PLAIN, guard=guard)
    for name, changed in (
        ("without the filter", replace(PLAIN, reject_ratio=0)),
        ("middle ΔH", replace(PLAIN, entropy="middle")),
        ("highest ΔH", replace(PLAIN, entropy="highest")),
    ):
        yield f"{INSTRUCTDIFF}, {name}", INSTRUCTDIFF, changed
    for strategy in strategies:
        yield strategy, strategy, PLAIN


def draw_samples(config: Config, count: int, seed: int) -> list[Sample]:
    """`count` of the pool's samples, in the order of their ids."""
    pool = ingest_pool(prepare(config, Progress(sys.stderr)))
    ids = lowest_draws(pool.ids(), count, f"corrupted {seed}")
    tables = pool_rows(pool, np.array(sorted(ids), dtype="S"), ["sample_id", "parts"])
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: row["sample_id"])
    return [[Part(**part) for part in row["parts"]] for row in rows]


def spoil(
    samples: Sequence[Sample], share: float, seed: int, damages: dict[str, Damage | None]
) -> tuple[list[Sample], dict[str, str]]:
    """The samples, a share of them spoilt in equal parts; and the kind of damage by sample id."""
    draw = random.Random(f"{seed} {share}")
    words = [word for sample in samples for word in sample[-1].text.split()]
    places = draw.sample(range(len(samples)), len(samples))
    chosen, intact = places[: floor_share(share, len(samples))], places[len(samples) // 2 :]
    spoilt, kinds = list(samples), {}
    for number, place in enumerate(chosen):
        name = [*damages][number % len(damages)]
        damage, text = damages[name], samples[place][-1].text
        other = samples[draw.choice(intact)][-1].text
        response = damage(text, draw, words) if damage else other
        spoilt[place] = [*samples[place][:-1], Part("response", response)]
        kinds[sample_id(spoilt[place])] = name
    return spoilt, kinds


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Write the samples, none of them a conversation, as a source file."""
    assert all(len({part.kind for part in sample}) == len(sample) for sample in samples)
    rows = (
        json.dumps({"input": "", **{part.kind: part.text for part in sample}}) for sample in samples
    )
    path.write_text("".join(f"{row}\n" for row in rows))


def measure(
    config: Config, kinds: dict[str, str], strategies: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each variant, how many of each kind are in the pool and in the selection, and the share
    of Algorithm 1's intact samples that it selects too."""
    figures: dict[str, dict[str, Any]] = {}
    kept: set[str] = set()
    for name, strategy, selection in variants(strategies):
        ranking = select_last(replace(config, strategy=strategy, select=selection))
        ids, chosen = [*ranking.pool.ids()], {*selected_ids(ranking)}
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for sample in ids:
            count = counts[kinds.get(sample, "intact")]
            count[0] += sample in chosen
            count[1] += 1
        intact = chosen - kinds.keys()
        kept = kept or intact  # of the first variant, Algorithm 1
        stays = len(kept & intact) / len(kept) if kept else 1.0
        figures[name] = {"selected_and_all": dict(counts), "intact_kept": stays}
    return figures


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
    """Measure every pool that the command line names, with every share and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pools", nargs="+", type=Path)
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.01, 0.05, 0.2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    # With one rating model `selectit` is the same as `selectit_sentence`.
    baselines = [name for name in STRATEGIES if name not in (INSTRUCTDIFF, "selectit")]
    parser.add_argument("--strategies", nargs="+", default=baselines, help="besides InstructDiff")
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    damages = HELD_OUT if arguments.held_out else TUNED
    kind = "held-out" if arguments.held_out else "tuned"
    start_ray()
    runs: dict[Path, list[dict[str, Any]]] = {}
    for seed, path in product(arguments.seeds, arguments.pools):
        folder = FOLDER / path.stem
        config = settings(arguments.model, path, folder)
        samples = draw_samples(config, ROWS, seed)
        for share in arguments.shares:
            spoilt, kinds = spoil(samples, share, seed, damages)
            file = folder / f"{kind}-{share:g}-{seed}.jsonl"
            write(file, spoilt)
            data = DataConfig(path=str(file))
            figures = measure(replace(config, data=data, seed=seed), kinds, arguments.strategies)
            run = {"share": share, "seed": seed, "figures": figures}
            print(path.stem, share, seed, *table([run]), sep="\n", flush=True)
            name = f"corrupted-{'held-out-' * arguments.held_out}{path.stem}"
            runs[path] = save_run(name, arguments.model, run)
    for path, share in product(arguments.pools, arguments.shares):
        print(path.stem, share, *table([r for r in runs[path] if r["share"] == share]), sep="\n")


def save_run(name: str, model: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a run to those of the same model and number of samples, in the place of one of the same
    share and seed, and return them all: a benchmark that was ended early has what was done, and a
    further seed costs itself only. After a change of the method, delete the file first."""
    path, result = result_path(name), {"model": Path(model).name, "rows": ROWS}
    before = json.loads(path.read_text()) if path.exists() else {}
    cell, same = (run["share"], run["seed"]), before.items() >= result.items()
    runs = [r for r in before["runs"] if (r["share"], r["seed"]) != cell] if same else []
    save(name, {**result, "runs": [*runs, run]})
    return [*runs, run]


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A line a variant that all runs have: per cent of each kind that is selected (over all, lowest
    and highest run), of the selection that is spoilt, and of Algorithm 1's intact samples that are
    kept."""
    kinds = sorted({*runs[0]["figures"][INSTRUCTDIFF]["selected_and_all"]} - {"intact"})
    rows = [["strategy", *kinds, "spoilt share", "intact kept"]]
    for name in runs[0]["figures"]:
        if not all(name in run["figures"] for run in runs):
            continue
        figures = [run["figures"][name] for run in runs]
        counts = [figure["selected_and_all"] for figure in figures]
        cells = [percent([count[kind] for count in counts]) for kind in kinds]
        shares = [
            [sum(n[0] for kind, n in count.items() if kind != "intact"), sum_selected(count)]
            for count in counts
        ]
        kept = np.mean([figure["intact_kept"] for figure in figures])
        rows.append([name, *cells, percent(shares), f"{100 * kept:.0f}"])
    return [aligned_table(rows, text_columns=1)]


def sum_selected(count: dict[str, list[int]]) -> int:
    """All selected samples of a run."""
    return sum(selected for selected, _ in count.values())


def percent(parts: Sequence[Sequence[int]]) -> str:
    """Per cent of [part, whole] pairs, over all; and the lowest and the highest of them where there
    are several."""
    pairs = np.array(parts, float)
    shares = 100 * pairs[:, 0] / np.maximum(1, pairs[:, 1])
    share = f"{100 * pairs[:, 0].sum() / max(1, pairs[:, 1].sum()):.0f}"
    return share if len(pairs) < 2 else f"{share} ({shares.min():.0f}–{shares.max():.0f})"


if __name__ == "__main__":
    main()
