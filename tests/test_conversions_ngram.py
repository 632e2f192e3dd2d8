"""N-gram memories: exact where a stream depends on n tokens only, known answers elsewhere; checkpoints load and
decode.
"""

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import cli
import tiny
from allocations import resident_growth
from clean_process import run_clean
from jobs import write_text
from passes import in_chunks, left_padded
from stitch.activations.observe import residuals
from stitch.activations.paired import Tokens
from stitch.composite.compose import compose
from stitch.config import Settings
from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.ngrams import backfit as backfitting
from stitch.conversions.ngrams import memory as fitting
from stitch.conversions.ngrams.assemble import build_composite
from stitch.conversions.ngrams.backfit import TableSamples, backfit, collect
from stitch.conversions.ngrams.convert import convert_ngram
from stitch.conversions.ngrams.fit import UNPACKED, tables_for
from stitch.conversions.ngrams.knowledge import loss_by_leakage
from stitch.conversions.ngrams.late import LateBlocks, explained_variance
from stitch.conversions.ngrams.leakage import RUN, audit_leakage, copies
from stitch.conversions.ngrams.memory import (
    NgramFitData,
    NgramMemory,
    NgramShape,
    cumulative_stages,
    fit_memory,
    memory_needed,
    read_fit_data,
    with_shuffled_rows,
)
from stitch.conversions.ngrams.reading import TableIndex, history
from stitch.conversions.ngrams.report import packing_notes
from stitch.errors import UsageError
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.jobs.join import stitch
from stitch.models.loading import load
from stitch.text.windows import Windows
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Ngram, Position, Residual, Term, Token, Translation

