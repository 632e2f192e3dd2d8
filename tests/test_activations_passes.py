"""A text that is longer than the model takes is read in passes that overlap by half."""

import pytest
import torch

import tiny
from stitch.activations.observe import residuals
from stitch.activations.passes import Passes


@pytest.mark.parametrize("lengths", [[5, 16], [17, 3], [40], [0, 25]])
def test_every_token_is_read_once_behind_half_of_what_the_model_takes(lengths):
    texts = [torch.arange(100 * number + 1, 100 * number + 1 + length) for number, length in enumerate(lengths)]
    passes = Passes.of(texts, 16, bos=0)
    assert passes.ids.shape[1] <= 16
    for text, read in zip(texts, passes.joined(passes.ids), strict=True):
        assert read.tolist() == text.tolist()
    for mine in passes.parts:
        for number, (row, first, stop) in enumerate(mine):
            assert first == (0 if number == 0 else 8) and stop <= 16
            assert passes.ids[row, 0] == 0 or number == 0


def test_streams_of_a_short_text_are_those_of_one_pass():
    model, ids = tiny.shared("gpt2"), tiny.ids(2, 12).long()
    passes = Passes.of(list(ids), 128, tiny.BOS)
    found = residuals(model, passes.ids, [3])[3]
    assert torch.equal(torch.stack(list(passes.joined(found))), residuals(model, ids, [3])[3])


def test_streams_of_a_long_text_are_those_behind_the_tokens_of_their_pass():
    model, ids = tiny.shared("llama"), tiny.ids(1, 40).long()[0]
    passes = Passes.of([ids], 16, tiny.BOS)
    (found,) = passes.joined(residuals(model, passes.ids, [3])[3])
    start = 16 - 8
    second = torch.cat([torch.tensor([tiny.BOS]), ids[start + 1 : start + 16]])
    assert torch.allclose(found[16:24], residuals(model, second[None], [3])[3][0, 8:16], atol=1e-5)
