"""The texts of two domains, routing between two models, and the arms and curves of further training."""

from dataclasses import replace
from pathlib import Path

import _domains
import _healing
import _healing_costs
import _healing_summary
import domain_pair
import healing
import numpy as np
import pytest
import torch
from _learning import tokens_to

import tiny
from stitch.composite.compose import late_half, late_logits
from stitch.composite.costs import whole
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.scores import Batch
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.text.documents import SPLITS, read, select, split_of
from stitch.text.windows import Windows


def test_code_has_neither_docstrings_nor_comments(tmp_path: Path):
    source = tmp_path / "module.py"
    source.write_text(
        '"""Module."""\n\nclass A:\n    """Class."""\n\ndef f(x):\n    "string"  # comment\n    return "kept"\n'
    )
    assert _domains._bare(source) == "class A:\n    pass\n\ndef f(x):\n    return 'kept'"


def test_paragraphs_of_code_are_no_prose():
    assert _domains._looks_like_code(">>> f(1)\n2")
    assert _domains._looks_like_code("x = f(a=g(1), b=2)")
    assert not _domains._looks_like_code("Returns the sum of `a` and `b` (both are tensors).")


def test_a_document_keeps_the_split_of_its_module_in_a_file(tmp_path: Path):
    documents = [(f"module{n}", f"text of {n}") for n in range(400)]
    _domains.write_lines(tmp_path / "code.jsonl", documents)
    by_text = {text: name for name, text in documents}
    for split in SPLITS:
        found = select(read(str(tmp_path / "code.jsonl")), split)
        assert found and all(split_of(by_text[text]) == split for _, text in found)


def test_every_prefix_of_the_mixture_has_as_much_of_both_domains():
    domains = {"code": [(f"c{n}", "c" * 300) for n in range(300)], "prose": [(f"p{n}", "p" * 100) for n in range(300)]}
    fit = [text for name, text in _domains.mixed(domains) if split_of(name) == "fit"]
    for end in range(1, len(fit)):
        sizes = [sum(len(text) for text in fit[:end] if text[0] == kind) for kind in "cp"]
        assert abs(sizes[0] - sizes[1]) <= 300


def test_a_router_follows_the_model_that_is_better_on_the_beginning_of_a_document():
    count = domain_pair.ROUTED_AFTER + 8
    ids = torch.ones(1, 2 * count + 1, dtype=torch.int32)
    document = torch.cat([torch.zeros(count + 1), torch.ones(count)]).int()[None]
    logits = torch.zeros(2, 1, 2 * count + 1, 3)
    logits[0, :, :count, 1] = 5  # the first model knows the first document
    logits[1, :, count:, 1] = 5
    routed = domain_pair.router(*(lambda batch, own=own: own for own in logits), Windows(ids, document))
    found = routed(Batch(ids.long(), slice(0, 1))).softmax(-1)[0, :-1, 1]
    knowing, average = torch.tensor(5.0).exp() / (torch.tensor(5.0).exp() + 2), None
    average = (knowing + 1 / 3) / 2
    expected = torch.cat([average.expand(domain_pair.ROUTED_AFTER), knowing.expand(8)]).repeat(2)
    torch.testing.assert_close(found, expected)


def test_the_average_of_two_models_is_that_of_their_probabilities():
    a, b = torch.randn(2, 1, 4, 5)
    found = domain_pair.average(lambda batch: a, lambda batch: b)(Batch(torch.zeros(1, 4).long(), slice(0, 1)))
    torch.testing.assert_close(found.exp(), (a.softmax(-1) + b.softmax(-1)) / 2)


def test_a_curve_reaches_a_loss_between_two_points():
    assert tokens_to([0, 100, 200], [4.0, 3.0, 2.0], 2.5) == 150
    assert tokens_to([0, 100], [4.0, 3.0], 4.5) == 0
    assert tokens_to([0, 100], [4.0, 3.0], 2.5) is None


def test_healing_compares_the_tokens_that_arms_need():
    def line(arm: str, seed: int, tokens: int, ce: float) -> dict:
        counts = [10.0] * 20
        return {"arm": arm, "seed": seed, "budget": 100, "tokens": tokens, "counts": counts, "nats": [ce * 10] * 20}

    lines = [line("demo:gpt2", 0, 0, 3.0), line("demo:llama", 0, 0, 2.0)]
    for seed in (0, 1):
        for arm, start in (("composite", 4.0), ("own tables", 3.0), ("fresh", 9.0)):
            lines += [line(arm, seed, 0, start), line(arm, seed, 100, start - 2)]
    found = {(one["arm"], one.get("goal")): one for one in _healing_summary.summary(lines) if "goal" in one}
    assert found["composite", "B"]["needed"] == 100 and found["own tables", "B"]["needed"] == 50
    assert found["composite", "B"]["share_of_alternative"] == 2 and found["fresh", "B"]["needed"] is None
    assert found["composite", "last of fresh"]["needed"] == 0
    middle = found["composite", "between A and B"]
    np.testing.assert_allclose([middle["needed"], middle["needed_low"], middle["needed_high"]], 75)
    assert middle["told"] == "75" and found["fresh", "B"]["told"] == "not reached"


