"""Families whose blocks are found by looking: exact when they are joined to themselves, and refused with the reason otherwise."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from math import isfinite
from pathlib import Path

import _families
import families
import pytest
import torch
import transformers
from _family_commands import COMMANDS, Desk, outcomes
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import cli
import stitch
import tiny
from jobs import settings, write_text
from stitch.circuits.find import choose_circuit
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose, late_half, late_logits
from stitch.composite.cuts import can_be_cut, require_exact
from stitch.composite.exact import inexact, require_renumbered
from stitch.composite.native import is_stored, with_blocks, write_native
from stitch.composite.surgery import why_not_foldable
from stitch.conversions.ngrams.assemble import build_composite, keeps_embedding, table_scale
from stitch.conversions.recurrence.forms import check_convertible
from stitch.conversions.retokenization import scoring
from stitch.conversions.retokenization.write import require_plain_ends
from stitch.errors import UsageError
from stitch.jobs.join import stitch as stitch_two
from stitch.modeling.modeling_composite import StitchForCausalLM
from stitch.models import anatomy
from stitch.models.flow import flow_of
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import Source
from stitch.models.writes import down_of
from stitch.text.reader import Reader
from stitch.translation.types import Residual, Term, Token, Translation
from tokenizers_made import made
from tolerance import apart, of_a_pass
from translations import identity

# The twenty that users ask for most, beside those in `tiny`.
MOST_USED = (
    "bloom", "cohere2", "deepseek_v3", "falcon", "falcon_h1", "gemma", "glm4", "gpt_neo", "gpt_oss", "gptj", "granite",
    "granitemoehybrid", "llama4_text", "mixtral", "nemotron", "olmoe", "opt", "phi3", "qwen3_moe", "qwen3_next", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
QUICK = ("bloom", "cohere2", "deepseek_v3", "falcon_h1", "glm4", "gpt_oss", "qwen3_next")  # unlike each other
# Of transformers 5.23: no chain of blocks, state beside the stream, or a loop over the same blocks.
NOT_SERVED = {"deepseek_v4", "hrm_text", "hy_v4", "rwkv", "xlm", "xlnet", "zaya"}


def saved(kind: str, folder) -> Model:
    _families.net(kind).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load(folder)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK)) for kind in MOST_USED]
)
def test_a_model_joined_to_itself_is_unchanged_and_so_is_its_checkpoint(kind, tmp_path):
    model = saved(kind, tmp_path / "whole")
    assert {site: inexact(model, site) for site in (0, 3, 6)} == {0: None, 3: None, 6: None}
    weight = torch.eye(model.width) + 0.1 * tiny.noise(model.width, model.width)
    translation = Translation("affine", (Term(Residual(3), weight),), torch.zeros(model.width))
    joined = compose(model, model, 3, 2, translation)
    folder, loaded = tmp_path / "joined", {"a": model.net, "b": model.net}
    write_checkpoint(folder, joined.config, tmp_path / "whole", tmp_path / "whole", translation, loaded=loaded)
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = tiny.ids(2, 9)
    # Mixtures of experts multiply groups of tokens, whose last bits depend on where the weights are in memory.
    assert apart(again(ids).logits, joined(ids).logits) < of_a_pass(model, condition=4)
    assert apart(again(ids).logits, model.net(ids).logits) > 0.01
    assert torch.equal(
        *(again.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False))
    )


@torch.no_grad()
def test_a_composite_of_a_model_that_sees_holds_its_text_part_alone(tmp_path):
    """Where its text part is no family in ANATOMIES, it is loaded whole, and the report says what is left out."""
    model = saved("fuyu", tmp_path)
    assert model.vocabulary == tiny.VOCABULARY
    assert model.flow["idle"] == ["model.vision_embed_tokens"]
    told = surroundings({}, {"a": (model, Source("fuyu", tmp_path, None, "folder"))})["models"]["a"]["note"]
    assert told == "its text part alone, without model.vision_embed_tokens"
    joined = compose(model, model, 3, 2, identity(model, 3))
    assert joined(tiny.ids()).logits.isfinite().all()
    names = joined.state_dict()
    assert any("language_model" in name for name in names) and not any("vision" in name for name in names)


def test_the_parts_of_a_composite_of_families_found_by_looking_are_known(tmp_path):
    model = saved("bloom", tmp_path / "whole")
    joined = compose(model, model, 3, 2, identity(model, 3))
    write_checkpoint(tmp_path / "joined", joined.config, model.folder, model.folder, identity(model, 3), loaded={})
    again = load(tmp_path / "joined")
    assert [(part.anatomy.family, len(part.blocks)) for part in again.parts] == [("bloom", 3), ("bloom", 4)]
    for site in (3, 5, 7):  # as the first part of another composite
        require_exact(again, site, first=True)
        assert can_be_cut(again, site)


@torch.no_grad()
def test_a_float32_stream_in_a_model_of_half_precision_stays_float32(tmp_path):
    model = saved("falcon_mamba", tmp_path)
    half = load(tmp_path, dtype=torch.bfloat16)
    assert half.flow["float32"] and not model.flow["float32"]
    assert half.dtype == torch.bfloat16 and inexact(half, 3) is None


def test_blocks_that_depend_on_their_number_are_not_renumbered(tmp_path):
    """Mixtures of experts stand in every block of a Qwen3-MoE, in some that the numbers tell of a Jamba."""
    require_renumbered(saved("qwen3_moe", tmp_path / "all"))
    with pytest.raises(UsageError, match=r"cannot be renumbered: .* Join it without `native`"):
        require_renumbered(saved("jamba", tmp_path / "some"))


def test_a_last_block_with_weights_that_others_lack_is_not_removed(tmp_path):
    model = saved("gpt_neox_japanese", tmp_path)
    assert "has no dense_bias" in str(why_not_foldable(model, 4, 6, 2**30))
    assert why_not_foldable(model, 3, 5, 2**30) is None


def test_an_embedding_that_late_blocks_hold_as_well_is_not_shared_with_the_head(tmp_path):
    assert keeps_embedding(saved("gemma2", tmp_path / "gemma2"))
    assert not keeps_embedding(saved("marian", tmp_path / "marian"))


def test_a_model_without_a_chain_of_blocks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="takes what the one before it returned; in xlm no list of 6 modules"):
        saved("xlm", tmp_path)


RESULTS = Path(families.__file__).parent / "results" / "families.jsonl"
RECORDED = {line["family"]: line for line in map(json.loads, RESULTS.read_text().splitlines())}
SAME = ("outcome", "native", "class", "sites", "of", "blocks", "answers")  # on every machine


@pytest.mark.slow
def test_every_family_is_exact_or_not_as_the_table_says():
    assert [*RECORDED] == _families.KINDS
    assert {line["transformers"] for line in RECORDED.values()} == {transformers.__version__}
    found = {kind: families.tried(kind) for kind in _families.KINDS}
    told = {kind: {name: line.get(name) for name in SAME} for kind, line in found.items()}
    assert told == {kind: {name: line.get(name) for name in SAME} for kind, line in RECORDED.items()}


def test_the_table_has_at_least_150_exact_families_and_none_that_cannot_be():
    exact = {kind for kind, line in RECORDED.items() if line["outcome"] == "exact"}
    assert len(exact) >= 150 and not exact & NOT_SERVED


# What commands do with families


TRIED = sorted(kind for kind, line in RECORDED.items() if "commands" in line)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRIED)
def test_commands_do_with_a_family_what_is_written_in_the_table(kind, desk):
    found, recorded = outcomes(_families.net(kind), kind, desk, [*COMMANDS]), RECORDED[kind]
    assert found["commands"] == recorded["commands"]
    assert [one["why"] for one in found["refusals"]] == [one["why"] for one in recorded["refusals"]]


def test_commands_refuse_a_family_or_serve_it():
    """Only code of families themselves fails: xLSTM's on the texts that `convert consolidate` reads, and in a chain xLSTM's and
    MiniMax's, which take no cache but their own."""
    failed = {(kind, name) for kind in TRIED for name, done in RECORDED[kind]["commands"].items() if done == "fails"}
    assert failed == {("xlstm", "consolidate"), ("minimax", "chain"), ("xlstm", "chain")}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_down_projections_that_are_found_by_looking_are_those_that_are_known_by_name(family):
    net, known = tiny.net(family), anatomy.ANATOMIES[family]
    assert down_of(net, flow_of(net)) == (known.down if known.mlp_out_norm is None else "")


