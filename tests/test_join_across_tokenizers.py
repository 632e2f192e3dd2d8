"""Two models that read different tokens: streams at bytes where both end, a head for A's tokens, and losses on the same bytes."""

import json
from dataclasses import replace
from math import isfinite, log
from pathlib import Path

import _families
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import jobs
import stitch as stitch_api
import tiny
from heard import Heard
from stitch.activations.harvest import harvest
from stitch.activations.observe import residuals
from stitch.activations.original import Original
from stitch.activations.paired import pair
from stitch.composite.compose import compose
from stitch.composite.parts import Part
from stitch.conversions.retokenization.behind import behind
from stitch.conversions.retokenization.scoring import head_of, logits, softcap
from stitch.conversions.retokenization.streams import final
from stitch.errors import UsageError
from stitch.evaluation.next_byte import agree
from stitch.evaluation.own_tokens import own_scores
from stitch.evaluation.scores import evaluate, whole_model
from stitch.evaluation.stage import Stage
from stitch.files.job import planning
from stitch.files.store import Store
from stitch.jobs.across import workshop
from stitch.jobs.across_work import HEADS
from stitch.jobs.chain import chain
from stitch.jobs.evaluate import evaluate_models
from stitch.jobs.heads import choose_head
from stitch.jobs.join import stitch
from stitch.models.anatomy import ANATOMIES
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.text.tokenizers import same_ids
from stitch.text.windows import Windows, report_windows
from stitch.translation.types import Residual, Term, Translation
from tokenizers_made import with_byte_fallback

CHARACTERS = range(3, 98)  # ids of the pico tokenizer that stand for one character


