"""lm-eval scores a composite on a task from local files: one of its options is right, and some texts are too long."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import composites

pytest.importorskip("lm_eval")

CHOICES = ("red", "green", "blue")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
MULTIPLE_CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
PERPLEXITY = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return composites.write(tmp_path_factory.mktemp("composite"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with two tasks. Every text has more tokens than the 128 positions of the composite."""
    place = tmp_path_factory.mktemp("tasks")
    questions = [
        {"question": f"the {word} is{' very' * (40 * (number % 2))}", "choices": list(CHOICES), "answer": number % 3}
        for number, word in enumerate(("leaf", "sky", "rose", "sea", "grass", "ink"))
    ]
    texts = [{"text": f"the {word} layer of the model. " * 12} for word in ("first", "last")]
    for name, rows, rest in (("choices", questions, MULTIPLE_CHOICE), ("texts", texts, PERPLEXITY)):
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (place / f"{name}.yaml").write_text(TASK.format(name=name, file=place / f"{name}.jsonl") + rest)
    return place


def test_lm_eval_reads_the_context_from_the_config(folder):
    from lm_eval.models.utils import resolve_max_length

    config = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).config
    assert resolve_max_length(config) == 128


@pytest.mark.slow
def test_the_command_scores_a_composite(folder, tasks, tmp_path):
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "choices,texts", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder},trust_remote_code=True", "--include_path", str(tasks)]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "out.json"), "--log_samples"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("out*.json")).read_text())["results"]
    samples = [json.loads(line) for line in next(tmp_path.rglob("samples_choices*.jsonl")).read_text().splitlines()]
    found = {sample["doc_id"]: [float(given[0]) for given in sample["filtered_resps"]] for sample in samples}
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for sample in samples:
        wanted = [log_likelihood(model, tokenizer, sample["doc"]["question"], f" {choice}") for choice in CHOICES]
        assert found[sample["doc_id"]] == pytest.approx(wanted, abs=1e-3)
    right = [max(range(3), key=found[sample["doc_id"]].__getitem__) == sample["doc"]["answer"] for sample in samples]
    assert results["choices"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert math.isfinite(results["texts"]["word_perplexity,none"])


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, option: str) -> float:
    """Of `option` after the last tokens of `context` for which there are positions."""
    before = tokenizer(context)["input_ids"]
    after = tokenizer(option, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([(before + after)[-129:]])
    logits = model(ids[:, :-1]).logits.log_softmax(-1)[0, -len(after) :]
    return sum(logits[place, token].item() for place, token in enumerate(after))
