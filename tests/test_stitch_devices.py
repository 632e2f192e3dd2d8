"""A composite creates all tensors on its own device: it runs on meta tensors, which cannot be combined with others."""

from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache

import tiny
from sae.types import Dictionary
from stitch.composite.compose import compose
from stitch.translation.types import Codes, Ngram, Position, Residual, Routed, Term, Token, Translation

A, B = (tiny.model(family, pad_token_id=None) for family in ("gpt2", "llama"))
SITE, FEATURES = 2, 10
WEIGHT = tiny.noise(A.width, B.width)


def dictionary(activation: str) -> Dictionary:
    threshold = torch.rand(FEATURES) if activation in ("jumprelu", "rbf") else None
    k = 3 if activation == "topk" else None
    encoder, decoder = tiny.noise(A.width, FEATURES), tiny.noise(FEATURES, A.width)
    return Dictionary(encoder, tiny.noise(FEATURES), activation, threshold, k, decoder, tiny.noise(A.width))


def codes(activation: str) -> Term:
    return Term(Codes(SITE, dictionary(activation)), tiny.noise(FEATURES, B.width))


TERMS = {
    "identity": Term(Residual(SITE), None),
    "affine": Term(Residual(SITE), WEIGHT),
    "earlier": Term(Residual(1, 1), WEIGHT),
    "routed": Term(Routed(SITE, 0, torch.arange(tiny.VOCABULARY) % 3), torch.stack([WEIGHT] * 3)),
    "token": Term(Token(1), tiny.noise(tiny.VOCABULARY, B.width)),
    "position": Term(Position(), tiny.noise(128, B.width)),
    "ngram": Term(Ngram(2, torch.tensor([3, 9])), tiny.noise(2, B.width)),
    **{activation: codes(activation) for activation in ("relu", "topk", "jumprelu", "rbf")},
}


@pytest.mark.parametrize("kind", TERMS)
@torch.no_grad()
def test_a_composite_runs_on_its_own_device_only(kind: str, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda **_: nullcontext())  # autocast does not support meta tensors
    translation = Translation(kind, (TERMS[kind],), torch.zeros(B.width)).starting_with(torch.ones(B.width))
    composite = compose(A, B, SITE, 3, translation).to("meta")
    ids = torch.zeros(2, 12, dtype=torch.long, device="meta")
    cache = DynamicCache(config=composite.config)
    shapes = [
        composite(ids).logits.shape,
        composite(ids, past_key_values=cache, use_cache=True).logits.shape,
        composite(ids[:, :1], past_key_values=cache, use_cache=True).logits.shape,
    ]
    assert shapes == [(2, 12, tiny.VOCABULARY), (2, 12, tiny.VOCABULARY), (2, 1, tiny.VOCABULARY)]


def test_meta_tensors_cannot_be_combined_with_others():
    """The other test relies on this."""
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device="meta") + torch.zeros(3)
