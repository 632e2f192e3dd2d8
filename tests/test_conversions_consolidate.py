"""A document in the context against the same document in the weights: exact for linear attention, measured for
softmax.
"""

import dataclasses
import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, EncoderDecoderCache, Lfm2Config, MegatronBertConfig
from typer.testing import CliRunner

import tiny
from chains import as_model, chained, everything
from cli import app
from stitch.composite.compose import compose
from stitch.conversions.consolidation import arms, fitting, linear, queries
from stitch.conversions.consolidation import slow_weights as slow
from stitch.conversions.consolidation.documents import Document, names_of
from stitch.errors import StitchError, UsageError
from stitch.evaluation.scores import Scores
from stitch.internals import weights
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import Windows
from translations import identity

DOCUMENTS = [
    f"The {a}{b} of {b}{a} is {a * 3}. {b}{b}, then {a}! Of {a} and {b} we say that {b}{a}{b} is {a}{b}{a} twice, never {c}."
    for a in "abcdefgh"
    for b in "nopqrstuvw"
    for c in "xyz"
]


def noise_windows(vocabulary: int, count: int = 24, context: int = 64, seed: int = 0) -> Windows:
    ids = torch.randint(
        3, vocabulary, (count, context), generator=torch.Generator().manual_seed(seed), dtype=torch.int32
    )
    ids[:, 0] = tiny.BOS
    return Windows(ids, torch.arange(count, dtype=torch.int32)[:, None].expand(-1, context).contiguous())


def setup_of(model: Model) -> arms.ModelAndText:
    vocabulary = model.config.vocab_size
    splits: dict[Split, Windows] = {split: noise_windows(vocabulary, seed=seed) for seed, split in enumerate(SPLITS)}
    return arms.prepare(model, splits)


@pytest.fixture(scope="module")
def pico() -> arms.ModelAndText:
    return setup_of(tiny.model("gpt2", num_hidden_layers=3))


@pytest.fixture(scope="module")
def induction() -> arms.ModelAndText:
    """A trained model that repeats earlier continuations: after `A B … A` it predicts B."""
    return setup_of(load(resolve("demo:induction").folder, dtype=torch.float32, name="demo:induction"))


# --- linear attention: exact ---------------------------------------------------------------------------------------------


def linear_stack(model: Model, **what) -> list[linear.LinearAttention]:
    scale = 0.05  # unnormalised sums grow with the context
    found = [weights.attention(model, block) for block in range(model.depth)]
    return [linear.LinearAttention(weights=dataclasses.replace(one, scale=scale), **what) for one in found]


def run_stack(model, layers, x, branches=None, states=None):
    """The stream after each block, and the fast weights of each block at the end."""
    held = []
    for block, layer in enumerate(layers):
        read = weights.norm_module(model, "attention", block)(x)
        held.append(linear.remember(layer, read))
        written = linear.attend(layer, read, None if states is None else states[block])
        x = x + written + (0 if branches is None else branches[block](read))
        x = x + model.blocks[block].get_submodule(model.anatomy.mlp)(weights.norm_module(model, "mlp", block)(x))
    return x, held


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_linear_attention_with_a_branch_computes_as_if_the_context_came_before(family):
    model = tiny.model(family)
    layers = linear_stack(model)
    stream = tiny.noise(20, model.width)
    whole, _ = run_stack(model, layers, stream)
    _, held = run_stack(model, layers, stream[:13])
    branches = [linear.branch(layer, state) for layer, state in zip(layers, held, strict=True)]
    without, _ = run_stack(model, layers, stream[13:])
    consolidated, _ = run_stack(model, layers, stream[13:], branches)
    scale = whole[13:].norm()
    assert (consolidated - whole[13:]).norm() <= 1e-5 * scale
    assert (without - whole[13:]).norm() > 0.01 * scale


@pytest.mark.numeric
@torch.no_grad()
def test_features_wider_than_the_head_have_a_branch_too():
    model = tiny.model("gpt2")
    layer = linear_stack(model, features=lambda x: torch.cat([x.relu(), (-x).relu(), x.square()], -1))[0]
    x = tiny.noise(12, model.width)
    after = linear.attend(layer, x)[8:]
    found = linear.attend(layer, x[8:]) + linear.branch(layer, linear.remember(layer, x[:8]))(x[8:])
    torch.testing.assert_close(found, after, rtol=1e-5, atol=1e-5)


