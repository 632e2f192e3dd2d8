"""Parts of a shared head, against least squares on the streams themselves; and a circuit that is silent where others speak."""

import pytest
import torch
from torch import Tensor

import tiny
from stitch.circuits.behaviours.prompts import Prompts
from stitch.grafts.apart import RIDGE, AskedStreams, among_alone, set_apart
from stitch.grafts.norm_inputs import normalised_inputs
from stitch.regression.weighted import weighted_ridge

pytestmark = pytest.mark.numeric

WIDTH, LANES, VOCABULARY = 12, 5, 7


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lanes() -> Tensor:
    return torch.linalg.qr(drawn(WIDTH, LANES, seed=1)).Q.T


def streams(rows: Tensor) -> AskedStreams:
    return AskedStreams(rows.T @ rows / len(rows), rows.mean(0))


def test_a_part_is_least_squares_on_the_streams_of_all_behaviours():
    own, *others = (drawn(40, WIDTH, seed=seed) for seed in (2, 3, 4))
    logits, quiet = (lanes().T @ drawn(LANES, VOCABULARY, seed=seed) for seed in (5, 6))
    found = set_apart(logits, quiet, lanes(), streams(own), [streams(each) for each in others])
    rows, goal = torch.cat([own, *others]), torch.cat([own @ logits, torch.zeros(80, VOCABULARY, dtype=torch.float64)])
    change = weighted_ridge(rows @ lanes().T, goal - rows @ quiet, RIDGE)
    assert torch.allclose(found, quiet + lanes().T @ change, atol=1e-9)


def test_a_circuit_says_all_that_it_says_on_its_own_prompts_and_nothing_on_others():
    basis = lanes()
    own, other = drawn(50, 2, seed=7) @ basis[:2], drawn(50, 2, seed=8) @ basis[2:4]
    logits = basis.T @ drawn(LANES, VOCABULARY, seed=9)
    found = set_apart(logits, 0.5 * logits, basis, streams(own), [streams(other)])
    assert (own @ found - own @ logits).abs().max() < 0.01 < 0.5 < (own @ logits).abs().max()
    assert (other @ found).abs().max() < 0.01 < 0.5 < (other @ logits).abs().max()
    unseen = basis[4:]  # no stream has it
    assert torch.allclose(unseen @ found, 0.5 * unseen @ logits)


def test_only_tokens_that_compete_are_spoken_of():
    empty = torch.zeros(1, 1, dtype=torch.long)
    asked = Prompts(empty, empty, empty.bool(), empty, (2, 4))
    logits = drawn(WIDTH, VOCABULARY, seed=10)
    found = among_alone(logits, asked)
    assert torch.equal(found[:, [2, 4]], logits[:, [2, 4]]) and not found[:, [0, 1, 3, 5, 6]].any()
    assert among_alone(logits, Prompts(empty, empty, empty.bool(), empty)) is logits


def test_streams_are_those_of_both_kinds_of_prompts_where_something_is_asked():
    model = tiny.model("llama")
    clean, corrupt = torch.randint(3, 60, (2, 3, 8), generator=torch.Generator().manual_seed(0))
    asked = torch.zeros(3, 8, dtype=torch.bool)
    asked[:, 4:6] = True
    found = AskedStreams.of(model, Prompts(clean, corrupt, asked, clean))
    rows = [normalised_inputs(model, [("final", 0)], ids)["final", 0][asked] for ids in (clean, corrupt)]
    assert torch.allclose(found.corrupt, rows[1].mean(0))
    assert torch.allclose(found.moment, torch.cat(rows).T @ torch.cat(rows) / 12)
