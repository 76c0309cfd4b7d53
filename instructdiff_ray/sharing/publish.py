"""The scores of a finished run as files for the Hub: no text of the pool, and no path of a machine.

They are taken from the gathered scores, which are sorted and hold the samples of the pool and no
others. What a machine was too small for is left out: another may score it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.hub_data import is_hub
from instructdiff_ray.pool.partition import among, id_array, partition_file
from instructdiff_ray.pool.pool import Pool, of_domain, open_pool
from instructdiff_ray.results.card import CARD
from instructdiff_ray.results.push import publish
from instructdiff_ray.results.status import SUMMARY
from instructdiff_ray.scoring.origins import origins_of
from instructdiff_ray.scoring.shards import of_machine
from instructdiff_ray.scoring.spec import SCORES
from instructdiff_ray.selection.strategies import BASE, CALIBRATED
from instructdiff_ray.sharing.card import render_card
from instructdiff_ray.sharing.checks import published_schema
from instructdiff_ray.sharing.publication import (
    PUBLICATION,
    Publication,
    PublishedFile,
    PublishedScores,
    scores_file,
)
from instructdiff_ray.sharing.settings import run_settings
from instructdiff_ray.storage.artifacts import FinishedArtifact, Storage, make_key
from instructdiff_ray.storage.filesystem import Folder, absolute, is_uri
from instructdiff_ray.training.known_models import Training, training_of

ROUND = re.compile(r"round-\d+/summary\.json")
BASES = (BASE, CALIBRATED)  # scores of samples as the base model's tokenizer gives them
OF_SCORES = "_scores"  # how the keys of scores end in a summary


def collect(run: Folder, local: Folder) -> Publication:
    """Write the scores of a run's folder as Parquet files below a local one; gives what
    `scores.json` says of them. UserError where the run is not finished or its storage is not here.
    """
    summaries = _summaries(run)
    config = yaml.safe_load(run.read_bytes("config.yaml") or b"{}")
    settings = _settings(run, config)
    storage = Storage(absolute(config["storage"]))
    last = summaries[max(summaries)]
    pool = _pool(storage, last, config)
    published: dict[str, PublishedScores] = {}
    for number, summary in sorted(summaries.items()):
        for name, key in summary["keys"].items():
            if not name.endswith(OF_SCORES):
                continue
            finished = storage.artifact("scores", key).require(
                f"what the run calls {name}", "give the run's command again"
            )
            for domain, scorer in _scorers(finished).items():
                scorer_key = make_key(**scorer)
                if scorer_key not in published:
                    written = _write_scores(
                        name.removesuffix(OF_SCORES), number, domain, scorer, finished, pool, local
                    )
                    origins = origins_of([storage.folder("pieces", scorer_key)])
                    taken = [f"{origin.repository}@{origin.commit}" for origin in origins]
                    published[scorer_key] = replace(written, taken_from=taken)
    require(bool(published), f"the run in {run.path} needed no scores, so there is nothing to push")
    # Who opens the repository sees the first.
    scores = sorted(published.values(), key=lambda each: (each.round, each.name not in BASES))
    trained = {each.trained: str(each.scorer["model"]) for each in scores if each.trained}
    tokenizers = [each.scorer["rendering"]["tokenizer"] for each in scores if each.name in BASES]
    return Publication(
        {**_base_model(last), "identity": tokenizers[0] if tokenizers else None},
        {"samples": len(pool), "digest": pool.digest, **_source(config["data"])},
        settings,
        scores,
        {key: _model(storage, key, identity) for key, identity in trained.items()},
    )


def _summaries(run: Folder) -> dict[int, dict[str, Any]]:
    """By round, each with its own summary where there are several."""
    require(
        run.read_bytes(SUMMARY) is not None,
        f"{run.path} holds no finished run; name a run's folder, with {SUMMARY} in it",
    )
    names = [name for name in run.sizes() if ROUND.fullmatch(name)] or [SUMMARY]
    summaries = [json.loads(run.read_bytes(name) or b"{}") for name in names]
    wanted = {"round", "keys", "base_model"}
    require(all(wanted <= summary.keys() for summary in summaries), _older(run))
    return {summary["round"]: summary for summary in summaries}


def _settings(run: Folder, config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return run_settings(config)
    except KeyError:
        raise UserError(_older(run)) from None


def _older(run: Folder) -> str:
    return (
        f"the run in {run.path} is of an earlier version, and does not say all that is published;"
        " give the run's command again, which runs no model"
    )


def _pool(storage: Storage, summary: Mapping[str, Any], config: Mapping[str, Any]) -> Pool:
    finished = storage.artifact("pool", summary["keys"]["pool"]).finished()
    require(
        finished is not None,
        f"the run's pool is not in storage={config['storage']}; push from where the run was"
        " started, while its storage is there",
    )
    assert finished is not None
    return open_pool(finished)


def _scorers(finished: FinishedArtifact) -> dict[str | None, dict[str, Any]]:
    """What the keys of the shards are made of from which scores were gathered, by domain."""
    scorer = finished.inputs["scorer"]
    return {None: scorer} if isinstance(scorer.get("model"), str) else dict(scorer)


def _write_scores(
    name: str,
    number: int,
    domain: str | None,
    scorer: Mapping[str, Any],
    finished: FinishedArtifact,
    pool: Pool,
    local: Folder,
) -> PublishedScores:
    """number: of the round."""
    key, partitions = make_key(**scorer), finished.info["partitions"]
    measures = finished.folder.read_table(partition_file(SCORES, 0)).schema.names[2:-2]
    files = []
    for partition, rows in _rows(finished, domain, pool, published_schema(measures)):
        file = scores_file(key, partition)
        size = local.write_table(file, rows)
        digest = hashlib.sha256(Path(local.path, file).read_bytes()).hexdigest()
        files.append(PublishedFile(file, partition, rows.num_rows, size, digest))
    samples = sum(file.rows for file in files)
    return PublishedScores(
        name, number, domain, key, scorer, measures, samples, partitions, files, []
    )


def _rows(
    finished: FinishedArtifact, domain: str | None, pool: Pool, schema: pa.Schema
) -> Iterator[tuple[int, pa.Table]]:
    """The numbers of partitions, and their rows; none of a partition without."""
    for number in range(finished.info["partitions"]):
        rows = finished.folder.read_table(partition_file(SCORES, number), schema.names)
        rows = rows.filter(pc.invert(pa.array(of_machine(rows))))
        if domain is not None:
            index = pool.read_partition(number, ["sample_id", "domain"])
            wanted = id_array(index)[of_domain(index, domain)]
            rows = rows.filter(pa.array(among(id_array(rows), wanted)))
        if rows.num_rows:
            yield number, rows.cast(schema)


def _base_model(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Its name and its commit; of a folder its last name, for the rest tells of a machine."""
    path, commit = summary["base_model"], summary.get("base_commit")
    if is_uri(path) or path.startswith("/"):
        return {"name": path.rstrip("/").split("/")[-1], "commit": None}
    require(
        commit is not None,
        f"the run does not say at which commit {path} was, it is of an earlier version; give the"
        " run's command again, which runs no model",
    )
    return {"name": path, "commit": commit}


