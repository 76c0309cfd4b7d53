"""Every strategy against a re-computation from its formula, with plain forward passes.

The stages of scoring are called where they stand: fifteen passes through Ray would take minutes.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch

from instructdiff_ray.config.data import DataConfig, ModelConfig, TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import BaselineConfig, SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.demo.model import train_model
from instructdiff_ray.demo.pool import prose, write_pool
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.rating import LINES, RatingEncoder
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring.actor import Scorer
from instructdiff_ray.scoring.crash_guard import start_crash_guard
from instructdiff_ray.scoring.dataflow import Tokenize, WritePieces
from instructdiff_ray.scoring.plan import ScoreTarget
from instructdiff_ray.scoring.spec import ScoreSpec, ScoreTable
from instructdiff_ray.scoring.store import gather
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.requirements import (
    find_baseline_models,
    guards_to_show,
    required_scores,
)
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.storage.artifacts import FinishedArtifact, Storage
from tests.engine.test_metrics import plain_score
from tests.pools import samples, samples_table

pytestmark = pytest.mark.usefixtures("ray_session")
QUIET = Progress(io.StringIO())
TEMPLATE = TemplateConfig(
    prompt="Question: {instruction}\nAnswer: ",
    prompt_with_input="Question: {instruction} {input}\nAnswer: ",
    response_prompt="Answer: ",
)
BETA, SEED = 0.2, 7


class Scored(NamedTuple):
    """The pool, all scores by name, and the models."""

    pool: Pool
    scores: dict[str, ScoreTable]
    config: Config
    models: dict[str, Model]


@pytest.fixture(scope="module")
def scored(
    tmp_path_factory: pytest.TempPathFactory, model: Model, model_folder: str, ray_session: None
) -> Scored:
    folder = tmp_path_factory.mktemp("strategies")
    write_pool(str(folder / "pool.jsonl"), seed=5, size=50)
    train_model(str(folder / "small"), prose(size=200), steps=2)
    config = Config(
        data=DataConfig(path=str(folder / "pool.jsonl"), domain_column="domain"),
        model=ModelConfig(base=model_folder),
        template=TEMPLATE,
        calibrate=CalibrateConfig(max_length=200),
        select=SelectConfig(BETA, 0.1),
        baseline=BaselineConfig(str(folder / "small"), [model_folder, str(folder / "small")]),
        storage=str(folder / "storage"),
        seed=SEED,
    )
    pool = ingest(config, source_files(config.data), model, Storage(config.storage), QUIET)
    small = find_model(ModelConfig(base=str(folder / "small")))
    calibrated = replace(small, identity="calibrated")
    specs: dict[str, ScoreSpec] = {}
    for strategy in STRATEGIES:
        all_guards = replace(config.select, guard=[*GUARDS])
        chosen = replace(config, strategy=strategy, select=all_guards)
        others = find_baseline_models(chosen, model)
        required = required_scores(chosen, model, [calibrated], others)
        specs.update({spec.name: spec for spec in required})
    scores = score_here(pool, list(specs.values()), Storage(config.storage))
    models = {"base": model, "calibrated": calibrated, "small": small}
    return Scored(pool, scores, config, models)


def score_here(pool: Pool, specs: Sequence[ScoreSpec], storage: Storage) -> dict[str, ScoreTable]:
    """Tokenise, score, write and gather, as the pipeline does."""
    scores, threads = {}, torch.get_num_threads()
    for spec in specs:
        shards = storage.folder("pieces", spec.name)
        targets = [ScoreTarget(spec.name, spec.model_of(None), spec.encoding, shards)]
        scorer = Scorer(targets, "fp32", 1024, 1, 0, start_crash_guard())
        rows = samples_table(pool, ["sample_id", "parts"])
        WritePieces(targets)(scorer(Tokenize([spec.encoding], None)(rows)))
        gathered = storage.folder("gathered", spec.name)
        gather(pool, {None: shards}, spec.encoding.measures, gathered)
        finished = FinishedArtifact(spec.name, gathered, {"partitions": pool.partitions})
        scores[spec.name] = ScoreTable(finished, spec.encoding.measures)
    torch.set_num_threads(threads)
    return scores


class Row(NamedTuple):
    """A pool row. parts: (kind, text)."""

    sample_id: str
    domain: str
    tokens: int
    parts: list[tuple[str, str]]

    @property
    def asked(self) -> list[str]:
        return [text for kind, text in self.parts if kind != "response"]


def rows_of(pool: Pool) -> list[Row]:
    rows = []
    for row in samples(pool):
        parts = [(part["kind"], part["text"]) for part in row["parts"]]
        rows.append(Row(row["sample_id"], row["domain"], row["response_tokens"], parts))
    return sorted(rows)


class Plain:
    """One model and its tokenizer, a sample at a time."""

    def __init__(self, model: Model, before: str = "") -> None:
        """before: what stands before a response alone."""
        self.model, self.tokenizer = model.load("fp32"), model.load_tokenizer()
        self.before = before

    def likelihood(
        self, row: Row, prompt: Callable[[list[str]], str] | None, limit: int = 10**6
    ) -> tuple[float, float]:
        """NLL and entropy of the responses. prompt: of what is asked; None: responses alone."""
        text, asked, spans = "", [], []
        for kind, content in row.parts:
            if kind == "system":
                text += f"{content}\n\n" if prompt else ""
            elif kind != "response":
                asked.append(content)
            else:
                text += prompt(asked) if prompt else self.before
                spans.append((len(text), len(text) + len(content)))
                text, asked = f"{text}{content}\n\n", []
        tokens = self.tokenizer(text[: spans[-1][1]], return_offsets_mapping=True)
        ids, offsets = tokens["input_ids"][:limit], tokens["offset_mapping"][:limit]
        scored = [any(e > start and b < end for start, end in spans) for b, e in offsets]
        return plain_score(self.model, ids, scored)

    def ending_nll(self, row: Row, prompt: Callable[[list[str]], str]) -> float:
        """NLL of EOS behind the last response."""
        text, asked = "", []
        for kind, content in row.parts:
            if kind == "system":
                text += f"{content}\n\n"
            elif kind != "response":
                asked.append(content)
            else:
                text, asked = f"{text}{prompt(asked)}{content}\n\n", []
        ids = self.tokenizer(text.removesuffix("\n\n"))["input_ids"]
        ids.append(self.tokenizer.eos_token_id)
        return plain_score(self.model, ids, [False] * (len(ids) - 1) + [True])[0]

    def rating(self, row: Row, wording: int) -> float:
        question = (
            f"{LINES[wording]}\nInstruction:{chr(10).join(text for _, text in row.parts[:-1])}\n"
            f"Response:{row.parts[-1][1]}\nThe answer is: \n"
        )
        ids = self.tokenizer(question)["input_ids"]
        with torch.no_grad():
            p = self.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).tolist()
        digits = [self.tokenizer(question + digit)["input_ids"][-1] for digit in "12345"]
        q = [p[digit] / sum(p[d] for d in digits) for digit in digits]
        r = [math.exp(x) / sum(math.exp(y) for y in q) for x in q]
        best = max(range(5), key=lambda i: r[i])
        return (best + 1) * sum(abs(r[best] - x) for x in r) / 4

    def sentence(self, row: Row) -> float:
        ratings = [self.rating(row, wording) for wording in range(5)]
        mean = sum(ratings) / 5
        deviation = math.sqrt(sum((x - mean) ** 2 for x in ratings) / 5)
        return mean / (1 + 0.2 * deviation)


def prompt(asked: list[str]) -> str:
    return f"Question: {' '.join(asked)}\nAnswer: "


def direct(asked: list[str]) -> str:
    return "".join(f"{text}\n" for text in asked)


def plain_values(scored: Scored, strategy: str) -> dict[str, float]:
    """The strategy's value of each sample, as its formula says."""
    base, small = Plain(scored.models["base"], "Answer: "), Plain(scored.models["small"])
    limit = min(1024, scored.models["small"].max_length or 1024)
    sizes = [plain.model.num_parameters() for plain in (base, small)]

    def asked_tokens(row: Row) -> int:
        text = "\n".join(row.asked)
        return len(base.tokenizer(text, add_special_tokens=False)["input_ids"])

    def draw(row: Row) -> int:
        digest = hashlib.blake2b(row.sample_id.encode(), key=b"random 7", digest_size=8)
        return int(digest.hexdigest()[:12], 16)

    def superfiltering(row: Row) -> float:
        given = small.likelihood(row, direct, limit)[0]
        return math.exp(given - small.likelihood(row, None, limit)[0])

    def ifd(row: Row) -> float:
        return base.likelihood(row, prompt)[0] / base.likelihood(row, None)[0]

    def selectit(row: Row) -> float:
        return sum(
            size / sum(sizes) * plain.sentence(row)
            for size, plain in zip(sizes, (base, small), strict=True)
        )

    formulas: dict[str, Callable[[Row], float]] = {
        "random": draw,
        "ppl": lambda row: math.exp(base.likelihood(row, prompt)[0]),
        "entropy": lambda row: base.likelihood(row, prompt)[1],
        "response_length": lambda row: row.tokens,
        "instruction_length": asked_tokens,
        "length_ratio": lambda row: asked_tokens(row) / row.tokens,
        "ifd": ifd,
        "superfiltering": superfiltering,
        "selectit_token": lambda row: base.rating(row, 0),
        "selectit_sentence": base.sentence,
        "selectit": selectit,
    }
    formula = formulas[strategy.removesuffix("_min").removesuffix("_mid").removesuffix("_max")]
    return {row.sample_id: float(formula(row)) for row in rows_of(scored.pool)}


