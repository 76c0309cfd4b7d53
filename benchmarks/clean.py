"""What does `clean` find in pools, and what does it cost?

`python -m benchmarks.clean pools MODEL POOL …`: real pools, each ingested without and with each of
the options. A pool's benchmark is a hundred of its own questions, in other case and wrapped at
eight words, so it is known what must be found; and then the other pools, of which nothing should
be. A pool that is not there is skipped.

`python -m benchmarks.clean rows [1000000]`: near-duplicates of a synthetic pool in which they are
known. A part of it are copies of one text, and another of one template, each unlike the others.

`python -m benchmarks.clean libraries`: MinHash signatures by rensa, and by datasketch where it is
installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from benchmarks.common import OwnMemory, save
from benchmarks.corrupted import start_ray
from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.context import prepare
from instructdiff_ray.pipeline import ingest_pool
from instructdiff_ray.pool.chunks import ROWS_PER_CHUNK
from instructdiff_ray.pool.dedup import deduplicate
from instructdiff_ray.pool.pool import DUPLICATES_FILE, REJECTS_FILE, ROWS, Pool
from instructdiff_ray.pool.readers import FORMAT_OF, read_rows
from instructdiff_ray.pool.schemas import parse_row
from instructdiff_ray.pool.similarity import SEED, SIGNATURE, sets_of, shingles
from instructdiff_ray.pool.source import FileRange, SourceFile, extension
from instructdiff_ray.pool.tasks import results, task
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Reject
from instructdiff_ray.storage.filesystem import Folder

SIMILARITY = 0.8
QUESTIONS = 100
OWN = "own questions"
WORDS_PER_LINE = 8
# Of a synthetic pool: near-duplicates of any text, copies of one, and texts of one template.
SHARES = {"edited": 0.05, "copy": 0.05, "template": 0.05}
VOCABULARY = 20_000
CHECKED = 10_000


def questions(path: Path) -> dict[int, str]:
    """What each of the pool's samples asks, by its line: of instruction and input the one that
    fewer samples have, or the longer."""
    file = SourceFile(str(path), FORMAT_OF[extension(str(path))], path.stat().st_size, 0)
    asked = {}
    counted: Counter[str] = Counter()
    for row in read_rows(FileRange(file)):
        try:
            _, parts = parse_row(row.text)
        except Reject:
            continue
        asked[row.line] = [p.text for p in parts if p.kind in ("instruction", "input")]
        counted.update(asked[row.line])
    return {
        line: min(texts, key=lambda text: (counted[text], -len(text)))
        for line, texts in asked.items()
    }


def disguised(text: str) -> str:
    """The same words, for whoever does not look at case and lines."""
    words = text.upper().split()
    lines = range(0, len(words), WORDS_PER_LINE)
    return "\n".join("* " + " ".join(words[n : n + WORDS_PER_LINE]) for n in lines)


def settings(pool: Path, pools: Sequence[Path], control: Path) -> Iterator[tuple[str, CleanConfig]]:
    """What is measured of a pool, by name; first nothing at all, twice, for the first warms up.
    control: a benchmark of its own questions."""
    others = [str(other) for other in pools if other != pool]
    off = CleanConfig()
    yield "warm-up", off
    yield "nothing", off
    yield "languages", replace(off, languages=["en"])
    yield OWN, replace(off, benchmarks=[str(control)])
    if others:
        yield "other pools, 13 words", replace(off, benchmarks=others)
        yield "other pools, 8 words", replace(off, benchmarks=others, ngram=8)
    for similarity in (0.9, SIMILARITY, 0.7):
        yield f"near-duplicates {similarity}", replace(off, near_duplicates=similarity)


def measure_pool(model: str, pool: Path, pools: Sequence[Path], folder: Path) -> dict[str, Any]:
    """By setting: how many rows go beside those that go without it, some of them, and seconds."""
    figures: dict[str, Any] = {}
    asked = questions(pool)
    drawn = random.Random(0).sample(sorted(asked), QUESTIONS)
    control = folder / f"{pool.stem}-questions.jsonl"
    rows = (json.dumps({"question": disguised(asked[line])}) for line in drawn)
    control.write_text("".join(f"{row}\n" for row in rows))
    for number, (name, clean) in enumerate(settings(pool, pools, control)):
        config = Config(
            data=DataConfig(path=str(pool)),
            clean=clean,
            model=ModelConfig(base=model),
            storage=str(folder / f"{pool.stem}-{number}"),
        )
        began = time.perf_counter()
        context = prepare(config, Progress(sys.stderr))
        ingested = ingest_pool(context)
        seconds = round(time.perf_counter() - began, 1)
        reasons = ("contaminated", "language", "near_duplicate")
        counts = {r: n for r, n in ingested.counts["rejected"].items() if r in reasons}
        rejects = ingested.folder.read_table(REJECTS_FILE).to_pylist()
        details = Counter(row["detail"] for row in rejects if row["reason"] in reasons)
        shown = [f"{_without_folder(detail)} ({n})" for detail, n in details.most_common(3)]
        figures[name] = {"rows": ingested.counts["read"], **counts, "seconds": seconds}
        figures[name] |= {"examples": shown} if shown else {}
        if name == OWN:
            found = {row["line"] for row in rejects if row["reason"] == "contaminated"}
            figures[name]["own_found"] = len(found & {*drawn})
        print(f"{pool.stem:<24}{name:<24}{figures[name]}", flush=True)
    del figures["warm-up"]
    return figures


def _without_folder(detail: str) -> str:
    return " ".join(word.rsplit("/", 1)[-1] for word in detail.split(" "))


def synthetic(first: int, count: int) -> list[tuple[str, str]]:
    """Texts of a synthetic pool, and the kind of each; the same for the same rows.

    An edited one is the text before it with one to four words replaced.
    """
    draw, rng = random.Random(first), np.random.default_rng(first)
    ranks = rng.zipf(1.2, 120 * count) % VOCABULARY
    kinds = draw.choices(["own", *SHARES], [1 - sum(SHARES.values()), *SHARES.values()], k=count)
    texts: list[tuple[str, str]] = []
    own: list[str] = []
    for number, kind in enumerate(kinds):
        ids = ranks[120 * number : 120 * number + draw.randint(30, 120)]
        words = [f"w{n}" for n in ids.tolist()]
        if kind == "edited" and own:
            words = own.copy()
            for _ in range(draw.randint(1, 4)):
                words[draw.randrange(len(words))] = f"e{draw.randrange(10**9)}"
        elif kind == "copy":
            words = [f"c{n}" for n in range(80)]
            words[draw.randrange(80)] = f"e{draw.randrange(10**9)}"
        elif kind == "template":
            words = [
                *(f"t{n}" for n in range(60)),
                *(f"e{draw.randrange(10**9)}" for _ in range(20)),
            ]
        else:
            kind, own = "own", words
        texts.append((" ".join(words), kind))
    return texts


def write_part(first: int, rows: int, folder: Folder) -> None:
    """A part of the synthetic pool, as an ingest writes it."""
    count = min(ROWS_PER_CHUNK, rows - first)
    samples = [
        {
            "sample_id": hashlib.sha256(text.encode()).hexdigest()[:32],
            "domain": kind,
            "parts": [{"kind": "instruction", "text": text}],
            "tokens": 9,
            "response_tokens": 5,
            "instruction_tokens": 4,
            "truncated": False,
            "source": "",
            "file": "synthetic",
            "line": first + number + 1,
        }
        for number, (text, kind) in enumerate(synthetic(first, count))
    ]
    name = f"part-{first // ROWS_PER_CHUNK:07}-0000000-last.parquet"
    folder.write_table(name, pa.Table.from_pylist(samples, ROWS))


def measure_rows(rows: int) -> dict[str, Any]:
    """Near-duplicates of so many synthetic rows: what is found of what is there, and the cost."""
    figures: dict[str, Any] = {"rows": rows, "similarity": SIMILARITY}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Folder(path)
        write = task(write_part)
        results([write(first, rows, folder) for first in range(0, rows, ROWS_PER_CHUNK)])
        parts = sorted(name for name in folder.sizes() if name.startswith("part-"))
        for name, similarity in (("exact", None), ("near", SIMILARITY)):
            began = time.perf_counter()
            with OwnMemory() as memory:
                before = memory.now()
                info = deduplicate(parts, False, folder, similarity)
            figures[name] = {
                "seconds": round(time.perf_counter() - began, 1),
                "driver_mib": round(memory.peak - before),
                "rejected": info["counts"]["rejected"],
            }
            print(name, figures[name], flush=True)
        pool = Pool(folder, "", info["digest"], parts, info["partitions"], False, info["counts"])
        figures |= judge(pool, rows)
    return figures


def judge(pool: Pool, rows: int) -> dict[str, Any]:
    """Recall by kind: of the edited rows those that are similar enough to the text before them.
    Precision: the share of those that went, or of some of them, that are so to what stays."""
    table = pool.folder.read_table(DUPLICATES_FILE)
    near = {
        (row["part"], row["row"]): row["sample_id"]
        for row in table.to_pylist()
        if row["repeat"] == 0
    }
    there, found, kept = Counter[str](), Counter[str](), Counter[str]()
    text_of: dict[str, str] = {}
    pairs = []
    chosen = {*random.Random(0).sample(sorted(near), min(CHECKED, len(near)))}
    wanted = {near[place] for place in chosen}
    for part in range(len(pool.parts)):
        first = part * ROWS_PER_CHUNK
        before = ""
        for row, (text, kind) in enumerate(synthetic(first, min(ROWS_PER_CHUNK, rows - first))):
            sample = hashlib.sha256(text.encode()).hexdigest()[:32]
            if sample in wanted:
                text_of[sample] = text
            went = (part, row) in near
            if kind == "own":
                before = text
            if kind != "edited" or jaccard(text, before) >= SIMILARITY:
                there[kind] += 1
                found[kind] += went
            kept[kind] += not went
            if (part, row) in chosen:
                pairs.append((text, near[part, row]))
    right = sum(jaccard(text, text_of[other]) >= SIMILARITY for text, other in pairs)
    return {
        "there": dict(there),
        "found": dict(found),
        "recall_of_edited": round(found["edited"] / max(1, there["edited"]), 4),
        "precision": right / max(1, len(pairs)),
        "pairs_checked": len(pairs),
        "copies_left": kept["copy"],
    }


def jaccard(first: str, second: str) -> float:
    """Similarity of two texts."""
    sets = [{*each.tolist()} for each in sets_of(shingles([first, second]))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def measure_libraries(count: int = 20_000) -> dict[str, Any]:
    """Microseconds of a signature, in one process, of texts of 30 to 220 shingles."""
    from rensa import RMinHash

    rng = np.random.default_rng(0)
    starts = np.append(0, np.cumsum(rng.integers(30, 220, count))).astype(np.uint64)
    hashes = rng.integers(0, 1 << 63, int(starts[-1]), np.int64).astype(np.uint64)
    began = time.perf_counter()
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, SIGNATURE, SEED)
    computed = time.perf_counter()
    np.array(matrix.to_rows(), np.uint64)
    figures = {
        "texts": count,
        "rensa_us": round(1e6 * (computed - began) / count, 1),
        "rensa_to_numpy_us": round(1e6 * (time.perf_counter() - computed) / count, 1),
    }
    if importlib.util.find_spec("datasketch") is None:
        print("skipped: datasketch is not installed")
        return figures
    from datasketch import MinHash

    began = time.perf_counter()
    for a, b in zip(starts.astype(int), starts[1:].astype(int), strict=False):
        low = hashes[a:b] & np.uint64(0xFFFFFFFF)
        MinHash(num_perm=SIGNATURE, seed=SEED, hashfunc=lambda value: value).update_batch(low)
    return {**figures, "datasketch_us": round(1e6 * (time.perf_counter() - began) / count, 1)}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clean")
    kinds = parser.add_subparsers(dest="kind", required=True)
    pools = kinds.add_parser("pools")
    pools.add_argument("model")
    pools.add_argument("pools", nargs="+", type=Path)
    rows = kinds.add_parser("rows")
    rows.add_argument("rows", nargs="?", type=int, default=1_000_000)
    kinds.add_parser("libraries")
    given = parser.parse_args()
    if given.kind == "libraries":
        figures = measure_libraries()
        print(figures)
        save("clean-libraries", figures)
        return
    start_ray()
    if given.kind == "rows":
        figures = measure_rows(given.rows)
        print(figures)
        save(f"clean-rows-{given.rows}", figures)
    else:
        there = [pool for pool in given.pools if pool.is_file()]
        for missing in {*given.pools} - {*there}:
            print(f"skipped: {missing} is not on this machine")
        with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
            found = {
                pool.stem: measure_pool(given.model, pool, there, Path(path)) for pool in there
            }
        if found:
            save("clean-pools", {"model": Path(given.model).name, "pools": found})
    ray.shutdown()


if __name__ == "__main__":
    main()
