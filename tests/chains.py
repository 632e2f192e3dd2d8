"""Composites of several pico models, and a translation with every kind of input."""

from pathlib import Path

import torch

import tiny
from stitch.activations.observe import observe
from stitch.composite.compose import compose
from stitch.modeling.modeling_composite import StitchForCausalLM
from stitch.modeling.modeling_translation import ngram_keys
from stitch.models.anatomy import anatomy_of
from stitch.models.model import Model
from stitch.translation.types import Codes, Ngram, Position, Residual, Term, Token, Translation
from translations import affine, dictionary

pico = tiny.shared


def as_model(net: StitchForCausalLM, folder: Path = Path("composite")) -> Model:
    return Model("composite", net, tiny.tokenizer(), anatomy_of(net.config), folder)


@torch.no_grad()
def width_at(model: Model, site: int) -> int:
    return observe(model, {"input_ids": tiny.ids(1, 3)}, streams=[site]).streams[site].shape[-1]


def everything(a: Model, b: Model, site: int) -> Translation:
    """A translation with every kind of input, at A's last three blocks. In a composite these lie on both sides of
    its seam.
    """
    terms = [
        Term(Residual(site), tiny.noise(a.width, b.width, seed=1) / a.width**0.5),
        Term(Residual(site, back=1), tiny.noise(a.width, b.width, seed=2) / a.width**0.5),
        Term(Codes(site, dictionary(a.width, 20, "topk")), tiny.noise(20, b.width, seed=3) / 6),
        Term(Token(), tiny.noise(tiny.VOCABULARY, b.width, seed=4) / 4),
        Term(Token(2), tiny.noise(tiny.VOCABULARY, b.width, seed=5) / 4),
        Term(Position(), tiny.noise(128, b.width, seed=6) / 4),
    ]
    for earlier in (1, site - 1):
        width = width_at(a, earlier)
        terms.append(Term(Residual(earlier, back=earlier % 2), tiny.noise(width, b.width, seed=7) / width**0.5))
    pairs = torch.cartesian_prod(torch.arange(tiny.VOCABULARY), torch.arange(0, tiny.VOCABULARY, 2))
    keys = ngram_keys([pairs[:, 0], pairs[:, 1]], tiny.VOCABULARY).sort().values
    terms.append(Term(Ngram(2, keys), tiny.noise(len(keys), b.width, seed=8) / 4))
    return Translation("everything", tuple(terms), tiny.noise(b.width), tiny.noise(b.width, seed=9))


def chained(*families: str, make=affine) -> StitchForCausalLM:
    """Runs the first two blocks of the first model, then blocks 2..4 (or 3..5, …) of the next, and so on; the last
    one runs to its end.
    """
    model, site = pico(families[0]), 2
    for number, family in enumerate(families[1:]):
        after, start = pico(family), 2 + number
        net = compose(model, after, site, start, make(model, after, site))
        model, site = as_model(net), site + 2
    return net
