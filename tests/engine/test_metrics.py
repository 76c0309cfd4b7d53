from __future__ import annotations

import copy
import math
import random
import shutil
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from instructdiff_ray.config.data import ModelConfig, TemplateConfig
from instructdiff_ray.demo.pool import prose
from instructdiff_ray.engine.batch import Batch, token_batches
from instructdiff_ray.engine.lm_head import output_head
from instructdiff_ray.engine.metrics import SampleScorer, Statistics, fused, token_nll_and_entropy
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded, Encoder
from instructdiff_ray.sample import Part

WIDTH, VOCABULARY = 32, 97
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATES = {
    "alpaca": TemplateConfig(
        "alpaca",
        "Below is an instruction.\n\n### Instruction:\n{instruction}\n\n### Response:\n",
        "Below is an instruction.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
        "### Response:\n",
    ),
    "direct": TemplateConfig(),
    "chat": TemplateConfig("chat", chat=True),
}


@lru_cache
def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, sliding_window=16)
        ),
        "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=3.0)),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=0.25)),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=128)
        ),
    }
    model = models[name]().eval()
    # Wider than the usual initialisation: a near-uniform model would agree with anything.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that attends as written in the model's own code, in Python."""
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    return copied


def plain_score(model: PreTrainedModel, ids: list[int], scored: list[bool]) -> tuple[float, float]:
    """The definition, word for word: one sample, full logits, fp32, a loop over the tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    nll, entropy, count = 0.0, 0.0, 0
    for t in range(1, len(ids)):
        if scored[t]:
            log_p = torch.log_softmax(logits[t - 1], dim=-1)
            nll -= float(log_p[ids[t]])
            entropy -= float((log_p.exp() * log_p).sum())
            count += 1
    return nll / count, entropy / count


def score(
    scorer: SampleScorer, samples: list[tuple[list[int], list[bool]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, scored = zip(*samples, strict=True)
    nll, entropy = scorer.score(Batch.of(ids, scored, scorer.device))
    return nll.cpu(), entropy.cpu()


def assert_same(model: PreTrainedModel, samples: list[tuple[list[int], list[bool]]]) -> None:
    nll, entropy = score(SampleScorer(model), samples)
    own = plain(model)
    for position, (ids, scored) in enumerate(samples):
        expected = plain_score(own, ids, scored)
        assert float(nll[position]) == pytest.approx(expected[0], abs=1e-4)
        assert float(entropy[position]) == pytest.approx(expected[1], abs=1e-4)


def random_samples(seed: int, count: int) -> list[tuple[list[int], list[bool]]]:
    rng = random.Random(seed)
    samples = []
    for _ in range(count):
        length = rng.randint(2, 60)
        scored = [False] + [rng.random() < 0.5 for _ in range(length - 1)]
        scored[rng.randrange(1, length)] = True
        samples.append(([rng.randrange(VOCABULARY) for _ in range(length)], scored))
    return samples


def test_a_fair_coin_has_the_entropy_and_nll_of_ln_2() -> None:
    logits = torch.tensor([[5.0, 5.0, -math.inf], [0.0, 0.0, 0.0]])
    nll, entropy = token_nll_and_entropy(logits, torch.tensor([1, 2]))
    assert nll.tolist() == pytest.approx([math.log(2), math.log(3)])
    assert entropy.tolist() == pytest.approx([math.log(2), math.log(3)])


@pytest.mark.parametrize("words", [1, 7, 100, 400])
def test_tiles_of_the_vocabulary_add_up_also_where_words_are_masked(words: int) -> None:
    torch.manual_seed(0)
    logits = 20 * torch.randn(50, 400)
    logits[:, 100:230] = -math.inf  # whole tiles, and parts of others
    targets = torch.randint(0, 100, (50,))
    statistics = Statistics(targets)
    for first in range(0, 400, words):
        statistics.add(logits[:, first : first + words].clone(), first)
    nll, entropy = statistics.nll_and_entropy()
    exact = torch.log_softmax(logits.double(), -1)
    p = exact.exp()
    expected = -(p * exact.clamp_min(-1e30)).sum(-1)
    assert torch.allclose(entropy.double(), expected, atol=1e-5)
    assert torch.allclose(nll.double(), -exact[range(50), targets], atol=1e-5)


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(5, 50_000).bfloat16()
    _, entropy = token_nll_and_entropy(logits, torch.zeros(5, dtype=torch.long))
    p = torch.softmax(logits.double(), dim=-1)
    assert entropy.dtype == torch.float32
    assert entropy.tolist() == pytest.approx((-(p * p.log()).sum(-1)).tolist(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_statistics_are_the_plain_ones(dtype: torch.dtype) -> None:
    if not shutil.which("g++"):
        pytest.skip("no compiler")
    torch.manual_seed(0)
    logits = (20 * torch.randn(50, 400)).to(dtype)
    logits[:, 100:230] = -math.inf
    targets = torch.randint(0, 100, (50,))
    eager, compiled = Statistics(targets), Statistics(targets)
    compiled.add_up = fused()
    for statistics in (eager, compiled):
        for first in range(0, 400, 150):  # the last tile is smaller
            with torch.inference_mode():
                statistics.add(logits[:, first : first + 150].clone(), first)
    for one, other in zip(eager.nll_and_entropy(), compiled.nll_and_entropy(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "gpt2", "mixtral"])
def test_each_architecture_scores_as_the_definition_does(name: str) -> None:
    model = build(name)
    for words in (10, VOCABULARY, 1000):  # tiles that leave a rest, that fit, that are larger
        head = output_head(model, words)
        assert head is not None and len(head) == -(-VOCABULARY // words)
    assert_same(model, random_samples(1, 7))


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_scaled_or_capped_head_is_not_the_bare_projection(name: str) -> None:
    model, hidden = build(name), torch.randn(3, WIDTH)
    head = output_head(model, VOCABULARY)
    assert head is not None
    with torch.inference_mode():
        assert not torch.allclose(head[0].logits(hidden), model.lm_head(hidden), atol=1e-2)


def test_a_head_that_depends_on_more_than_hidden_states_falls_back_to_the_models_own_logits() -> (
    None
):
    class Biased(LlamaForCausalLM):
        """Adds to its logits what no head that sees only hidden states can know."""

        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):  # type: ignore[no-untyped-def]
            out = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
            if input_ids is not None:
                out.logits = out.logits + torch.nn.functional.one_hot(input_ids, VOCABULARY) * 3.0
            return out

    torch.manual_seed(0)
    model = Biased(LlamaConfig(**SHAPE)).eval()
    assert output_head(model, 10) is None
    assert_same(model, random_samples(2, 5))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 12),
    slice_size=st.integers(1, 50),
    words=st.integers(1, 120),
)
def test_any_shape_of_batch_slice_and_tile_gives_the_same_scores(
    seed: int, count: int, slice_size: int, words: int
) -> None:
    model, samples = build("llama"), random_samples(seed, count)
    scorer = SampleScorer(model)
    scorer.slice, scorer.head = slice_size, output_head(model, words)
    nll, entropy = score(scorer, samples)
    own = plain(model)
    for position, (ids, scored) in enumerate(samples):
        assert (float(nll[position]), float(entropy[position])) == pytest.approx(
            plain_score(own, ids, scored), abs=1e-4
        )


def real_samples() -> list[list[Part]]:
    texts = [text for text in prose(seed=5, size=40) if len(text) > 40][:12]
    samples = [[Part("instruction", t[:20]), Part("response", t[20:])] for t in texts]
    samples[0].insert(1, Part("input", "an input, with its own section"))
    samples[1] = [Part("system", "Be brief."), *samples[1], *samples[2]]
    samples[3] = [
        Part("instruction", "Grüße, 你好 🎉"),
        Part("response", "  Ünïcode 漢字 🎉\n\nend "),
    ]
    return samples


def encode(model: Model, template: str, samples: list[list[Part]]) -> list[Encoded]:
    encoder = Encoder(model.load_tokenizer(), TEMPLATES[template], 512, truncate=False)
    encoded = encoder.encode(samples)
    assert all(isinstance(item, Encoded) for item in encoded)
    return [item for item in encoded if isinstance(item, Encoded)]


def assert_batches_score_as_the_definition(
    model: Model, template: str, samples: list[list[Part]]
) -> None:
    loaded = model.load("fp32")
    encoded = encode(model, template, samples)
    scorer, own = SampleScorer(loaded), plain(loaded)
    for batch in token_batches([len(e.input_ids) for e in encoded], 700):
        some = [(encoded[i].input_ids, encoded[i].response) for i in batch]
        nll, entropy = score(scorer, some)
        for position, row in enumerate(batch):
            expected = plain_score(own, encoded[row].input_ids, encoded[row].response)
            assert float(nll[position]) == pytest.approx(expected[0], abs=1e-4)
            assert float(entropy[position]) == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_text_scores_as_the_definition_through_every_template(model: Model, template: str) -> None:
    assert_batches_score_as_the_definition(model, template, real_samples())


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_the_real_pool_and_model_score_as_the_definition(shared, template: str) -> None:  # type: ignore[no-untyped-def]
    import json

    lines = (shared / "data/code_gpteacher.jsonl").read_text().splitlines()[:10]
    rows = [json.loads(line) for line in lines]
    samples = [
        [
            Part("instruction", r["instruction"]),
            Part("input", r["input"]),
            Part("response", r["response"]),
        ]
        for r in rows
    ]
    samples = [[part for part in sample if part.text] for sample in samples]
    real = find_model(ModelConfig(base=str(shared / "models/tiny-lm")))
    assert_batches_score_as_the_definition(real, template, samples)


@pytest.mark.gpu
def test_cuda_in_bf16_scores_near_the_definition() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, samples = build("llama"), random_samples(3, 20)
    expected = [plain_score(model, *sample) for sample in samples]
    nll, entropy = score(SampleScorer(model.to("cuda", torch.bfloat16)), samples)
    assert nll.tolist() == pytest.approx([e[0] for e in expected], abs=0.1)
    assert entropy.tolist() == pytest.approx([e[1] for e in expected], abs=0.1)