BUDGET, V = 2**28, tiny.VOCABULARY
SMALL = dict(tokens=4096, held_out=1024, context=32, memory=BUDGET, device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Donors by name, and a text."""
    folder = tmp_path_factory.mktemp("donors")
    write_text(folder)
    tiny.save(folder / "llama", "llama")
    tiny.save(folder / "gpt2", "gpt2")
    tiny.save(folder / "gemma2", "gemma2")
    tiny.save(folder / "untied", "gemma2", tie_word_embeddings=False)
    tiny.save(folder / "two", "mistral", sliding_window=2)  # block 0 sees a token and the one before
    tiny.save(folder / "three", "mistral", sliding_window=3)
    alone = tiny.net("llama")
    torch.nn.init.zeros_(alone.model.layers[0].self_attn.o_proj.weight)
    alone.save_pretrained(folder / "one")
    tiny.tokenizer().save_pretrained(folder / "one")
    return folder


def donor(root: Path, name: str) -> Donor:
    return read_donor(
        str(root / name), text=str(root / "text.jsonl"), tokens=4096, held_out=1024, context=32, device="cpu"
    )


@functools.lru_cache
def memory(
    root: Path, name: str, order: int, site: int = 1, *, plain: bool = False
) -> tuple[Donor, NgramMemory, dict[str, float]]:
    """A memory of n-grams up to `order` and its R² by stage. `plain` has no ridge and no skipped tokens."""
    given, shape = donor(root, name), NgramShape(order=order, rows=4000, skips=order - 1)
    fit_data = read_fit_data(
        given.model, given.windows, site, shape, tables_for(given.model, given.windows, shape, BUDGET)
    )
    steps = {}
    for step, (tables, inputs) in cumulative_stages(fit_data).items():
        if plain:
            tables = [place for place in tables if getattr(fit_data.indices[place].by, "back", 0) == 0]
        steps[step] = fit_memory(fit_data, tables, [] if plain else inputs)
    translations = {step: found.translation for step, found in steps.items()}
    r2 = explained_variance(translations, given.model, given.windows["report"], site, fit_data.mean)
    return given, list(steps.values())[-1], r2


# ------------------------------------------------------------------------------------------------------------------ exact


@pytest.mark.numeric
@pytest.mark.parametrize("name, order", [("one", 1), ("two", 2), ("three", 3)])
@torch.no_grad()
def test_a_stream_that_depends_on_n_tokens_is_looked_up_exactly_for_known_ngrams(root, name, order):
    given, found, r2 = memory(root, name, order, plain=True)
    ids = given.windows["report"].ids.long()
    net = build_composite(given.model, 1, found.translation)
    wanted = residuals(given.model, ids, [1])[1]
    got = residuals(load_like(given, net), ids, [0])[0]
    index = found.indices[order - 1]
    tokens = Tokens({}, history(ids, order - 1), torch.arange(1, 32).repeat(len(ids)), wanted[:, 1:].flatten(0, 1))
    known = torch.cat([torch.ones(len(ids), 1, dtype=torch.bool), (index.rows(tokens, V) >= 0).view(len(ids), -1)], 1)
    error = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert known[:, 1:].float().mean() > 0.8
    assert error[known].max() < 1e-5
    whole = known.cumprod(1).bool()  # later tokens have seen the unknown n-gram
    assert (net(ids).logits - given.model.net(ids).logits).abs()[whole].max() < 1e-3
    assert list(r2.values()) == sorted(r2.values()) and (order == 1 or r2["1-grams"] < 0.9)


def load_like(given: Donor, net):
    from stitch.models.anatomy import anatomy_of

    return replace(given.model, net=net, anatomy=anatomy_of(net.config))


# -------------------------------------------------------------------------------------------------------------- backfitting


def one_hot_problem(tokens: int, sizes: tuple[int, ...], seed: int) -> TableSamples:
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randint(-1, size, (tokens,), generator=generator) for size in sizes])
    return TableSamples(
        places, torch.rand(tokens, generator=generator, dtype=torch.float64) + 0.5, tiny.noise(tokens, 3, seed=seed)
    )


@pytest.mark.numeric
def test_repeated_passes_converge_to_the_joint_ridge_solution(monkeypatch):
    """A penalty of κ · mass / count on a row is equivalent to the factor n / (n + κ) on its weighted mean."""
    monkeypatch.setattr(backfitting, "SHRINKAGES", (2.0,))
    monkeypatch.setattr(backfitting, "LEAST_COUNTS", (1,))
    monkeypatch.setattr(backfitting, "GAIN", -1e9)  # so small that passes never stop early
    monkeypatch.setattr(backfitting, "TOKENS_PER_COUNT", 100)
    sizes = (5, 9, 4)
    fit = one_hot_problem(300, sizes, 1)
    parts = [
        TableSamples(fit.places[:, at : at + 64], fit.weights[at : at + 64], fit.y[at : at + 64])
        for at in range(0, 300, 64)
    ]
    seen = collect(sizes, parts)
    found = torch.cat(backfit(seen, fit, passes=200).rows)
    design = torch.zeros(300, sum(sizes), dtype=torch.float64)
    for table, start in enumerate(seen.starts[:-1]):
        has = fit.places[table] >= 0
        design[has.nonzero()[:, 0], fit.places[table][has] + start] = 1
    penalty = 2.0 * seen.mass / seen.counts
    gram = design.T @ (fit.weights[:, None] * design) + penalty.diag()
    wanted = torch.linalg.solve(gram, design.T @ (fit.weights[:, None] * fit.y.double()))
    assert torch.allclose(found, wanted, atol=1e-9)


@pytest.mark.numeric
def test_selected_tables_and_explained_targets_are_as_if_collected_that_way():
    sizes = (5, 9, 4)
    fit = one_hot_problem(300, sizes, 2)
    seen = collect(sizes, [fit])
    prior, bias = tiny.noise(9, 3, seed=3).double(), tiny.noise(3, seed=4).double()
    left = fit.y.double() - bias
    for rows, start in ((fit.places[0], 0), (fit.places[2], 5)):
        left[rows >= 0] -= prior[rows[rows >= 0] + start]
    wanted = collect((5, 4), [TableSamples(fit.places[[0, 2]], fit.weights, left)])
    got = seen.chosen([0, 2]).less(prior, bias)
    assert got.starts == wanted.starts and torch.equal(got.counts, wanted.counts)
    assert torch.allclose(got.totals, wanted.totals) and abs(got.meetings - wanted.meetings).max() < 1e-12


@pytest.mark.numeric
def test_r2_by_order_is_the_planted_share_of_variance():
    """All pairs are equally frequent. The effect of pairs has mean zero over the previous token and three times the
    variance of tokens.
    """
    size = 8
    token, pair = tiny.noise(size, 1, 3), tiny.noise(size, size, 3, seed=1)
    token, pair = token - token.mean(0), pair - pair.mean(1, keepdim=True)
    token = token / token.square().mean().sqrt()
    pair = pair / pair.square().mean().sqrt() * 3**0.5
    places = torch.stack([torch.arange(size).repeat_interleave(size), torch.arange(size * size)])
    some = TableSamples(places, torch.ones(size * size, dtype=torch.float64), (token + pair).flatten(0, 1))
    seen = collect((size, size * size), [some])
    alone = backfit(seen.chosen([0]), TableSamples(places[:1], some.weights, some.y))
    both = backfit(seen, some)
    assert 1 - alone.errors[-1] / alone.errors[0] == pytest.approx(0.25, abs=1e-6)
    assert both.errors[-1] / both.errors[0] < 1e-10
    assert torch.allclose(both.rows[0], token[:, 0].double(), atol=1e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("noise, wanted", [(8.0, 8.0), (1.0, 1.0), (64.0, 64.0)])
def test_the_chosen_shrinkage_is_the_ratio_of_noise_to_signal(noise, wanted):
    """Rows ~ N(0, 1), tokens ~ N(row, noise): the posterior mean of n tokens is their mean times n / (n + noise)."""
    rows, size = tiny.noise(4000, 8), 6
    places = torch.arange(4000).repeat_interleave(size)[None]

    def tokens(seed: int) -> TableSamples:
        y = rows[places[0]] + noise**0.5 * tiny.noise(4000 * size, 8, seed=seed)
        return TableSamples(places, torch.ones(len(y), dtype=torch.float64), y)

    fit = tokens(1)
    found = backfit(collect((4000,), [fit]), tokens(2))
    assert found.shrinkages == [wanted] and found.least_counts[0] <= size
    means = fit.y.double().view(4000, size, 8).mean(1)
    assert torch.allclose(found.rows[0], means * size / (size + wanted))


def test_rows_of_rare_contexts_are_left_out():
    """Contexts seen once carry noise; those seen nine times carry a signal."""
    places = torch.cat([torch.arange(500), torch.arange(500, 600).repeat_interleave(9)])[None]
    signal = torch.cat([torch.zeros(500, 4), tiny.noise(100, 4)])

    def tokens(seed: int) -> TableSamples:
        scale = torch.where(places[0] < 500, 3.0, 0.01)[:, None]
        y = signal[places[0]] + scale * tiny.noise(places.shape[1], 4, seed=seed)
        return TableSamples(places, torch.ones(len(y), dtype=torch.float64), y)

    found = backfit(collect((600,), [tokens(1)]), tokens(2))
    assert found.least_counts[0] > 1 and found.rows[0][:500].abs().max() == 0
    assert torch.allclose(found.rows[0][500:], signal[500:].double(), atol=0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how much memory a stage took")
def test_a_fit_holds_no_more_than_it_says():
    """Arrays are larger than what the allocator keeps for itself: 38 MB of all rows, and 34 of held-out tokens."""
    sizes, width, tokens = (24_000, 24_000, 26_000), 64, 65_536
    shape = NgramShape(order=1, rows=0, skips=2)

    def parts(seed: int, count: int) -> Iterator[TableSamples]:
        for number in range(0, tokens, count):
            drawn = one_hot_problem(count, sizes, seed + number)
            yield replace(drawn, y=tiny.noise(count, width, seed=seed + number))

    def fit(sizes: tuple[int, ...]) -> None:
        (held,) = parts(1, tokens)
        nothing = torch.zeros(width)
        indices = [TableIndex(Token(back), torch.arange(size)) for back, size in enumerate(sizes)]
        data = NgramFitData(0, V, shape, indices, {}, {}, collect(sizes, parts(2, 2048)), held, nothing, nothing)
        fit_memory(data, range(len(sizes)), [])

    fit(sizes)  # what is loaded and compiled on the way stays
    assert resident_growth(lambda: fit(sizes)) <= memory_needed(shape, width, sum(sizes), tokens)


# -------------------------------------------------------------------------------------------------------------------- audit


def windows(count: int, context: int, seed: int) -> Windows:
    ids = torch.randint(3, V, (count, context), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    ids[:, 0] = tiny.BOS
    return Windows(ids, torch.arange(count, dtype=torch.int32)[:, None].expand(-1, context))


def test_the_audit_finds_planted_copies_and_nothing_else():
    fit, report = windows(40, 64, 1), windows(10, 64, 2)
    report.ids[3, 20 : 20 + RUN] = fit.ids[7, 5 : 5 + RUN]
    report.ids[6, 10 : 10 + RUN - 1] = fit.ids[8, 9 : 9 + RUN - 1]  # one token too short
    wanted = torch.zeros(10, 64, dtype=torch.bool)
    wanted[3, 20 : 20 + RUN] = True
    assert torch.equal(copies(fit.ids, report.ids), wanted)
    assert audit_leakage(fit, report, 2, V).share_copied == pytest.approx(RUN / 630)


def test_the_audit_counts_ngrams_as_a_set_of_tuples_does():
    fit, report = windows(60, 16, 3), windows(20, 16, 4)
    found = audit_leakage(fit, report, 2, V)
    known = {tuple(row[at : at + 2]) for row in fit.ids.tolist() for at in range(15)}
    hits = [[tuple(row[at - 1 : at + 1]) in known for at in range(1, 16)] for row in report.ids.tolist()]
    assert torch.equal(found.known[:, 1:], torch.tensor(hits))
    assert found.seen[2] == pytest.approx(sum(map(sum, hits)) / 300) and found.seen[1] > found.seen[2] > 0


def test_losses_on_seen_and_unseen_ngrams_add_up_to_the_whole(root):
    given, found, _ = memory(root, "llama", 2, 2)
    audit = audit_leakage(given.windows["fit"], given.windows["report"], 2, V)
    known = loss_by_leakage(given, 2, found.translation, audit, BUDGET)
    rows = {"donor": whole_model(given.model.net), "converted": LateBlocks(given.model, 2).reading(found.translation)}
    scores = evaluate(rows, given.windows["report"], vocabulary=V)
    assert known["seen"].tokens + known["unseen"].tokens == int(scores["donor"].tokens.sum())
    for name in rows:
        nats = sum(getattr(known[kind], name) * known[kind].tokens for kind in ("seen", "unseen"))
        assert nats == pytest.approx(float(scores[name].nats.sum()))
    assert known["unseen"].tokens == int((~audit.known[:, :-1]).sum())


# --------------------------------------------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def converted(root, tmp_path_factory) -> Path:
    """Memories of three families in one folder. Gemma scales its embeddings; GPT-2 has learned positions."""
    folder = tmp_path_factory.mktemp("converted")
    for name, drop, order in (("llama", 2, 3), ("gpt2", 1, 2), ("gemma2", 3, 2), ("untied", 2, 2)):
        convert(root, name, folder / name, drop=drop, shape=NgramShape(order=order, rows=2000, skips=3))
    return folder


def convert(root: Path, name: str, out: Path, **more) -> dict:
    return convert_ngram(str(root / name), out, text=str(root / "text.jsonl"), **{**SMALL, **more})


@pytest.mark.slow
@pytest.mark.parametrize("made, batched", [("converted", "gpt2"), ("small", "llama")])
def test_checkpoints_decode_and_reload_where_this_package_is_missing(root, request, made, batched, tmp_path):
    folders, ids = request.getfixturevalue(made), tiny.ids()
    expected = {}
    for folder in folders.iterdir():
        net = load(folder).net
        with torch.no_grad():
            expected[folder.name] = net(ids).logits
    run_clean(folders, ids, batched, tmp_path)
    for name, logits in expected.items():
        found = load_file(folders / name / "result")
        assert torch.equal(found["logits"], logits) and torch.equal(found["again"], logits), name
        assert torch.equal(found["cached"], found["uncached"]), name
        assert not torch.equal(found["logits"], load(root / name).net(ids).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_decoding_token_by_token_and_with_padding_agrees_with_one_pass(converted, name):
    net, ids = load(converted / name).net, tiny.ids(2, 14)
    assert torch.allclose(in_chunks(net, ids, tuple(range(1, 14))), net(ids).logits, atol=2e-5)
    padded, mask = left_padded((11, 4))
    found = net(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    assert torch.allclose(found[1, -4:], net(padded[1:, -4:]).logits[0], atol=2e-5)


@pytest.fixture(scope="module")
def small(root, tmp_path_factory) -> Path:
    """Memories in a fifth of the bytes of two blocks: the embedding of the llama is its head, that of the mistral is not."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("llama", "three"):
        convert(root, name, folder / name, drop=2, shape=NgramShape(order=2, rows=2000, skips=2), table_bytes=20)
    return folder


@pytest.mark.parametrize("name", ["llama", "three"])
@torch.no_grad()
def test_tables_are_packed_into_a_share_of_the_bytes_of_the_blocks(root, small, name):
    report = json.loads((small / name / "report.json").read_text())
    rows, given = {row["name"]: row for row in report["results"]}, donor(root, name)
    beside = 0 if name == "llama" else 4 * V * given.model.width  # the table in the place of the embedding
    limit = sum(p.numel() for block in given.model.blocks[:2] for p in block.parameters()) * 4 / 5
    assert 0.8 * limit < rows["converted"]["table_bytes"] - beside <= limit
    assert rows["reference:unpacked"]["table_bytes"] > 1.5 * limit
    assert rows["converted"]["ce"] == pytest.approx(rows["reference:unpacked"]["ce"], abs=0.05)
    again = evaluate({"again": whole_model(load(small / name).net)}, given.windows["report"], vocabulary=V)["again"]
    assert again.ce == pytest.approx(rows["converted"]["ce"], abs=1e-6)
    sizes = {folder: (folder / "model.safetensors").stat().st_size for folder in (small / name, root / name)}
    assert sizes[small / name] < sizes[root / name] + 20_000  # names and shapes of tensors


@torch.no_grad()
def test_a_memory_with_packed_tables_has_one_matrix_for_embedding_and_head(small, tmp_path):
    net, ids = load(small / "llama").net, tiny.ids()
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
    stored = load_file(small / "llama" / "model.safetensors")
    assert [name for name, tensor in stored.items() if tensor.shape == (V, 40)] == ["a.embed_tokens.weight"]
    logits = net(ids).logits
    net.resize_token_embeddings(V + 7)
    net.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again(ids).logits[..., :V], logits) and again(ids).logits.shape[-1] == V + 7


