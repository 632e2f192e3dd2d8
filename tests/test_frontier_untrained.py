"""A's architecture with weights drawn at random, in A's place."""

from dataclasses import replace
from typing import Any

import torch

import tiny
from own_family import my_decoder
from stitch.composite.costs import Cost
from stitch.frontier.alternative import Means
from stitch.frontier.untrained import untrained, untrained_a, why_no_untrained_a


def means(folder, memory: int) -> Means:
    limit = Cost(0.0, 0, 0, 0)
    return Means(limit=limit, windows={}, context=8, ngrams=0, routes=0, seed=0, memory=memory, scratch=folder)


def test_all_weights_are_drawn_anew_and_a_seed_fixes_them():
    model = tiny.model("llama")
    state = torch.get_rng_state()
    first, again, other = (untrained(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for name, own in model.net.named_parameters():
        found = first.net.get_parameter(name)
        assert found.shape == own.shape and found.dtype == own.dtype and not found.requires_grad
        assert torch.equal(found, again.net.get_parameter(name))
        if own.ndim > 1:
            assert not torch.equal(found, own) and not torch.equal(found, other.net.get_parameter(name))
    assert first.tokenizer is model.tokenizer and first.depth == model.depth


def test_there_is_no_second_a_beyond_half_of_the_memory(tmp_path):
    a, b = tiny.model("llama"), tiny.model("gpt2")
    size = sum(parameter.nbytes for parameter in a.net.parameters())
    assert untrained_a(a, b, (1, 1), "translation:affine", means(tmp_path, 2 * size - 1)) is None
    assert why_no_untrained_a(a, b, 2 * size) is None


def test_models_that_read_other_tokens_and_code_of_others_have_no_untrained_a(tmp_path):
    a, b = tiny.model("llama"), tiny.model("gpt2")
    other: Any = a  # anything but None: B in another tokenizer
    assert why_no_untrained_a(a, replace(b, original=other), 2**30) == "the models read different tokens"
    assert "code of others" in str(why_no_untrained_a(replace(a, net=my_decoder(tmp_path).net), b, 2**30))