@pytest.mark.numeric
@torch.no_grad()
def test_normalised_attention_is_exact_from_its_state_and_refused_as_a_branch():
    model = tiny.model("gpt2")
    layer = linear_stack(model, features=torch.exp, normalised=True)[0]
    x = tiny.noise(12, model.width)
    state = linear.remember(layer, x[:8])
    torch.testing.assert_close(linear.attend(layer, x[8:], state), linear.attend(layer, x)[8:], rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="an MLP cannot divide"):
        linear.branch(layer, state)


@torch.no_grad()
def test_rotary_attention_and_another_block_s_state_are_refused():
    model, other = tiny.model("gpt2"), tiny.model("llama")
    layer, x = linear_stack(model)[0], tiny.noise(5, model.width)
    with pytest.raises(UsageError, match="no rotary positions"):
        linear.branch(dataclasses.replace(layer, rotary=True), linear.remember(layer, x))
    foreign = linear.remember(linear_stack(other)[0], tiny.noise(5, other.width))
    with pytest.raises(UsageError, match="state must be of 4 key heads of 8; got 2 of 10"):
        linear.branch(layer, foreign)


# --- ridge and coordinates: known answers -----------------------------------------------------------------------------------


@pytest.mark.numeric
def test_ridge_on_orthonormal_keys_shrinks_by_one_over_one_plus_strength():
    keys = torch.eye(6, dtype=torch.float64)
    wanted = tiny.noise(6, 3).double()
    retain = torch.eye(6, dtype=torch.float64) / 6  # as strong as the keys' own
    torch.testing.assert_close(slow.ridge(keys, wanted, retain, 3.0), wanted / 4)


@pytest.mark.numeric
def test_a_very_large_strength_gives_a_zero_edit():
    keys, wanted = tiny.noise(20, 6), tiny.noise(20, 3, seed=1)
    sizes = [slow.ridge(keys, wanted, torch.eye(6), strength).norm() for strength in (0.1, 1.0, 1e3, 1e9)]
    assert all(after < before for before, after in itertools.pairwise(sizes))
    assert sizes[-1] < 1e-7


@pytest.mark.numeric
def test_ridge_does_not_change_outputs_in_directions_that_only_other_text_uses():
    keys, wanted = torch.zeros(10, 6), tiny.noise(10, 3)
    keys[:, :3] = tiny.noise(10, 3, seed=1)
    keys[:, 3:] = 0.1 * tiny.noise(10, 3, seed=2)
    retain = torch.diag(torch.tensor([0.0, 0, 0, 1, 1, 1]))
    found = slow.ridge(keys, wanted, retain, 1e8)
    assert found[3:].norm() < 1e-6 < 0.1 < found[:3].norm()


@pytest.mark.numeric
def test_independent_keys_are_fitted_exactly_without_strength():
    keys, wanted = tiny.noise(4, 6), tiny.noise(4, 3, seed=1).double()
    torch.testing.assert_close(keys.double() @ slow.ridge(keys, wanted, torch.eye(6), 0.0), wanted)


def test_ridge_refuses_unsolvable_problems():
    keys, wanted = tiny.noise(8, 6), tiny.noise(8, 3)
    with pytest.raises(UsageError, match="covariance must be of the keys' width, 6; got 5"):
        slow.ridge(keys, wanted, torch.eye(5), 1.0)
    with pytest.raises(UsageError, match="independent at strength 0; got 8 of rank 6"):
        slow.ridge(keys, wanted, torch.eye(6), 0.0)
    with pytest.raises(UsageError, match="0 or more; got -1"):
        slow.ridge(keys, wanted, torch.eye(6), -1.0)
    with pytest.raises(StitchError, match="condition below 1e\\+12"):
        slow.ridge(keys[:2], wanted[:2], torch.zeros(6, 6), 1.0)