@pytest.mark.parametrize("percent", [20, 100, float("inf")])
def test_bytes_are_those_written_also_where_most_ids_do_not_occur(root, tmp_path, monkeypatch, percent):
    monkeypatch.setattr(fitting, "token_tables", functools.partial(token_tables, small=0))
    shape = NgramShape(order=1, rows=0, skips=0)
    report = convert(root, "llama", tmp_path / "out", drop=1, shape=shape, table_bytes=percent)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    size = sum(one.numel() * one.element_size() for name, one in stored.items() if name.startswith("translation.terms"))
    row = next(row for row in report["results"] if row["name"] == "converted")
    assert row["table_bytes"] - 4 * 40 == size  # B's state for BOS
    assert [name for name, tensor in stored.items() if tensor.shape == (V, 40)] == ["a.embed_tokens.weight"]
    assert report["tables"][0]["stored_rows"] < V and ("directions" in report["tables"][0]) == (percent == 20)


def test_a_single_table_of_an_untied_donor_is_its_embedding(root, tmp_path):
    report = convert(root, "three", tmp_path / "out", drop=1, shape=NgramShape(order=1, rows=0, skips=0))
    row = next(row for row in report["results"] if row["name"] == "converted")
    assert row["table_bytes"] - 4 * 32 == 4 * V * 32 and any("is the embedding" in note for note in report["notes"])


