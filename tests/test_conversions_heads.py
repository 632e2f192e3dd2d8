"""Fewer key heads: exact where possible, elsewhere with the predicted error, and loadable by plain transformers."""

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
import tolerance
from fewer_heads import KINDS, OURS, converted, logits, pico, shared_behind_a_gauge, windows
from stitch.conversions.heads import baselines, contraction
from stitch.conversions.heads.blocks import Method
from stitch.conversions.heads.contraction import KeyMoments
from stitch.conversions.heads.convert import check_heads, convert_heads
from stitch.conversions.heads.grouping import best_partition, partitions
from stitch.conversions.heads.merge import Merged, merged_weights
from stitch.conversions.heads.methods import closed_form, least_squares, methods, values
from stitch.conversions.heads.moments import attention_rows, block_moments, group_of, normed
from stitch.conversions.heads.rebuilt import with_heads
from stitch.conversions.heads.refine import error, refined
from stitch.conversions.heads.streams import attention_output, refitted_outputs, written
from stitch.errors import StitchError, UsageError
from stitch.internals import weights
from stitch.internals.attend import heads_of, rotated, scores
from tolerance import apart, rounding
from without_package import run_without_package

# Exact cases


@pytest.mark.numeric
@pytest.mark.parametrize("family", KINDS)
def test_a_planted_gauge_is_undone(family):
    """All key heads equal one up to a complex scale per plane, all value heads equal one up to a matrix, so nothing
    is lost.
    """
    model = shared_behind_a_gauge(pico(family))
    net = with_heads(model, converted(model, OURS))
    ids = windows(seed=2)
    wanted = logits(model.net, ids)
    assert apart(logits(net, ids), wanted) < tolerance.of_a_pass(model)
    pooled = Method(
        lambda of: baselines.pooled_keys(of.old, of.keys.size, of.head_of),
        lambda of: baselines.pooled_values(of.old, of.output), refit=False,
    )  # fmt: skip
    assert (logits(with_heads(model, converted(model, pooled)), ids) - wanted).norm() > 0.05 * wanted.norm()