def test_a_down_projection_behind_a_factor_or_among_experts_is_not_found():
    granite = _families.net("granite")
    assert down_of(granite, flow_of(granite)) == "mlp.down_proj"
    for block in granite.model.layers:
        block.residual_multiplier = 0.5
    assert down_of(granite, flow_of(granite)) == ""
    experts = _families.net("qwen3_moe")
    assert down_of(experts, flow_of(experts)) == ""


@pytest.mark.parametrize(
    ("kind", "order"), [("qwen3_moe", [0, 1, 4, 5]), ("mixtral", [0, 1, 2, 1, 2, 3, 4, 5]), ("fuyu", [0, 3])]
)
def test_blocks_of_a_model_whose_files_have_other_names_are_written_by_transformers(kind, order, tmp_path):
    model = saved(kind, tmp_path / kind)
    assert not is_stored(model) and is_stored(saved("bloom", tmp_path / "bloom"))
    write_native(tmp_path / "out", model, order, {})
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    ids, wanted = tiny.ids(2, 9), with_blocks(model, order).net
    assert apart(again(ids).logits, wanted(ids).logits) < of_a_pass(model, condition=4)


@pytest.mark.slow
def test_a_mixture_of_experts_is_shortened_without_a_refit(tmp_path):
    model, text = saved("qwen3_moe", tmp_path / "whole"), write_text(tmp_path)
    asked = settings(model.folder, model.folder, text, layer=2, layer_b=4, native=True, features=None)
    report, out = stitch_two(asked, tmp_path / "out")
    rows = {row["name"]: row["ce"] for row in report["results"]}
    assert report["chosen"] == "passthrough" and rows["composite"] == rows["reference:passthrough"] != rows["a"]
    assert load(out).depth == 4
    with pytest.raises(UsageError, match="`down` of qwen3_moe models is not known"):
        stitch_two(replace(asked, translation="down-projection"), tmp_path / "other")


