"""Composites trained further by Trainer, PEFT and TRL: all of them, by LoRA, and the seam alone."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import chains
import composites
import tiny
from jobs import write_text
from tolerance import apart

pytestmark = pytest.mark.slow  # importing PEFT and TRL alone takes ten seconds

pytest.importorskip("accelerate")  # Trainer needs it
STEPS = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return composites.write(tmp_path_factory.mktemp("composite"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    path = write_text(tmp_path_factory.mktemp("text"), documents=64)
    return [json.loads(line)["text"][:60] for line in path.read_text().splitlines()]


def open_composite(folder: Path, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def arguments(out: Path, **changes) -> dict:
    """Settings of Trainer and of TRL's trainer for a few seconds on the processor."""
    base = dict(
        output_dir=str(out), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=1,
        save_strategy="no", report_to=[], use_cpu=True, seed=0, disable_tqdm=True,
    )  # fmt: skip
    return {**base, **changes}


def train(model, folder: Path, texts: list[str], out: Path, **changes) -> list[float]:
    """Losses of a training by Trainer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    data = Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"]), remove_columns="text")
    trainer = Trainer(
        model,
        TrainingArguments(**arguments(out, **changes)),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    return losses(trainer)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def falls(found: list[float]) -> bool:
    return sum(found[-10:]) < 0.9 * sum(found[:10])


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


# Trainer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_composite_is_trained_saved_and_loaded(folder, texts, tmp_path, checkpointing):
    model = open_composite(folder)
    before = weights(model)
    assert falls(train(model, folder, texts, tmp_path / "run", gradient_checkpointing=checkpointing))
    names = changed(model, before)
    assert {name.split(".")[0] for name in names} == {"a", "translation", "b"}
    model.save_pretrained(tmp_path / "trained")
    again = open_composite(tmp_path / "trained")
    with torch.no_grad():
        assert torch.equal(again(tiny.ids()).logits, model.eval()(tiny.ids()).logits)


def test_a_training_that_was_cut_off_goes_on_from_its_checkpoint(folder, texts, tmp_path):
    whole, part = open_composite(folder), open_composite(folder)
    train(whole, folder, texts, tmp_path / "whole", max_steps=8)
    train(part, folder, texts, tmp_path / "run", max_steps=8, save_strategy="steps", save_steps=4)
    middle = open_composite(tmp_path / "run" / "checkpoint-4")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    data = Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"]), remove_columns="text")
    trainer = Trainer(
        middle,
        TrainingArguments(**arguments(tmp_path / "run", max_steps=8)),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    with torch.no_grad():
        ids = tiny.ids()
        assert apart(middle.eval()(ids).logits, whole.eval()(ids).logits) < 1e-4


# The seam alone


def test_one_flag_of_the_config_trains_the_seam_alone(folder, texts, tmp_path):
    model = open_composite(folder, train_seam_only=True)
    before = weights(model)
    assert falls(train(model, folder, texts, tmp_path / "run"))
    names = changed(model, before)
    assert names == {name for name in before if name.startswith("translation.")}
    model.save_pretrained(tmp_path / "trained")
    again = open_composite(tmp_path / "trained")  # the flag is in its config.json
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == names


def test_without_the_flag_all_weights_are_trainable(folder):
    assert all(parameter.requires_grad for parameter in open_composite(folder).parameters())


def test_the_flag_reaches_every_seam_of_a_chain(tmp_path):
    chains.chained("gpt2", "qwen3", "llama").save_pretrained(tmp_path)
    model = open_composite(tmp_path, train_seam_only=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "translation" in name}
    assert any(name.startswith("a.translation") for name in trained)


# PEFT


@pytest.mark.parametrize(
    "options",
    [{}, {"target_modules": "all-linear"}, {"modules_to_save": ["translation"]}],
    ids=["default", "all-linear", "with-seam"],
)
def test_lora_trains_saves_and_loads(folder, texts, tmp_path, options):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(open_composite(folder), peft.LoraConfig(task_type="CAUSAL_LM", r=8, **options))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(".a." in name for name in trained) and any(".b." in name for name in trained)
    assert any("translation" in name for name in trained) == ("modules_to_save" in options)
    assert falls(train(model, folder, texts, tmp_path / "run", gradient_checkpointing=True, learning_rate=2e-2))
    model.save_pretrained(tmp_path / "adapter")
    ids = tiny.ids()
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        again = peft.PeftModel.from_pretrained(open_composite(folder), tmp_path / "adapter").eval()
        assert torch.equal(again(ids).logits, wanted)
        merged = again.merge_and_unload()
        assert apart(merged(ids).logits, wanted) < 1e-3
        merged.save_pretrained(tmp_path / "merged")
        assert torch.equal(open_composite(tmp_path / "merged")(ids).logits, merged(ids).logits)


@pytest.mark.parametrize(
    ("pair", "layers"), [(("gpt2", "llama"), {"c_attn", "q_proj", "v_proj"}), (("phi", "gpt_neox"), None)]
)
def test_lora_finds_the_layers_of_both_families_by_itself(tmp_path, pair, layers):
    """In one process with several composites: PEFT's table has one entry for all of them."""
    peft = pytest.importorskip("peft")
    table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    model = peft.get_peft_model(open_composite(composites.write(tmp_path, *pair)), peft.LoraConfig())
    expected = layers or set(table[pair[0]]) | set(table[pair[1]])
    assert model.peft_config["default"].target_modules == expected


# TRL


@pytest.mark.parametrize("lora", [False, True])
def test_trl_fine_tunes_a_composite(folder, texts, tmp_path, lora):
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    trainer = trl.SFTTrainer(
        open_composite(folder),
        trl.SFTConfig(**arguments(tmp_path / "run", learning_rate=2e-2 if lora else 3e-3, bf16=False)),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train()
    assert falls(losses(trainer))
    trainer.save_model(str(tmp_path / "trained"))
    ids = tiny.ids()
    with torch.no_grad():
        again = open_composite(folder if lora else tmp_path / "trained")
        again = peft.PeftModel.from_pretrained(again, tmp_path / "trained") if lora else again
        assert torch.equal(again.eval()(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("b", ["llama", "gemma2"])  # Gemma 2 caps its logits
def test_the_loss_of_trl_is_that_of_the_model(tmp_path, b):
    """TRL runs the base model and applies the head itself."""
    trl = pytest.importorskip("trl")
    model, ids = open_composite(composites.write(tmp_path, b=b)), tiny.ids()
    wanted = model(ids, labels=ids).loss
    trl.trainer.utils.add_fused_lm_head(model)
    found = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
