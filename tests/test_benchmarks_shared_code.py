"""Several streams with one code: rows stay the same tokens, and a planted code translates between any two streams."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _joint_sae import crosscoder, universal_sae
from _shared_code import Streams, directions, re_paired, second_moments, through_code
from safetensors.torch import save_file

from sae.config import SAEConfig
from stitch.activations.harvest import Activations
from stitch.regression.moments import accumulate
from stitch.text.windows import Windows
from stitch.translation.types import Codes, Residual

WINDOWS, CONTEXT, PLANTED = 96, 33, 20
WIDTHS = {"gpt2.1": 12, "gpt2.2": 16, "llama.2": 20}
LOOK = SAEConfig(features=32, k=2, lr=1e-2, steps=400, batch_size=256)


@pytest.fixture(scope="module")
def streams(tmp_path_factory) -> Streams:
    """Streams that are linear images of one sparse code; two of them are sites of the same harvest. Position 0 is a
    sink.
    """
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(WINDOWS, CONTEXT, PLANTED, generator=generator) < 2 / PLANTED
    code = on * (torch.rand(WINDOWS, CONTEXT, PLANTED, generator=generator) + 0.5)
    found = {}
    for name, width in WIDTHS.items():
        x = code @ torch.randn(PLANTED, width, generator=generator) + 1.0
        x += 1e-3 * torch.randn(x.shape, generator=generator)  # no two tokens are equal
        x[:, 0] *= 100
        x[0, len(found) + 1] *= 100  # each stream has a sink of its own
        found[name] = x
    ids = torch.zeros(WINDOWS, CONTEXT, dtype=torch.int32)
    windows, root = Windows(ids, ids), tmp_path_factory.mktemp("streams")

    def harvested(model: str, sites: tuple[int, ...]) -> Activations:
        made = Activations(Path(root / model), sites, windows, per_shard=20)
        made.folder.mkdir()
        for file in range(made.files):
            rows = made.in_file(file)
            for site in sites:
                save_file({f"resid_pre.{site}": found[f"{model}.{site}"][rows].contiguous()}, made.path(file, site))
        return made

    gpt2, llama = harvested("gpt2", (1, 2)), harvested("llama", (2,))
    return Streams.of({"gpt2.1": (gpt2, 1), "gpt2.2": (gpt2, 2), "llama.2": (llama, 2)})


@pytest.fixture(scope="module")
def universal(streams):
    return universal_sae(LOOK, streams.widths, lambda start: streams.batches(256, seed=0, start=start))


def _kept(streams: Streams, name: str) -> torch.Tensor:
    return torch.cat([batch[name] for batch in streams.chunks()])


def _unexplained(y, written) -> float:
    return float((y - written).square().sum() / (y - y.mean(0)).square().sum())


def test_rows_of_a_batch_are_the_same_tokens_in_every_stream_unless_re_paired(streams):
    assert streams.widths == WIDTHS
    assert int(streams.keep.sum()) == WINDOWS * (CONTEXT - 1) - len(WIDTHS)  # BOS and every stream's sink are excluded
    tokens = [tuple(row) for row in torch.cat([_kept(streams, name) for name in WIDTHS], 1).tolist()]
    batch = next(streams.batches(64, seed=3))
    together = {tuple(row) for row in torch.cat([batch[name] for name in WIDTHS], 1).tolist()}
    assert len(together) == 64 and together <= set(tokens)

    again = next(streams.only("llama.2").batches(64, seed=3))
    assert torch.equal(batch["llama.2"], again["llama.2"])
    later = streams.batches(64, seed=3, start=5)
    from_the_start = list(zip(range(6), streams.batches(64, seed=3), strict=False))[-1][1]
    assert torch.equal(next(later)["gpt2.1"], from_the_start["gpt2.1"])

    apart = next(re_paired(streams.batches(64, seed=3), seed=0))
    assert sorted(map(tuple, apart["gpt2.2"].tolist())) == sorted(map(tuple, batch["gpt2.2"].tolist()))
    mixed = {tuple(row) for row in torch.cat([apart[name] for name in WIDTHS], 1).tolist()}
    assert len(mixed & set(tokens)) < 8


def test_decoding_the_code_of_one_stream_into_another_is_an_ordinary_translation(streams, universal):
    found = through_code("universal-sae", universal, "llama.2", "gpt2.1", site=2)
    (term,) = found.terms
    assert isinstance(term.input, Codes) and term.input.site == 2 and term.weight is not None
    x, y = _kept(streams, "llama.2"), _kept(streams, "gpt2.1")
    assert _unexplained(y, term.input.dictionary.encode(x) @ term.weight + found.bias) < 0.3
    wrong = through_code("universal-sae", universal, "llama.2", "gpt2.2", site=2)
    assert len(wrong.bias) == WIDTHS["gpt2.2"]


def test_directions_of_a_crosscoder_give_the_planted_linear_map(streams):
    names = ("llama.2", "gpt2.1")  # the 20 columns hold all 20 planted features
    some = streams.only(*names)
    code = crosscoder(LOOK, some.widths, lambda start: some.batches(256, seed=0, start=start))
    second = second_moments(code, some)
    joint = code.joint.encode(torch.cat([_kept(some, name) for name in names], 1)).double()
    length = sum(code.norms[name].double().square() for name in names)
    torch.testing.assert_close(second, joint.square().mean(0) / length)

    moments = accumulate(
        ({"x": batch[names[0]], "target": batch[names[1]]} for batch in some.chunks()),
        [("x", "x"), ("x", "target"), ("target", "target")],
    )
    found = directions("crosscoder-directions", code, *names, 2, second, moments)
    (term,) = found.terms
    assert isinstance(term.input, Residual) and term.weight is not None
    x, y = (_kept(some, name) for name in names)
    assert _unexplained(y, x @ term.weight + found.bias) < 0.1

    own = code.streams[names[1]]
    wrong = replace(code, streams={**code.streams, names[1]: replace(own, decoder=own.decoder.roll(7, 0))})
    (term,) = directions("crosscoder-directions", wrong, *names, 2, second, moments).terms
    assert term.weight is not None and _unexplained(y, x @ term.weight + found.bias) > 0.9