def test_healing_has_the_intervals_of_reports_and_reaches_a_loss_where_their_ends_do():
    counts = torch.tensor([4.0, 9.0, 16.0, 25.0], dtype=torch.float64)
    spread = torch.tensor([0.03, -0.01, 0.02, -0.02], dtype=torch.float64)

    def line(arm: str, tokens: int, ce: float, share: float) -> dict:
        nats = (ce + share * spread) * counts
        return {
            "arm": arm,
            "seed": 0,
            "budget": 100,
            "tokens": tokens,
            "counts": counts.tolist(),
            "nats": nats.tolist(),
        }

    lines = [line("demo:gpt2", 0, 3.0, 0), line("demo:llama", 0, 2.5, 0)]
    lines += [
        line("composite", 0, 4.0, 1),
        line("composite", 100, 2.0, 1),
        line("fresh", 0, 9, 0),
        line("fresh", 100, 8, 0),
    ]
    found = _healing_summary.summary(lines)
    first = next(one for one in found if one["arm"] == "composite" and one.get("tokens") == 0)
    low, high = ratio_interval((1.5 + spread) * counts, counts)
    np.testing.assert_allclose([first["over_b_low"], first["over_b_high"]], [low, high], atol=5e-5)
    goal = next(one for one in found if one["arm"] == "composite" and one.get("goal") == "B")
    np.testing.assert_allclose([goal["needed_low"], goal["needed_high"]], [50 * low, 50 * high], atol=5e-3)


def test_healing_bounds_what_arms_cost():
    lines = [
        {"arm": "composite, seam only", "trained": 176_179, "parameters": 4_161_363},
        {"arm": "own tables", "trained": 3_245_000, "parameters": 3_245_000},
    ]
    found = {one["cost_of"]: one for one in _healing_costs.costs(lines)}
    b, short = (load(resolve(_healing.B).folder, dtype=torch.float32) for _ in range(2))
    short = replace(short, net=_healing.make("fresh", 0, Path(), b))
    assert found["fresh"] == found["fresh"] | whole(short, _healing_costs.CONTEXT).to_dict()
    assert found["own tables"]["bytes"] == found["demo:llama"]["bytes"] > found["fresh"]["bytes"]
    joined = {
        "flops": 7_544_832.0,
        "parameters": 5_048_723,
        "bytes": 17_534_756,
        "bytes_read": 13_810_921,
    }  # seam_bytes.jsonl
    assert all(0.99 * found["composite"][key] < value <= found["composite"][key] for key, value in joined.items())


def test_the_whole_donor_is_an_arm_as_it_is(tmp_path: Path):
    b = load(resolve(_healing.B).folder, dtype=torch.float32)
    net = _healing.make("whole B", 0, tmp_path, b)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), b.net.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_random_blocks_are_followed_by_the_late_half_of_the_donor(tmp_path: Path):
    b = load(resolve(_healing.B).folder, dtype=torch.float32)
    net = _healing.make("random blocks", 0, tmp_path, b)
    short = replace(b, net=net)
    late, own = late_half(short, short.depth - (b.depth - _healing.SITES[1])), late_half(b, _healing.SITES[1])
    stream = torch.randn(1, 6, b.width)
    torch.testing.assert_close(late_logits(late, stream), late_logits(own, stream))
    first = short.blocks[0].self_attn.q_proj.weight
    assert not any(torch.equal(first, block.self_attn.q_proj.weight) for block in b.blocks)


def test_training_is_measured_at_doubling_steps_and_changes_marked_weights_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(healing, "BATCH", 2)
    monkeypatch.setattr(healing, "CONTEXT", 8)
    net = tiny.net("llama").requires_grad_(False)
    net.lm_head.weight.requires_grad_(True)  # pyright: ignore[reportAttributeAccessIssue]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit, measured = torch.randint(2, tiny.VOCABULARY, (80, 8)), []
    healing.train(net, fit, 40 * 16, 1e-3, 0, measured.append)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert measured == [0, 16, 32, 40]
    assert changed == {"lm_head.weight", "model.embed_tokens.weight"}  # one tied tensor
