"""Benchmark tasks by lm-eval, an optional extra."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch

from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import EvaluateConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.evaluation.lm_eval import benchmark, check_tasks, metrics
from instructdiff_ray.models.model import Model
from instructdiff_ray.progress import Progress
from instructdiff_ray.storage.artifacts import Storage

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="the extra lm-eval is not installed")

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.mark.skipif(INSTALLED, reason="the extra lm-eval is installed")
def test_without_the_extra_it_says_how_to_get_it() -> None:
    with pytest.raises(UserError, match=r"pip install 'lm-eval\[hf\]'"):
        check_tasks(("gsm8k",))


def test_of_a_group_its_own_metrics_count_and_of_a_file_those_of_its_tasks() -> None:
    rows = {
        "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 9},
        "mmlu_law": {"acc,none": 0.25},
        "gsm8k": {"exact_match,strict-match": 0.0, "exact_match_stderr,strict-match": "N/A"},
    }
    assert metrics({"results": rows}, "mmlu") == {"mmlu acc": 0.5}
    assert metrics({"results": rows}, "some.yaml") == {
        "mmlu acc": 0.5,
        "mmlu_law acc": 0.25,
        "gsm8k exact_match (strict-match)": 0.0,
    }
    # A group without a metric of its own stands for its tasks.
    rows = {"tiny": {"alias": "tiny"}, "tiny_arc": {"acc_norm,none": 0.75}}
    assert metrics({"results": rows}, "tiny") == {"tiny_arc acc_norm": 0.75}
    with pytest.raises(UserError, match="tiny gives no metric"):
        metrics({"results": {"tiny": {"alias": "tiny"}}}, "tiny")


@needs_harness
def test_a_task_gives_the_share_of_questions_whose_likeliest_answer_is_right(
    ray_session: None, model: Model, tmp_path: Path
) -> None:
    rows = [
        {"question": f"{n} and {n} is", "choices": [f" {2 * n}", " a fox"], "answer": n % 2}
        for n in range(10)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = tmp_path / "sums.yaml"
    task.write_text(TASK.format(data=tmp_path / "sums.jsonl"))
    check_tasks((str(task), "arc_easy"))
    with pytest.raises(UserError, match="arc_eas is no task of lm-eval .* did you mean arc_easy"):
        check_tasks(("arc_eas",))
    config = Config(evaluate=EvaluateConfig(tasks=[str(task)]))
    found = benchmark(config, model, Storage(str(tmp_path)), Progress(io.StringIO()))
    loaded, tokenizer = model.load("fp32"), model.load_tokenizer()

    def likelihood(question: str, choice: str) -> float:
        asked, ids = (tokenizer(text)["input_ids"] for text in (question, question + choice))
        with torch.no_grad():
            logs = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logs[t - 1, ids[t]]) for t in range(len(asked), len(ids)))

    right = 0
    for row in rows:
        likely = [likelihood(row["question"], choice) for choice in row["choices"]]
        right += likely.index(max(likely)) == row["answer"]
    assert found == {"sums acc": right / 10}


@needs_harness
def test_a_task_whose_data_are_not_to_be_had_ends_in_one_line(
    ray_session: None, model: Model, tmp_path: Path
) -> None:
    task = tmp_path / "gone.yaml"
    task.write_text(TASK.format(data=tmp_path / "gone.jsonl"))
    config = Config(evaluate=EvaluateConfig(tasks=[str(task)]))
    with pytest.raises(UserError, match=r"lm-eval can't run .*gone.yaml: .*gone.jsonl"):
        benchmark(config, model, Storage(str(tmp_path)), Progress(io.StringIO()))
