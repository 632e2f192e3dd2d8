"""Numbers that nobody wants: each gives a finite result that makes sense, or an error of one line; never NaN, never a crash."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import matching
import sae
import stitch
import tiny
from jobs import WORDS
from matching.errors import MatchError
from sae.convert import to_dictionary
from sae.errors import SAEError
from sae.metrics import measure
from stitch.errors import StitchError
from stitch.models.loading import open_folder
from stitch.regression.moments import Moments, accumulate
from stitch.regression.prior import ridge_towards
from stitch.regression.ridge import ridge, shares

TOKENS, WIDTH, FITTED = 512, 8, 400
NO_PRIOR = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
ERRORS = (StitchError, SAEError, MatchError)


def plain() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float32)


def one(value: float) -> np.ndarray:
    found = plain()
    found[7, 3] = value
    return found


def rank_one() -> np.ndarray:
    return plain()[:, :1] @ plain()[:1]


# What each is, and whether regressions and measures have an answer.
HOSTILE: dict[str, tuple[Callable[[], np.ndarray], bool]] = {
    "constant": (lambda: np.full((TOKENS, WIDTH), 3.0, np.float32), False),
    "zero": (lambda: np.zeros((TOKENS, WIDTH), np.float32), False),
    "half of it dead": (lambda: plain() * np.array([1, 0] * 4, np.float32), True),
    "every column twice": (lambda: np.repeat(plain()[:, :4], 2, axis=1), True),
    "rank one": (rank_one, True),
    "huge": (lambda: plain() * np.float32(1e30), True),
    "nearly infinite": (lambda: plain() * np.float32(5e37), True),
    "tiny": (lambda: plain() * np.float32(1e-25), True),
    "denormal": (lambda: plain() * np.float32(1e-40), True),
    "far from zero": (lambda: plain() + np.float32(1e5), True),
    "one huge value": (lambda: one(1e30), True),
    "NaN": (lambda: one(np.nan), False),
    "infinity": (lambda: one(np.inf), False),
    "half precision": (lambda: plain().astype(np.float16), True),
    "overflow of half precision": (lambda: torch.from_numpy(plain() * 60_000).half().numpy(), False),
    "squares that overflow": (lambda: plain().astype(np.float64) * 1e200, False),
}


@pytest.fixture(params=HOSTILE)
def hostile(request) -> tuple[np.ndarray, bool]:
    make, answered = HOSTILE[request.param]
    return make(), answered


def result_of(work: Callable) -> object:
    """What `work` returns, or None where it ends in an error of one line."""
    try:
        return work()
    except ERRORS as error:
        told = error
    assert "\n" not in str(told) and len(str(told)) < 300 and "nan" not in str(told)
    return None


def moments(x: np.ndarray, y: np.ndarray) -> tuple[Moments, Moments]:
    both = {"x": torch.from_numpy(x).double(), "target": torch.from_numpy(y).double()}
    parts = [{name: part[rows] for name, part in both.items()} for rows in (slice(FITTED), slice(FITTED, None))]
    fit, held_out = (accumulate([part], [("x", "x"), ("x", "target")]) for part in parts)
    return fit, held_out


def finite(*values: Tensor | float) -> bool:
    return all(bool(torch.as_tensor(value, dtype=torch.float64).isfinite().all()) for value in values)


def test_matching_gives_correlations_or_a_reason(hostile):
    x, _ = hostile
    for other in (plain(), x):
        found = result_of(lambda other=other: matching.match(x, other))
        if found is not None:
            assert np.isfinite(found.pairs.scores).all() and (np.abs(found.pairs.scores) <= 1 + 1e-9).all()
            assert np.isfinite(found.certificate.gap)


@pytest.mark.parametrize("name", ["huge", "nearly infinite", "tiny", "denormal", "half precision"])
def test_the_size_of_numbers_does_not_change_a_matching(name):
    x = HOSTILE[name][0]()
    assert matching.match(x, plain()).pairs.cols.tolist() == list(range(WIDTH))


def test_an_sae_is_trained_or_refused(hostile):
    x, _ = hostile
    trained = result_of(lambda: sae.train(x, features=16, k=2, batch_size=128))
    if trained is not None:
        assert finite(*trained.state_dict().values())
        quality = measure(to_dictionary(trained), [torch.from_numpy(x).float()])
        assert finite(quality.fvu, quality.r2, quality.l0, quality.dead)


def test_a_regression_is_solved_or_refused(hostile):
    x, answered = hostile
    for inputs, target in ((x, plain()), (plain(), x), (x, x)):
        found = result_of(lambda inputs=inputs, target=target: ridge(*moments(inputs, target), ("x",)))
        if found is not None:
            assert finite(*found.weights.values(), found.bias, found.strength, found.unexplained) and found.weights
            assert finite(*shares(found, moments(inputs, target)[0]).values())
        assert found is not None or not answered
        towards = result_of(
            lambda inputs=inputs, target=target: ridge_towards(
                *moments(inputs, target), NO_PRIOR, inputs="x", target="target"
            )
        )
        assert towards is None or finite(towards.weight, towards.unexplained)


@pytest.mark.parametrize("name", ["every column twice", "rank one", "huge", "nearly infinite", "tiny", "denormal"])
def test_a_regression_finds_what_is_there_at_any_size(name):
    """x on x leaves nothing; so does x on what it was made from."""
    x = HOSTILE[name][0]()
    assert ridge(*moments(x, x), ("x",)).unexplained < 1e-6
    assert ridge(*moments(plain(), x), ("x",)).unexplained < 1e-6


def test_a_constant_input_explains_nothing():
    fit, held_out = moments(HOSTILE["constant"][0](), plain())
    found = ridge(fit, held_out, ("x",))
    assert found.unexplained == pytest.approx(1, abs=0.05)
    assert torch.allclose(found.bias + fit.means["x"] @ found.weights["x"], fit.means["target"])


def test_measures_of_similarity_are_numbers_or_a_reason(hostile):
    x, y = torch.from_numpy(hostile[0]).double(), torch.from_numpy(plain()).double()
    a, b = x - x.mean(0), y - y.mean(0)
    covariances = [left.T @ right / TOKENS for left, right in ((a, a), (b, b), (a, b))]
    for measured in (
        lambda: matching.linear_cka(*covariances),
        lambda: matching.svcca(*covariances),
        lambda: matching.mean_max_cosine(x, y),
        lambda: matching.pair_cosines(x, y),
        lambda: matching.orthogonal_map(x, y, torch.ones(TOKENS)).matrix,
    ):
        found = result_of(measured)
        assert found is None or (finite(found) and (torch.as_tensor(found).abs() <= 1 + 1e-9).all())


@pytest.mark.parametrize("name", ["huge", "nearly infinite", "tiny", "denormal"])
def test_a_cosine_does_not_depend_on_length(name):
    x = torch.from_numpy(HOSTILE[name][0]())
    assert matching.pair_cosines(x, torch.from_numpy(plain())).min() > 1 - 1e-3


def test_documents_of_two_characters_are_scored(tmp_path):
    model = open_folder(tiny.save(tmp_path / "gpt2", "gpt2"))
    text = [chr(ord("a") + first) + chr(ord("a") + second) for first in range(26) for second in range(12)]
    found = stitch.evaluate(model, text=text, whole_text=True, tokens=64, context=32, device="cpu", quiet=True)
    assert all(np.isfinite(row["ce"]) for row in found.report["results"])


def test_a_model_whose_stream_overflows_is_named_with_the_site(tmp_path):
    net, tokenizer = open_folder(tiny.save(tmp_path / "gpt2", "gpt2"))
    with torch.no_grad():
        net.transformer.wte.weight[tokenizer(WORDS[-1])["input_ids"]] = 2e38  # finite, but its square is not
    texts = [" ".join([*WORDS[number % 7 :], *WORDS[: number % 7] * (1 + number // 7)]) for number in range(400)]
    with pytest.raises(
        StitchError, match=r"activations must be finite; .* gives NaN or infinity at site [12]: load it in"
    ):
        stitch.join((net, tokenizer), (net, tokenizer), 2, text=texts, tokens=4096, context=16,
                    features=32, k=4, reference_steps=0, brief=True, device="cpu", quiet=True)  # fmt: skip