def test_a_report_says_where_packing_loses_much():
    def row(ce: float) -> Scores:
        return Scores(torch.tensor([10 * ce]), None, None, torch.tensor([10.0]))

    (note,) = packing_notes({"converted": row(3.23), UNPACKED: row(3.0)})
    assert note == "Packing loses 0.230 nats: a higher `table_bytes` keeps more of the tables."
    assert packing_notes({"converted": row(3.01), UNPACKED: row(3.0)}) == packing_notes({"converted": row(3.0)}) == []


def test_tables_without_a_byte_are_named(root, tmp_path):
    shape = NgramShape(order=2, rows=2000, skips=2)
    report = convert(root, "llama", tmp_path / "out", drop=2, shape=shape, table_bytes=0.5)
    gone = [one["by"] for one in report["tables"] if not one["stored_rows"]]
    assert gone and any(f"No byte was left for the tables by {', '.join(gone)}." in note for note in report["notes"])


@pytest.mark.slow
@torch.no_grad()
def test_a_memory_with_packed_tables_can_come_first(root, small, tmp_path):
    report, folder = joined_to_gpt2(root, small / "llama", tmp_path / "joined")
    scores = evaluate({"net": whole_model(load(folder).net)}, donor(root, "gpt2").windows["report"], vocabulary=V)
    ce = next(row["ce"] for row in report["results"] if row["name"] == "composite")
    assert scores["net"].ce == pytest.approx(ce, abs=0.2)
    again = load(convert_again(root, small / "llama", tmp_path / "again"))
    assert again.depth == 3 and again.net.config.shares_embedding