def test_circuits_refuse_an_unknown_family_before_they_read_prompts(tmp_path):
    with pytest.raises(UsageError, match=r"`heads_out` of bloom models is not known: register an anatomy"):
        choose_circuit(saved("bloom", tmp_path), "no behaviour")


def test_an_embedding_is_looked_up_with_its_factor_but_not_behind_a_norm(tmp_path):
    model = saved("granite", tmp_path / "granite")
    model.body.embedding_multiplier = model.config.embedding_multiplier = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    assert table_scale(model) == 3.0
    assert table_scale(saved("gemma", tmp_path / "gemma")) == pytest.approx(32**0.5)
    rows = tiny.noise(tiny.VOCABULARY, model.width)
    table = Translation("by token", (Term(Token(), rows),), torch.zeros(model.width))
    net = build_composite(model, 2, table)
    ids = tiny.ids()
    with torch.no_grad():
        wanted = late_logits(late_half(model, 2), rows[ids])
        assert torch.allclose(net(ids).logits, wanted, atol=1e-4)
    with pytest.raises(UsageError, match="must be a row of the embedding times a number"):
        table_scale(saved("bert", tmp_path / "bert"))


@torch.no_grad()
def test_a_tied_embedding_stays_also_behind_a_norm(tmp_path):
    """The norm is in both halves, which must not share it in the file."""
    model, ids = saved("bloom", tmp_path / "bloom"), tiny.ids()
    assert keeps_embedding(model)
    rows = tiny.noise(tiny.VOCABULARY, model.width)
    net = build_composite(model, 2, Translation("by token", (Term(Token(), rows),), torch.zeros(model.width)))
    wanted = late_logits(late_half(model, 2), rows[ids])
    assert torch.allclose(net(ids).logits, wanted, atol=1e-4)
    net.save_pretrained(tmp_path / "written")
    assert torch.equal(StitchForCausalLM.from_pretrained(tmp_path / "written").eval()(ids).logits, net(ids).logits)