@pytest.mark.numeric
def test_half_the_squared_length_of_the_coordinates_is_the_predicted_cost():
    curvature = slow.Curvature({0: _covariance(48, 1)}, {0: _covariance(32, 2)})
    axes = slow.coordinates(curvature, tiny.model("gpt2", num_hidden_layers=1), damping=0.0)
    point = {0: tiny.noise(48, 32)}
    change = axes.edit(point)[0].double()
    predicted = torch.trace(change.T @ curvature.neurons[0] @ change @ curvature.gradients[0]) / 2
    assert predicted.item() == pytest.approx(0.5 * slow.edit_norm(point) ** 2, rel=1e-3)


def _covariance(width: int, seed: int) -> torch.Tensor:
    rows = tiny.noise(4 * width, width, seed=seed).double()
    return rows.T @ rows / len(rows)


@pytest.mark.numeric
def test_curvature_predicts_the_cost_of_a_small_change_of_one_block(pico):
    """Measured: the mean KL on the text of the curvature. K-FAC ignores correlations between tokens and between
    layers.
    """
    model, windows = pico.model, pico.windows["fit"]
    block = model.depth - 1
    edit = {block: 0.01 * tiny.noise(*slow.down_projection(model, block).shape)}
    found = [
        slow.logits_with(model, changed, windows.ids.long()).log_softmax(-1)
        for changed in ({}, slow.edited_parameters(model, edit))
    ]
    measured = (found[0].exp() * (found[0] - found[1])).sum(-1).mean().item()
    change = edit[block].double()
    inner = change.T @ pico.curvature.neurons[block] @ change @ pico.curvature.gradients[block]
    assert 0.7 < measured / (torch.trace(inner).item() / 2) < 1.4


def test_covariances_of_another_model_and_of_too_little_text_are_refused(pico):
    with pytest.raises(UsageError, match="of block 0 must be of its 56 neurons and width 40; got 48 and 32"):
        slow.coordinates(pico.curvature, tiny.model("llama"))
    with pytest.raises(UsageError, match="at least the number of neurons, 48"):
        slow.measure_curvature(
            pico.model, Windows(torch.zeros(1, 8, dtype=torch.int32), torch.zeros(1, 8, dtype=torch.int32))
        )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@torch.no_grad()
def test_writing_an_edit_equals_passing_it_to_the_forward_call(family):
    model = tiny.model(family)
    edit = {b: 0.1 * tiny.noise(*slow.down_projection(model, b).shape, seed=b) for b in (1, 4)}
    ids = tiny.ids()
    called = slow.logits_with(model, slow.edited_parameters(model, edit, 0.5), ids)
    wanted = [slow.down_projection(model, b) + 0.5 * one for b, one in edit.items()]
    before = slow.logits_with(model, {}, ids)
    slow.apply_edit(model, edit, 0.5)
    assert all(torch.equal(slow.down_projection(model, b), one) for b, one in zip(edit, wanted, strict=True))
    assert torch.equal(slow.logits_with(model, {}, ids), called)
    assert (called - before).abs().max() > 1e-3


@pytest.mark.parametrize("factor", [0.001, 0.03, 0.3])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_scaling_ends_just_below_the_budget(factor, power):
    scale = slow.scale_to_cost(lambda s: factor * s**power, 0.02)
    assert factor * scale**power <= 0.02
    assert scale == slow.LARGEST or factor * scale**power >= 0.9 * 0.02


def test_scaling_starts_at_the_given_factor_and_stops_when_close_enough():
    tried = []
    scale = slow.scale_to_cost(lambda s: tried.append(s) or 0.02 * s**2, 0.02, start=0.93, within=0.2)
    assert tried == [scale] == [0.93]  # costs 0.86 of the budget
    assert 0.97 < slow.scale_to_cost(lambda s: 0.02 * s**2, 0.02, start=0.93) < 1


def test_scaling_ends_for_an_edit_without_cost():
    assert slow.scale_to_cost(lambda s: -0.001 * s, 0.02) == slow.LARGEST