def joined_to_gpt2(root: Path, first: Path, out: Path) -> tuple[dict, Path]:
    wanted = Settings(
        model_a=str(first), model_b=str(root / "gpt2"), layer=2, layer_b=3, text=str(root / "text.jsonl"),
        tokens=4096, context=32, features=64, k=8, sae_passes=0.3, device="cpu", memory=BUDGET, brief=True,
    )  # fmt: skip
    return stitch(wanted, out)


def convert_again(root: Path, model: Path, out: Path) -> Path:
    shape = NgramShape(order=2, rows=500, skips=1)
    convert_ngram(str(model), out, text=str(root / "text.jsonl"), drop=1, shape=shape, **SMALL)
    return out


@pytest.mark.parametrize("name, site", [("llama", 2), ("gpt2", 1), ("gemma2", 3), ("untied", 2)])
@torch.no_grad()
def test_the_written_model_computes_what_the_report_scored(root, converted, name, site):
    """An embedding that is not the head is the table by token, for any scale of the family; learned positions are in the
    memory only.
    """
    report = json.loads((converted / name / "report.json").read_text())
    given = donor(root, name)
    scores = evaluate({"again": whole_model(load(converted / name).net)}, given.windows["report"], vocabulary=V)
    row = next(row for row in report["results"] if row["name"] == "converted")
    assert scores["again"].ce == pytest.approx(row["ce"], abs=1e-6)
    terms = [Term(index, tiny.noise(V if isinstance(index, Token) else 128, given.model.width, seed=seed))
             for seed, index in enumerate((Token(), Token(2), Position()))]  # fmt: skip
    keys = torch.arange(0, V * V, 3)
    terms.append(Term(Ngram(2, keys), tiny.noise(len(keys), given.model.width, seed=5)))
    translation = Translation("any", tuple(terms), tiny.noise(given.model.width), tiny.noise(given.model.width, seed=6))
    ids = given.windows["report"].ids[:3]
    wanted = LateBlocks(given.model, site).reading(translation)(batch_of(ids))
    assert torch.allclose(build_composite(given.model, site, translation)(ids.long()).logits, wanted, atol=1e-4)