def plain_selected(scored: Scored, strategy: str, values: dict[str, float]) -> set[str]:
    """The selection by sorting (value, id) in each domain."""
    highest = {"ifd", "superfiltering", "selectit", "length_ratio_max"}
    rows, chosen = rows_of(scored.pool), set()
    for domain in {row.domain for row in rows}:
        ids = [row.sample_id for row in rows if row.domain == domain]
        count = max(1, floor_share(BETA, len(ids)))
        if strategy == "ifd":
            ids = [i for i in ids if values[i] <= 1]
        if strategy == "superfiltering":
            ids = [i for i in ids if values[i] < 1]
        down = strategy.split("_")[0] in highest or strategy.endswith(("max", "length"))
        order = sorted(ids, key=lambda i: (-values[i] if down else values[i], i))
        start = len(order) // 2 - count // 2 if strategy.endswith("mid") else 0
        chosen |= set(order[start : start + count])
    return chosen


def ranked(scored: Scored, strategy: str, **changes: Any) -> pa.Table:
    config = replace(scored.config, strategy=strategy, **changes)
    others = find_baseline_models(config, scored.models["base"])
    required = required_scores(config, scored.models["base"], [scored.models["calibrated"]], others)
    scores = {spec.name: scored.scores[spec.name] for spec in required}
    inputs = RankingInputs(
        STRATEGIES[strategy],
        config.select_of,
        config.select.filter,
        SEED,
        others.weights,
        guards=guards_to_show(config),
    )
    return pa.concat_tables(rank(scored.pool, scores, inputs).rows())


