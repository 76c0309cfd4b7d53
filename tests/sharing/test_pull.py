"""A run's scores as files, and back into another storage: with a Hub, without Ray and models."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.config.data import DataConfig, ModelConfig, TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.pipeline import calibrate_on, calibrations, draw_warmup
from instructdiff_ray.pool.partition import id_array, partition_file, split_by_partition
from instructdiff_ray.pool.pool import INDEX, Pool, open_pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.summary import model_paths
from instructdiff_ray.scoring.blocks import NOT_FINITE, OUT_OF_MEMORY
from instructdiff_ray.scoring.origins import Origin, origins_of
from instructdiff_ray.scoring.plan import targets_of
from instructdiff_ray.scoring.scored_rows import ScoredRows
from instructdiff_ray.scoring.shards import Shards, fold_pieces, shard_schema, write_piece
from instructdiff_ray.scoring.stage import check_weights
from instructdiff_ray.scoring.store import ScoreStore, score_stores
from instructdiff_ray.selection.requirements import required_scores
from instructdiff_ray.sharing.card import render_card
from instructdiff_ray.sharing.matching import Matches, check_pool, match_scores
from instructdiff_ray.sharing.publication import MOST_BYTES, Publication
from instructdiff_ray.sharing.publish import collect, left_out
from instructdiff_ray.sharing.pull import Checked, find_publication, take_over
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.calibrate import model_artifact
from instructdiff_ray.training.known_models import find_calibrated
from tests.hub import Hub, serving

NAME, WEIGHTS = "me/scores", "0123456789abcdef"
DOMAINS = ("code", "math")
TOKENS = 7  # of each response


def ids_of(count: int) -> list[str]:
    return sorted(hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(count))


IDS = ids_of(60)
UNSCORED, TOO_LARGE = IDS[3], IDS[4]
TRAINED_ON = IDS[:5]


def scores_of(ids: list[str], seed: int = 0) -> pa.Table:
    """As shards have them: one sample has none, and of one the machine has none."""
    rng, reasons = np.random.default_rng(seed), {UNSCORED: NOT_FINITE, TOO_LARGE: OUT_OF_MEMORY}
    values = {sample: rng.uniform(0, 3, 2) for sample in IDS}
    rows = []
    for sample in ids:
        nll, entropy = (None, None) if sample in reasons else values[sample]
        detail = "the text of a stranger" if sample in reasons else None
        rows.append([sample, TOKENS, nll, entropy, reasons.get(sample), detail])
    schema = shard_schema(("nll", "entropy"))
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)


def write_pool(storage: Storage, ids: list[str], partitions: int) -> Pool:
    """A pool of which only the index is there; its domains take turns."""
    domain = pa.array([DOMAINS[n % 2] for n in range(len(ids))]).dictionary_encode()
    lengths = [pa.array([TOKENS] * len(ids), pa.int32())] * 3
    index = pa.table([ids, domain, *lengths], names=INDEX.names).cast(INDEX)
    counts = {"read": len(ids), "rejected": {}, "pool": len(ids)}
    info = {"digest": "d" * 16, "parts": [], "keep_duplicates": False, "counts": counts}
    with storage.artifact("pool", "b" * 16).writer() as writer:
        for number, part in enumerate(split_by_partition(index, partitions)):
            writer.folder.write_table(partition_file("index", number), part)
        return open_pool(writer.finish({}, {**info, "partitions": partitions}))


def make_context(folder: Path, model_folder: str, name: str, **settings: Any) -> RunContext:
    (folder / "pool.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    config = Config(
        data=DataConfig(path=str(folder / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        storage=str(folder / name),
        run_dir=str(folder / name / "run"),
    )
    return prepare(replace(config, **settings), Progress(io.StringIO()))


def calibrated(
    context: RunContext, weights: str = WEIGHTS, drawn: dict[str, list[str]] | None = None
) -> Model | dict[str, Model]:
    """The model of a repeat, or one for each domain, put into the storage as if it was trained;
    drawn: by domain, what it was trained on."""
    configs: dict[str, Config] = {"": context.config}
    if context.config.calibrate.per_domain:
        of = context.config.calibrate_of
        configs = {name: replace(context.config, calibrate=of(name)) for name in DOMAINS}
    models = {}
    for number, (name, config) in enumerate(configs.items()):
        ids = drawn[name] if drawn else TRAINED_ON[number:]
        artifact, inputs = model_artifact(config, context.base, ids, context.storage)
        with artifact.writer() as writer:
            info = {"weights": weights, "samples": len(TRAINED_ON), "adapter": False}
            writer.finish(inputs, info)
        model = find_calibrated(context.base, artifact)
        assert model is not None
        models[name] = model
    return models.get("") or models


def drawn_of(context: RunContext, pool: Pool) -> dict[str, list[str]]:
    """By domain, what the first round calibrates on."""
    parts = calibrations(context, pool, draw_warmup(context, pool))
    return {domain: ids for domain, (_, ids) in parts.items()}


def stores_of(context: RunContext, pool: Pool, models: list[Any]) -> list[ScoreStore]:
    """models: of each repeat."""
    specs = required_scores(context.config, context.base, models, context.baseline_models)
    return score_stores(specs, pool, context.config.cluster.precision, context.storage)


def finish_run(
    context: RunContext, partitions: int = 1, weights: str = WEIGHTS, draws: bool = False
) -> Pool:
    """What a run leaves of its scores: the gathered tables, and a folder that names them. draws:
    models are trained on what a run draws."""
    pool, keys = write_pool(context.storage, IDS, partitions), {}
    drawn = drawn_of(context, pool) if draws else None
    models = [calibrated(repeat, weights, drawn) for repeat in context.repeats()]
    for store in stores_of(context, pool, models):
        with store.artifact.writer() as writer:
            for number, rows in enumerate(split_by_partition(scores_of(IDS), partitions)):
                writer.folder.write_table(partition_file("scores", number), rows)
            writer.finish(store.key_inputs, {"samples": len(IDS), "partitions": partitions})
        keys[f"{store.spec.name}_scores"] = store.artifact.key
    summary = {"round": 1, "base_model": context.base.path, "keys": {"pool": pool.key, **keys}}
    context.folder.write_json("summary.json", summary)
    context.folder.write_bytes("config.yaml", yaml.safe_dump(asdict(context.config)).encode())
    return pool


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(str(tmp_path / "home")) as server:
        yield server


Files = dict[str, bytes]


def published(context: RunContext, folder: Path) -> tuple[Publication, Files]:
    publication = collect(context.folder, Folder(str(folder)))
    names = [file.name for scores in publication.scores for file in scores.files]
    files = {name: (folder / name).read_bytes() for name in names}
    return publication, files | {"scores.json": publication.to_json()}


def publish_run(hub: Hub, folder: Path, model_folder: str) -> Publication:
    """A finished run, its scores published on the Hub."""
    context = make_context(folder, model_folder, "first")
    finish_run(context)
    publication, files = published(context, folder / "files")
    hub.repo(NAME, files)
    return publication


def take(context: RunContext, pool: Pool, only: tuple[str, ...] = ()) -> list[Checked]:
    place, publication = find_publication(NAME)
    matches = match_scores(context, publication, NAME, only)
    return take_over(context, pool, place, publication, matches.found, 0)


def rows_in(storage: Storage, pool: Pool, key: str, ids: list[str] = IDS) -> pa.Table:
    """What the shards of this key hold of these samples, by id."""
    scored = ScoredRows.of(pool, Shards(storage.folder("pieces", key)))
    names = shard_schema(("nll", "entropy")).names
    rows = scored.read(np.array(ids, "S"), 0, 1, names)
    return rows.sort_by("sample_id") if rows else pa.table({"sample_id": pa.array([], "string")})


@pytest.mark.parametrize("partitions", [(1, 1), (2, 4), (4, 1)])
def test_scores_come_to_another_storage_as_they_were(
    hub: Hub, tmp_path: Path, model_folder: str, partitions: tuple[int, int]
) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first, partitions[0])
    publication, files = published(first, tmp_path / "files")
    assert [scores.name for scores in publication.scores] == ["base", "calibrated"]
    assert left_out(publication) == {("base", 1): 1, ("calibrated", 1): 1}
    assert all(b"stranger" not in data for data in files.values()), "no detail, no text"
    commit = hub.repo(NAME, files).refs["main"]
    second = make_context(tmp_path, model_folder, "second")
    pool = write_pool(second.storage, IDS, partitions[1])
    for checked in take(second, pool):
        scores = checked.match.scores
        assert (checked.rows, checked.here) == (len(IDS) - 1, 0)
        rows = rows_in(second.storage, pool, scores.key)
        wanted = scores_of([sample for sample in IDS if sample != TOO_LARGE])
        assert rows.drop_columns("detail").equals(wanted.drop_columns("detail"))
        details = rows["detail"].drop_null().to_pylist()
        assert details == [f"it has no scores in {NAME} either"]
        origin = Origin(NAME, commit, len(IDS) - 1)
        assert origins_of([checked.shards]) == [origin]
    # Who pulls again finds all there, and what was pulled can be published again.
    assert [(again.rows, again.here) for again in take(second, pool)] == [(0, len(IDS) - 1)] * 2
    assert origins_of([checked.shards]) == [origin]
    # It says so: nobody else's scores go for one's own.
    finish_run(second)
    again, _ = published(second, tmp_path / "again")
    assert {tuple(scores.taken_from) for scores in again.scores} == {(f"{NAME}@{commit}",)}
    assert {tuple(scores.taken_from) for scores in publication.scores} == {()}
    text = f"taken over from\n{NAME}@{commit}."
    assert render_card(again, "you/scores").count(text) == 2
    assert "taken over" not in render_card(publication, NAME)


def test_the_model_is_known_and_never_trained_in_its_stead(
    hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    publish_run(hub, tmp_path, model_folder)
    second = make_context(tmp_path, model_folder, "second")
    pool = write_pool(second.storage, IDS, 1)
    checked = take(second, pool)
    for build in (True, False):
        model = calibrate_on(second, pool, TRAINED_ON, build)
        assert isinstance(model, Model) and model.identity.endswith(f"/{WEIGHTS}")
        assert str(model.known_from).startswith(f"{NAME}@") and model.trained.startswith("not here")
    assert model_paths(model) is None and model_paths({"math": model}) == {"math": None}
    stores = stores_of(second, pool, [model])
    by_name = {store.spec.name: store.shards[None] for store in stores}
    assert by_name == {each.match.spec.name: each.shards for each in checked}
    targets = targets_of(stores, None)
    check_weights(targets[:1], 5, second.storage)
    with pytest.raises(UserError, match="^5 samples have no calibrated scores, and") as refused:
        check_weights(targets, 5, second.storage)
    (note,) = Path(second.storage.root).glob("models/*/trained-elsewhere.json")
    assert f"delete {note}" in str(refused.value)
    # Nor does a fine-tuning put its own in the place of what the scores are of.
    calibrated(second, weights="f" * 16)
    assert calibrate_on(second, pool, TRAINED_ON) == model
    trained = calibrated(second)  # the same, and its weights are here
    assert isinstance(trained, Model) and trained.known_from is None
    assert calibrate_on(second, pool, TRAINED_ON) == trained
    calibrated(second, weights="f" * 16)
    note.unlink()
    found = calibrate_on(second, pool, TRAINED_ON)
    assert isinstance(found, Model) and found.known_from is None and found.digest == "f" * 16


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ("pulled", rf"has scores of models/.* from {NAME}@.*elsewhere.json\), of other weights"),
        ("trained", "has trained models/.* itself, of other weights"),
    ],
)
def test_of_two_trainings_of_one_model_the_storage_keeps_the_first(
    known: str, line: str, hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    publications = []
    for name, weights in (("first", WEIGHTS), ("second", "f" * 16)):
        context = make_context(tmp_path, model_folder, name)
        finish_run(context, weights=weights)
        publications.append(published(context, tmp_path / f"{name}-files")[1])
    repo = hub.repo(NAME, publications[0])
    context = make_context(tmp_path, model_folder, "third")
    pool = write_pool(context.storage, IDS, 1)
    if known == "pulled":
        take(context, pool)
    else:
        calibrated(context)
    model = calibrate_on(context, pool, TRAINED_ON, build=False)
    repo.push(publications[1])
    before = sorted(Path(context.storage.root).rglob("*"))
    with pytest.raises(UserError, match=line) as refused:
        take(context, pool)
    assert "\n" not in str(refused.value) and "--only" in str(refused.value)
    assert sorted(Path(context.storage.root).rglob("*")) == before
    assert calibrate_on(context, pool, TRAINED_ON, build=False) == model
    assert [checked.match.spec.name for checked in take(context, pool, ("base",))] == ["base"]


def test_a_pull_that_was_cut_off_is_repeated_and_counts_once(
    hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    publication = publish_run(hub, tmp_path, model_folder)
    second = make_context(tmp_path, model_folder, "second")
    pool = write_pool(second.storage, IDS[:40], 1)
    for checked in take(second, pool):
        for snapshot in Shards(checked.shards).snapshots:  # before its manifest was written
            checked.shards.delete(f"{snapshot.name}/manifest.json")
    assert not rows_in(second.storage, pool, publication.scores[0].key).num_rows
    for checked in take(second, pool):
        assert checked.rows == 40 - 1
        assert [origin.samples for origin in origins_of([checked.shards])] == [40 - 1]
    for checked in take(second, write_pool(second.storage, IDS, 1)):
        assert (checked.rows, checked.here) == (20, 40 - 1)
        assert [origin.samples for origin in origins_of([checked.shards])] == [60 - 1]


def test_what_is_not_in_the_pool_is_left_and_what_is_here_stays(
    hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    publication = publish_run(hub, tmp_path, model_folder)
    second = make_context(tmp_path, model_folder, "second")
    pool = write_pool(second.storage, IDS[:40], 1)
    key = publication.scores[0].key
    shards, ours = second.storage.folder("pieces", key), scores_of(IDS[10:20])
    near = ours.set_column(2, "nll", pa.array(ours["nll"].to_numpy() + 1e-5))
    fold_pieces(shards, [write_piece(shards, near)[0]])
    (checked,) = take(second, pool, only=("base",))
    assert (checked.rows, checked.here) == (40 - 1 - 10, 10)
    rows = rows_in(second.storage, pool, key)
    assert rows["sample_id"].to_pylist() == [s for s in IDS[:40] if s != TOO_LARGE]
    of_ours = rows.filter(pa.array(np.isin(id_array(rows), id_array(near))))
    assert of_ours.equals(near.cast(of_ours.schema))
    assert not list(Path(second.storage.root).glob("models/*"))


def test_scores_that_are_not_those_that_were_computed_here_are_refused(
    hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    publication = publish_run(hub, tmp_path, model_folder)
    second = make_context(tmp_path, model_folder, "second")
    pool = write_pool(second.storage, IDS, 1)
    calibrated_scores = publication.scores[1]
    shards = second.storage.folder("pieces", calibrated_scores.key)
    fold_pieces(shards, [write_piece(shards, scores_of(IDS[10:20], seed=1))[0]])
    with pytest.raises(UserError, match=f"^the calibrated scores of sample {IDS[10]} are not"):
        take(second, pool)
    base = publication.scores[0].key
    assert not second.storage.folder("pieces", base).exists(), "nor was what could be right written"


def test_each_domain_s_samples_go_with_its_own_model(
    hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    settings = {"calibrate": CalibrateConfig(per_domain=True)}
    first = make_context(tmp_path, model_folder, "first", **settings)
    finish_run(first)
    publication, files = published(first, tmp_path / "files")
    names = [(scores.name, scores.domain) for scores in publication.scores]
    assert names == [("base", None), ("calibrated", "code"), ("calibrated", "math")]
    assert left_out(publication) == {("base", 1): 1, ("calibrated", 1): 1}
    hub.repo(NAME, files)
    second = make_context(tmp_path, model_folder, "second", **settings)
    pool = write_pool(second.storage, IDS, 1)
    for checked in take(second, pool)[1:]:
        place = DOMAINS.index(str(checked.match.domain))
        rows = rows_in(second.storage, pool, checked.match.scores.key)
        assert rows["sample_id"].to_pylist() == [s for s in IDS[place::2] if s != TOO_LARGE]


def test_the_models_of_all_repeats_are_matched(tmp_path: Path, model_folder: str) -> None:
    settings = {"calibrate": CalibrateConfig(repeats=3), "seed": 5}
    first = make_context(tmp_path, model_folder, "first", **settings)
    finish_run(first)
    publication, _ = published(first, tmp_path / "files")
    second = make_context(tmp_path, model_folder, "second", **settings)
    matches = match_scores(second, publication, NAME, ())
    names = ["base", "calibrated", "calibrated-1", "calibrated-2"]
    assert [match.spec.name for match in matches.found] == names and not matches.missing
    assert len({match.scores.trained for match in matches.found}) == 4


@pytest.mark.usefixtures("ray_session")
def test_calibrated_scores_are_taken_for_the_pool_that_they_follow_from(
    tmp_path: Path, model_folder: str
) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first, draws=True)
    publication, _ = published(first, tmp_path / "files")
    second = make_context(tmp_path, model_folder, "second")
    matches = match_scores(second, publication, NAME, ())
    assert check_pool(second, publication, matches, write_pool(second.storage, IDS, 1)) == []
    other = write_pool(second.storage, IDS[:50], 1)
    line = "pool was another one there, of 60 samples, and here of 50; name the same data, or pull"
    with pytest.raises(UserError, match=line):
        check_pool(second, publication, matches, other)
    base = Matches(matches.found[:1], [])
    assert check_pool(second, publication, base, other) == [], "these serve any pool"
    # It counts which model the scores are of, and not which are described besides.
    finish_run(other_run := make_context(tmp_path, model_folder, "other"))
    of_others, _ = published(other_run, tmp_path / "others")
    both = replace(of_others, models={**of_others.models, **publication.models})
    matches = match_scores(second, both, NAME, ())
    with pytest.raises(UserError, match="trained on other samples than this pool gives"):
        check_pool(second, both, matches, write_pool(second.storage, IDS, 1))


@pytest.mark.usefixtures("ray_session")
def test_a_domain_without_published_scores_is_said(tmp_path: Path, model_folder: str) -> None:
    settings = {"calibrate": CalibrateConfig(per_domain=True)}
    first = make_context(tmp_path, model_folder, "first", **settings)
    finish_run(first, draws=True)
    publication, _ = published(first, tmp_path / "files")
    second = make_context(tmp_path, model_folder, "second", **settings)
    pool = write_pool(second.storage, IDS, 1)
    for lacking in ([], ["code"]):
        scores = [each for each in publication.scores if each.domain not in lacking]
        part = replace(publication, scores=scores)
        matches = match_scores(second, part, NAME, ())
        missing = check_pool(second, part, matches, pool)
        assert missing == [f"calibrated of {domain}" for domain in lacking]


def test_names_of_scores_that_are_not_needed_are_refused(tmp_path: Path, model_folder: str) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first)
    publication, _ = published(first, tmp_path / "files")
    line = "^--only calibratd, alone: these settings need no .* they need base, calibrated$"
    with pytest.raises(UserError, match=line):
        match_scores(first, publication, NAME, ("base", "calibratd", "alone"))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "precision": (
        {"cluster": ClusterConfig(precision="bf16")},
        r"calibrated scores do not fit .*: cluster.precision is fp32 there and bf16 here; set",
    ),
    "template": (
        {"template": TemplateConfig("mine", "{instruction}:", "{instruction}{input}:")},
        "template is direct there and mine here",
    ),
    "recipe": (
        {"calibrate": CalibrateConfig(learning_rate=1e-3, ratio=0.2)},
        "calibrate.learning_rate is 2e-05 there and 0.001 here; calibrate.ratio is 0.1 there and",
    ),
    "seed": ({"seed": 4}, "settings: seed is 0 there and 4 here; "),
    "length": (
        {"calibrate": CalibrateConfig(max_length=64)},
        r"calibrate.max_length is \d+ there and 64 here",
    ),
    "domains": (
        {"domains": {"math": {"calibrate": {"ratio": 0.5}}}},
        "domains.math.calibrate.ratio is nothing there and 0.5 here",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_differ_are_named_in_one_line(
    name: str, tmp_path: Path, model_folder: str
) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first)
    publication, _ = published(first, tmp_path / "files")
    settings, line = CHANGES[name]
    second = make_context(tmp_path, model_folder, "second", **settings)
    with pytest.raises(UserError, match=line) as refused:
        match_scores(second, publication, NAME, ())
    assert "\n" not in str(refused.value) and "--only" in str(refused.value)
    if name in ("recipe", "seed", "domains"):
        matches = match_scores(second, publication, NAME, ("base",))
        assert [match.spec.name for match in matches.found] == ["base"]


def test_another_base_model_is_named(tmp_path: Path, model_folder: str) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first)
    publication, _ = published(first, tmp_path / "files")
    second = make_context(tmp_path, model_folder, "second")
    other = replace(second, base=replace(second.base, identity="another"))
    name = Path(model_folder).name
    line = rf"model.base is {name} \(a local folder; content {first.base.identity}\) there and"
    with pytest.raises(UserError, match=line):
        match_scores(other, publication, NAME, ())


def test_scores_under_other_columns_are_refused(tmp_path: Path, model_folder: str) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first)
    publication, _ = published(first, tmp_path / "files")
    rated = [replace(scores, measures=["rating"]) for scores in publication.scores]
    with pytest.raises(UserError, match="have not the columns that they should have"):
        match_scores(first, replace(publication, scores=rated), NAME, ())


def test_what_is_not_published_is_said(tmp_path: Path, model_folder: str) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first)
    publication, _ = published(first, tmp_path / "files")
    second = make_context(tmp_path, model_folder, "second")
    base_alone = replace(publication, scores=publication.scores[:1], models={})
    matches = match_scores(second, base_alone, NAME, ())
    assert [match.spec.name for match in matches.found] == ["base"]
    assert matches.missing == ["calibrated"]
    config = replace(second.config, rounds=2)
    matches = match_scores(replace(second, config=config), publication, NAME, ())
    assert [match.spec.name for match in matches.found] == ["base", "calibrated"]
    assert matches.missing == ["calibrated of round 2"]


Change = Callable[[pa.Table], pa.Table]


def with_values(column: str, value: Any) -> Change:
    """The first row with another value."""

    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[column].to_pylist()[1:]]
        place = table.schema.get_field_index(column)
        field = table.schema.field(column)
        return table.set_column(place, field, pa.array(values, field.type))

    return change


def without_scores(table: pa.Table, reason: str) -> pa.Table:
    """None of any row, for this reason."""
    rows = [{**row, "nll": None, "entropy": None, "reason": reason} for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, table.schema)


TAMPERED: dict[str, tuple[Change, str]] = {
    "nll": (with_values("nll", -1.0), "nll that can't be"),
    "entropy": (with_values("entropy", 99.0), "entropy that can't be"),
    "length": (with_values("response_tokens", TOKENS + 1), "another number of response tokens"),
    "id": (with_values("sample_id", "0" * 30), "a row without an id"),
    "text": (lambda t: t.append_column("text", t["sample_id"]), "other columns than"),
    "row": (lambda t: t.slice(1), "rows, not"),
    "reason": (lambda t: without_scores(t, "bad_sample"), "for a reason that is none"),
    "reasons": (
        lambda t: without_scores(t, NOT_FINITE),
        "could not be scored there .not_finite 59",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_tampered_with_is_refused_and_nothing_is_written(
    name: str, hub: Hub, tmp_path: Path, model_folder: str
) -> None:
    first = make_context(tmp_path, model_folder, "first")
    finish_run(first)
    _, files = published(first, tmp_path / "files")
    manifest = json.loads(files["scores.json"])
    file = manifest["scores"][1]["files"][0]
    change, line = TAMPERED[name]
    out = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(files[file["name"]]))), out)
    repo = hub.repo(NAME, files | {file["name"]: out.getvalue()})
    second = make_context(tmp_path, model_folder, "second")
    pool = write_pool(second.storage, IDS, 1)
    before = sorted(Path(second.storage.root).rglob("*"))
    with pytest.raises(UserError, match="another digest|bytes instead of|more than the"):
        take(second, pool)
    file |= {"size": out.tell(), "sha256": hashlib.sha256(out.getvalue()).hexdigest()}
    consistent = {file["name"]: out.getvalue(), "scores.json": json.dumps(manifest).encode()}
    repo.push(files | consistent)
    with pytest.raises(UserError, match=line) as refused:
        take(second, pool)
    assert name == "reasons" or str(refused.value).startswith(file["name"])
    assert sorted(Path(second.storage.root).rglob("*")) == before


def test_a_repository_without_scores_is_said_to_be_one(hub: Hub, tmp_path: Path) -> None:
    hub.repo(NAME, {"a.jsonl": b"{}"})
    with pytest.raises(UserError, match="me/scores holds no scores.json"):
        find_publication(NAME)
    hub.repo("me/long", {"scores.json": b"[" * (MOST_BYTES + 1)})
    with pytest.raises(UserError, match=f"has {MOST_BYTES + 1:,} bytes in me/long, more than the"):
        find_publication("me/long")
    with pytest.raises(UserError, match="has no revision v9"):
        find_publication(f"{NAME}@v9")
    with pytest.raises(UserError, match="the Hub has no dataset me/none"):
        find_publication("me/none")


def test_what_can_t_be_described_is_not_pushed(tmp_path: Path, model_folder: str) -> None:
    first = make_context(tmp_path, model_folder, "first")
    with pytest.raises(UserError, match="holds no finished run"):
        collect(first.folder, Folder(str(tmp_path / "files")))
    finish_run(first)
    summary = json.loads(first.folder.read_bytes("summary.json") or b"")
    hub_name = {**summary, "base_model": "org/model"}
    first.folder.write_json("summary.json", hub_name)
    with pytest.raises(UserError, match="at which commit org/model was.*which runs no model"):
        collect(first.folder, Folder(str(tmp_path / "files")))
    first.folder.write_json("summary.json", {**hub_name, "base_commit": "c" * 40})
    described = collect(first.folder, Folder(str(tmp_path / "files"))).base_model
    assert described == {
        "name": "org/model", "commit": "c" * 40, "identity": first.base.identity
    }  # fmt: skip
    config = first.folder.read_bytes("config.yaml") or b""
    for name, content in (("config.yaml", b"storage: /tmp\n"), ("summary.json", b"{}")):
        first.folder.write_bytes(name, content)
        with pytest.raises(UserError, match="of an earlier version.*which runs no model"):
            collect(first.folder, Folder(str(tmp_path / "files")))
        first.folder.write_bytes("config.yaml", config)
    first.folder.write_json("summary.json", {**hub_name, "base_commit": "c" * 40})
    first.storage.folder("models").delete()
    with pytest.raises(UserError, match="is not in storage any more"):
        collect(first.folder, Folder(str(tmp_path / "files")))
    first.storage.folder("scores").delete()
    with pytest.raises(UserError, match="is not in storage"):
        collect(first.folder, Folder(str(tmp_path / "files")))
    first.storage.folder("pool").delete()
    with pytest.raises(UserError, match="push from where the run was started"):
        collect(first.folder, Folder(str(tmp_path / "files")))
