"""The composite against its donors, against two hooked models, and with and without a cache; all exact."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import tiny
from passes import in_chunks, left_padded
from sae.types import Dictionary
from stitch.composite.compose import compose, late_half, late_logits
from stitch.errors import UsageError
from stitch.models.model import Model
from stitch.translation.module import translation_module
from stitch.translation.types import Codes, Residual, Term, Token, Translation
from tolerance import apart, rounding
from translations import affine, dictionary, identity

PAIRS = [(a, tiny.FAMILIES[(k + step) % len(tiny.FAMILIES)]) for k, a in enumerate(tiny.FAMILIES) for step in (1, 4)]
pico = tiny.shared


@torch.no_grad()
def hooked(a: Model, b: Model, site_a: int, site_b: int, translation: Translation, ids: Tensor, **inputs) -> Tensor:
    """Runs two whole donors: a hook reads A's stream, it is translated by hand, and a hook puts it into B."""
    (term,), seen = translation.terms, {}

    def read(module, args):
        seen["x"] = args[0]

    def write(module, args):
        return (seen["x"] @ term.weight + translation.bias, *args[1:])

    handles = [
        [*a.blocks, a.final_norm][site_a].register_forward_pre_hook(read),
        [*b.blocks, b.final_norm][site_b].register_forward_pre_hook(write),
    ]
    try:
        a.net(ids, **inputs, use_cache=False)
        return b.net(ids, **inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_a_model_stitched_to_itself_is_unchanged_at_every_site(family):
    model, ids = pico(family), tiny.ids(2, 13)
    padded, mask = left_padded((11, 4, 8))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model.net(ids).logits
    chunked = in_chunks(model.net, ids, (5, 6))
    with_mask = model.net(padded, attention_mask=mask).logits
    with_positions = model.net(padded, attention_mask=mask, position_ids=positions).logits
    for site in range(model.depth + 1):
        composite = compose(model, model, site, site, identity(model, site))
        assert torch.equal(composite(ids, use_cache=False).logits, whole), site
        assert torch.equal(in_chunks(composite, ids, (5, 6)), chunked), site
        assert torch.equal(composite(padded, attention_mask=mask).logits, with_mask), site
        assert torch.equal(composite(padded, attention_mask=mask, position_ids=positions).logits, with_positions), site


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_omitting_one_block_changes_the_logits(family):
    model, ids = pico(family), tiny.ids()
    composite = compose(model, model, 2, 3, identity(model, 2))
    assert (composite(ids).logits - model.net(ids).logits).abs().max() > 1


@pytest.mark.parametrize(("a", "b"), PAIRS)
@torch.no_grad()
def test_a_pair_of_families_equals_two_hooked_models(a, b):
    a, b = pico(a), pico(b)
    translation = affine(a, b, 2)
    composite = compose(a, b, 2, 4, translation)
    ids, (padded, mask) = tiny.ids(2, 13), left_padded((11, 4, 8))
    assert torch.equal(composite(ids).logits, hooked(a, b, 2, 4, translation, ids))
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    assert torch.equal(composite(padded, **inputs).logits, hooked(a, b, 2, 4, translation, padded, **inputs))


@pytest.mark.parametrize(
    ("a", "b"), [("mistral", "gemma3_text"), ("gpt2", "llama"), ("gemma2", "gpt2"), ("phi", "mistral")]
)
@pytest.mark.parametrize(("site_a", "site_b"), [(3, 2), (0, 4), (6, 6), (0, 6)])
@torch.no_grad()
def test_generation_is_the_same_with_and_without_a_cache(a, b, site_a, site_b):
    a, b = pico(a), pico(b)
    composite = compose(a, b, site_a, site_b, affine(a, b, site_a))
    padded, mask = left_padded((9, 3, 6))
    settings = {"attention_mask": mask, "max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    cached = composite.generate(padded, use_cache=True, **settings)
    assert torch.equal(cached, composite.generate(padded, use_cache=False, **settings))
    for row, length in enumerate((9, 3, 6)):
        alone = composite.generate(
            padded[row : row + 1, -length:], max_new_tokens=10, min_new_tokens=10, do_sample=False
        )
        assert torch.equal(alone[0, -10:], cached[row, -10:])


@torch.no_grad()
def test_beam_search_reorders_both_halves_of_the_cache():
    a, b = pico("mistral"), pico("gemma3_text")
    composite = compose(a, b, 3, 2, affine(a, b, 3))
    padded, mask = left_padded((9, 3))
    settings = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    assert torch.equal(composite.generate(padded, **settings), composite.generate(padded, use_cache=False, **settings))


@pytest.mark.numeric
@torch.no_grad()
def test_a_cache_uses_each_halfs_own_window():
    a, b = pico("mistral"), pico("gemma3_text")  # windows of 5, and of 7 in two of three blocks
    composite = compose(a, b, 2, 3, affine(a, b, 2))
    cache = DynamicCache(config=composite.config)
    assert [getattr(layer, "sliding_window", None) for layer in cache.layers] == [5, 5, 7, None, 7]
    ids = tiny.ids(2, 20)
    whole = composite(ids, use_cache=False).logits
    torch.testing.assert_close(in_chunks(composite, ids, (9, 10, 11, 16), cache), whole, rtol=0, atol=1e-3)
    torch.testing.assert_close(in_chunks(composite, ids, (9, 10, 16), DynamicCache()), whole, rtol=0, atol=1e-3)


@torch.no_grad()
def test_scaling_attention_by_depth_counts_from_the_donors_first_block():
    model, ids = tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True), tiny.ids()
    composite = compose(model, model, 2, 2, identity(model, 2))
    assert torch.equal(composite(ids).logits, model.net(ids).logits)


def encode_by_hand(x: Tensor, d: Dictionary) -> Tensor:
    pre = x @ d.encoder.double() + d.encoder_bias.double()
    if d.activation == "rbf":
        return torch.exp(pre - x.double().square().sum(-1, keepdim=True) * d.threshold.double())
    if d.activation == "jumprelu":
        return torch.where(pre > d.threshold.double(), pre, 0.0)
    if d.activation == "topk":
        least = pre.sort(dim=-1, descending=True).values[..., 14:15]
        return torch.where(pre >= least, pre.clamp(min=0), 0.0)
    return pre.clamp(min=0)


@pytest.mark.numeric
@torch.no_grad()
def test_every_kind_of_term_equals_its_formula():
    a, b = pico("gpt2"), pico("llama")
    dictionaries = [dictionary(a.width, 20, activation) for activation in ("relu", "jumprelu", "topk", "rbf")]
    sites = 1, 2, 3, 1
    translation = Translation(
        "everything",
        (
            Term(Residual(3), tiny.noise(a.width, b.width, seed=1)),
            Term(Residual(1), tiny.noise(a.width, b.width, seed=2)),
            Term(Residual(0), None),
            Term(Token(), tiny.noise(tiny.VOCABULARY, b.width, seed=3)),
            *(
                Term(Codes(site, d), tiny.noise(20, b.width, seed=4))
                for site, d in zip(sites, dictionaries, strict=True)
            ),
        ),
        tiny.noise(b.width, seed=8),
        first=tiny.noise(b.width, seed=9),
    )
    ids = tiny.ids(2, 9)
    ids[1, 4] = tiny.BOS  # BOS inside the text is an ordinary token
    streams = a.net(ids, output_hidden_states=True).hidden_states
    x = {site: streams[site].double() for site in range(4)}
    terms = translation.terms
    identity = torch.zeros(*ids.shape, b.width, dtype=torch.float64)
    identity[..., : a.width] = x[0]
    addends = [
        translation.bias.double(),
        x[3] @ terms[0].weight.double(),
        x[1] @ terms[1].weight.double(),
        identity,
        terms[3].weight.double()[ids],
        *(
            encode_by_hand(x[site], d) @ term.weight.double()
            for site, d, term in zip(sites, dictionaries, terms[4:], strict=True)
        ),
    ]
    expected = sum(addends, torch.zeros_like(identity))
    # A sum is the worse conditioned the more its addends cancel.
    condition = float(sum(one.norm() for one in addends) / expected.norm())
    expected[:, 0] = translation.first.double()

    composite = compose(a, b, 3, 2, translation)
    for site, d, module in zip(sites, dictionaries, composite.translation.terms[4:], strict=True):
        assert torch.equal(module.encode(streams[site]), d.encode(streams[site]))
    # Three streams; of each dictionary a product with the encoder and one on its features.
    summed = 3 * a.width + sum(sum(d.encoder.shape) for d in dictionaries)
    bound = rounding(torch.float32, terms=summed, condition=condition)
    assert apart(entering_late_half(composite, ids), expected) < bound
    module = translation_module(translation, a, b, 3)
    alone = module({site: stream.float() for site, stream in x.items()}, ids, torch.arange(9).unsqueeze(0))
    assert torch.equal(alone, entering_late_half(composite, ids))
    assert torch.equal(late_logits(composite.late, alone), composite(ids, use_cache=False).logits)


def entering_late_half(composite, *args, **kwargs) -> Tensor:
    seen = []
    handle = composite.translation.register_forward_hook(lambda module, args, output: seen.append(output))
    composite(*args, **kwargs)
    handle.remove()
    return seen[-1]


@torch.no_grad()
def test_the_first_state_depends_on_the_text_not_on_the_column():
    a, b = pico("llama"), pico("gpt2")
    first = tiny.noise(b.width, seed=9)
    composite = compose(a, b, 3, 2, Translation("first", affine(a, b, 3).terms, torch.zeros(b.width), first))
    padded, mask = left_padded((6, 3))
    padded[1, :3] = tiny.BOS  # padding with the BOS token, as for models without a pad token
    for inputs in ({}, {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}):
        stream = entering_late_half(composite, padded, attention_mask=mask, **inputs)
        at_first = (stream == first).all(-1)
        assert at_first.nonzero().tolist() == [[0, 0], [1, 3]]
    cache = DynamicCache(config=composite.config)
    entering_late_half(composite, padded[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
    padded[:, 4] = tiny.BOS
    later = entering_late_half(composite, padded[:, 4:], attention_mask=mask, past_key_values=cache)
    assert not (later == first).all(-1).any()


@torch.no_grad()
def test_a_translation_without_terms_gives_its_bias_everywhere():
    a, b = pico("llama"), pico("gpt2")
    composite = compose(a, b, 3, 2, Translation("mean", (), tiny.noise(b.width)))
    assert torch.equal(entering_late_half(composite, tiny.ids(2, 5)), tiny.noise(b.width).expand(2, 5, -1))


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "mistral", "phi"])
@torch.no_grad()
def test_the_late_half_alone_gives_the_composites_logits(family):
    a, b = pico("qwen2"), pico(family)
    padded, mask = left_padded((11, 4))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for site in (0, 2, 6):
        composite = compose(a, b, 3, site, affine(a, b, 3))
        stream = entering_late_half(composite, padded, attention_mask=mask, position_ids=positions)
        expected = composite(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
        assert torch.equal(late_logits(late_half(b, site), stream, mask, positions), expected)


@torch.no_grad()
def test_donors_share_memory_with_the_composite_and_stay_as_they_were():
    a, b, ids = tiny.model("gemma2"), tiny.model("gpt2"), tiny.ids()
    before = a.net(ids).logits, b.net(ids).logits
    composite = compose(a, b, 3, 2, affine(a, b, 3))
    assert composite.a.layers[1].mlp.up_proj.weight.data_ptr() == a.blocks[1].mlp.up_proj.weight.data_ptr()
    assert composite.b.transformer.h[2].mlp.c_fc.weight.data_ptr() == b.blocks[2].mlp.c_fc.weight.data_ptr()
    composite.generate(ids, max_new_tokens=3, do_sample=False)
    composite.to(torch.bfloat16)
    assert a.dtype == b.dtype == torch.float32
    assert a.config.num_hidden_layers == b.config.num_hidden_layers == tiny.DEPTH
    assert torch.equal(a.net(ids).logits, before[0])
    assert torch.equal(b.net(ids).logits, before[1])


def test_gradient_checkpointing_changes_no_gradient():
    a, ids = pico("llama"), tiny.ids()
    b = tiny.model("gpt2", attn_pdrop=0.0, resid_pdrop=0.0)
    translation = Translation("two sites", (*affine(a, b, 3).terms, *affine(a, b, 1).terms), torch.zeros(b.width))
    gradients = []
    for checkpointing in (False, True):
        composite = compose(a, b, 3, 2, translation)
        if checkpointing:
            composite.gradient_checkpointing_enable()
        composite.train()
        loss = composite(ids, labels=ids).loss
        gradients.append(torch.autograd.grad(loss, list(composite.translation.parameters())))
    assert all(torch.equal(plain, again) and plain.abs().max() > 0 for plain, again in zip(*gradients, strict=True))


@pytest.mark.numeric
@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_next_token():
    a, b, ids = pico("llama"), pico("gpt2"), tiny.ids()
    output = compose(a, b, 3, 2, affine(a, b, 3))(ids, labels=ids, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert len(output.hidden_states) == (3 + 1) + (4 + 1)


def test_unsupported_uses_of_a_composite_are_refused_with_a_remedy():
    a, b, ids = pico("llama"), pico("gpt2"), tiny.ids()
    composite = compose(
        a, b, 3, 2, Translation("token", (Term(Token(), tiny.noise(128, b.width)),), torch.zeros(b.width))
    )
    with pytest.raises(ValueError, match="leave cache_implementation out"):
        composite.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="pass input_ids"):
        composite(inputs_embeds=tiny.noise(1, 4, a.width))
    with pytest.raises(UsageError, match=r"layer must be in 0\.\.6 for llama; got 7"):
        compose(a, b, 7, 2, affine(a, b, 3))
    with pytest.raises(UsageError, match="can read no later site"):
        compose(a, b, 2, 2, affine(a, b, 3))
    with pytest.raises(UsageError, match="B's width 40"):
        compose(b, a, 3, 2, identity(b, 3))


@torch.no_grad()
def test_embeddings_may_be_passed_if_no_token_id_is_read():
    a, b, ids = pico("llama"), pico("gpt2"), tiny.ids()
    composite = compose(a, b, 3, 2, affine(a, b, 3))
    given = composite(inputs_embeds=a.embedding(ids)).logits
    assert torch.equal(given, composite(ids).logits)