def batch_of(ids: torch.Tensor):
    from stitch.evaluation.scores import Batch

    return Batch(ids.long(), slice(0, len(ids)))


def test_a_memory_beats_removal_the_mean_and_its_own_rows_permuted(converted):
    report = json.loads((converted / "llama" / "report.json").read_text())
    kl = {row["name"]: row["kl_to_b"] for row in report["results"]}
    for other in ("reference:passthrough", "floor:mean", "null:random-table"):
        assert kl["converted"] < 0.3 * kl[other], other
    assert kl["converted"] < 0.85 * kl["baseline:1-grams"]  # longer n-grams are rare in 4,096 tokens from all documents
    r2 = {row["name"]: row["r2"] for row in report["results"] if "r2" in row}
    assert r2["null:random-table"] < 0.1 < r2["baseline:1-grams"] < r2["converted"] < 1


def test_the_null_has_the_same_rows_under_other_keys(root):
    _, found, _ = memory(root, "llama", 2, 2)
    null = with_shuffled_rows(found.translation, 0)
    for term, other in zip(found.translation.terms, null.terms, strict=True):
        assert term.input == other.input and not torch.equal(term.weight, other.weight)
        assert torch.equal(term.weight.norm(dim=1).sort().values, other.weight.norm(dim=1).sort().values)
    assert torch.equal(null.bias, found.translation.bias) and null.first is found.translation.first


