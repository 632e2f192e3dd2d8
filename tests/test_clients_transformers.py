"""A composite in transformers: the auto classes, pipelines, placement, new tokens, compilation; each loads the folder's code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedTokenizerFast,
    StaticCache,
    pipeline,
)

import chains
import composites
import tiny
from recurrent import recurrent
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.loading import load
from tolerance import apart

NEW_IN_CONFIG = ("train_seam_only", "hidden_size", "num_attention_heads", "max_position_embeddings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return composites.write(tmp_path_factory.mktemp("composite"))


def open_composite(folder: Path, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


# The tokenizer


def test_the_tokenizer_loads_without_running_code_and_without_a_question(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert tokenizer("one")["input_ids"] == PreTrainedTokenizerFast.from_pretrained(folder)("one")["input_ids"]


def test_without_a_terminal_to_ask_at_the_tokenizer_loads_and_runs_no_code(folder, tmp_path):
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "copy" / "modeling_composite.py").write_text("raise SystemExit('the code of the folder was run')")
    script = "import sys; from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "copy")],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# The config


def test_the_config_states_what_clients_read(folder):
    config = open_composite(folder).config
    assert (config.hidden_size, config.num_attention_heads, config.max_position_embeddings) == (40, 4, 128)


def test_the_longest_context_is_that_of_the_shortest_part():
    config = chains.chained("gpt2", "qwen3", "llama").config
    config.a_config.a_config.n_positions = 48
    assert StitchConfig(**config.to_dict()).max_position_embeddings == 48


@torch.no_grad()
def test_a_folder_written_before_these_fields_still_gives_the_same_logits(folder, tmp_path):
    ids, wanted = tiny.ids(), open_composite(folder)(tiny.ids()).logits
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for name in NEW_IN_CONFIG:
        del config[name]
    del config["auto_map"]["AutoModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(open_composite(tmp_path)(ids).logits, wanted)
    assert torch.equal(load(tmp_path).net(ids).logits, wanted)
    assert load(tmp_path).config.max_position_embeddings == 128


# Auto classes and pipelines


@torch.no_grad()
def test_auto_model_gives_the_states_that_the_head_reads(folder):
    whole, body, ids = open_composite(folder), AutoModel.from_pretrained(folder, trust_remote_code=True), tiny.ids()
    found = body(ids, output_hidden_states=True)
    assert torch.equal(whole.b.lm_head(found.last_hidden_state), whole(ids).logits)
    assert len(found.hidden_states) == whole.config.num_hidden_layers + 1
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)


@torch.no_grad()
def test_auto_model_continues_from_its_cache(folder):
    body, ids = AutoModel.from_pretrained(folder, trust_remote_code=True), tiny.ids(2, 11)
    first = body(ids[:, :7])
    rest = body(ids[:, 7:], past_key_values=first.past_key_values)
    assert apart(rest.last_hidden_state, body(ids).last_hidden_state[:, 7:]) < 1e-4
    assert body(ids, use_cache=False).past_key_values is None


@torch.no_grad()
def test_a_saved_auto_model_loads_again_as_both(folder, tmp_path):
    ids = tiny.ids()
    AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path)
    assert torch.equal(open_composite(tmp_path)(ids).logits, open_composite(folder)(ids).logits)
    body = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert body(ids).last_hidden_state.shape == (*ids.shape, 40)


def test_pipelines_generate_text_and_extract_features(folder):
    generate = pipeline("text-generation", str(folder), trust_remote_code=True)
    said = generate("one fine day", max_new_tokens=4, min_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert said.startswith("one fine day") and len(said) > len("one fine day")
    (features,) = pipeline("feature-extraction", str(folder), trust_remote_code=True)("one")
    assert len(features[0]) == 40


# Placement


@torch.no_grad()
def test_an_automatic_device_map_changes_nothing(folder):
    pytest.importorskip("accelerate")
    ids = tiny.ids()
    assert torch.equal(open_composite(folder, device_map="auto")(ids).logits, open_composite(folder)(ids).logits)


@torch.no_grad()
def test_what_does_not_fit_is_read_from_disk(folder, tmp_path):
    pytest.importorskip("accelerate")
    ids, wanted = tiny.ids(), open_composite(folder)
    limit = {"cpu": sum(p.nbytes for p in wanted.parameters()) // 2}
    split = open_composite(folder, device_map="auto", max_memory=limit, offload_folder=tmp_path)
    places = split.hf_device_map
    assert {"cpu", "disk"} <= {str(place) for place in places.values()}
    assert torch.equal(split(ids).logits, wanted(ids).logits)
    assert torch.equal(split.generate(ids, max_new_tokens=5), wanted.generate(ids, max_new_tokens=5))


# New tokens


def with_bigram(ids: torch.Tensor) -> torch.Tensor:
    ids = ids.clone()
    ids[:, 4], ids[:, 5] = composites.BIGRAM
    return ids


@pytest.mark.parametrize("pair", [("gpt2", "llama"), ("llama", "gemma2")])
@torch.no_grad()
def test_new_tokens_have_a_place_in_every_look_up(pair, tmp_path):
    model = open_composite(composites.write(tmp_path, *pair))
    ids = with_bigram(tiny.ids())
    before = model(ids).logits
    size = tiny.VOCABULARY + 9
    model.resize_token_embeddings(size)
    after = model(ids).logits
    assert torch.equal(after[..., : tiny.VOCABULARY], before)
    assert after.shape[-1] == model.config.vocab_size == size
    ids[:, -3:] = size - 1
    found = model(ids, labels=ids)
    target = torch.nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert found.loss == pytest.approx(target.item(), rel=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(open_composite(tmp_path / "again")(ids).logits, found.logits)


@torch.no_grad()
def test_a_new_token_is_in_no_ngram(folder):
    """With the old base, the pair (3, 133) would have the key of (4, 5): 3 · 128 + 133 = 4 · 128 + 5."""
    model = open_composite(folder)
    term = model.translation.terms[5]
    term.keys.copy_(torch.tensor([4 * tiny.VOCABULARY + 5, 7 * tiny.VOCABULARY + 4]))
    model.resize_token_embeddings(140)
    ids = torch.tensor([[0, 3, 133]])
    with_it = model(ids).logits
    term.table.zero_()
    assert torch.equal(model(ids).logits, with_it)


@torch.no_grad()
def test_a_new_token_adds_what_the_average_token_adds(folder):
    model = open_composite(folder)
    model.resize_token_embeddings(tiny.VOCABULARY + 2)
    for term in (model.translation.terms[2], model.translation.terms[3]):
        rows = term.rows(torch.arange(tiny.VOCABULARY + 2))
        mean = rows[: tiny.VOCABULARY].mean(0)
        assert apart(rows[-1], mean) < 0.02 * mean.abs().max() and torch.equal(rows[-1], rows[-2])


@torch.no_grad()
def test_fewer_tokens_leave_the_others_as_they_were(folder, tmp_path):
    model, ids = open_composite(folder), with_bigram(tiny.ids()).clamp(max=99)
    before = model(ids).logits
    model.resize_token_embeddings(100)
    assert torch.equal(model(ids).logits, before[..., :100])
    model.save_pretrained(tmp_path)
    assert torch.equal(open_composite(tmp_path)(ids).logits, before[..., :100])


@torch.no_grad()
def test_asking_for_the_embeddings_changes_no_size(folder):
    model = open_composite(folder)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.config.vocab_size == tiny.VOCABULARY


@torch.no_grad()
def test_a_chain_and_a_base_model_take_new_tokens_too(folder, tmp_path):
    chain, ids = chains.chained("gpt2", "llama", "qwen3", make=chains.everything), tiny.ids()
    before = chain(ids).logits
    chain.resize_token_embeddings(150)
    assert torch.equal(chain(ids).logits[..., : tiny.VOCABULARY], before)
    ids[:, -1] = 149
    chain.save_pretrained(tmp_path / "chain")
    assert torch.equal(open_composite(tmp_path / "chain")(ids).logits, chain(ids).logits)
    body = AutoModel.from_pretrained(folder, trust_remote_code=True)
    body.resize_token_embeddings(150)
    body.save_pretrained(tmp_path / "body")
    again = open_composite(tmp_path / "body")
    assert again(ids).logits.shape[-1] == 150


@torch.no_grad()
def test_a_recurrent_model_takes_new_tokens(tmp_path):
    model, ids = recurrent("gpt2"), tiny.ids()
    before = model(ids).logits
    model.resize_token_embeddings(140)
    assert torch.equal(model(ids).logits[..., : tiny.VOCABULARY], before)
    ids[:, -1] = 139
    model.save_pretrained(tmp_path)
    assert apart(open_composite(tmp_path)(ids).logits, model(ids).logits) == 0


# Decoding


def decode(model, step, ids: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Logits of `count` greedy steps of one token each by `step`, after `ids` were read by `model`."""
    cache, found = DynamicCache(), []
    logits = model(ids, past_key_values=cache).logits[:, -1]
    for _ in range(count):
        token = logits.argmax(-1, keepdim=True)
        logits = step(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
        found.append(logits)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@torch.no_grad()
def test_a_compiled_decode_step_says_the_same(backend, tmp_path):
    model, ids = open_composite(composites.write(tmp_path, site=1, site_b=5)), tiny.ids(1, 5)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    wanted = decode(model, model, ids, 4)
    for one, other in zip(decode(model, compiled, ids, 4), wanted, strict=True):
        assert apart(one, other) < 1e-3


def test_continuous_batching_is_refused_in_one_line(folder):
    for model in (open_composite(folder), recurrent()):
        with pytest.raises(ValueError, match=r"has no continuous batching.*call generate on a padded batch\.$"):
            model.generate_batch([[0, 5, 6], [0, 7]], max_new_tokens=2)


def test_a_static_cache_is_refused_in_one_line(folder):
    model = open_composite(folder)
    with pytest.raises(ValueError, match=r"needs a dynamic cache; got a static one"):
        model(tiny.ids(), past_key_values=StaticCache(config=model.config, max_cache_len=20))