def test_scaling_ends_on_more_text_than_it_starts_with(pico, monkeypatch):
    """The cost on few tokens is twice the cost on many. The result uses the many, which are read only a few times."""
    monkeypatch.setattr(arms, "FIRST_TOKENS", 64)
    setup, read = setup_of(pico.model), []

    def other_text(self, changed, windows):
        read.append(windows.tokens)
        ce = torch.tensor([1.0 + (changed or 0.0) ** 2 * (0.08 if windows.tokens == 64 else 0.04)], dtype=torch.float64)
        return Scores(ce, None, None, torch.ones_like(ce))

    monkeypatch.setattr(arms, "edited_parameters", lambda model, edit, scale: scale)
    monkeypatch.setattr(arms.ModelAndText, "_scores", other_text)
    scale = setup.scale({}, 0.02)
    assert 0.95 * 0.02 <= 0.04 * scale**2 <= 0.02
    assert len([tokens for tokens in read if tokens != 64]) <= 2 + 3


# --- queries and the gain kept ------------------------------------------------------------------------------------------------


@pytest.mark.numeric
@torch.no_grad()
def test_the_target_is_the_donors_prediction_with_the_document_before_the_query(pico):
    document, asked = tiny.ids(1, 20, seed=5)[0], tiny.ids(3, 16, seed=6)
    labelled = queries.label_queries(pico.model, document, asked)
    whole = torch.cat([torch.full((3, 1), tiny.BOS), document.expand(3, -1), asked], 1)
    expected = pico.model.net(whole).logits.log_softmax(-1)[:, 20 + queries.GIVEN : -1]
    torch.testing.assert_close(labelled.target, expected, rtol=1e-5, atol=1e-5)
    own = queries.score_queries(pico.model, queries.PrefixedQueries(labelled, document.expand(3, -1)))
    # the donor reads the document itself, so nothing is missing
    assert own.kl is not None and own.kl.abs().max() < 1e-4


@pytest.mark.numeric
@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_a_document_that_is_read_once_is_read_as_before_every_query(family):
    model, document, asked = tiny.model(family), tiny.ids(1, 30, seed=5)[0], tiny.ids(20, 16, seed=6)
    found = queries.label_queries(model, document, asked)
    expected = queries.predictions(model, document.expand(20, -1), asked)
    torch.testing.assert_close(found.target, expected, rtol=1e-4, atol=1e-4)
    drawn = queries.continuations(model, document, 3, 8, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, reread(model, document, 3, 8, torch.Generator().manual_seed(0)))


def test_states_of_linear_attention_are_not_repeated():
    config = Lfm2Config(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    hybrid, plain = (
        net(tiny.ids(1, 8), use_cache=True).past_key_values
        for net in (AutoModelForCausalLM.from_config(config), tiny.net("llama"))
    )
    assert not queries.can_be_repeated(hybrid) and queries.can_be_repeated(plain) and not queries.can_be_repeated(None)


def test_a_cache_that_does_not_say_what_it_holds_is_not_repeated():
    config = MegatronBertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        is_decoder=True,
    )  # fmt: skip
    net = AutoModelForCausalLM.from_config(config)
    cache = net(tiny.ids(1, 8), use_cache=True).past_key_values
    assert isinstance(cache, EncoderDecoderCache) and not queries.can_be_repeated(cache)


def reread(model, document, count, length, generator):
    """Continuations by a model that reads everything again for each token."""
    whole = torch.cat([torch.tensor([tiny.BOS]), document]).expand(count, -1)
    for _ in range(length):
        chances = model.net(whole, use_cache=False).logits[:, -1].float().softmax(-1)
        whole = torch.cat([whole, torch.multinomial(chances, 1, generator=generator)], 1)
    return whole[:, -length:]


def test_the_share_kept_is_zero_without_and_one_with_the_document():
    def scores(*nats: float) -> Scores:
        some = torch.tensor(nats, dtype=torch.float64)
        return Scores(some, some, some, torch.full_like(some, 10))

    without, with_ = scores(30, 20, 40), scores(20, 15, 20)
    assert queries.gain_kept(without, without, with_) == (0, 0, 0)
    assert queries.gain_kept(with_, without, with_) == (1, 1, 1)
    share, low, high = queries.gain_kept(scores(25, 20, 30), without, with_)
    assert share == pytest.approx(15 / 35)
    assert low < share < high


