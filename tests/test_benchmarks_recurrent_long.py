"""Reading beyond the context: windows that are read again see what they should, and bins count every prediction once."""

import pytest
import torch
from recurrent_long import Rereading, by_position, later, nats_of, without_head

import tiny
from stitch.conversions.recurrence.recall import recall_prompts
from stitch.evaluation.intervals import ratio_interval
from stitch.text.windows import Windows

CONTEXT, STRIDE = 8, 3


@torch.no_grad()
def test_re_reading_predicts_from_the_window_that_ends_last_before_it():
    net, ids = tiny.net("llama"), tiny.ids(2, 20)
    found = Rereading(net, tiny.BOS, CONTEXT, STRIDE)(ids).logits
    assert found.shape[1] == 20
    for token in range(20):
        if token < CONTEXT:
            window, place = ids[:, :CONTEXT], token
        else:
            end = min(20, token + STRIDE - (token - CONTEXT) % STRIDE)  # behind the last token of its window
            window = torch.cat([torch.full((2, 1), tiny.BOS), ids[:, end - CONTEXT + 1 : end]], 1)
            place = CONTEXT - (end - token)
        torch.testing.assert_close(found[:, token], net(window).logits[:, place], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_nats_are_those_of_the_whole_logits():
    net, ids = tiny.net("llama"), tiny.ids(3, 20)
    logits = net(ids).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(3, 19)
    with without_head([net]) as head:
        found = nats_of(net, head, ids, at_once=2)
    torch.testing.assert_close(found, wanted.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(ids).logits[:, :-1], logits)


def test_bins_count_every_prediction_once_and_have_intervals_over_documents():
    generator = torch.Generator().manual_seed(0)
    nats, other = (torch.rand(3, 4 * CONTEXT - 1, generator=generator).double() for _ in range(2))
    owner = torch.arange(12).repeat_interleave(CONTEXT).view(3, 4 * CONTEXT)
    windows = Windows(torch.zeros_like(owner), owner)
    first, second = by_position(nats, windows, CONTEXT)
    assert (first["from"], first["to"], second["from"], second["to"]) == (0, 7, 8, 30)
    assert (first["documents"], second["documents"]) == (6, 9)  # a window's next token may be another document's
    assert first["ce"] == pytest.approx(float(nats[:, :CONTEXT].mean()))
    assert second["ce"] == pytest.approx(float(nats[:, CONTEXT:].mean()))
    paired = by_position(nats, windows, CONTEXT, minus=other)[1]
    sums = (
        torch.zeros(12).double().index_add_(0, owner[:, CONTEXT + 1 :].flatten(), (nats - other)[:, CONTEXT:].flatten())
    )
    counts = torch.bincount(owner[:, CONTEXT + 1 :].flatten(), minlength=12).double()
    assert (paired["ce_low"], paired["ce_high"]) == pytest.approx(ratio_interval(sums, counts))


def test_other_tokens_come_before_the_sequence_that_is_recalled():
    asked = recall_prompts(tiny.tokenizer(), 40, count=3)
    found, before, copy = later(asked, 5), 5, int(asked.asked[0].sum()) + 1
    assert torch.equal(found.clean[:, 1 + before :][:, :copy], found.clean[:, -copy:])
    assert torch.equal(found.answers[found.asked], asked.answers[asked.asked])
    assert torch.equal(found.clean.sort(1).values, asked.clean.sort(1).values)
    assert torch.equal(
        (found.clean != found.corrupt).nonzero(), (asked.clean != asked.corrupt).nonzero() + torch.tensor([0, before])
    )
