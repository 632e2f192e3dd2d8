"""lm-eval scores a composite on a task from local files: one of its options is right, and some texts are too long."""

import json
import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cli
import composites
import stitch
from jobs import gpt2_and_qwen3, settings
from stitch.errors import StitchError, UsageError
from stitch.evaluation import lm_eval_tasks
from stitch.jobs.join import stitch as join
from stitch.jobs.tasks import evaluate_tasks
from stitch.models.identity import weights_hash

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
    """A folder with three tasks. Every text has more tokens than the 128 positions of the composite."""
    place = tmp_path_factory.mktemp("tasks")
    questions = [
        {"question": f"the {word} is{' very' * (40 * (number % 2))}", "choices": list(CHOICES), "answer": number % 3}
        for number, word in enumerate(("leaf", "sky", "rose", "sea", "grass", "ink"))
    ]
    short = [{**one, "question": one["question"].replace(" very", "")} for one in questions]
    texts = [{"text": f"the {word} layer of the model. " * 12} for word in ("first", "last")]
    written = {
        "choices": (questions, MULTIPLE_CHOICE), "short": (short, MULTIPLE_CHOICE), "texts": (texts, PERPLEXITY)
    }  # fmt: skip
    for name, (rows, rest) in written.items():
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


def scored(model: object, tasks: Path, *names: str, **options) -> dict:
    return evaluate_tasks(str(model), names, folder=tasks, device="cpu", trust_remote_code=True, **options)


@pytest.mark.slow
def test_rows_of_a_batch_are_as_many_as_the_longest_request_allows(folder, tasks, monkeypatch):
    """With memory for one row of the whole context: requests of fewer tokens take several rows, texts beyond it take one."""
    from lm_eval.models.huggingface import HFLM

    shapes, told, run = [], [], HFLM._model_call
    monkeypatch.setattr(
        HFLM, "_model_call", lambda lm, ids, **more: shapes.append(tuple(ids.shape)) or run(lm, ids, **more)
    )
    vocabulary = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).config.vocab_size
    room = lm_eval_tasks.HELD * 4 * vocabulary * 128
    for name in ("short", "texts"):
        scored(folder, tasks, name, memory=room, progress=lambda *one: told.append(one))
    assert all(rows == 1 or rows * length <= 128 for rows, length in shapes)
    assert max(rows for rows, length in shapes) > 1 and max(shapes, key=lambda one: one[1]) == (1, 128)
    stages = dict.fromkeys(stage for stage, _, _ in told)
    waits = [f"data and requests, {folder}", f"scores and standard errors, {folder}"]
    assert list(stages)[-4:] == [waits[0], f"tasks, {folder}", waits[1], f"texts, {folder}"]
    for stage in stages:
        assert [(done, total) for one, done, total in told if one == stage][-1][0] > 0, stage


def test_numbers_of_numpy_are_numbers():
    found = [lm_eval_tasks._number(one) for one in (np.float32(0.5), np.int64(3), 2, float("nan"), "N/A", None)]
    assert found == [0.5, 3.0, 2.0, None, None, None]


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


def rename(copy: Path, role: str, **changes) -> dict:
    """The report in `copy` with another entry of a model."""
    report = json.loads((copy / "report.json").read_text())
    report["provenance"]["models"][role] |= changes
    (copy / "report.json").write_text(json.dumps(report))
    return report["provenance"]["models"][role]