def renumbered(model: Model, seed: int = 0) -> Model:
    """The same model and tokenizer with every id exchanged for another."""
    order = torch.randperm(tiny.VOCABULARY, generator=torch.Generator().manual_seed(seed))
    new = order.argsort().tolist()  # of each old id
    content = json.loads(model.tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {word: new[old] for word, old in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = new[token["id"]]
    for special in content["post_processor"]["special_tokens"].values():
        special["ids"] = [new[old] for old in special["ids"]]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<s>", eos_token="<s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    net = tiny.net(model.config.model_type)
    with torch.no_grad():
        head = net.get_output_embeddings()
        weights = {id(w): w for w in (net.get_input_embeddings().weight, head.weight, head.bias) if w is not None}
        for weight in weights.values():
            weight.copy_(weight[order])
    return Model("renumbered", net, tokenizer, model.anatomy, Path("renumbered"))


@pytest.fixture(scope="module", params=["gpt2", "llama", "phi"])
def pair_of(request):
    """A model, and itself with other ids."""
    a = tiny.model(request.param)
    b = renumbered(a)
    assert not same_ids(a.tokenizer, b.tokenizer)
    return a, b


def windows(count: int = 6, length: int = 16) -> Windows:
    ids = torch.randint(CHARACTERS.start, CHARACTERS.stop, (count, length), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = tiny.BOS
    ids[::2, 7] = tiny.BOS  # a document starts inside the window
    document = torch.arange(count)[:, None] * 2 + (torch.arange(length) >= 7) * (torch.arange(count) % 2 == 0)[:, None]
    return Windows(ids.int(), document.int())


def test_behind_the_other_tokenizer_a_renumbered_model_is_itself(pair_of):
    a, b = pair_of
    there = behind(b, a)
    ids = windows().ids.long()
    assert torch.equal(there.net(ids).logits, a.net(ids).logits)
    assert there.bos == a.bos and there.config.vocab_size == tiny.VOCABULARY
    assert not torch.equal(b.net(ids).logits, a.net(ids).logits)


def test_streams_are_those_in_the_models_own_tokens(pair_of):
    a, b = pair_of
    there, ids = behind(b, a), windows().ids
    found, wanted = residuals(there, ids, [0, 3, 6]), residuals(a, ids.long(), [0, 3, 6])
    assert all(torch.equal(found[site], wanted[site]) for site in wanted)
    assert there.original is not None and there.original.coincides(ids).all()


def test_a_composite_of_a_model_with_itself_in_other_ids_is_that_model(pair_of):
    a, b = pair_of
    there, ids = behind(b, a), windows().ids.long()
    identity = Translation("identity", (Term(Residual(2), None),), torch.zeros(a.width))
    assert torch.equal(compose(a, there, 2, 2, identity)(ids).logits, a.net(ids).logits)


def original_of(model: Model) -> Original:
    assert isinstance(model.original, Original)
    return model.original


def test_losses_in_own_tokens_are_those_on_the_same_bytes(pair_of, tmp_path):
    a, b = pair_of
    text, there = windows(), behind(b, a)
    found = [harvest(model, text, [2], tmp_path / str(number)) for number, model in enumerate((a, there))]
    on = Stage(a, there, 2, 2, pair(*found, 2, 2), 2**28)
    own, next_byte = own_scores(original_of(there), text, 2**28)
    wanted = evaluate({"a": whole_model(a.net)}, text, vocabulary=tiny.VOCABULARY, counted=on.counted)["a"]
    assert torch.equal(own.tokens, wanted.tokens) and own.tokens.sum() == 6 * 15 - 3  # three starts inside windows
    assert torch.allclose(own.nats, wanted.nats, rtol=1e-5)
    same = evaluate({"a": whole_model(a.net)}, text, vocabulary=tiny.VOCABULARY, reference=next_byte)["a"]
    assert same.row("a")["kl_to_b"] == pytest.approx(0, abs=1e-5) and same.row("a")["top1"] == 1.0


def test_likeliest_tokens_agree_as_far_as_both_reach(pair_of, tmp_path):
    assert agree(b" the", b" th") and agree(b" th", b" the") and not agree(b" the", b" this")
    assert agree(b"", None) and not agree(b"", b"a") and not agree(b"a", None)
    a, b = pair_of
    text, there = windows(), behind(b, a)
    found = [harvest(model, text, [2], tmp_path / str(number)) for number, model in enumerate((a, there))]
    on = Stage(a, there, 2, 2, pair(*found, 2, 2), 2**28)
    assert on.counted is not None
    _, next_byte = own_scores(original_of(there), text, 2**28)

    def other(batch):  # the likeliest token is that of the next window
        return a.net(batch.ids.roll(1, 0)).logits

    scores = evaluate({"other": other}, text, vocabulary=tiny.VOCABULARY, reference=next_byte, counted=on.counted)
    with torch.no_grad():
        own, moved = (a.net(ids).logits[:, :-1].argmax(-1) for ids in (text.ids.long(), text.ids.long().roll(1, 0)))
    spelt = [[a.tokenizer.convert_ids_to_tokens(int(token)) for token in found.flatten()] for found in (own, moved)]
    same = [one.startswith(two) or two.startswith(one) for one, two in zip(*spelt, strict=True)]  # "<" and "<99>" agree
    wanted = torch.tensor(same)[on.counted[text.ids[:, 1:].flatten().long()]].double().mean()
    assert 0 < wanted < 1 and scores["other"].row("other")["top1"] == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the second caps its logits
def test_losses_of_heads_are_those_of_the_network(family, tmp_path):
    a = tiny.model(family)
    there, text = behind(renumbered(a), a), windows()
    found = [harvest(model, text, [2], tmp_path / str(number)) for number, model in enumerate((a, there))]
    on = Stage(a, there, 2, 2, pair(*found, 2, 2), 2**28)
    wanted = evaluate({"b": on.aligned()}, text, vocabulary=tiny.VOCABULARY, counted=on.counted)["b"]
    own = head_of(there)
    heads = {"zero": torch.zeros_like(own), "own": own, "turned": own.flip(0)}
    found = choose_head(on, text, heads.items(), 3, softcap(there), lambda name: name == "turned")
    assert found.losses["own"] == pytest.approx(wanted.ce, rel=1e-5)
    assert found.name == min(heads, key=lambda name: found.losses[name])
    assert torch.equal(found.head, heads[found.name]) and set(found.others) == {"turned"} - {found.name}


def test_tokens_that_end_inside_one_of_the_other_model_are_not_fitted_on(tmp_path):
    a = tiny.model("gpt2")
    tokenizer = with_byte_fallback("never")
    net = tiny.net("qwen3", vocab_size=len(tokenizer))
    there = behind(Model("words", net, tokenizer, ANATOMIES["qwen3"], Path("words")), a)
    text = "feature model layer token"
    ids = torch.tensor([[tiny.BOS, *a.tokenizer.encode(text, add_special_tokens=False)]], dtype=torch.int32)
    found = pair(
        harvest(a, Windows(ids, torch.zeros_like(ids)), [2], tmp_path / "a"),
        harvest(there, Windows(ids, torch.zeros_like(ids)), [2], tmp_path / "b"), 2, 2,
    )  # fmt: skip
    own = tokenizer.encode(text, add_special_tokens=False)
    ends = torch.tensor([len(tokenizer.decode(own[: n + 1])) for n in range(len(own))])
    assert found.keep[0, 1:].nonzero()[:, 0].add(1).tolist() == ends.tolist()
    with_bos = torch.tensor([[tokenizer.bos_token_id, *own]])
    stream = residuals(there.original.model, with_bos, [2])[2][0]
    assert torch.allclose(found.b.read(0, 2)[0, ends], stream[1:], atol=1e-5)


@pytest.fixture(scope="module")
def heard() -> Heard:
    """What is heard of the stages while `joined` is made."""
    return Heard()


@pytest.fixture(scope="module")
def joined(tmp_path_factory, heard):
    """A model that reads characters, joined to one that reads words."""
    folder = tmp_path_factory.mktemp("across")
    a, tokenizer = tiny.save(folder / "a", "gpt2"), with_byte_fallback()
    b = tiny.save(folder / "b", "qwen3", seed=1, hidden_size=48, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(b)
    for place, given in ((a, {"eos_token_id": [0, 40], "suppress_tokens": [7, 8]}), (b, {"repetition_penalty": 1.5})):
        (place / "generation_config.json").write_text(json.dumps(given))
    text = jobs.write_text(folder, documents=400)
    settings = jobs.settings(a, b, text, context=64)
    return settings, *stitch(settings, folder / "out", store=Store(folder / "store", 2**30), progress=heard)


def test_all_that_takes_long_is_heard_of_to_its_end(joined, heard):
    heard.require(
        ["the model in its own tokens (passages)", "head for A's tokens (passages)", "all of B for A's tokens (passages)",
         "scores of the head (passages)", "bias (parts of the text)", "choice of the head (parts)", "head of A (passages)",
         "backfitting (tables, at most)", "ridge behind the tables (strengths, at most)", "correlations (features)",
         "least squares (strengths, at most)", "text of features (features)", "writing weights (tensors)"], between=1,
    )  # fmt: skip
    heard.require(["what the model says next (parts)", "SAE training (steps)", "report, page and files (steps)"])
    # Tokens that the other model does not end at are counted, but not read; the race leaves rows behind.
    assert {stage for stage in heard.unfinished if "tokens)" not in stage} == set()


def row(report: dict, name: str) -> dict:
    return next(one for one in report["results"] if one["name"] == name)


def test_every_row_has_bits_per_byte_and_the_variants_are_there(joined):
    _, report, _ = joined
    found = report["across"]
    for one in report["results"]:
        assert one["bpb"] == pytest.approx(one["ce"] / log(2) / found["bytes_per_token"])
    names = {one["name"] for one in report["results"]}
    wanted = {"ceiling:aligned", "reference:b-retokenized", "reference:b-retokenized-omp", "null:shuffled-head"}
    wanted |= {f"reference:{head}" for head in found["heads"] if head != found["head"]}
    assert wanted <= names and f"reference:{found['head']}" not in names
    assert found["heads"][found["head"]] == min(found["heads"].values()) and len(found["heads"]) == HEADS
    assert 0.1 < found["coinciding"] < 0.5 and found["bytes_per_token"] == pytest.approx(1.0)
    assert row(report, "null:shuffled-head")["ce"] > row(report, "composite")["ce"]


def test_the_breakdown_counts_the_tokens_that_count(joined):
    _, report, _ = joined
    for bins in report["breakdown"].values():
        tokens = sum(one["tokens"] for one in bins)
        mean = sum(one["tokens"] * one["rows"]["composite"]["ce"] for one in bins) / tokens
        assert mean == pytest.approx(row(report, "composite")["ce"])


def test_b_costs_what_its_own_tokens_cost(joined):
    settings, report, _ = joined
    b = load(Path(settings.model_b))
    share = report["across"]["own_tokens_per_token"]
    assert 0.1 < share < 0.5
    assert row(report, "b")["bytes"] == sum(p.numel() * 4 for p in b.net.parameters())
    assert row(report, "ceiling:aligned")["flops"] == row(report, "b")["flops"]


def test_the_checkpoint_reads_as_tokens(joined):
    settings, _, folder = joined
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert same_ids(tokenizer, AutoTokenizer.from_pretrained(settings.model_a))
    assert net.get_output_embeddings().weight.shape == (tiny.VOCABULARY, 48)
    assert net.generation_config.eos_token_id == [0, 40] and net.config.eos_token_id == tiny.BOS
    made = net.generate(**tokenizer("feature model", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert made.shape[1] == len("feature model") + 1 + 5 and made.max() < tiny.VOCABULARY
    card = (folder / "README.md").read_text()
    assert "bits/byte" in card and "read different tokens" in card


@torch.no_grad()
def test_new_tokens_are_added_to_the_tokens_of_a(joined, tmp_path):
    net = AutoModelForCausalLM.from_pretrained(joined[2], trust_remote_code=True)
    ids = windows().ids.long()
    before = net(ids).logits
    net.resize_token_embeddings(tiny.VOCABULARY + 5)
    after = net(ids).logits
    assert after.shape[-1] == net.config.vocab_size == tiny.VOCABULARY + 5
    assert torch.equal(after[..., : tiny.VOCABULARY], before)
    ids[:, -1] = tiny.VOCABULARY + 4
    net.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(again(ids).logits, net(ids).logits)


def test_a_model_is_compared_with_itself_in_other_tokens(pair_of, tmp_path):
    for name, model in zip("ab", pair_of, strict=True):
        model.net.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    small: dict = dict(text=str(jobs.write_text(tmp_path)), tokens=512, context=32, device="cpu")
    report = evaluate_models(str(tmp_path / "a"), str(tmp_path / "b"), **small)
    model, against = (row(report, name) for name in ("model", "against"))
    assert against["ce"] == pytest.approx(model["ce"], rel=1e-5)
    assert model["kl_to_b"] == pytest.approx(0, abs=1e-5) and model["top1"] == 1.0
    assert [one["bpb"] for one in (model, against)] == pytest.approx([model["ce"] / log(2)] * 2, rel=1e-5)
    (difference,) = report["differences"]
    assert [difference[name] for name in ("ce_low", "ce", "ce_high", "bpb")] == pytest.approx([0] * 4, abs=1e-5)
    assert report["across"]["coinciding"] == 1.0 and report["across"]["lost"] == 0


def test_a_composite_is_compared_with_the_model_whose_tokens_it_does_not_read(joined):
    settings, _, folder = joined
    small: dict = dict(text=settings.text, tokens=2048, context=64)
    result = stitch_api.evaluate(str(folder), against=settings.model_b, device="cpu", quiet=True, **small)
    report, b = result.report, load(Path(settings.model_b))
    characters = AutoTokenizer.from_pretrained(folder)
    ids = report_windows(settings.text, 2048, characters, 64).ids
    nats = sum(loss_on_text(b, characters.convert_ids_to_tokens(window)) for window in ids.tolist())
    size = float((ids[:, 1:] != tiny.BOS).sum())  # one byte for each character
    assert row(report, "against")["bpb"] == pytest.approx(nats / size / log(2), rel=1e-4)
    (difference,) = report["differences"]
    assert difference["bpb_low"] < difference["bpb"] < difference["bpb_high"]
    assert difference["bpb"] == pytest.approx(row(report, "model")["bpb"] - row(report, "against")["bpb"])
    shown = str(result)
    assert "bits/byte" in shown and "read different tokens" in shown and "bits per byte" in shown


@torch.no_grad()
def loss_on_text(model: Model, characters: list[str]) -> float:
    """Nats of a model on documents of characters that each begin with BOS. Its tokenizer puts a space in front of a text."""
    bos, ids = model.tokenizer.bos_token_id, []
    for document in "".join(characters).split("<s>")[1:]:
        ids += [bos, *model.tokenizer.encode(document.removeprefix(" "), add_special_tokens=False)]
    predicted, target = model.net(torch.tensor([ids])).logits[0, :-1].log_softmax(-1), torch.tensor(ids[1:])
    return float(-predicted[torch.arange(len(target)), target][target != bos].sum())


@pytest.mark.slow
def test_a_second_run_takes_streams_from_the_store_and_gives_the_same_bytes(joined, tmp_path):
    settings, _, folder = joined
    store = Store(folder.parent / "store", 2**30)
    report, again = stitch(settings, tmp_path / "again", store=store)
    assert report["cache"]["reused"]["activations"] > 0
    for file in sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "report.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file


@pytest.mark.slow
def test_a_chain_ends_with_the_head_of_its_first_model(joined, tmp_path):
    """The last part runs no block. What enters A's final norm is the second seam's output."""
    settings = joined[0]
    a, b = settings.model_a, settings.model_b
    options = dict(tokens=4096, context=64, features=64, k=8, sae_passes=0.5, device="cpu", memory=2**28, brief=True)
    parts = [Part(a, 0, 3), Part(b, 2, 6), Part(a, 6)]
    report, folder = chain(parts, tmp_path / "chain", text=settings.text, **options)
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    whole = load(Path(a)).net
    assert net.config.num_hidden_layers == 3 + 4 and net.config.vocab_size == tiny.VOCABULARY
    seen = []
    net.translation.register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.no_grad():
        logits = net(windows().ids.long()).logits
        expected = whole.lm_head(whole.transformer.ln_f(seen[0]))
    assert torch.allclose(logits, expected, atol=1e-5)
    first = json.loads((folder / "seam-1" / "report.json").read_text())
    assert first["across"]["head"] and "across" not in report and first["documents"] == report["documents"]
    with planning() as plans:
        chain(parts, text=settings.text, **options)
    assert plans[1].stages["vocabulary"].seconds > 0


def test_tokenizers_without_a_common_token_are_refused():
    a = tiny.model("gpt2")
    content = json.loads(a.tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {
        word if word in ("<s>", "<pad>", "<unk>") else chr(0x4E00 + number): number
        for word, number in content["model"]["vocab"].items()
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", unk_token="<unk>"
    )
    other = Model("other", tiny.net("llama"), tokenizer, ANATOMIES["llama"], Path("other"))
    with pytest.raises(UsageError, match="must share some tokens; those of other and gpt2 share none"):
        behind(other, a)


def test_a_tokenizer_that_loses_the_text_is_refused(tmp_path):
    a, tokenizer = tiny.save(tmp_path / "a", "gpt2"), with_byte_fallback()
    b = tiny.save(tmp_path / "b", "qwen3", seed=1, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(b)
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"日本語 {number} feature model layer token stream weight"}) for number in range(400)]
    text.write_text("\n".join(lines))  # A knows ASCII alone
    with pytest.raises(
        UsageError, match=r"must keep all but 0\.1% of the bytes of the text; that of .*a loses 1\d\.\d%"
    ):
        stitch(jobs.settings(a, b, text, context=64), tmp_path / "out")


@pytest.mark.slow
def test_a_dry_run_has_the_stages_of_the_run(joined):
    settings, report, _ = joined
    with planning() as plans:
        stitch(settings)
    stages = plans[1].stages
    assert {"vocabulary", *stages} == {*report["seconds"]} - {"load"}
    assert stages["vocabulary"].seconds > 0


# Logits are divided, multiplied, capped, read behind another layer; the output of the body has no states by that name.
@pytest.mark.parametrize("kind", ["granite", "cohere2", "recurrent_gemma", "modernbert-decoder", "llama4_text"])
def test_a_family_is_itself_in_other_ids_whatever_becomes_of_its_logits(kind, tmp_path):
    net = _families.net(kind)
    if kind == "granite":
        net.config.logits_scaling = 3.0
    net.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    a = renumbered(tiny.model("gpt2"))
    there, ids = behind(model, a), windows().ids.long()
    old = [
        model.tokenizer.convert_tokens_to_ids(word)
        for word in a.tokenizer.convert_ids_to_tokens(range(tiny.VOCABULARY))
    ]
    with torch.no_grad():
        found, wanted = there.net(ids).logits, model.net(torch.tensor(old)[ids]).logits[..., old]
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))
    assert torch.allclose(
        logits(final(there, ids[0, 1:], int(ids[0, 0])), head_of(there), softcap(there)), found[0], atol=1e-4
    )


def test_a_family_that_reads_token_ids_beside_the_stream_is_refused(tmp_path):
    """The table of a Gemma 4 for every block is as long as the other vocabulary, so that nothing else tells."""
    _families.net("gemma4_text").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="or it reads ids elsewhere"):
        behind(load(tmp_path), renumbered(tiny.model("gpt2")))


def test_what_a_half_leaves_out_is_known_behind_another_tokenizer_too(tmp_path):
    """The part of a Fuyu that sees is found idle on its own tokens."""
    _families.net("fuyu").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.flow["idle"] and behind(model, renumbered(tiny.model("gpt2"))).flow == model.flow


def test_passages_are_as_long_as_b_takes_at_once():
    """B reads characters, A words: windows of A have more of them than B takes."""
    words = with_byte_fallback()
    a = Model("words", tiny.net("qwen3", vocab_size=len(words)), words, ANATOMIES["qwen3"], Path("words"))
    there = behind(tiny.model("gpt2", n_positions=24), a)
    long, fitting = (
        words.encode(text, add_special_tokens=False) for text in ("feature model layer " * 4, "a b c d e f g h")
    )
    window = [words.bos_token_id, *long[:12], words.bos_token_id, *fitting]
    both = Windows(torch.tensor([window], dtype=torch.int32), torch.zeros(1, len(window), dtype=torch.int32))
    assert [len(passage.new.ids) for passage in workshop(there, both, 0).fit] == [len(fitting)]
    with pytest.raises(UsageError, match="in at most 24 of its own"):
        workshop(there, Windows(both.ids[:, :13], both.document[:, :13]), 0)


def test_a_composite_generates_with_the_settings_of_the_model_whose_tokens_it_reads(joined):
    settings, _, out = joined
    written = json.loads((out / "generation_config.json").read_text())
    of_a = json.loads((Path(settings.model_a) / "generation_config.json").read_text())
    assert of_a["suppress_tokens"] == [7, 8] and of_a["eos_token_id"] == [0, 40]
    assert {name: written.get(name) for name in of_a} == of_a and "repetition_penalty" not in written


@pytest.mark.slow
def test_a_composite_can_be_the_first_of_two_that_read_different_tokens(joined, tmp_path):
    settings, _, out = joined
    found, _ = stitch(replace(settings, model_a=str(out), layer=4, layer_b=3, brief=True), tmp_path / "out")
    assert "head-a" in found["across"]["heads"] and isfinite(found["results"][0]["ce"])
