"""Composite folders of pico models, for tests of the programs that load them."""

from pathlib import Path

import torch

import tiny
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.translation.packed import Packed
from stitch.translation.types import Fallback, Ngram, Position, Residual, Routed, Term, Token, Translation

BIGRAM = (72, 79)  # "el"
PAIRS = torch.tensor([3 * tiny.VOCABULARY + 80, BIGRAM[0] * tiny.VOCABULARY + BIGRAM[1]])  # keys of " m" and "el"


def every_look_up(a: Model, b: Model, site: int) -> Translation:
    """Reads A's stream, and every kind of table that a translation may have."""
    width, vocabulary = b.width, tiny.VOCABULARY
    known = torch.arange(10, 90)
    terms = (
        Term(Residual(site), tiny.noise(a.width, width) / a.width**0.5),
        Term(Routed(site, 1, torch.arange(vocabulary) % 3), tiny.noise(3, a.width, width, seed=1) / 20),
        Term(Token(), Packed.of(lambda: [tiny.noise(vocabulary, 6, seed=2) + 1], tiny.noise(6, width, seed=3) / 6)),
        Term(Token(1), tiny.noise(vocabulary, width, seed=4) / 4 + 1),
        Term(
            Token(0, known), tiny.noise(80, width, seed=5), Fallback("a", tiny.noise(a.width + 1, width, seed=6), 0.1)
        ),
        Term(Ngram(2, PAIRS), tiny.noise(2, width, seed=7)),
        Term(Position(), tiny.noise(128, width, seed=8) / 4),
    )
    return Translation("every look-up", terms, tiny.noise(width, seed=9), first=tiny.noise(width, seed=10))


def write(
    folder: Path, a: str = "gpt2", b: str = "llama", make=every_look_up, site: int = 3, site_b: int = 2, **options
) -> Path:
    """Blocks of a pico A up to `site` and of a pico B from `site_b`, in `folder`/composite; the donors lie beside it."""
    donors = {name: tiny.save(folder / side / name, name) for side, name in (("a", a), ("b", b))}
    models = [load(donors[name]) for name in (a, b)]
    translation = make(*models, site)
    config = compose(*models, site, site_b, translation).config
    write_checkpoint(folder / "composite", config, donors[a], donors[b], translation, **options)
    return folder / "composite"
