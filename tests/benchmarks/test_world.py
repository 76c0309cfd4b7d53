"""The world is what it says: its answers are right, its kinds are known, its test is exact."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from benchmarks.world.arms import ARMS, FULL, ORACLE
from benchmarks.world.cell import Cell, run_cell
from benchmarks.world.model import (
    BOS,
    EOS,
    IDS,
    IGNORED,
    PACKED,
    Schedule,
    encode,
    exact_match,
    labelled,
    new_model,
    packed,
    train,
)
from benchmarks.world.population import KINDS, NOISE, SPOILT, make_pool
from benchmarks.world.table import report
from benchmarks.world.tasks import (
    ALL,
    LANGUAGE,
    LEARNABLE,
    MASTERED,
    make_task,
    pretraining_tasks,
)

ANSWERS = {
    "copy abc=": "abc",
    "say abc=": "abc",
    "upper abc=": "ABC",
    "shout abc=": "ABC",
    "first abc=": "a",
    "last abc=": "c",
    "end abc=": "c",
    "next abz=": "bca",
    "shift abz=": "bca",
    "alternate abcd=": "aBcD",
    "wave abcd=": "aBcD",
    "multiply 12*12=": "144",
    "sort hello=": "ehllo",
}


class Fixed(random.Random):
    """Draws the letters and numbers of a given text."""

    def __init__(self, text: str) -> None:
        super().__init__(0)
        self.letters, self.numbers = [*text], [int(n) for n in text.split("*") if n.isdigit()]

    def choice(self, _):  # type: ignore[no-untyped-def, override]
        return self.letters.pop(0)

    def randint(self, low: int, high: int) -> int:
        return self.numbers.pop(0) if self.numbers else len(self.letters)


@pytest.mark.parametrize("prompt", ANSWERS)
def test_the_answers_are_right(prompt: str) -> None:
    skill, _, argument = prompt[:-1].partition(" ")
    task = make_task(skill, Fixed(argument))
    assert (task.prompt, task.answer) == (prompt, ANSWERS[prompt])


def test_every_skill_can_be_written_in_the_models_characters() -> None:
    draw = random.Random(0)
    for skill in ALL:
        for _ in range(50):
            task = make_task(skill, draw)
            ids, inside = encode(task.prompt, task.answer)
            letters = {number: character for character, number in IDS.items()}
            assert ids[0] == BOS and ids[-1] == EOS
            response = "".join(letters[i] for i, r in zip(ids, inside, strict=True) if r)
            assert response == task.answer


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.2])
def test_the_pool_has_the_kinds_that_it_should(noise: float) -> None:
    pool = make_pool(3000, noise, seed=1)
    assert [*pool] == sorted(pool)
    counts = Counter(sample.kind for sample in pool.values())
    for kind, share in KINDS.items():
        assert counts[kind] == pytest.approx(share * 3000 * (1 - noise), rel=0.1)
    for sort in NOISE:
        assert counts[sort] == pytest.approx(noise * 3000 / len(NOISE), rel=0.1)


def test_what_is_asked_is_not_in_the_pool() -> None:
    asked = {sample.prompt for sample in [*make_pool(300, 0.2, seed=1).values()][::2]}
    kept = make_pool(300, 0.2, seed=1, held_out=asked)
    assert 100 < len(kept) < 200
    assert not asked & {sample.prompt for sample in kept.values()}


def test_the_base_model_also_reads_texts_that_stand_alone() -> None:
    tasks = pretraining_tasks(2000, random.Random(0))
    alone = [task for task in tasks if task.prompt == "="]
    asked = [task for task in tasks if task.skill == LANGUAGE and task.prompt != "="]
    assert {task.skill for task in alone} == {LANGUAGE}
    assert 0.7 < len(alone) / len(asked) < 1.4
    assert not {task.skill for task in tasks} & {*LEARNABLE}


def test_what_is_spoilt_has_no_right_answer() -> None:
    pool = make_pool(3000, 0.2, seed=1)
    answers = {
        sample.prompt: sample.response for sample in pool.values() if sample.kind not in SPOILT
    }
    for sample in pool.values():
        if sample.kind in SPOILT and sample.prompt in answers:
            assert sample.response != answers[sample.prompt]


def test_exact_match_is_what_greedy_decoding_gives() -> None:
    draw = random.Random(0)
    tasks = [make_task(skill, draw) for skill in ("first", "copy") for _ in range(600)]
    model = train(
        new_model("small", 0), [(t.prompt, t.answer) for t in tasks], Schedule(5e-3, 32, 3), 0
    )
    asked = [make_task(skill, draw) for skill in ("first", "copy") for _ in range(40)]
    right = []
    for task in asked:
        prompt = torch.tensor([encode(task.prompt, "")[0][:-1]])
        expected = encode("", task.answer)[0][1:]
        with torch.inference_mode():
            answer = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=len(expected),
                do_sample=False,
                pad_token_id=EOS,
                eos_token_id=EOS,
            )
        right.append(answer[0, prompt.shape[1] :].tolist() == expected)
    assert exact_match(model, asked).tolist() == right
    assert 0 < sum(right) < len(right)


def test_a_packed_sample_is_trained_as_if_alone() -> None:
    model = new_model("small", 0)
    samples = [labelled(s.prompt, s.response) for s in make_pool(60, 0.2, seed=1).values()]
    batch = packed(samples)
    assert batch["input_ids"].shape[1] <= PACKED < batch["input_ids"].numel() / 4
    loss = model(**batch, use_cache=False).loss
    counts = [sum(label != IGNORED for label in labels) for _, labels in samples]
    alone = [
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        for ids, labels in samples
    ]
    mean = sum(x * n for x, n in zip(alone, counts, strict=True)) / sum(counts)
    assert loss.item() == pytest.approx(mean.item(), rel=1e-5)


def test_every_arm_is_trained_within_its_budget_and_judged() -> None:
    threads = torch.get_num_threads()
    results = run_cell(Cell("small", 0, ((0.05, (0.1,)),), pool=200, pretraining=300))
    torch.set_num_threads(threads)
    trained = {result["arm"]: result for result in results}
    assert {*trained} == {"untrained", ORACLE, FULL, *ARMS}
    budget = 0.1 * trained[FULL]["tokens"]
    for arm in (ORACLE, *ARMS):
        assert budget - 1 < trained[arm]["tokens"] < budget + 100
        assert sum(trained[arm]["kinds"].values()) == trained[arm]["samples"]
        assert {*MASTERED, *LEARNABLE} <= {*trained[arm]["accuracy"]}
    assert {*trained[ORACLE]["kinds"]} == {"learnable"}
    text = "\n".join(report(results))
    assert all(f"\n{arm} " in text for arm in (ORACLE, FULL, *ARMS))