def test_passages_come_from_the_document_and_prefixes_from_other_text(pico):
    document, generator = torch.arange(3, 10), torch.Generator().manual_seed(0)
    found = queries.passages(document, 50, 16, generator)
    steps = found.diff(dim=1)
    assert found.shape == (50, 16)
    assert ((steps == 1) | (steps == -6)).all()  # the document, repeated
    prefixes = queries.unrelated_prefixes(pico.windows["fit"], 50, 8, generator)
    text = pico.windows["fit"].ids.unfold(1, 8, 1).flatten(0, 1)
    assert all((text == one).all(1).any() for one in prefixes)
    assert len(prefixes.unique(dim=0)) > 40


def test_continuations_depend_on_the_seed_alone(pico):
    document = tiny.ids(1, 20, seed=5)[0]
    first, again, other = (
        queries.continuations(pico.model, document, 4, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- softmax attention: consolidated -------------------------------------------------------------------------------------------


@torch.no_grad()
def recall(setup: arms.ModelAndText, document, asked, edit=None, scale=1.0) -> float:
    """Mean nats of the last token of each query after an unseen random prefix."""
    labelled = queries.label_queries(setup.model, document, asked, given=asked.shape[1] - 1)
    prefixes = queries.unrelated_prefixes(setup.windows["report"], len(asked), 20, torch.Generator().manual_seed(9))
    changed = {} if edit is None else slow.edited_parameters(setup.model, edit, scale)
    return queries.score_queries(setup.model, queries.PrefixedQueries(labelled, prefixes), changed).ce


def association(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A document that repeats A B C, and the question A B → C."""
    drawn = torch.randint(300, 4000, (3,), generator=torch.Generator().manual_seed(seed))
    return drawn.repeat(8), drawn[None]


def test_a_planted_association_is_recalled_without_context_and_others_do_not_change(induction):
    (document, asked), (wrong, elsewhere) = association(1), association(2)
    budget = 0.05
    edit, scale = arms.consolidate_documents(induction, [document], budget)
    without, with_it = recall(induction, document, asked), queries.scores_with_context(
        queries.label_queries(induction.model, document, asked, given=2)
    ).ce  # fmt: skip
    assert with_it < 1 < 8 < without
    assert recall(induction, document, asked, edit, scale) < without - 0.5 * (without - with_it)
    assert abs(recall(induction, document, elsewhere, edit, scale) - recall(induction, document, elsewhere)) < 0.5
    other, other_scale = arms.consolidate_documents(induction, [wrong], budget)
    assert recall(induction, document, asked, other, other_scale) > without - 0.5  # the other document does not help
    cost, low, high = induction.retention_cost(edit, scale)
    assert low <= cost <= high and cost < 2 * budget


def test_natural_gradient_stays_within_reach_and_approaches_the_donor(pico):
    document = tiny.ids(1, 30, seed=5)[0]
    labelled = arms.queries_about(pico.model, document, queries=12)
    reach = 0.01
    edit = fitting.natural_gradient(pico.model, labelled, pico.windows["fit"], pico.axes, reach=reach, count=12)
    point = {
        b: torch.linalg.solve(pico.axes.left[b], one) @ torch.linalg.inv(pico.axes.right[b]) for b, one in edit.items()
    }
    assert slow.edit_norm(point) <= (2 * reach) ** 0.5 * 1.01
    prefixed = queries.PrefixedQueries(labelled, torch.zeros(len(labelled.queries), 0, dtype=torch.long))
    before, after = (
        queries.score_queries(pico.model, prefixed, changed).kl
        for changed in ({}, slow.edited_parameters(pico.model, edit))
    )
    assert before is not None and after is not None and after.sum() < before.sum()


@pytest.mark.slow
def test_two_documents_are_both_answered_after_a_fit_on_both(induction):
    found = [association(1), association(2)]
    edit, scale = arms.consolidate_documents(induction, [document for document, _ in found], 0.05)
    for document, asked in found:
        without, with_it = (
            recall(induction, document, asked),
            queries.scores_with_context(queries.label_queries(induction.model, document, asked, given=2)).ce,
        )
        assert recall(induction, document, asked, edit, scale) < without - 0.2 * (without - with_it)


def test_all_methods_run_and_the_noise_has_the_norm_of_the_edit(pico):
    document, other = tiny.ids(2, 30, seed=5)
    edits = {name: make() for name, make in arms.arms(pico, [document], [other], 0.02).items()}
    assert all(set(edit) == set(range(pico.model.depth)) for edit in edits.values())
    assert all(0 < slow.edit_norm(edit) < 1e3 for edit in edits.values())
    assert slow.edit_norm(edits["null:noise"]) == pytest.approx(slow.edit_norm(edits["converted"]), rel=1e-5)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "other.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    (folder / "note.txt").write_text("Zoe keeps 3 owls and a fox. Zoe: fox.")
    (folder / "queries.txt").write_text("What does Zoe keep? Zoe keeps 3 owls and a fox, said Zoe to the owl of Zoe. ")
    (folder / "second.txt").write_text("Max sails 7 boats and a raft. Max: raft, by the sea.")
    (folder / "empty.txt").write_text("")
    (folder / "long.txt").write_text("word " * 40)
    for family in ("gpt2", "llama"):
        tiny.save(folder / family, family, num_hidden_layers=2)
    tiny.save(folder / "gemma2", "gemma2")
    return folder


def run(folder, family="gpt2", context="note.txt", out="out", *more):
    return CliRunner().invoke(
        app,
        ["convert", "consolidate", str(folder / family), "--context", str(folder / context), "--out", str(folder / out), "--text",
         str(folder / "other.jsonl"), "--tokens", "4096", "--held-out", "600", "-q", *more],
    )  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_command_writes_a_stock_checkpoint_that_differs_only_in_its_down_projections(texts, family):
    result = run(texts, family, "note.txt", f"out-{family}", "--queries", str(texts / "queries.txt"))
    assert result.exit_code == 0, result.output
    for row in ("donor", "reference:with context", "converted", "baseline:sgd", "null:other document"):
        assert row in result.output
    before = AutoModelForCausalLM.from_pretrained(texts / family)
    after = AutoModelForCausalLM.from_pretrained(texts / f"out-{family}")
    assert type(before) is type(after)
    weights_after = dict(after.named_parameters())
    changed = {name for name, value in before.named_parameters() if not torch.equal(value, weights_after[name])}
    assert changed and all("mlp.c_proj.weight" in name or "mlp.down_proj.weight" in name for name in changed)


def test_the_checkpoint_computes_what_the_reported_edit_does(texts):
    from stitch.conversions.consolidation.convert import consolidate

    folder = texts / "again"
    arguments = dict(
        text=str(texts / "other.jsonl"), tokens=4096, held_out=600, queries=[texts / "queries.txt"], cost=0.05
    )
    report = consolidate(str(texts / "gpt2"), [texts / "note.txt"], folder, **arguments)  # pyright: ignore[reportArgumentType]
    donor, model = load(texts / "gpt2"), load(folder)
    ids = queries.read_document(donor, texts / "note.txt")
    asked = queries.cut_queries(queries.read_ids(donor, texts / "queries.txt", "queries"), queries.query_length(donor))
    bare = queries.PrefixedQueries(queries.label_queries(donor, ids, asked), asked[:, :0])
    without, with_ = queries.score_queries(donor, bare), queries.scores_with_context(bare.labelled)
    share = queries.gain_kept(queries.score_queries(model, bare), without, with_)[0]
    row = next(row for row in report["results"] if row["name"] == "converted")
    assert row["kept_bare"] == pytest.approx(share, abs=1e-3)


def test_of_many_documents_a_title_has_two():
    def told(count: int) -> str:
        ids = torch.zeros(1, 2, dtype=torch.long)
        asked = queries.PrefixedQueries(queries.LabelledQueries(ids, torch.zeros(1, 1, 2)), ids)
        return names_of([Document(f"{number}.txt", ids[0], asked, asked) for number in range(count)])

    assert told(1) == "0.txt" and told(3) == "0.txt, 1.txt and 2.txt"
    assert told(40) == "0.txt, 1.txt and 38 more"


@pytest.mark.slow
def test_two_documents_are_written_together_and_told_apart_in_the_report(texts):
    result = run(texts, "gpt2", "note.txt", "two", "--context", str(texts / "second.txt"), "--cost", "0.05")
    assert result.exit_code == 0, result.output
    assert "note.txt and second.txt in its weights" in result.output
    report = json.loads((texts / "two" / "report.json").read_text())
    assert [one["document"] for one in report["by_document"]] == ["note.txt", "second.txt"]
    assert "Gain kept by document: note.txt" in result.output.replace("\n", " ")
    assert report["recipe"]["document"] == [str(texts / "note.txt"), str(texts / "second.txt")]
    assert json.loads((texts / "two" / "undo" / "undo.json").read_text())["document"] == "note.txt and second.txt"
    found = CliRunner().invoke(
        app, ["convert", "consolidate", "--recipe", str(texts / "two"), "--out", str(texts / "two-again"), "-q"]
    )
    assert found.exit_code == 0, found.output
    again = (texts / "two-again" / "model.safetensors").read_bytes()
    assert again == (texts / "two" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("family", "context", "more", "message"),
    [
        ("gpt2", "empty.txt", [], "--context must have at least 2 tokens; got 0"),
        ("gpt2", "long.txt", [], "at most 95 tokens"),
        ("gpt2", "none.txt", [], "there is no file"),
        ("gpt2", "note.txt", ["--cost", "0"], "cost must be above 0"),
        ("gpt2", "note.txt", ["--queries", "empty.txt"], "queries must hold at least 32 tokens; got 0"),
        (
            "gpt2",
            "note.txt",
            ["--context", "second.txt", "--queries", "queries.txt"],
            "one file for each document; got 1 for 2",
        ),
        ("gemma2", "note.txt", [], "Gemma 2 has a norm between them"),
    ],
)
def test_documents_and_models_that_cannot_be_consolidated_are_refused_in_one_line(
    texts, family, context, more, message
):
    more = [str(texts / one) if one.endswith(".txt") else one for one in more]
    result = run(texts, family, context, "refused", *more)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (texts / "refused").exists()


def test_weights_that_are_not_finite_are_refused():
    model = tiny.model("gpt2")
    with torch.no_grad():
        slow.down_projection(model, 2)[0, 0] = float("nan")
    with pytest.raises(StitchError, match=r"h\.2\.mlp\.c_proj\.weight is not"):
        slow.check_writable(model)


def test_a_composite_with_a_norm_after_an_mlp_in_any_part_is_refused():
    slow.check_writable(as_model(chained("gpt2", "llama")))
    with pytest.raises(UsageError, match="Gemma 2 has a norm between them"):
        slow.check_writable(as_model(chained("gemma2", "llama")))


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_cut_in_two_is_consolidated_like_the_whole_model(family):
    """Curvature and edits agree block by block, although no gradient reaches the embeddings where a seam has
    look-ups.
    """
    whole = tiny.model(family)
    two = as_model(compose(whole, whole, 2, 2, identity(whole, 2)))
    document = tiny.ids(1, 30, seed=5)[0]
    found = []
    for model in (whole, two):
        setup = setup_of(model)
        edit = arms.fit(setup, arms.queries_about(model, document), 0.02, steps=2)
        found.append((setup.curvature, edit))
    (curvature, edit), (curvature_of_two, edit_of_two) = found
    for block in range(whole.depth):
        for part in ("neurons", "gradients"):
            torch.testing.assert_close(
                getattr(curvature_of_two, part)[block], getattr(curvature, part)[block], rtol=1e-4, atol=1e-6
            )
        assert (edit_of_two[block] - edit[block]).norm() < 1e-3 * edit[block].norm()


@pytest.mark.numeric
def test_curvature_of_a_composite_with_look_ups_is_that_of_each_part():
    model = as_model(chained("gpt2", "llama", make=everything))
    setup = setup_of(model)
    sizes = [(len(setup.curvature.neurons[b]), len(setup.curvature.gradients[b])) for b in range(model.depth)]
    assert sizes == [(48, 32)] * 2 + [(56, 40)] * (model.depth - 2)
    assert all(float(one.diagonal().min()) > 0 for one in setup.curvature.gradients.values())
