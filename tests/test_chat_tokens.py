"""Chat templates and special tokens of the model whose tokenizer is used are kept, and composites take new ones."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

import composites
import tiny
from hub_double import hub  # noqa: F401 (a fixture)
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.composite.native import write_native
from stitch.models.loading import load, open_folder
from stitch.models.sources import resolve
from translations import affine

# ruff: noqa: F811 (an imported fixture is also the name of an argument)

TEMPLATE = "{% for one in messages %}<|user|>{{ one['content'] }}<|end|>{% endfor %}<|user|>"
TOOLS = "tools: {{ tools }}"
CHAT = [{"role": "user", "content": "hello"}]
USER, END = tiny.VOCABULARY, tiny.VOCABULARY + 1
SPECIAL = {"bos_token_id": 0, "eos_token_id": [END, 0], "pad_token_id": 1, "suppress_tokens": [USER]}


def chatting() -> PreTrainedTokenizerBase:
    """The tokenizer of the pico models with two more tokens and two chat templates."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": TOOLS}
    return tokenizer


@pytest.fixture(scope="module")
def donor(tmp_path_factory) -> Path:
    """A Llama with these tokens in its tables, and in its generation settings."""
    folder = tmp_path_factory.mktemp("chat") / "donor"
    tiny.net("llama", vocab_size=END + 1).save_pretrained(folder)
    chatting().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({**SPECIAL, "max_new_tokens": 7}))
    return folder


def join_to_itself(donor: Path, target: Path) -> None:
    model = load(donor)
    translation = affine(model, model, 3)
    write_checkpoint(target, compose(model, model, 3, 2, translation).config, donor, donor, translation)


def leave_out_blocks(donor: Path, target: Path) -> None:
    write_native(target, load(donor), [0, 1, 4, 5], {})


def download_it(donor: Path, target: Path) -> None:
    target.symlink_to(resolve("user/chat").folder)


@pytest.mark.parametrize("make", [join_to_itself, leave_out_blocks, download_it])
def test_templates_and_special_tokens_stay(make, donor, tmp_path, hub):
    hub.add("user/chat", {file.relative_to(donor).as_posix(): file.read_bytes() for file in donor.rglob("*.*")})
    make(donor, tmp_path / "out")
    kept, own = AutoTokenizer.from_pretrained(tmp_path / "out"), chatting()
    assert kept.get_vocab() == own.get_vocab() and kept.all_special_tokens == own.all_special_tokens
    assert kept.chat_template == {"default": TEMPLATE, "tool_use": TOOLS}
    ids = kept.apply_chat_template(CHAT, chat_template="default", return_dict=False)
    assert ids.count(USER) == 2 and ids.count(END) == 1
    assert ids == own.apply_chat_template(CHAT, chat_template="default", return_dict=False)
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(settings, name) for name in SPECIAL} == SPECIAL and settings.max_new_tokens == 7


def test_a_composite_in_memory_has_the_generation_settings_of_its_second_model(donor):
    model = load(donor)
    settings = compose(model, model, 3, 2, affine(model, model, 3)).generation_config
    assert {name: getattr(settings, name) for name in SPECIAL} == SPECIAL


@torch.no_grad()
def test_chat_tokens_added_to_a_composite_are_saved_and_end_a_text(tmp_path):
    """The composite looks up single tokens and pairs of them, whose keys are made of ids."""
    net, _ = open_folder(composites.write(tmp_path))
    tokenizer = chatting()
    text = torch.tensor([tokenizer.encode(" el mel m")])
    before = net(text).logits
    net.resize_token_embeddings(len(tokenizer))
    assert torch.equal(net(text).logits[..., : tiny.VOCABULARY], before)
    net.get_output_embeddings().weight[END] = 0
    net.generation_config.eos_token_id = END
    net.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")

    again, kept = open_folder(tmp_path / "chat")
    prompt = kept.apply_chat_template(CHAT, chat_template="default", return_dict=True, return_tensors="pt")
    assert prompt["input_ids"].max() == END and again.config.vocab_size == len(kept) == END + 1
    assert torch.equal(again(**prompt).logits, net(**prompt).logits)
    said, uncached = (
        again.generate(**prompt, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
    )
    assert torch.equal(said, uncached) and said.shape[1] == prompt["input_ids"].shape[1] + 6
    again.get_output_embeddings().weight[END] = (
        1e3 * again(**prompt, output_hidden_states=True).hidden_states[-1][0, -1]
    )
    ended = again.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert ended.shape[1] == prompt["input_ids"].shape[1] + 1 and ended[0, -1] == END
