"""lm-eval scores a composite on a task from local files: one of its options is right, and some texts are too long."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cli
import composites
import stitch
from jobs import gpt2_and_qwen3, settings
from stitch.errors import UsageError
from stitch.jobs.join import stitch as join

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


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """A composite with the report that names its donors."""
    place = tmp_path_factory.mktemp("joined")
    donors = gpt2_and_qwen3(place)
    changes = {"tokens": 8192, "brief": True, "reference_steps": None}
    join(settings(donors["gpt2"], donors["qwen3"], donors["text"], **changes), place / "composite")
    return place / "composite"


@pytest.mark.slow
def test_eval_shows_a_composite_beside_its_donors(joined, tasks):
    donors = {"a": joined.parent / "gpt2", "b": joined.parent / "qwen3"}
    drawn = torch.get_rng_state()
    result = stitch.evaluate(
        joined, tasks=["choices", "texts"], task_folder=tasks, trust_remote_code=True, device="cpu", quiet=True
    )
    assert torch.equal(torch.get_rng_state(), drawn)
    assert result.report["models"] == {**{role: str(folder) for role, folder in donors.items()}, "model": str(joined)}
    rows = [json.loads(line) for line in (tasks / "choices.jsonl").read_text().splitlines()]
    for role, folder in {**donors, "model": joined}.items():
        net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        right = [answer(net, tokenizer, row["question"]) == row["answer"] for row in rows]
        share = sum(right) / len(right)
        found = result.rows.loc["choices acc"]
        assert found[role] == pytest.approx(share) and found["documents"] == len(rows)
        assert found[f"{role}_stderr"] == pytest.approx((share * (1 - share) / (len(rows) - 1)) ** 0.5)
        nats = sum(-text_log_likelihood(net, tokenizer, text) for text in texts(tasks))
        written = sum(len(text.encode()) for text in texts(tasks))
        assert result.rows.loc["texts byte_perplexity", role] == pytest.approx(math.exp(nats / written), rel=1e-4)
    shown = repr(result).splitlines()
    assert shown[0].startswith(f"a {donors['a']}, b {donors['b']}, model {joined}; tasks of lm-eval")
    assert shown[1].split() == ["documents", "better", "a", "b", "model"]
    assert f"{found['model']:.4g} ± {found['model_stderr']:.2g}" in shown[2]


@pytest.mark.slow
def test_a_donor_that_is_gone_is_named(joined, tasks, tmp_path):
    """The model that is compared with is one of the donors, which stands there once."""
    copy = shutil.copytree(joined, tmp_path / "copy")
    report = json.loads((copy / "report.json").read_text())
    report["provenance"]["models"]["a"]["name"] = str(tmp_path / "gone")
    (copy / "report.json").write_text(json.dumps(report))
    donor = str(joined.parent / "qwen3")
    options = ["--tasks", "choices", "--task-folder", str(tasks), "--trust-remote-code", "--device", "cpu"]
    done = CliRunner().invoke(cli.app, ["eval", str(copy), "--against", donor, *options, "--json"])
    report = json.loads(done.stdout)
    assert report["models"] == {"against": donor, "model": str(copy)}
    assert report["notes"] == [f"a, {tmp_path / 'gone'}, is not shown: its folder is not there."]
    assert "tasks, qwen3" in done.stderr.replace(str(joined.parent) + "/", "")


@pytest.mark.slow
def test_a_model_that_a_report_names_brings_no_code(joined, tasks, tmp_path):
    """The flag was set for the model that the user named."""
    donor = shutil.copytree(joined.parent / "qwen3", tmp_path / "donor")
    code = {"model_type": "x", "auto_map": {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}}
    (donor / "config.json").write_text(json.dumps({**json.loads((donor / "config.json").read_text()), **code}))
    (donor / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    copy = shutil.copytree(joined, tmp_path / "copy")
    report = json.loads((copy / "report.json").read_text())
    report["provenance"]["models"]["b"]["name"] = str(donor)
    (copy / "report.json").write_text(json.dumps(report))
    result = stitch.evaluate(copy, tasks="choices", task_folder=tasks, trust_remote_code=True, device="cpu", quiet=True)
    assert list(result.report["models"]) == ["a", "model"] and not (tmp_path / "ran").exists()
    assert "brings code of its own" in result.report["notes"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "hint"), [("choices", "`lm_eval ls tasks` lists them"), ("hellaswagg", "did you mean hellaswag")]
)
def test_a_task_that_is_unknown_is_refused_before_a_model_is_looked_for(task, hint):
    with pytest.raises(UsageError, match=f"names of lm-eval's tasks; got '{task}'.*{hint}"):
        stitch.evaluate("no/such/model", tasks=task, quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "choices", "task_folder": "."}, "task files can run code on your machine.*`trust_remote_code`"),
        ({"tasks": "choices", "task_folder": "gone", "trust_remote_code": True}, "must be a folder of task files"),
        ({"tasks": "choices", "tokens": 100}, "`tokens` is read only without `tasks`"),
        ({"tasks": "choices", "behaviour": "induction"}, "`tasks` is measured by itself"),
        ({"task_folder": "."}, "`task_folder` is read only with `tasks`"),
    ],
)
def test_what_goes_with_tasks_and_what_does_not(options, message):
    with pytest.raises(UsageError, match=message):
        stitch.evaluate("demo:gpt2", quiet=True, **options)


def texts(tasks: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (tasks / "texts.jsonl").read_text().splitlines()]


def answer(model, tokenizer, question: str) -> int:
    return max(range(3), key=lambda one: log_likelihood(model, tokenizer, question, f" {CHOICES[one]}"))


@torch.no_grad()
def text_log_likelihood(model, tokenizer, text: str) -> float:
    """Of all tokens, 128 at a time, each read with the 127 or fewer before it that fit."""
    ids = tokenizer(text)["input_ids"]
    read, total = [tokenizer.bos_token_id or tokenizer.eos_token_id, *ids], 0.0
    for start in range(0, len(ids), 128):
        end = min(start + 128, len(ids))
        logits = model(torch.tensor([read[max(0, end - 128) : end]])).logits.log_softmax(-1)[0]
        total += logits[range(-(end - start), 0), ids[start:end]].sum().item()
    return total


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, option: str) -> float:
    """Of `option` after the last tokens of `context` for which there are positions."""
    before = tokenizer(context)["input_ids"]
    after = tokenizer(option, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([(before + after)[-129:]])
    logits = model(ids[:, :-1]).logits.log_softmax(-1)[0, -len(after) :]
    return sum(logits[place, token].item() for place, token in enumerate(after))