@pytest.mark.slow
def test_another_model_in_the_folder_of_a_donor_is_not_shown_as_it(joined, tasks, tmp_path, monkeypatch):
    """A folder is recorded as it was typed, and read from where the command runs."""
    copy = shutil.copytree(joined, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(joined.parent / "qwen3", tmp_path / "donor")
    assert len(rename(copy, "a", name="donor")["weights_sha256"]) == 64
    assert scored(copy, tasks, "choices")["notes"] == ["a, donor, is not shown: it has changed since."]
    rename(copy, "a", name="donor", weights_sha256=None)
    [note] = scored(copy, tasks, "choices")["notes"]
    assert note == "a, donor, is not shown: the report has neither the place of its folder nor a hash."
    rename(copy, "a", name="donor", kind="hub")
    assert scored(copy, tasks, "choices")["notes"] == ["a, donor, is not shown: it has changed since."]
    rename(copy, "a", name=str(joined.parent / "gpt2"), kind="folder")
    report = json.loads((copy / "report.json").read_text())
    models = report["provenance"]["models"]
    models["model"] = models.pop("b")  # so a model is called from which another was made by `retokenize`
    (copy / "report.json").write_text(json.dumps(report))
    report = scored(copy, tasks, "choices")
    assert list(report["models"]) == ["a", "model before", "model"]
    assert [note for note in report["notes"] if note.startswith("a, ") and "is what is there now" in note]
    assert report["results"][0]["model before_stderr"] is not None


@pytest.mark.slow
def test_a_donor_that_fails_costs_no_score_and_donors_can_be_left_out(joined, tasks, monkeypatch):
    from stitch.jobs import tasks as job

    told, load = [], job.load_any

    def without_room(source, *rest):
        if source.name.endswith("qwen3"):
            raise torch.OutOfMemoryError("out of memory")
        return load(source, *rest)

    monkeypatch.setattr(job, "load_any", without_room)
    report = scored(joined, tasks, "choices", progress=lambda *one: told.append(one[0]))
    assert list(report["models"]) == ["a", "model"] and report["results"][0]["model"] is not None
    assert report["notes"] == [f"b, {joined.parent / 'qwen3'}, is not shown: out of memory."]
    donors = f"a {joined.parent / 'gpt2'}, b {joined.parent / 'qwen3'}"
    assert told.index(f"models that report.json names: {donors}") < told.index(f"tasks, {joined.parent / 'gpt2'}")
    assert list(scored(joined, tasks, "choices", alone=True)["models"]) == ["model"]


@pytest.mark.slow
def test_a_model_that_a_report_names_brings_no_code(joined, tasks, tmp_path):
    """The flag was set for the model that the user named."""
    donor = shutil.copytree(joined.parent / "qwen3", tmp_path / "donor")
    code = {"model_type": "x", "auto_map": {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}}
    (donor / "config.json").write_text(json.dumps({**json.loads((donor / "config.json").read_text()), **code}))
    (donor / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    copy = shutil.copytree(joined, tmp_path / "copy")
    rename(copy, "b", name=str(donor), weights_sha256=weights_hash(donor))
    result = stitch.evaluate(copy, tasks="choices", task_folder=tasks, trust_remote_code=True, device="cpu", quiet=True)
    assert list(result.report["models"]) == ["a", "model"] and not (tmp_path / "ran").exists()
    assert "brings code of its own" in result.report["notes"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "hint"), [("choices", "`lm_eval ls tasks` lists them"), ("hellaswagg", "Did you mean hellaswag")]
)
def test_a_task_that_is_unknown_is_refused_before_a_model_is_looked_for(task, hint):
    with pytest.raises(UsageError, match=f"names of lm-eval's tasks; got '{task}'. {hint}"):
        stitch.evaluate("no/such/model", tasks=task, quiet=True)


@pytest.fixture
def own_tasks_alone(monkeypatch):
    """Without the 13,000 files of lm-eval's own tasks, which take five seconds to read. The slow tests read them."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


@pytest.mark.usefixtures("own_tasks_alone")
def test_the_tasks_of_the_examples_are_read_from_any_working_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = Path(__file__).parent.parent / "examples" / "tasks"
    report = scored(folder, examples, "next-words")
    assert {row["documents"] for row in report["results"]} == {24}


@pytest.mark.usefixtures("own_tasks_alone")
def test_a_task_whose_data_are_gone_is_refused_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("stitch.jobs.tasks.load_any", lambda *arguments: pytest.fail("a model was loaded"))
    (tmp_path / "gone.yaml").write_text(TASK.format(name="gone", file="gone.jsonl") + MULTIPLE_CHOICE)
    with pytest.raises(StitchError, match=r"^lm-eval failed to read its tasks: .*gone\.jsonl"):
        scored(folder, tmp_path, "gone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "choices", "task_folder": "."}, "task files can run code on your machine.*`trust_remote_code`"),
        ({"tasks": "choices", "task_folder": "gone", "trust_remote_code": True}, "must be a folder of task files"),
        ({"tasks": "choices", "tokens": 100}, "`tokens` is read only without `tasks`"),
        ({"tasks": "choices", "behaviour": "induction"}, "`tasks` is measured by itself"),
        ({"task_folder": "."}, "`task_folder` is read only with `tasks`"),
        ({"alone": True}, "`alone` is read only with `tasks`"),
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
