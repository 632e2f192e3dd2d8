"""Settings of cache policies: the best that fits is found, at equal bytes, on text that no result is reported on."""

import argparse
import itertools
from types import SimpleNamespace

import conversions_recurrent
import pytest
import recurrent_long
import torch
from _attention_matching import Matched
from _cache_peers import Streaming
from _cache_settings import IN_CACHE, OWN, PEERS, by_block, gains_of_heads, least, tuned, windows_by_gain

import tiny
from stitch.conversions.recurrence.forms import RecurrentForm, wrap
from stitch.text.documents import split_of
from stitch.text.windows import Windows

CONTEXT, BYTES = 64, 6 * 2 * 26 * 80  # 26 keys for each of 12 heads; a key and its value have 80 bytes


@pytest.fixture(scope="module")
def llama():
    return wrap(tiny.model("llama"), RecurrentForm(features="mean", window=1, sinks=1))


def test_one_option_after_the_other_leads_to_the_planted_setting():
    planted = {"sinks": 8, "recent": 0.25, "positions": OWN}

    def loss(setting):
        if setting["sinks"] == 1:
            raise ValueError("does not fit")
        return sum(setting[name] != value for name, value in planted.items())

    options = {"sinks": (4, 1, 8), "recent": (0.5, 0.25), "positions": (IN_CACHE, OWN)}
    best, tried = least(loss, options)
    assert best == planted
    assert {**planted, "loss": 0} in tried and len(tried) == len({str(one) for one in tried}) < 12
    assert all(one["sinks"] != 1 for one in tried)


def test_an_option_is_tried_again_after_the_others_have_changed():
    """`last` 4 fits only where `step` is 4, which comes later."""

    def loss(setting):
        if setting["last"] < setting["step"]:
            raise ValueError("does not fit")
        return setting["last"] + setting["step"]

    assert least(loss, {"last": (8, 4), "step": (8, 4)})[0] == {"last": 4, "step": 4}


def test_where_nothing_helps_a_policy_stays_as_its_paper_says():
    assert least(lambda _: 1.0, {"sinks": (4, 0), "positions": (IN_CACHE, OWN)})[0] == {
        "sinks": 4,
        "positions": IN_CACHE,
    }


def test_every_policy_takes_its_best_setting_and_no_more_bytes(llama):

    def loss(peer):  # planted: own positions, and the fewest keys that nobody chose
        if isinstance(peer, Matched):
            return peer.step + peer.asked
        few = peer.sinks if isinstance(peer, Streaming) else peer.last + peer.step
        return few - 100 * peer.own_positions

    found = dict(tuned(llama, BYTES, CONTEXT, loss))
    assert tuple(found) == PEERS
    for name, one in found.items():
        assert one.peer.own_positions and (name == "matching" or one.setting["positions"] == OWN)
        assert loss(one.peer) == min(tried["loss"] for tried in one.tried)
        assert one.peer.state_bytes() <= BYTES
    assert found["streaming"].setting["sinks"] == found["streaming"].peer.sinks == 0
    assert found["h2o"].setting["recent"] == 1 / 4
    assert (found["matching"].setting["step"], found["matching"].setting["asked"]) == (2, 32)
    assert (found["snapkv"].setting["last"], found["adakv"].setting["step"]) == (4, 2)


def test_learned_positions_do_not_move():
    net = wrap(tiny.model("gpt2"), RecurrentForm(features="mean", window=1, sinks=1))
    ((_, one),) = tuned(net, 6 * 4 * 26 * 64, CONTEXT, lambda _: 1.0, ["streaming"])
    assert {tried["positions"] for tried in one.tried} == {OWN}


def test_the_head_that_gains_most_has_the_whole_context_first(llama):
    worth = torch.arange(12).roll(5).double()

    def loss(peer):
        windows = torch.tensor(peer.windows).flatten()
        return -float((worth * (windows == CONTEXT - peer.sinks)).sum()) + peer.sinks / 100

    torch.testing.assert_close(gains_of_heads(llama, 26, CONTEXT, loss), worth)
    ((_, one),) = tuned(llama, BYTES, CONTEXT, loss, ["duo"])
    # 12 heads of 26 keys have room for four whole contexts and seven keys for each other head.
    assert one.setting == {"full": 4, "sinks": 0, "positions": IN_CACHE}
    full = [index for index, window in enumerate(itertools.chain.from_iterable(one.peer.windows)) if window == CONTEXT]
    assert full == worth.topk(4).indices.sort().values.tolist()
    assert one.peer.state_bytes() == (4 * 64 + 8 * 7) * 80