def test_the_same_request_gives_the_same_bytes(root, converted, tmp_path):
    convert(root, "gpt2", tmp_path / "again", drop=1, shape=NgramShape(order=2, rows=2000, skips=3))
    for file in ("model.safetensors", "report.json", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (converted / "gpt2" / file).read_bytes()


# -------------------------------------------------------------------------------------------------------------- composition


@torch.no_grad()
def test_a_converted_model_continued_by_its_donor_is_unchanged(root, converted):
    memory_of, whole = load(converted / "llama"), load(root / "llama")
    identity = Translation("identity", (Term(Residual(1), None),), torch.zeros(whole.width))
    ids = tiny.ids()
    joined = compose(memory_of, whole, 1, 3, identity)  # block 0 of the converted model is block 2 of the donor
    assert torch.equal(joined(ids, use_cache=False).logits, memory_of.net(ids, use_cache=False).logits)


@pytest.mark.slow
def test_a_converted_model_can_be_a_donor_and_a_composite_can_be_converted(root, converted, tmp_path):
    report, folder = joined_to_gpt2(root, converted / "llama", tmp_path / "joined")
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ce = next(row["ce"] for row in report["results"] if row["name"] == "composite")
    given = donor(root, "gpt2")
    assert evaluate({"net": whole_model(net)}, given.windows["report"], vocabulary=V)["net"].ce == pytest.approx(
        ce, abs=0.2
    )
    again = convert_ngram(
        str(folder), tmp_path / "again", text=str(root / "text.jsonl"), drop=3, shape=NgramShape(order=2, rows=500, skips=1),
        **SMALL,
    )  # fmt: skip
    assert load(tmp_path / "again").depth == load(folder).depth - 3
    kl = {row["name"]: row["kl_to_b"] for row in again["results"]}
    assert kl["converted"] < 0.7 * kl["null:random-table"]
    with pytest.raises(
        UsageError, match=r"drop must be auto or in 3\.\.4 .* got 2: .* convert their model before it is stitched"
    ):
        convert_ngram(str(folder), tmp_path / "no", text=str(root / "text.jsonl"), drop=2, **SMALL)


# ----------------------------------------------------------------------------------------------------------------- requests


def test_auto_drops_as_many_blocks_as_the_tolerance_allows(root, tmp_path):
    given = dict(drop="auto", shape=NgramShape(order=2, rows=1000, skips=1))
    first = convert(root, "llama", tmp_path / "first", tolerance=1e-9 + 10.0, **given)
    assert first["site"] == 5 and list(first["tried"]) == ["1", "2", "3", "4", "5"]
    costs = list(first["tried"].values())
    bound = (costs[1] + costs[2]) / 2 if costs[0] < costs[1] < costs[2] else costs[0]
    second = convert(root, "llama", tmp_path / "second", tolerance=bound, **given)
    assert second["site"] == max(depth for depth in range(1, 6) if all(cost <= bound for cost in costs[:depth]))
    with pytest.raises(UsageError, match="tolerance must be at least"):
        convert(root, "llama", tmp_path / "third", tolerance=0.0, **given)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--drop", "0"], "drop must be auto or in 1..5"),
        (["--drop", "6"], "got 6"),
        (["--drop", "many"], "got 'many'"),
        (["--drop", "2", "--memory", "100K"], "memory must be at least"),
        (["--drop", "2", "--order", "6"], "order must be in 1..5; got 6"),
        (["--drop", "2", "--skips", "1"], "skips must be at least"),
        (["--drop", "2", "--rows", "-1"], "rows must be 0 or more"),
        (["--drop", "auto", "--tolerance", "-1"], "tolerance must be 0 or more nats"),
        (["--drop", "2", "--table-bytes", "0"], "table-bytes must be more than 0 percent; got 0"),
        (["--drop", "2", "--table-bytes", "0.1"], "table-bytes must leave room for a table; 0.1 % are"),
        (["--drop", "2", "--tokens", "100"], "tokens must be at least 4,096"),
        (["--drop", "2", "--context", "4"], "context must be in 8..128"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(root, tmp_path, more, message):
    size = [] if "--tokens" in more else ["--tokens", "4096"]
    done = invoke(root / "llama", root / "text.jsonl", tmp_path / "out", *size, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_report_text_that_occurs_in_the_corpus_is_refused(root, tmp_path):
    texts = [json.loads(line)["text"] for line in (root / "text.jsonl").read_text().splitlines()]
    copies = [json.dumps({"text": f"{texts[number % 20]} {number}"}) for number in range(260)]  # which alone differs
    (tmp_path / "copies.jsonl").write_text("\n".join(copies))
    done = invoke(root / "llama", tmp_path / "copies.jsonl", tmp_path / "out", "--tokens", "4096", "--drop", "2")
    assert done.exit_code == 2 and "text must have a report split with at most 10% of tokens in runs" in done.stderr


def invoke(model: Path, text: Path, out: Path, *more: str):
    return CliRunner().invoke(
        cli.app,
        ["convert", "ngram", str(model), "--text", str(text), "--out", str(out), "--device", "cpu", "-q", *more],
    )


def test_the_command_prints_its_table_and_the_audit(root, tmp_path):
    more = ["--tokens", "4096", "--held-out", "1024", "--context", "32", "--rows", "500", "--drop", "1"]
    done = invoke(root / "llama", root / "text.jsonl", tmp_path / "out", *more)
    assert done.exit_code == 0, done.stderr
    for wanted in (
        "converted",
        "null:random-table",
        "reference:passthrough",
        "R²",
        "Leakage: the fit text has",
        "written to",
    ):
        assert wanted in done.stdout
    refused = invoke(root / "llama", root / "text.jsonl", tmp_path / "out", *more)
    assert refused.exit_code == 2 and "--out must not exist" in refused.stderr
    again = invoke(root / "llama", root / "text.jsonl", tmp_path / "out", *more, "--overwrite", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout) == json.loads(
        (tmp_path / "out" / "report.json").read_text()
    )