def _source(data: Mapping[str, Any]) -> dict[str, Any]:
    """Where the pool can be had, if all of it is on the Hub."""
    paths = DataConfig(path=data["path"]).paths
    names = ("path", "subset", "split", "limit")
    return {name: data[name] if all(map(is_hub, paths)) else None for name in names}


def _model(storage: Storage, key: str, identity: str) -> Training:
    training = training_of(storage.artifact("models", key))
    require(
        training is not None and identity == f"{key}/{training.weights}",
        f"the calibrated model models/{key} that the run has scored under is not in storage any"
        " more, so its scores can't be described; give the run's command again",
    )
    assert training is not None
    return training


def left_out(publication: Publication) -> dict[tuple[str, int], int]:
    """Of how many samples scores are not published, by name and round, where there are any."""
    samples: Counter[tuple[str, int]] = Counter()
    for scores in publication.scores:
        samples[scores.name, scores.round] += scores.samples
    lacking = {which: publication.pool["samples"] - count for which, count in samples.items()}
    return {which: count for which, count in lacking.items() if count}


def upload_scores(publication: Publication, repository: str, public: bool, local: str) -> str:
    """Make a data set of collected scores, with a card, in one commit; gives its address. local:
    the folder that holds the files. UserError for whatever the Hub refuses."""
    names = [file.name for scores in publication.scores for file in scores.files]
    files: dict[str, bytes | str] = {name: str(Path(local, name)) for name in names}
    files[PUBLICATION] = publication.to_json()
    files[CARD] = render_card(publication, repository).encode()
    line = f"Scores of {publication.pool['samples']:,} samples"
    return publish(repository, public, files, line)
