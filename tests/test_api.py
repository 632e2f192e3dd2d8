"""`import stitch`: the same names and defaults as the command line, models and texts in memory, results that show themselves."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stitch
import tiny
from jobs import gpt2_and_qwen3
from stitch.api.given import text_named
from stitch.commands.reference import command_table
from stitch.errors import UsageError
from stitch.models.sources import resolve
from stitch.text.documents import read

OF_THE_COMMAND_LINE = {"as_json", "debug", "dry_run", "recipe"}
# In Python an option of another name or form.
RENAMED = {"graft": {"graft": "requests"}, "push": {}}
SMALL: Any = dict(
    tokens=4096, context=32, features=64, k=8, sae_passes=0.2, device="cpu", memory="256M", quiet=True
)  # fmt: skip


def _name(word: str) -> str:
    return "evaluate" if word == "eval" else word


def _function(words):
    return getattr(getattr(stitch, words[0]) if len(words) == 2 else stitch, _name(words[-1]))


PAGES = [page for page in command_table() if hasattr(stitch, _name(page.words[0]))]


def test_every_command_that_makes_something_has_a_function():
    without = {page.path for page in command_table()} - {page.path for page in PAGES}
    assert without == {"open", "cache list", "cache size", "cache remove", "cache verify", "workspace list",
                       "workspace size", "workspace clean"}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_names_and_defaults_are_those_of_the_command_line(page):
    import typer

    from stitch.commands.app import app
    from stitch.commands.help import leaves

    command = next(found for words, found in leaves(typer.main.get_command(app)) if tuple(words) == page.words)
    there = inspect.signature(_function(page.words)).parameters
    for option in command.params:
        if option.name in OF_THE_COMMAND_LINE or option.name == "help":
            continue
        assert option.name in there, f"{page.path}: {option.name}"
        default = there[option.name].default
        if option.required:
            assert default is inspect.Parameter.empty or option.name == "out"
        elif not getattr(option, "multiple", False):
            assert default == option.default, f"{page.path}: {option.name}"
    known = {option.name for option in command.params} | {"quiet"}
    assert set(there) <= known


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return gpt2_and_qwen3(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def joined(pair, tmp_path_factory):
    """A result that was asked for without `out`, from an empty folder; and the same by name with `out`."""
    here = tmp_path_factory.mktemp("here")
    texts = [json.loads(line)["text"] for line in pair["text"].read_text().splitlines()]
    loaded = tuple((tiny.net(family, **more), tiny.tokenizer()) for family, more in
                   (("gpt2", {}), ("qwen3", dict(seed=1, hidden_size=48))))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        result = stitch.join(loaded[0], loaded[1], 2, text=texts, brief=True, **SMALL)
        assert list(here.iterdir()) == []
    named = stitch.join(pair["gpt2"], pair["qwen3"], 2, text=texts, brief=True, out=here / "named", **SMALL)
    return result, named


def test_loaded_models_give_what_their_folders_give(joined):
    result, named = joined
    assert result.report["results"] == named.report["results"]
    assert result.report["provenance"]["models"]["a"]["name"] == "GPT2LMHeadModel"
    assert named.folder.name == "named" and (named.folder / "report.json").exists()


def test_a_result_shows_itself_and_its_rows(joined):
    result, named = joined
    assert "written to" not in repr(result) and f"written to {named.folder}" in repr(named)
    assert repr(result).startswith(("Dominated: ", "On the frontier", "Level with "))
    html = result._repr_html_()
    assert "<table>" in html and "composite" in html
    rows = result.rows
    assert {"a", "b", "composite"} <= set(rows.index) and rows.loc["composite", "ce"] > 0


def test_the_model_of_a_result_generates_and_outlives_nothing(joined):
    result, _ = joined
    ids = result.tokenizer("feature model", return_tensors="pt").input_ids
    with torch.no_grad():
        made = result.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made.shape == (1, ids.shape[1] + 4)


def test_a_result_is_saved_and_is_a_model_for_other_functions(joined, tmp_path):
    result, _ = joined
    folder = result.save(tmp_path / "kept")
    assert (folder / "model.safetensors").read_bytes() == (result.folder / "model.safetensors").read_bytes()
    assert (folder / "stitch.json").read_bytes() == (result.folder / "stitch.json").read_bytes()
    with pytest.raises(UsageError, match="overwrite"):
        result.save(folder)
    result.save(folder, overwrite=True)
    texts = [f"text number {number} of words " * 4 for number in range(400)]
    scored = stitch.evaluate(result, text=texts, tokens=64, context=32, quiet=True)
    assert scored.rows.loc["model", "ce"] > 0
    assert scored.report["documents"]["effective"] < 30 and "Few documents" in repr(scored)


def test_a_temporary_folder_goes_with_its_result(pair):
    result = stitch.compile.automaton("(ab)*", length=8, quiet=True)
    folder = result.folder
    assert folder.exists() and result.report["certified"]
    assert [*stitch.run(result, "abab")]
    assert stitch.certify(result, tokens=500, quiet=True).report["certified"]
    del result
    import gc

    gc.collect()
    assert not folder.exists()


def test_a_function_that_names_no_folder_says_so():
    with pytest.raises(UsageError, match="out must be a folder here; got 'auto'"):
        stitch.compile.automaton("(ab)*", length=8, out="auto", quiet=True)


def test_facts_have_rows():
    assert stitch.inspect("demo:gpt2").rows.loc["demo:gpt2", "blocks"] == 6


@pytest.mark.slow
def test_plans_show_themselves():
    plan = stitch.graft(
        "demo:induction", "induction", "examples/llama-tiny.json", dry_run=True, count=16, quiet=True, device="cpu"
    )
    assert plan.rows.empty and "head" in repr(plan)


def test_texts_are_named_by_number_and_content():
    with text_named(["one", "two"]) as name:
        assert name.startswith("2 given documents (sha256 ")
        assert [text for _, text in read(name)] == ["one", "two"]
        with text_named(["one", "three"]) as other:
            assert other != name
    with pytest.raises(UsageError):
        next(iter(read("./" + name)))
    from datasets import Dataset, DatasetDict

    one_split = Dataset.from_dict({"text": ["one", "two"]})
    with text_named(one_split) as of_dataset:
        assert of_dataset == name
    with pytest.raises(UsageError, match="`text` column"), text_named(Dataset.from_dict({"words": ["one"]})):
        pass
    for splits in (DatasetDict({"train": one_split, "test": one_split}), {"train": ["one"], "test": ["two"]}):
        said = rf"text must be one split, not a {type(splits).__name__} of train, test: choose one, such as text\['train'\]"
        with pytest.raises(UsageError, match=said), text_named(splits):  # pyright: ignore[reportArgumentType]
            pass
    for whole in ("one\ntwo", "word " * 400):
        with pytest.raises(UsageError, match="put it into a list"), text_named(whole):
            pass
    with pytest.raises(UsageError, match="list of strings"), text_named([1]):  # pyright: ignore[reportArgumentType]
        pass


def test_what_is_no_model_is_refused():
    for wrong in (tiny.net("gpt2"), 3, (1, 2)):
        with pytest.raises(UsageError, match=r"a pair \(PreTrainedModel, tokenizer\)"):
            stitch.inspect(wrong)  # pyright: ignore[reportArgumentType]


def test_two_loaded_models_of_one_name_are_told_apart(tmp_path):
    from stitch.api.given import named

    one, other = tiny.net("gpt2"), tiny.net("gpt2", seed=1)
    words = tiny.tokenizer()
    with named((one, words), (other, words), (one, words)) as (a, b, again):
        assert (a, b, again) == ("GPT2LMHeadModel", "GPT2LMHeadModel-2", "GPT2LMHeadModel")
        assert resolve(a).folder != resolve(b).folder
    with pytest.raises(Exception, match=r"GPT2LMHeadModel"):
        resolve(a)


@pytest.mark.slow
def test_conversions_sweeps_and_chains_return_results(pair, tmp_path):
    common: Any = dict(text=pair["text"], context=32, device="cpu", quiet=True)
    converted = stitch.convert.heads(pair["qwen3"], 1, tokens=4096, held_out=512, **common)
    assert converted.model.config.num_key_value_heads == 1 and len(converted.rows)
    swept = stitch.sweep(pair["gpt2"], depth=True, lengths=[1], tokens=4096, memory="256M", **common)
    assert len(swept.rows) == 5 and repr(swept)
    with pytest.raises(UsageError, match="`depth`"):
        stitch.sweep(pair["gpt2"], quiet=True)
    loaded = tiny.net("gpt2"), tiny.tokenizer()
    parts = [stitch.Part(loaded, 0, 2), stitch.Part(str(pair["qwen3"]), 2, None)]
    chained = stitch.chain(parts, **{**SMALL, "text": pair["text"]})
    assert chained.rows.loc["composite", "ce"] > 0


def test_parts_of_a_chain_are_mappings_as_in_the_file_or_parts(monkeypatch):
    class Reached(Exception):
        pass

    def job(parts, out, **options):
        raise Reached(parts)

    monkeypatch.setattr("stitch.jobs.chain.chain", job)
    loaded = tiny.net("gpt2"), tiny.tokenizer()
    given = [{"model": Path("here/a"), "to": 2}, stitch.Part("demo:llama", 2, 3), {"model": loaded, "from": 4}]
    with pytest.raises(Reached) as reached:
        stitch.chain(given, quiet=True)
    named = [stitch.Part("here/a", 0, 2), stitch.Part("demo:llama", 2, 3), stitch.Part("GPT2LMHeadModel", 4)]
    assert reached.value.args == (named,)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ([{"model": "a", "to": 2}, {"model": "b", "form": 3}], r"parts\[1\] has 'form' \(did you mean from\?\)"),
        ([{"to": 2}, "b"], r"parts\[0\] needs 'model'; parts\[1\] must be an object with model, from, to, got 'b'"),
        ([stitch.Part("a"), stitch.Part("b", 3)], r"parts\[0\] \('a'\) needs 'to'"),
        ([stitch.Part("a", 0, 2)], "parts must have at least 2"),
    ],
)
def test_parts_that_are_no_chain_are_refused_in_one_line(wrong, said):
    with pytest.raises(UsageError, match=f"the list of parts must be corrected: {said}") as refusal:
        stitch.chain(wrong, quiet=True)
    assert "\n" not in str(refusal.value)


def test_the_public_surface_is_what_is_listed():
    assert dir(stitch) == stitch.__all__
    for name in stitch.__all__:
        assert getattr(stitch, name) is not None
    with pytest.raises(AttributeError):
        stitch.nothing  # noqa: B018


def test_help_and_docs_of_every_function():
    for page in PAGES:
        documented = inspect.getdoc(_function(page.words)) or ""
        assert documented and ("Raises:" in documented), page.path


@pytest.mark.parametrize(
    ("call", "named", "when"),
    [
        (dict(count=8), "count", "with `behaviour`"),
        (dict(rate=1e-3), "rate", "with `trace`"),
        (dict(trace="note.txt", count=8), "count", "with `behaviour`"),
        (dict(behaviour="induction", against="demo:gpt2"), "against", "without `behaviour`"),
        (dict(behaviour="induction", tokens=1000), "tokens", "without `behaviour`"),
    ],
)
def test_what_an_evaluation_would_ignore_is_refused(call, named, when):
    with pytest.raises(UsageError, match=f"`{named}` is read only {when}; leave it out."):
        stitch.evaluate("demo:gpt2", quiet=True, **call)


@pytest.mark.parametrize("call", [dict(tokens=100), dict(text=["some text"]), dict(context=8), dict(seed=1)])
def test_what_a_description_would_ignore_is_refused(call):
    with pytest.raises(UsageError, match=f"`{next(iter(call))}` is read only with `heads` or `sites`"):
        stitch.inspect("demo:gpt2", quiet=True, **call)