def test_a_head_whose_logits_are_changed_in_an_unknown_way_is_not_retokenised(tmp_path, monkeypatch):
    model, new = saved("granite", tmp_path), Reader.of("new", made("byte fallback"))
    model.config.logits_scaling = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    require_plain_ends(model, new)
    model.config.logit_scale = 3.0  # pyright: ignore[reportAttributeAccessIssue] (no name of this family, so nothing reads it)
    require_plain_ends(model, new)
    monkeypatch.setattr(scoring, "DIVISORS", ())
    with pytest.raises(UsageError, match="its logits are not those of its head alone"):
        require_plain_ends(model, new)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mamba", "its 6 blocks have 0 attentions that keep keys"),
        ("gptj", "a whole text changes its logits"),
        ("deepseek_v3", "must have the 8 dimensions of the config"),
    ],
)
def test_families_whose_attention_cannot_be_replaced_do_not_become_recurrent(kind, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        check_convertible(saved(kind, tmp_path), 32)


RELOADS = """
import json, sys
for name in ("stitch", "sae", "matching"):
    sys.modules[name] = None  # importing the package would now fail
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), (folder, report)
    prompts = AutoTokenizer.from_pretrained(folder)(["one fine day", "so"], return_tensors="pt", padding=True)
    written = model.generate(**prompts, max_new_tokens=6, do_sample=False)
    print(json.dumps({"folder": folder, "tokens": written.tolist(), "logits": float(model(**prompts).logits.abs().max())}))
"""


NAMED = (*MOST_USED, "bamba", "deepseek_v2", "glm4_moe", "jamba", "mpt", "nemotron_h", "olmo", "olmo3", "mamba2")


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [*zip(NAMED[::2], NAMED[1::2], strict=True)])
def test_the_most_used_families_go_through_the_command_line_and_load_without_this_package(a, b, tmp_path):
    """Pairs of families are joined; a process that does not have this package loads the composite and generates text."""
    for kind in {a, b}:
        saved(kind, tmp_path / kind)
    out, text = tmp_path / "out", write_text(tmp_path)
    options = "--layer 3 --layer-b 2 --brief --tokens 4096 --context 32 --features 64 --k 8 --device cpu --memory 256M".split()
    words = ["join", tmp_path / a, tmp_path / b, *options, "--text", text, "--out", out, "--quiet"]
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert {"a", "b", "composite"} <= {row["name"] for row in report["results"] if isfinite(row["ce"])}
    place = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run([sys.executable, "-c", RELOADS, out], capture_output=True, text=True, cwd=tmp_path, env=place)
    assert ran.returncode == 0, ran.stderr
    assert "{" in ran.stdout, (ran.stdout, ran.stderr)
    found = json.loads(ran.stdout[ran.stdout.index("{") :])
    net = load(out).net
    prompts = tiny.tokenizer()(["one fine day", "so"], return_tensors="pt", padding=True)
    assert found["tokens"] == net.generate(**prompts, max_new_tokens=6, do_sample=False).tolist()


def test_inspect_shows_models_whose_blocks_are_found_by_looking(tmp_path):
    saved("bloom", tmp_path)
    facts = stitch.inspect(str(tmp_path)).report
    assert (facts["family"], facts["blocks"], facts["width"], facts["longest context"]) == ("bloom", 6, 32, None)