def fate_ids(table: pa.Table, fate: str) -> set[str]:
    return {row["sample_id"] for row in table.to_pylist() if row["fate"] == fate}


@pytest.mark.parametrize("strategy", [n for n, s in STRATEGIES.items() if s.order is None][1:])
def test_a_strategy_ranks_as_its_formula_says(scored: Scored, strategy: str) -> None:
    table, expected = ranked(scored, strategy), plain_values(scored, strategy)
    found = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    # By the values found: those computed one at a time may settle a near tie otherwise.
    assert fate_ids(table, "selected") == plain_selected(scored, strategy, found)
    assert len(set(found.values())) > len(found) / 3, "a value that tells nothing apart"


def test_a_baseline_needs_no_other_scores_than_its_formula(scored: Scored) -> None:
    model = scored.models["base"]
    expected = {
        "random": [],
        "response_length": [],
        "ppl_mid": ["base"],
        "ifd": ["base", "alone"],
        "superfiltering": ["small", "small_alone"],
        "selectit_token": ["rating-0-0"],
        "selectit_sentence": [f"rating-0-{k}" for k in range(5)],
        "selectit": [f"rating-{m}-{k}" for m in range(2) for k in range(5)],
    }
    for strategy, names in expected.items():
        config = replace(scored.config, strategy=strategy)
        required = required_scores(config, model, (), find_baseline_models(config, model))
        assert [spec.name for spec in required] == names


def test_pairs_whose_prompt_does_not_help_are_excluded_where_asked(scored: Scored) -> None:
    plain, guarded = (
        ranked(scored, "instructdiff", select=SelectConfig(0.5, 0.1, guard=guard))
        for guard in ("none", "mismatched")
    )
    ifd = plain_values(scored, "ifd")
    band = fate_ids(plain, "selected") | fate_ids(plain, "not_top")
    mismatched = {i for i in band if ifd[i] >= 1}
    assert mismatched and fate_ids(guarded, "excluded") == mismatched
    reasons = {row["sample_id"]: row["excluded_by"] for row in guarded.to_pylist()}
    assert {i for i, reason in reasons.items() if reason == "mismatched"} == mismatched
    assert {*reasons.values()} == {"mismatched", None}
    values = dict(zip(guarded["sample_id"].to_pylist(), guarded["ifd"].to_pylist(), strict=True))
    assert values == pytest.approx(ifd, rel=1e-4)
    for fate in ("below_band", "above_band"):
        assert fate_ids(guarded, fate) == fate_ids(plain, fate)
    assert not fate_ids(guarded, "selected") & mismatched
    assert fate_ids(plain, "selected") - mismatched <= fate_ids(guarded, "selected")


