"""The scores of single tokens: their mean is the score, their characters are the response's."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Rendered
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.store import ScoreStore
from instructdiff_ray.scoring.token_scores import ShownSample, TokenScores, places, score_tokens
from instructdiff_ray.storage.artifacts import Storage

CONVERSATION = [
    Part("instruction", "Say hello."),
    Part("response", "Hello 👩‍👩‍👧!\n  नमस्ते"),
    Part("instruction", "And in Arabic?"),
    Part("response", "مرحبا, 你好"),
]


@pytest.fixture
def stores(model: Model, tmp_path: object) -> list[ScoreStore]:
    storage = Storage(str(tmp_path))
    encoding = EncoderSpec(model, TemplateConfig(), 200, truncate=True)
    return [
        ScoreStore(
            ScoreSpec(name, model, encoding),
            storage.artifact("scores", name),
            {},
            {None: storage.folder("pieces", name)},
        )
        for name in ("base", "calibrated")
    ]


def read(stores: list[ScoreStore], cluster: ClusterConfig, build: bool) -> dict[str, TokenScores]:
    storage = Storage(stores[0].artifact.home.path.rsplit("/", 2)[0])
    sample = ShownSample("s", "general", CONVERSATION)
    return score_tokens(cluster, stores, [sample], storage, Progress(io.StringIO()), build)


@pytest.mark.usefixtures("ray_session")
def test_every_scored_token_has_its_characters_and_the_artifact_serves_the_next_run(
    stores: list[ScoreStore],
) -> None:
    cluster = ClusterConfig()
    assert read(stores, cluster, build=False) == {}
    no_such_gpu = replace(cluster, score=ScoreResources(gpus_per_actor=1024))
    assert read(stores, no_such_gpu, build=True) == {}
    tokens = read(stores, cluster, build=True)["s"]
    assert read(stores, no_such_gpu, build=False) == {"s": tokens}
    assert tokens.responses == [text for kind, text in CONVERSATION if kind == "response"]
    for turn, text in enumerate(tokens.responses):
        of_turn = np.array(tokens.turn) == turn
        covered = np.zeros(len(text), bool)
        for start, end in zip(
            np.array(tokens.start)[of_turn], np.array(tokens.end)[of_turn], strict=True
        ):
            covered[start:end] = True
        assert all(covered[i] for i, character in enumerate(text) if not character.isspace())
    assert tokens.measures.keys() == {
        "base_nll",
        "base_entropy",
        "calibrated_nll",
        "calibrated_entropy",
    }
    assert {len(values) for values in tokens.measures.values()} == {len(tokens.turn)}


def test_a_token_across_the_border_shows_what_it_has_of_the_response() -> None:
    rendered = Rendered("ask:yes. ask:no", [(4, 8), (13, 15)])
    spans = [(0, 3), (3, 6), (6, 8), (8, 13), (12, 15)]
    found = places(rendered, spans, [False, True, True, False, True])
    assert found == {
        "responses": ["yes.", "no"],
        "turn": [0, 0, 1],
        "start": [0, 2, 0],
        "end": [2, 4, 2],
    }