@pytest.mark.numeric
@pytest.mark.parametrize("biased", [False, True])
def test_a_planted_rotation_is_undone_where_queries_and_keys_are_normalised(biased):
    """Gains are equal in both dimensions of a plane and every key head is the first one rotated, so nothing is lost."""
    model = shared_behind_a_gauge(pico("qwen3", attention_bias=biased), scaled=False)
    ids = windows(seed=2)
    for block in range(model.depth):
        of = weights.attention(model, block)
        for gain in (of.q_gain, of.k_gain):
            assert gain is not None
            gain[len(gain) // 2 :] = gain[: len(gain) // 2]
    wanted = logits(model.net, ids)
    net = with_heads(model, converted(model, OURS))
    assert net.config.num_key_value_heads == 1
    assert apart(logits(net, ids), wanted) < tolerance.of_a_pass(model)
    pooled = methods(0)["baseline:mean pooling"]
    assert (logits(with_heads(model, converted(model, pooled)), ids) - wanted).norm() > 0.05 * wanted.norm()


@pytest.mark.numeric
def test_merging_identical_heads_by_their_mean_changes_nothing():
    model = pico("llama")
    for block in range(model.depth):
        of = weights.attention(model, block)
        of.k[:, 1], of.v[:, 1] = of.k[:, 0], of.v[:, 0]
    pooled = methods(0)["baseline:mean pooling"]
    ids = windows(seed=2)
    found = logits(with_heads(model, converted(model, pooled)), ids)
    assert apart(found, logits(model.net, ids)) < tolerance.of_a_pass(model)


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_groups_of_one_head_reproduce_the_donor_at_full_rank(family):
    model = pico(family)
    alone = converted(model, OURS, groups=lambda model, block, moments, context: ((1,), (0,)))
    ids = windows(seed=2)
    wanted = logits(model.net, ids)
    assert apart(logits(with_heads(model, alone), ids), wanted) < tolerance.of_a_pass(model)


@pytest.mark.numeric
def test_merged_groups_are_reordered_with_their_query_heads():
    """Merges (0, 3) and (1, 2) of four heads. Without the reordering, query heads would use the wrong keys."""
    model = pico("llama", num_attention_heads=8, num_key_value_heads=4, head_dim=10)
    for block in range(model.depth):
        of = weights.attention(model, block)
        for head, copy in ((3, 0), (2, 1)):
            of.k[:, head], of.v[:, head] = of.k[:, copy], of.v[:, copy]
    ids = windows(seed=2)
    wanted = logits(model.net, ids)
    found = converted(model, methods(0)["baseline:mean pooling"], groups=lambda *_: ((0, 3), (1, 2)))
    assert apart(logits(with_heads(model, found), ids), wanted) < tolerance.of_a_pass(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_converted_models_share_everything_but_attention_with_the_donor(family):
    model = pico(family)
    net = with_heads(model, converted(model, OURS))
    own = {value.data_ptr() for value in model.net.parameters()}
    new = [name for name, value in net.named_parameters() if value.data_ptr() not in own]
    # A GPT-2's projections are transposed in GPTBigCode.
    assert all(".self_attn." in name or ".attn." in name or (".mlp." in name and family == "gpt2") for name in new)
    assert net.get_input_embeddings().weight is net.get_output_embeddings().weight
    net.requires_grad_(False)
    assert all(value.requires_grad for value in model.net.parameters())


@pytest.mark.numeric
def test_refitting_outputs_changes_nothing_when_nothing_is_lost():
    model = shared_behind_a_gauge(pico("llama"))
    ids = windows(seed=2)
    wanted = logits(model.net, ids)
    refitted = logits(with_heads(model, converted(model, replace(OURS, refit=True))), ids)
    assert apart(refitted, wanted) < tolerance.of_a_pass(model)


@pytest.mark.numeric
def test_a_refit_changes_the_bias_if_there_is_one():
    """The stream is shifted by a constant, which output weights cannot correct but the bias can."""
    model = pico("gpt2")
    stream = {split: model.embedding(windows(seed=seed).long()).detach() for split, seed in (("fit", 0), ("sweep", 1))}
    old = weights.attention(model, 0)
    read = {split: attention_output(model, 0, old, of) for split, of in stream.items()}
    after = {split: of + written(old, read[split]) + 0.5 for split, of in stream.items()}
    assert old.o_bias is not None
    new = refitted_outputs(old, read, stream, after)
    assert new.o_bias is not None and torch.allclose(new.o_bias, old.o_bias.double() + 0.5, atol=0.02)


# Approximation error


def moments_of(seed: int, *, old: int = 3, d: int = 8, rotary: bool = False, context: int = 64) -> KeyMoments:
    generator = torch.Generator().manual_seed(seed)
    size = old * d
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    queries = torch.randn(2 * old, d, d, generator=generator, dtype=torch.float64)
    turns = (
        1.0 / 10.0 ** torch.arange(d // 2, dtype=torch.float64) if rotary else torch.zeros(d // 2, dtype=torch.float64)
    )
    return KeyMoments(
        torch.zeros(size, dtype=torch.float64), root @ root.T, queries @ queries.mT, tuple(h // 2 for h in range(2 * old)), turns,
        context,
    )  # fmt: skip


@pytest.mark.numeric
def test_without_rotation_the_closed_form_is_optimal():
    """Eckart and Young: gradient descent on the predicted error, from random maps, ends above the closed form."""
    moments = moments_of(0)
    best = contraction.predicted_error(contraction.by_frequency(moments), moments)
    root = contraction.square_roots(moments.moment())[0]
    halves = [contraction.square_roots(one)[0] for one in moments.queries]
    total = sum(
        float((half @ root[8 * h : 8 * h + 8]).square().sum()) for half, h in zip(halves, moments.head_of, strict=True)
    )
    generator = torch.Generator().manual_seed(1)
    ends = []
    for _ in range(3):
        shared = torch.randn(8, 24, generator=generator, dtype=torch.float64).requires_grad_()
        query = torch.randn(6, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
        descent = torch.optim.LBFGS([shared, query], max_iter=150, line_search_fn="strong_wolfe")

        def loss(shared=shared, query=query):
            return (
                sum(
                    (half @ (root[8 * h : 8 * h + 8] - one.T @ shared @ root)).square().sum()
                    for half, h, one in zip(halves, moments.head_of, query, strict=True)
                )
                / total
            )

        def closure(descent=descent, loss=loss):
            descent.zero_grad()
            value = loss()
            value.backward()
            return value

        descent.step(closure)
        ends.append(float(loss().detach()))
    assert best - 1e-9 <= min(ends) <= 1.1 * best  # and the bound is tight


@pytest.mark.numeric
@pytest.mark.parametrize("rotary", [False, True])
def test_the_predicted_error_is_that_of_independent_queries_and_keys(rotary):
    moments = moments_of(3, rotary=rotary)
    keys = contraction.by_frequency(moments)
    generator = torch.Generator().manual_seed(0)
    root, count = contraction.square_roots(moments.covariance)[0], 40_000
    stacked = torch.randn(count, 24, generator=generator, dtype=torch.float64) @ root
    # distances in a causal window
    offset = (moments.context * (1 - torch.rand(count, generator=generator).double().sqrt())).long()

    def turned(x: Tensor) -> Tensor:
        return rotated(x[:, None].transpose(0, 1), moments.frequencies, offset).transpose(0, 1)[:, 0]

    wrong = total = 0.0
    for second, head, query in zip(moments.queries, moments.head_of, keys.query, strict=True):
        q = torch.randn(count, 8, generator=generator, dtype=torch.float64) @ contraction.square_roots(second)[0]
        right = (q * turned(stacked[:, 8 * head : 8 * head + 8])).sum(1)
        wrong += float(((q @ query.T * turned(stacked @ keys.shared.T)).sum(1) - right).square().mean())
        total += float(right.square().mean())
    assert contraction.predicted_error(keys, moments) == pytest.approx(wrong / total, rel=0.05)


@pytest.mark.numeric
def test_the_mean_of_keys_counts_only_in_planes_that_rotate():
    """In a plane without rotation, the mean of the keys shifts all scores of a row equally; in a fast plane it does
    not.
    """
    frequencies = torch.tensor([3.0, 1e-6], dtype=torch.float64)
    zero, mean = torch.zeros(8, 8, dtype=torch.float64), torch.full((8,), 2.0, dtype=torch.float64)
    of = KeyMoments(mean, zero, torch.eye(4, dtype=torch.float64)[None], (0,), frequencies, 4096)
    shown = of.moment().diagonal()
    assert torch.allclose(shown[[0, 2, 4, 6]], torch.tensor(4.0, dtype=torch.float64), rtol=1e-2)
    assert float(shown[[1, 3, 5, 7]].max()) < 1e-4


@pytest.mark.numeric
def test_slow_planes_are_better_merged_together_and_fast_planes_are_not():
    turning = moments_of(5, rotary=True)
    still = replace(turning, frequencies=1e-9 * turning.frequencies)
    apart, together = (
        [contraction.predicted_error(contraction.by_frequency(of, slow=slow), of) for slow in (0.0, 1e3)]
        for of in (turning, still)
    )
    assert apart[0] < 0.9 * apart[1] and together[1] < 0.9 * together[0]


@pytest.mark.numeric
def test_the_generator_of_a_planted_rotation_is_found():
    """Keys of the second head equal the first's up to a gauge, so the shared subspace rotates exactly as RoPE does."""
    moments = moments_of(6, old=2, rotary=True)
    angle = torch.tensor([0.3, 1.1, -2.0, 0.7], dtype=torch.float64)
    cos, sin = angle.cos().diag(), angle.sin().diag()
    gauge = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
    both = torch.cat([torch.eye(8, dtype=torch.float64), gauge])
    # its planes are isotropic, so the compressed generator is skew-symmetric
    planted = replace(moments, covariance=both @ both.T)
    assert contraction.predicted_error(contraction.aligned(planted), planted) < 1e-9
    assert contraction.predicted_error(contraction.by_frequency(planted), planted) < 1e-9


@pytest.mark.numeric
def test_least_squares_reduces_the_error_in_every_round():
    model = pico("llama")
    stream = model.embedding(windows().long()).detach()
    moments = block_moments(model, 0, stream)
    rows = partial(attention_rows, model, 0, (0, 1), stream, 0)
    of = group_of(model, 0, (0, 1), moments, rows, 24)
    start = closed_form(of)
    course = [error(refined(start, rows(), rounds=count), rows()) for count in (1, 2, 4)]
    assert error(start, rows()) > course[0] > course[1] > course[2]
    assert error(least_squares(of), rows()) <= course[2] + 1e-6


@pytest.mark.numeric
@torch.no_grad()
def test_the_error_of_keys_is_the_error_of_the_merged_models_scores():
    """A second implementation: scores of the merged weights against the donor's, without the shifts that softmax
    ignores.
    """
    model = pico("qwen2")
    stream = model.embedding(windows().long()).detach()
    moments = block_moments(model, 0, stream)
    rows = partial(attention_rows, model, 0, (0, 1), stream, 0, 1.0)
    of = group_of(model, 0, (0, 1), moments, rows, 24)
    old, keys = weights.attention(model, 0), closed_form(of)
    new = merged_weights(old, Merged(((0, 1),), (keys,), (values(of),)))
    x, theta = normed(model, 0, stream), weights.frequencies(model)
    found = [scores(one.q, one.k, theta, old.scale) for one in (heads_of(old, x), heads_of(new, x))]
    wrong = total = 0.0
    for row in range(1, 24):
        right, off = found[0][:, :, row, : row + 1], (found[1] - found[0])[:, :, row, : row + 1]
        wrong += float(off.var(-1, correction=0).sum())
        total += float(right.var(-1, correction=0).sum())
    assert error(keys, rows()) == pytest.approx(wrong / total, rel=1e-3)


@pytest.mark.numeric
def test_moments_are_those_of_the_attention():
    model = pico("qwen2")
    stream = model.embedding(windows(2, 5).long()).detach()
    moments, of = block_moments(model, 1, stream), heads_of(weights.attention(model, 1), normed(model, 1, stream))
    keys = of.k.transpose(1, 2).flatten(2).flatten(0, 1).double()
    exact, queries = rounding(torch.float64, terms=len(keys)), of.q[:, 3].double()
    assert apart(moments.key_covariance, torch.cov(keys.T, correction=0)) < exact
    assert apart(moments.queries[3], torch.einsum("wtd,wte->de", queries, queries) / len(keys)) < exact
    weight = scores(of.q, of.k, weights.frequencies(model), weights.attention(model, 1).scale).softmax(-1)
    attended = torch.einsum("whij,wgjd->whigd", weight, of.v).flatten(3).flatten(0, 2).double()
    single = rounding(torch.float32, terms=weight.shape[-1])
    assert apart(moments.attended, attended.T @ attended / len(attended)) < single


@pytest.mark.numeric
@pytest.mark.parametrize("family", KINDS)
def test_unused_dimensions_of_shared_heads_are_below_the_floor(family):
    """All heads equal one up to gauges: stacked keys and values span the dimensions of one head, and no others count
    as used.
    """
    model = shared_behind_a_gauge(pico(family))
    moments = block_moments(model, 0, model.embedding(windows().long()).detach())
    size = model.width // weights.attention(model, 0).q.shape[1]
    for moment in (moments.key_covariance, moments.attended):
        values = torch.linalg.eigvalsh(moment)
        assert values[:-size].abs().max() < contraction.FLOOR * values[-1]


# Grouping


def test_all_partitions_are_tried_up_to_eight_heads():
    found = list(partitions(tuple(range(6)), 2))
    assert len(found) == 15 and len({frozenset(map(frozenset, groups)) for groups in found}) == 15


@pytest.mark.parametrize("old, new", [(8, 4), (12, 4)])
def test_planted_clusters_are_found(old, new):
    """Heads with the same remainder belong together; every pair with different remainders adds to the cost."""

    def cost(group: tuple[int, ...]) -> float:
        return 1.0 * sum(a % new != b % new for a, b in itertools.combinations(group, 2))

    groups = best_partition(old, new, cost)
    assert sorted(sorted(group) for group in groups) == [list(range(start, old, new)) for start in range(new)]


# The command


TEXT = "\n\n".join(
    f"Line {number}: the {'quick' if number % 3 else 'slow'} fox jumps over {number * 7 % 23} dogs and {number * 5 % 17} cats."
    for number in range(4000)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[dict, Path]]:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "text.txt").write_text(TEXT)
    found = {}
    for family, changes in (("gpt2", {}), *((family, {"num_key_value_heads": 4}) for family in ("llama", "qwen3"))):
        donor = tiny.save(folder / family, family, num_hidden_layers=2, **changes)
        out = folder / f"{family}-merged"
        report = convert_heads(
            str(donor), out, kv_heads=1 if family == "gpt2" else 2, text=str(folder / "text.txt"), tokens=4096, held_out=1024,
            context=32, device="cpu",
        )  # fmt: skip
        found[family] = report, out
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_the_report_has_every_baseline_with_and_without_refit(made, family):
    report, _ = made[family]
    names = {row["name"] for row in report["results"]}
    kinds = [
        "contraction",
        "least squares",
        "baseline:mean pooling",
        "baseline:first head",
        "baseline:rotate-mean",
    ]
    assert names == {
        "donor",
        "converted",
        *(k + r for k in [*kinds, "null:random"] for r in ("", " + refit")),
    }
    assert report["context"] == 4 * report["fitted_context"] == 128
    rows = {row["name"]: row for row in report["results"]}
    share = 4 if family == "gpt2" else 2
    assert rows["donor"]["cache_bytes"] == share * rows["converted"]["cache_bytes"]
    assert rows["converted"]["kl_to_b"] < rows["null:random + refit"]["kl_to_b"]
    assert json.loads((made[family][1] / "report.json").read_text()) == json.loads(json.dumps(report))


@pytest.mark.slow
def test_plain_transformers_loads_the_checkpoint(made):
    """In a process without this package: stock classes, the requested number of key heads, cached decoding equal to
    one pass.
    """
    folders = [str(made[family][1]) for family in ("gpt2", "llama", "qwen3")]
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
for folder in {folders!r}:
    net = AutoModelForCausalLM.from_pretrained(folder)
    assert not any(name.split(".")[0] in ("stitch", "cli") for name in sys.modules)
    ids = torch.arange(3, 19)[None]
    whole, past, steps = net(ids).logits, None, []
    for token in ids[0]:
        done = net(token[None, None], past_key_values=past, use_cache=True)
        past = done.past_key_values
        steps.append(done.logits[0, -1])
    print(type(net).__name__, float((torch.stack(steps) - whole[0]).abs().max()), past.layers[0].keys.shape[1])
"""
    printed = run_without_package(code, cwd=made["gpt2"][1])
    found = [line.split() for line in printed.splitlines()]
    stock = ["GPTBigCodeForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"]
    assert [(name, heads) for name, _, heads in found] == list(zip(stock, "122", strict=True))
    assert max(float(apart) for _, apart, _ in found) < 1e-4


def test_a_gpt2_with_identical_heads_equals_its_gpt_bigcode(made):
    """Every head has the same keys and values, so one key head computes the same and the two classes must agree."""
    model = pico("gpt2")
    for block in range(model.depth):
        of = weights.attention(model, block)
        for part in (of.k, of.v, of.k_bias, of.v_bias):
            part[..., 1:, :] = part[..., :1, :]
    first = methods(0)["baseline:first head"]
    ids = windows(seed=2)
    found = logits(with_heads(model, converted(model, first)), ids)
    assert apart(found, logits(model.net, ids)) < tolerance.of_a_pass(model)


@pytest.mark.slow
def test_fine_tuning_reduces_the_loss_and_is_applied_to_baselines(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    donor = tiny.save(tmp_path / "llama", "llama", num_hidden_layers=2)
    report = convert_heads(
        str(donor), tmp_path / "out", kv_heads=1, text=str(tmp_path / "text.txt"), tokens=4096, held_out=1024, context=64,
        steps=12, device="cpu",
    )  # fmt: skip
    rows = {row["name"]: row["kl_to_b"] for row in report["results"]}
    for name in ("baseline:mean pooling", "baseline:first head", "baseline:rotate-mean", "null:random"):
        assert rows[f"{name} + refit, 12 steps"] < rows[f"{name} + refit"]
    chosen = report["notes"][0].removeprefix("converted: ").partition(",")[0]
    assert rows["converted"] < rows[chosen]


@pytest.mark.parametrize("kv_heads", [0, 2, 3])
def test_numbers_of_key_heads_that_do_not_divide_the_old_number_are_refused(kv_heads):
    with pytest.raises(UsageError, match="proper divisor of the 2 key heads of llama"):
        check_heads(pico("llama"), kv_heads)


def test_a_gpt2_accepts_only_one_key_head_or_all():
    with pytest.raises(UsageError, match="kv_heads must be 1 for a GPT-2; got 2"):
        check_heads(pico("gpt2"), 2)


def test_models_with_softcapped_scores_are_refused():
    with pytest.raises(UsageError, match="its scores are softcapped"):
        check_heads(tiny.model("gemma2"), 1)


def test_weights_that_are_not_finite_are_refused():
    model = pico("llama")
    weights.attention(model, 3).k[0, 0, 0] = torch.nan
    with pytest.raises(StitchError, match="must be finite"):
        check_heads(model, 1)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    with pytest.raises(UsageError, match="out must not exist"):
        convert_heads("demo:llama", tmp_path / "full", kv_heads=1)