def test_guards_look_at_the_surprise_and_at_the_end(scored: Scored) -> None:
    """Both against plain forward passes; the limits: test_guards.py."""
    guards = SelectConfig(0.5, 0.1, guard=["complete", "typical"])
    table = ranked(scored, "instructdiff", select=guards)
    base, calibrated = Plain(scored.models["base"]), Plain(scored.models["calibrated"])
    calibrated.tokenizer = base.tokenizer  # as of a model that was trained from the base model
    rows = {row.sample_id: row for row in rows_of(scored.pool)}
    for found in table.to_pylist()[:20]:
        row = rows[found["sample_id"]]
        nll, entropy = calibrated.likelihood(row, prompt)
        surprise = base.likelihood(row, prompt)[0] + nll - entropy
        assert found["surprise"] == pytest.approx(surprise, rel=1e-4)
        assert found["ending_nll"] == pytest.approx(calibrated.ending_nll(row, prompt), rel=1e-4)


def test_the_filter_may_cut_by_perplexity(scored: Scored) -> None:
    table = ranked(scored, "instructdiff", select=SelectConfig(0.1, 0.2, filter="ppl"))
    rows = table.to_pylist()
    for domain in {row["domain"] for row in rows}:
        own = [row for row in rows if row["domain"] == domain]
        shift = {
            r["sample_id"]: math.exp(r["calibrated_nll"]) - math.exp(r["base_nll"]) for r in own
        }
        cut = floor_share(0.2, len(own))
        order = sorted(shift, key=lambda i: (shift[i], i))
        fates = {row["sample_id"]: row["fate"] for row in own}
        assert [i for i in order if fates[i] == "below_band"] == order[:cut]
        assert [i for i in order if fates[i] == "above_band"] == order[len(order) - cut :]


def test_ends_of_the_entropy_change(scored: Scored) -> None:
    for end in ("lowest", "middle", "highest"):
        table = ranked(scored, "instructdiff", select=SelectConfig(0.1, 0.0, entropy=end))
        for domain in set(table["domain"].to_pylist()):
            own = [row for row in table.to_pylist() if row["domain"] == domain]
            values = sorted(row["delta_entropy"] for row in own)
            count = max(1, floor_share(0.1, len(own)))
            middle = len(values) // 2 - count // 2
            starts = {"lowest": 0, "middle": middle, "highest": len(values) - count}
            chosen = sorted(row["delta_entropy"] for row in own if row["fate"] == "selected")
            assert chosen == values[starts[end] :][:count]


def test_a_tokenizer_without_tokens_for_ratings_is_refused(model: Model) -> None:
    tokenizer = model.load_tokenizer()
    tokenizer.add_tokens(["\n5"])
    with pytest.raises(UserError, match="no token of its own for each of the ratings"):
        _ = RatingEncoder(tokenizer, 0, 1000).rating_tokens


def test_what_can_not_be_scored_alone_is_a_reject_of_that_strategy(
    scored: Scored, tmp_path: Path
) -> None:
    (tmp_path / "pool.jsonl").write_text(
        '{"question": "Say x.", "answer": "x"}\n{"question": "Add 7 and 8.", "answer": "It is 15."}'
    )
    config = replace(
        scored.config,
        data=DataConfig(path=str(tmp_path / "pool.jsonl")),
        template=TemplateConfig(),  # a first token of a response alone has no context
        strategy="ifd",
        storage=str(tmp_path),
    )
    model = scored.models["base"]
    pool = ingest(config, source_files(config.data), model, Storage(config.storage), QUIET)
    specs = required_scores(config, model, (), find_baseline_models(config, model))
    scores = score_here(pool, specs, Storage(config.storage))
    ranking = rank(pool, scores, RankingInputs(STRATEGIES["ifd"], config.select_of))
    assert ranking.table.num_rows == 1
    assert ranking.rejected["reason"].to_pylist() == ["no_response_tokens"]
    # Where only an option looks at it, the sample stays: nothing is known against it.
    guarded = replace(config, strategy="ppl_min", select=SelectConfig(1.0, 0, guard="mismatched"))
    inputs = RankingInputs(STRATEGIES["ppl_min"], guarded.select_of, guards=("mismatched",))
    ranking = rank(pool, scores, inputs)
    assert ranking.table.num_rows == 2 and not ranking.rejected.num_rows
    assert np.isfinite(ranking.table["value"].to_numpy()).all()