def test_full_heads_leave_equal_windows_to_the_others(llama):
    gains = torch.tensor([0.1, 0.7, 0.2, 0.3])
    assert windows_by_gain(gains, 0, 20, 44, sinks=4).tolist() == [16, 16, 16, 16]
    assert windows_by_gain(gains, 1, 20, 44, sinks=4).tolist() == [8, 40, 8, 8]
    assert windows_by_gain(gains, 1, 21, 44, sinks=4).tolist() == [9, 40, 9, 9]
    assert windows_by_gain(gains, 2, 36, 44, sinks=4).tolist() == [24, 40, 24, 40]
    with pytest.raises(ValueError, match="leave -16 for 2"):
        windows_by_gain(gains, 2, 20, 44, sinks=4)
    assert by_block(llama, torch.arange(12)) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_settings_for_long_texts_are_chosen_on_the_sweep_split(llama, monkeypatch):
    """Texts say what split they are of; nats are planted, so that other sinks are best on the report split."""
    sweep, report = (torch.full((1, 1024), token) for token in (5, 6))
    texts = {"sweep": sweep, "report": report}
    monkeypatch.setattr(
        recurrent_long, "texts", lambda _, __, split, *___, **____: {"documents": Windows(texts[split], texts[split])}
    )
    seen = []

    def nats(net, head, ids, at_once):
        seen.append(int(ids[0, 0]))
        best = {5: 1, 6: 8}[seen[-1]]
        return torch.full((1, 1023), float(getattr(net, "sinks", best) != best), dtype=torch.float64)

    monkeypatch.setattr(recurrent_long, "nats_of", nats)
    base = tiny.net("llama")
    donor = SimpleNamespace(context=256, model=SimpleNamespace(net=base))
    rows = {recurrent_long.OURS: recurrent_long.Row(SimpleNamespace(base=base), 1)}

    def tune(loss):
        ((_, one),) = tuned(llama, BYTES, CONTEXT, loss, ["streaming"])
        yield "streaming", recurrent_long.Row(one.peer, 1, choice={"setting": one.setting})

    given = argparse.Namespace(choose_on=1, documents=1, streams=1, texts=["documents"], at_once=1024)
    ours, streaming = recurrent_long.read(rows, tune, donor, given)
    assert "setting" not in ours and streaming["setting"]["sinks"] == 1
    assert seen.count(6) == 2  # one for each row


def test_documents_of_a_split_are_of_that_split(monkeypatch):
    documents = [(f"name {number}", f"{number:03d}" * 400) for number in range(300)]
    monkeypatch.setattr(recurrent_long, "read_for", lambda *_: SimpleNamespace(documents=documents))
    donor = SimpleNamespace(context=16, model=SimpleNamespace(tokenizer=tiny.tokenizer()))
    given = argparse.Namespace(tokens=4096, streams=1)
    for split in ("sweep", "report"):
        of = {text for name, text in documents if split_of(name) == split}
        windows = recurrent_long.texts(donor, given, split, documents=5, streams=1)["documents"]
        found = {donor.model.tokenizer.decode(ids[1:4]) * 400 for ids in windows.ids}
        assert len(found) == 5 and found <= of


def test_settings_for_short_texts_are_chosen_on_the_sweep_split(llama, monkeypatch):
    seen = []

    def scores(nets, donor, windows):
        seen.append(windows)
        worse = float(nets["peer"].sinks != 8)
        return {"peer": SimpleNamespace(kl=torch.tensor([worse]), tokens=torch.ones(1))}

    monkeypatch.setattr(conversions_recurrent, "scores_of", scores)
    sweep = Windows(*[torch.zeros(2, CONTEXT, dtype=torch.long)] * 2)
    donor = SimpleNamespace(context=CONTEXT, windows={"sweep": sweep})
    (one,) = conversions_recurrent.tuned_peers(llama, donor, BYTES, ["streaming"]).values()
    assert one.setting["sinks"] == 8
    assert seen and all(torch.equal(windows.ids, sweep.ids) for windows in seen)
