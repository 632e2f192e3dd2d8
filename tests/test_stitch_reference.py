"""Trained references: gradient descent lowers the cross-entropy it is given and changes nothing else."""

import copy

import pytest
import torch

import tiny
from stitch.activations.harvest import harvest
from stitch.activations.paired import Paired, pair
from stitch.evaluation.scores import evaluate
from stitch.evaluation.stage import Stage
from stitch.evaluation.trained import trained
from stitch.text.windows import Windows
from stitch.translation import lifts
from stitch.translation.types import Codes, Residual, Term, Token, Translation


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> Paired:
    """Learnable text: every token determines the next."""
    folder = tmp_path_factory.mktemp("paired")
    a, b = tiny.model("gpt2"), tiny.model("llama", seed=1)
    successor = torch.randperm(tiny.VOCABULARY - 3, generator=torch.Generator().manual_seed(0)) + 3
    ids = torch.zeros(24, 20, dtype=torch.int32)
    ids[:, 1] = torch.arange(3, 27)
    for position in range(2, 20):
        ids[:, position] = successor[ids[:, position - 1].long() - 3]
    windows = Windows(ids, torch.zeros_like(ids))
    return pair(
        harvest(a, windows, [1, 3], folder / "a", per_shard=10),
        harvest(b, windows, [4], folder / "b", per_shard=10),
        3,
        4,
    )


def start(paired: Paired) -> Translation:
    a, b = paired.width_a, paired.width_b
    lift = lifts.random_relu(paired.shard(0)[0].float(), 30, torch.Generator().manual_seed(0))
    terms = (
        Term(Residual(3), tiny.noise(a, b) / a**0.5),
        Term(Residual(1, back=1), tiny.noise(a, b, seed=4) / a**0.5),
        Term(Codes(3, lift), tiny.noise(30, b, seed=3) / 30),
        Term(Token(), tiny.noise(tiny.VOCABULARY, b, seed=1) / 10),
    )
    return Translation("wide", terms, tiny.noise(b, seed=2) / 10).starting_with(tiny.noise(b, seed=7))


def test_training_lowers_the_cross_entropy_and_keeps_both_models_and_the_start(paired):
    a, b = tiny.model("gpt2"), tiny.model("llama", seed=1)
    before = {name: value.clone() for name, value in b.net.state_dict().items()}
    given = start(paired)
    kept = copy.deepcopy(given)
    after = trained(given, a, b, paired, steps=60, seed=0)
    stage = Stage(a, b, 3, 4, paired, 2**28)
    scores = evaluate(
        {"start": stage.translated(given), "trained": stage.translated(after)},
        stage.windows,
        vocabulary=tiny.VOCABULARY,
    )
    assert scores["trained"].ce < scores["start"].ce - 1
    assert all(torch.equal(value, before[name]) for name, value in b.net.state_dict().items())
    assert after.first is not None and given.first is not None and torch.equal(after.first, given.first)
    for old, same, new in zip(kept.terms, given.terms, after.terms, strict=True):
        assert torch.equal(old.weight, same.weight) and not torch.equal(old.weight, new.weight)
    assert not torch.equal(after.terms[2].input.dictionary.encoder, given.terms[2].input.dictionary.encoder)
    assert torch.equal(kept.terms[2].input.dictionary.encoder, given.terms[2].input.dictionary.encoder)


def test_the_same_seed_trains_the_same_reference(paired):
    a, b = tiny.model("gpt2"), tiny.model("llama", seed=1)
    first, second, other = (trained(start(paired), a, b, paired, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.bias, second.bias) and not torch.equal(first.bias, other.bias)


def test_no_steps_change_nothing(paired):
    a, b = tiny.model("gpt2"), tiny.model("llama", seed=1)
    same = trained(start(paired), a, b, paired, steps=0, seed=0)
    for old, new in zip(start(paired).terms, same.terms, strict=True):
        assert torch.equal(old.weight, new.weight)


def test_the_rate_is_the_relative_size_of_the_first_step(paired):
    a, b = tiny.model("gpt2"), tiny.model("llama", seed=1)
    given = start(paired)
    weight = given.terms[0].weight
    assert weight is not None
    for rate in (1e-2, 1e-3):
        moved = trained(given, a, b, paired, steps=1, seed=0, rate=rate).terms[0].weight
        assert moved is not None
        size = (moved - weight).square().mean().sqrt() / weight.square().mean().sqrt()
        assert float(size) == pytest.approx(rate, rel=0.05)  # Adam's first step equals the rate in every coordinate
