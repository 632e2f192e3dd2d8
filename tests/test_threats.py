"""One test per line of docs/threats.md that no other test holds, and one that every line names a test."""

import ast
import dataclasses
import json
import os
import re
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import composites
import jobs
import stitch
import tiny
from page_reports import join_report
from sae.errors import SAEError
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.commands.errors import reported
from stitch.errors import StitchError, UsageError
from stitch.files.front_matter import read_front_matter
from stitch.files.headers import INDEX, verify_weights
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.describe import describe
from stitch.models.hub import push
from stitch.models.lineage import lineage
from stitch.models.loading import load
from stitch.models.sources import Source, resolve
from stitch.pages.card import card_files
from stitch.pages.join import join_page
from stitch.report.card import model_card
from stitch.report.readme import ModelCard

ROOT = Path(__file__).parents[1]
OURS = sorted(file for package in ("stitch", "sae", "matching") for file in (ROOT / package).rglob("*.py"))
SHIPPED = sorted((ROOT / "stitch" / "modeling").glob("modeling_*.py"))
HOSTILE = "a\x1b[31mb\x07c\u202ed\x9b1m"  # red, a bell, right to left, and red again in one character


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(use, *arguments, kind: type[Exception] = StitchError) -> str:
    """The message with which a call is refused: one line that a terminal shows as it is."""
    with pytest.raises(kind) as caught:
        use(*arguments)
    assert str(caught.value).isprintable(), str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The composite of a pico GPT-2 and a pico Llama, with both beside it."""
    folder = tmp_path_factory.mktemp("made")
    composites.write(folder)
    return folder


@pytest.fixture
def llama(tmp_path) -> Path:
    return tiny.save(tmp_path / "model", "llama")


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# The page


def test_every_line_of_the_page_names_a_test():
    lines = [line for line in (ROOT / "docs" / "threats.md").read_text().splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith("| Threat |")]
    assert len(lines) > 30
    for line in lines:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line.rpartition(" | ")[2])
        assert named, line
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"


# Code in files


@cache
def calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call in this project: the file, what is called, and the whole."""
    nodes = ((file, node) for file in OURS for node in ast.walk(ast.parse(file.read_text())))
    return [(file, ast.unparse(node.func), node) for file, node in nodes if isinstance(node, ast.Call)]


FORBIDDEN = re.compile(
    r"(eval|exec|compile|__import__|(c?[pP]ickle|dill|joblib|marshal|shelve|runpy|subprocess)\..*|yaml\.\w*load(_all)?|"
    r"os\.(system|popen|exec\w*|spawn\w*))"
)


def test_nothing_unpickles_or_evaluates():
    for file, name, call in calls():
        said = ast.unparse(call)
        if name in ("np.load", "numpy.load"):
            assert "allow_pickle=False" in said, file
        elif name == "torch.load":  # of a training of the embedded models that was interrupted, and of SAEs
            allowed = file.parent.name == "demo" or file == ROOT / "sae" / "dictionary_learning.py"
            assert allowed and "weights_only=True" in said, file
        else:
            assert not FORBIDDEN.fullmatch(name) or name == "yaml.safe_load", f"{file}: {said}"


def test_every_loader_says_whether_code_may_run():
    loaders = [
        (file, call) for file, name, call in calls() if re.fullmatch(r"(transformers\.)?Auto\w+\.from_pretrained", name)
    ]
    assert len(loaders) > 8
    silent = [file.name for file, call in loaders if "trust_remote_code" not in {one.arg for one in call.keywords}]
    assert silent == []


def planted(folder: Path, mark: Path, kind: str = "Model") -> str:
    """Puts code into `folder` that makes the file `mark`, and returns the name of its module."""
    (folder / "planted.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'planted'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Words(PreTrainedTokenizerFast):\n    pass\n"
    )
    return "planted"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Questions that were asked of whoever sits at the terminal; each is answered with yes."""
    found: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": found.append(question) or "y")
    return found


def test_code_of_a_model_runs_with_the_flag_alone(llama, tmp_path, asked):
    mark, code = tmp_path / "ran", planted(llama, tmp_path / "ran")
    own = {"AutoConfig": f"{code}.Config", "AutoModelForCausalLM": f"{code}.Model"}
    edit(llama / "config.json", model_type="planted", architectures=["Model"], auto_map=own)
    for use in (load, lambda place: describe(str(place))):
        assert "set `trust_remote_code`" in refusal(use, llama, kind=UsageError)
    assert not mark.exists() and asked == []
    load(llama, trust_remote_code=True)
    assert mark.exists()


def test_code_of_a_tokenizer_runs_with_the_flag_alone(llama, tmp_path, asked):
    mark, code = tmp_path / "ran", planted(llama, tmp_path / "ran")
    edit(llama / "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": [None, f"{code}.Words"]})
    for use in (load, lambda place: describe(str(place))):
        assert "set `trust_remote_code`" in refusal(use, llama, kind=UsageError)
    assert not mark.exists() and asked == []
    load(llama, trust_remote_code=True)
    assert mark.exists()


def saved_sae(folder: Path) -> Path:
    from sae_lens import StandardSAE, StandardSAEConfig

    from sae.storage import save

    save(StandardSAE(StandardSAEConfig(d_in=12, d_sae=40)), folder, {"model": "demo:gpt2"})
    return folder


def test_code_of_an_sae_never_runs(tmp_path):
    from sae.storage import load as load_sae

    folder = saved_sae(tmp_path / "sae")
    mark, code = tmp_path / "ran", planted(folder, tmp_path / "ran")
    edit(folder / "cfg.json", auto_map={"AutoModel": f"{code}.Model"}, model_class_name=f"{code}.Model")
    assert load_sae(folder).cfg.d_sae == 40
    edit(folder / "cfg.json", architecture=f"{code}.Model")
    assert "inference form" in refusal(load_sae, folder, kind=SAEError)
    assert not mark.exists()


def test_a_compiled_model_is_not_read_from_a_pickle(llama, tmp_path):
    from stitch.synthesis.checkpoint import load as load_compiled

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (llama / "model.safetensors").unlink()
    torch.save({"model": Bomb()}, llama / "pytorch_model.bin")
    assert "pickles are never read" in refusal(load_compiled, llama, torch.float32, "eager")
    assert not (tmp_path / "exploded").exists()


HARMLESS = {
    "collections",
    "copy",
    "dataclasses",
    "functools",
    "inspect",
    "itertools",
    "math",
    "sys",
    "typing",
    "__future__",
}
REACHES_OUT = re.compile(
    r"(open|eval|exec|compile|__import__|input|print|breakpoint|globals|vars|(torch|os|sys|pathlib|shutil|socket|urllib|"
    r"requests|importlib)\.(load|save|hub|system|exit|open|import_module|_getframe|setprofile|settrace).*|.*\.(read|write)_\w+)"
)


def test_a_composites_own_code_can_do_little():
    assert len(SHIPPED) == 6
    for file in SHIPPED:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {one.name.partition(".")[0] for one in node.names} <= HARMLESS | {"torch", "transformers"}, file
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] in HARMLESS | {"torch", "transformers"}, file
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.module or "").startswith("modeling_"), file
            if isinstance(node, ast.Call):
                assert not REACHES_OUT.fullmatch(ast.unparse(node.func)), f"{file.name}: {ast.unparse(node.func)}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("__globals__", "__builtins__", "__subclasses__", "__code__"), file


def test_changed_code_of_a_composite_does_not_run(made, tmp_path):
    folder = copied(made / "composite", tmp_path / "composite")
    for file in folder.glob("*.py"):
        file.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    assert load(folder).depth == 7
    assert not (tmp_path / "ran").exists()


# Files that claim too much


WRONG = {
    "a list": (b"[1]", "must be a JSON object; got a list"),
    "cut off": (b'{"model_type":', "must be a JSON object; line 1"),
    "nested": (b'{"a":' * 90_000, "must be a JSON object"),
    "nested less": (b'{"a":' * 60 + b"1" + b"}" * 60, "must be nested at most"),
    "long": (b'{"a": "' + b"x" * 2**24 + b'"}', "more than 16 MB"),
}
IMPOSSIBLE = {
    "zero": (dict(hidden_size=0), "hidden_size: "),
    "negative": (dict(num_attention_heads=-4), "num_attention_heads.0: "),
    "a word": (dict(vocab_size="128"), "vocab_size: "),
    "true": (dict(num_hidden_layers=True), "num_hidden_layers: "),
    "a list": (dict(hidden_size=[40]), "hidden_size: "),
    "huge": (dict(anything=10**20), "anything: must fit 64 bits"),
    "NaN": (dict(rms_norm_eps=float("nan")), "rms_norm_eps: "),
    "a rate": (dict(attention_dropout=3.0), "attention_dropout: must be in 0..1"),
    "an id": (dict(eos_token_id=2**40), "eos_token_id.0: "),
    "a name": (dict(model_type="\x1b[31m"), "model_type: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_config_that_is_no_object_is_refused_at_the_door(case, llama):
    content, told = WRONG[case]
    (llama / "config.json").write_bytes(content)
    assert told in refusal(resolve, str(llama))


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_config_that_cannot_be_right_is_refused_at_the_door(case, llama):
    changes, told = IMPOSSIBLE[case]
    edit(llama / "config.json", **changes, head_dim=-3)
    said = refusal(resolve, str(llama))
    assert told in said and "head_dim.0: " in said and f"config.json of {llama}" in said
    assert refusal(load, llama).startswith("config.json of model must describe the model in its folder")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Room for half a gigabyte more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


LARGER = {
    "width": (dict(hidden_size=10**9), "hidden_size: the weights have "),
    "vocabulary": (dict(vocab_size=2 * 10**9), "vocab_size: the weights have "),
    "blocks": (dict(num_hidden_layers=9_999), "num_hidden_layers: the weights have "),
    "no end of blocks": (dict(num_hidden_layers=10**9), "num_hidden_layers: "),
    "neurons": (dict(intermediate_size=10**9), "mlp.gate_proj.weight must have shape (1000000000, 40)"),
    "a half more": (dict(intermediate_size=84), "mlp.gate_proj.weight must have shape (84, 40)"),
    "blocks that are not there": (dict(num_hidden_layers=50), "the weights of model must be those that config.json describes"),
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("case", LARGER)
def test_a_config_larger_than_its_weights_takes_no_memory(case, llama, little_memory):
    changes, told = LARGER[case]
    edit(llama / "config.json", **changes)
    assert told in refusal(load, llama)


def test_a_model_with_many_experts_is_compared_with_its_weights(llama):
    edit(llama / "config.json", num_local_experts=10**9)
    assert "num_local_experts: the weights have " in refusal(resolve, str(llama))


TERMS = {
    "an unknown kind": (dict(kind="shell"), "translation.terms.0"),
    "an unknown key": (dict(kind="residual", site=3, width=32, code="x"), "translation.terms.0.residual.code: extra"),
    "a missing key": (dict(kind="residual", site=3), "translation.terms.0.residual.width: field required"),
    "a late site": (dict(kind="residual", site=4, width=32), "translation.terms.0.site: must be at most site_a = 3"),
    "another width": (dict(kind="residual", site=3, width=2**30), "translation.terms.0.weight must have shape"),
    "a bomb": (dict(kind="token", entries=2**31 - 1), "must"),
    "keys beyond 64 bits": (dict(kind="ngram", order=5, entries=2, vocabulary=2**20), "must fit 64 bits"),
    "no k": (dict(kind="codes", site=3, width=32, features=9, activation="topk"), "translation.terms.0.k: must be in 1..9"),
}  # fmt: skip
COMPOSED = {
    "a late cut": (dict(site_a=7), "site_a: must be at most the 6 blocks of a_config, got 7"),
    "an early cut": (dict(site_a=-1), "site_a: "),
    "wrong order": (dict(site_b=5, stop_b=4), "site_b, stop_b: must be in order"),
    "nothing to share": (dict(shares_embedding=True, a_flow=None), "shares_embedding: needs a_flow and b_flow"),
    "two sizes to share": (dict(shares_embedding=True), "shares_embedding: needs one size of embedding"),
    "no part": (dict(b_config=None), "b_config: "),
    "a part of another kind": (dict(a_config={"model_type": "llama", "hidden_size": "x"}), "a_config.hidden_size: "),
    "a flow with nothing in it": (dict(a_flow={}), "a_flow.class: field required; a_flow.body: field required"),
}


@pytest.mark.parametrize("case", [*TERMS, *COMPOSED])
def test_a_composite_that_cannot_be_right_is_refused_at_the_door(case, made, tmp_path):
    folder = copied(made / "composite", tmp_path / "composite")
    if case in TERMS:
        term, told = TERMS[case]
        translation = json.loads((folder / "config.json").read_text())["translation"]
        changes: dict = {"translation": {**translation, "terms": [term, *translation["terms"][1:]]}}
    else:
        changes, told = COMPOSED[case]
    edit(folder / "config.json", **changes)
    assert told in refusal(load, folder)


def test_a_flow_that_is_not_the_models_is_refused_when_it_is_loaded(made, tmp_path):
    folder = copied(made / "composite", tmp_path / "composite")
    flow = json.loads((folder / "config.json").read_text())["a_flow"]
    edit(folder / "config.json", a_flow={**flow, "argument": "elsewhere"})
    assert "must run as its config.json says; got KeyError" in refusal(load, folder)


SAES = {
    "a word": (dict(d_in="12"), "d_in: "),
    "zero": (dict(d_sae=0), "d_sae: "),
    "another width": (dict(d_in=16), "W_enc: shape (12, 40) does not agree with d_in = 16 and d_sae = 40"),
    "a type": (dict(dtype="float99"), "dtype: "),
    "metadata": (dict(metadata=[]), "metadata: "),
    "an architecture": (dict(architecture=["standard"]), "got the architecture a list"),
    "k": (dict(architecture="topk", k=41), "k: must be at most d_sae = 40, got 41"),
}


@pytest.mark.parametrize("case", SAES)
def test_an_sae_that_cannot_be_right_is_refused_at_the_door(case, tmp_path):
    from sae.storage import load as load_sae

    folder = saved_sae(tmp_path / "sae")
    changes, told = SAES[case]
    edit(folder / "cfg.json", **changes)
    assert told in refusal(load_sae, folder, kind=SAEError)


def test_a_damaged_record_of_an_sae_is_named(tmp_path):
    from sae.storage import read_provenance

    folder = saved_sae(tmp_path / "sae")
    (folder / "provenance.json").write_text("{")
    assert "provenance.json must be a JSON object; line 1" in refusal(read_provenance, folder, kind=SAEError)


def framed(header: dict | bytes, rest: bytes = b"", claim: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claim is None else claim).to_bytes(8, "little") + text + rest


def one_tensor(shape: list, stop: int, name: str = "a") -> dict:
    return {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}}


BOMBS = {
    "a long header": (framed(b"{}", claim=2**40), "do not hold the header"),
    "the longest": (framed(b"{}", claim=2**64 - 1), "do not hold the header"),
    "a large tensor": (framed(one_tensor([10**6, 10**6], 4), b"1234"), "of a are not where"),
    "a tensor of no end": (framed(one_tensor([10**30], 4 * 10**30)), "its tensors need"),
    "fractions": (framed(one_tensor([1.0], 4), b"1234"), "in whole numbers"),
    "a name": (framed(one_tensor([1], 4, "\x1b[31m"), b"1234"), "no name to print"),
    "nested": (framed(b"[" * 200_000), "cannot be read"),
    "NaN": (framed(b'{"__metadata__": {"a": NaN}}'), "cannot be read"),
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("case", BOMBS)
def test_a_header_bomb_takes_no_memory(case, llama, little_memory):
    content, told = BOMBS[case]
    (llama / "model.safetensors").write_bytes(content)
    assert told in refusal(resolve, str(llama))


def test_a_gguf_file_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    from ggufs import pico_gguf

    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    pico_gguf(tmp_path / "pico.gguf")
    whole = (tmp_path / "pico.gguf").read_bytes()
    for key in (b"llama.block_count", b"llama.embedding_length", b"llama.feed_forward_length"):
        place = whole.index(key) + len(key) + 4  # after the type of the value
        (tmp_path / "bad.gguf").write_bytes(whole[:place] + (10**9).to_bytes(4, "little") + whole[place + 4 :])
        assert f"{key.decode()} is 1000000000" in refusal(resolve, str(tmp_path / "bad.gguf"))
    for claim in (2**31, 2**60):
        (tmp_path / "bad.gguf").write_bytes(whole[:8] + claim.to_bytes(8, "little") * 2 + whole[24:])
        assert "cannot be dequantised" in refusal(resolve, str(tmp_path / "bad.gguf"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_an_array_file_that_claims_too_much_is_refused(tmp_path, little_memory):
    from stitch.synthesis.patterns.pattern import _from_file

    file = tmp_path / "pattern.npy"
    numpy.save(file, numpy.zeros(8))
    file.write_bytes(file.read_bytes().replace(b"(8,), }          ", b"(8000000000,), } "))
    assert "must be a NumPy array; mmap length is greater than file size" in refusal(_from_file, file, 8)
    numpy.savez(tmp_path / "archive.npz", numpy.zeros(8))
    (tmp_path / "archive.npz").rename(file)
    assert "must be a NumPy array; it holds several arrays" in refusal(_from_file, file, 8)
    numpy.save(file, numpy.array([object()], dtype=object), allow_pickle=True)
    assert "Array can't be memory-mapped: Python objects in dtype" in refusal(_from_file, file, 1)
    file.write_bytes(b"")
    assert "must be a NumPy array; No data left in file" in refusal(_from_file, file, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value, llama):
    tensors = load_file(llama / "model.safetensors")
    name = next(one for one in tensors if "up_proj" in one)
    tensors[name][3, 5] = value
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    assert f"{name} in {llama / 'model.safetensors'} holds NaN or infinity as float32" in refusal(load, llama)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CARDS = {
    "a tag": "license: !!python/object/apply:os.mkdir [{mark}]\n",
    "aliases of aliases": LAUGHS + "license: *i\nbase_model: *i\n",
    "nesting": "license: " + "[" * 5_000 + "]" * 5_000 + "\n",
    "length": "license: mit\n" + "x: [" + "1, " * 200_000 + "1]\n",
    "not text": "license: {a: 1}\nbase_model: [[1]]\nlicense_link: 7\n",
}


@pytest.mark.parametrize("case", CARDS)
def test_the_metadata_of_a_card_cannot_do_harm(case, tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "README.md").write_text("---\n" + CARDS[case].replace("{mark}", str(mark)) + "---\n# A model\n")
    assert isinstance(read_front_matter(tmp_path / "README.md"), dict)
    assert lineage(Source("model", tmp_path, None, "folder")) == {"license": None, "base_model": []}
    assert not mark.exists()


# Paths


@pytest.mark.parametrize(
    "shard", ["/etc/passwd", "../b/model.safetensors", "sub/model.safetensors", "..", "", "a\x1bb", "C:\\x\\y", 7, None]
)
def test_a_shard_index_cannot_leave_its_folder(shard, llama, tmp_path):
    tiny.save(tmp_path / "b", "llama")
    (llama / "sub").mkdir()
    (llama / "model.safetensors").rename(llama / "sub" / "model.safetensors")
    (llama / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    assert "must name files beside it" in refusal(verify_weights, llama)


def test_links_out_of_a_folder_are_not_copied(llama, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (llama / "chat_template.jinja").symlink_to(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    assert "must lie in its folder" in refusal(copy_tokenizer, llama, tmp_path / "out", kind=UsageError)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_the_links_of_the_hubs_cache_are_followed(llama, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    (tmp_path / "out").mkdir()
    copy_tokenizer(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


def test_links_out_of_a_folder_are_not_published(llama, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (llama / "notes.txt").symlink_to(tmp_path / "secret")
    said = refusal(lambda: push(llama, "user/model", token="hf_x", endpoint="http://127.0.0.1:9"))
    assert "notes.txt is a link to" in said and "must lie in its folder" in said


def test_a_linked_weight_file_is_read_as_weights_alone(llama, tmp_path):
    (llama / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (llama / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert load(llama).depth == tiny.DEPTH
    (llama / "model.safetensors").unlink()
    (llama / "model.safetensors").symlink_to("/etc/passwd")
    assert "is not an intact safetensors file" in refusal(resolve, str(llama))


# What is shown


def test_nothing_that_a_terminal_obeys_is_printed(capsys, monkeypatch):
    import typer

    table = (["", HOSTILE], [[HOSTILE, "1"]], HOSTILE)
    heat = (HOSTILE, ["", HOSTILE], [[HOSTILE, "1.0"]], [[1.0]])
    Page(lead=HOSTILE, tables=[table], heats=[heat], notes=[HOSTILE], written=[HOSTILE]).print()
    with pytest.raises(typer.Exit), reported((), debug=False):
        raise StitchError(f"no such file: {HOSTILE}.")
    with pytest.raises(typer.Exit), reported((), debug=False):
        raise OSError(HOSTILE)
    with progress(quiet=False) as update:
        update(HOSTILE, 1, 1)
    shown = "".join(capsys.readouterr())
    assert shown.count(r"a\x1b[31mb\x07c\u202ed\x9b1m") >= 9
    assert "".join(shown.split("\n")).isprintable()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(quiet=False) as update:
        update(HOSTILE, 1, 1)
    shown = capsys.readouterr().err
    assert "\x07" not in shown and "\u202e" not in shown and r"\x1b[31mb" in shown


def test_markup_in_names_is_text(capsys, monkeypatch):
    name = "[red]x[/] [/none] [link=file:///etc]y[/link]"
    Page(tables=[(["", name], [[name, "1"]], name)], heats=[(name, ["", name], [[name, "1.0"]], [[1.0]])]).print()
    assert capsys.readouterr().out.count(name) == 6
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(quiet=False) as update:
        update("[/none] [red]x", 1, 1)
    assert "[/none] [red]x" in capsys.readouterr().err


MARKED = "x](javascript:alert(1)) <script>y</script> ![z](http://e.org) | cell\n\n# Heading \x1b[31m"


def active(card: str) -> list[str]:
    """What in a card is more than text, but for what `stitch` itself writes."""
    body = card.split("---\n", 2)[2]
    lines = [line for line in body.splitlines() if not line.startswith("    ")]
    text = "\n".join(lines).partition("## Recipe")[0]
    return re.findall(r"<\w+|(?<!\\)\]\((?!https://|report|chart|LICENSE)|^# Heading|\x1b", text, re.M)


def test_names_make_no_markup_in_a_card():
    report = join_report()
    report["models"] = {"a": MARKED, "b": MARKED}
    model = {"name": MARKED, "kind": "folder", "revision": None, "base_model": [], "note": MARKED}
    licence = {"license": "other", "license_name": MARKED}
    for one in ({**model, "license": None}, {**model, "license": licence}):
        card = ModelCard(
            name=MARKED, made=[MARKED], tags=[], models=[one], relation="merge", example=[], notes=[MARKED],
            tables=[(["", MARKED], [[MARKED, "1"]], MARKED)], report="report.json", recipe={"command": "join"},
            saes=[{**one, "of": MARKED, "inside": True}],
        ).to_bytes().decode()  # fmt: skip
        assert active(card) == [], card
        assert sum(line.startswith("|") and line.count(" | ") == 1 for line in card.splitlines()) == 2
    report |= {"recipe": {"command": "join"}, "provenance": {"models": {}, "settings": {"text": "default"}}}
    page = join_page(report)
    page = dataclasses.replace(page, main=dataclasses.replace(page.main_chart, title=MARKED))
    shown = card_files(model_card(report), page)["README.md"].decode()
    assert "](chart.png)" in shown and active(shown) == []


@pytest.mark.parametrize(
    "link", ["javascript://x%0aalert(1)", "file:///etc/passwd", "https://e.org/) [x](y", "https://ok.org/x"]
)
def test_a_link_to_a_licence_is_one_to_the_web(link, tmp_path):
    (tmp_path / "README.md").write_text(
        f"---\nlicense: other\nlicense_name: rules\nlicense_link: {json.dumps(link)}\n---\n"
    )
    licence = lineage(Source("model", tmp_path, None, "folder"))["license"]
    assert licence is not None and licence.get("license_link") == (link if link == "https://ok.org/x" else None)


def test_names_make_no_markup_in_a_notebook():
    page = Page(lead=MARKED, tables=[(["", MARKED], [[MARKED, "1"]], MARKED)], notes=[MARKED], written=[MARKED]).html()
    assert "<script" not in page and page.count("&lt;script&gt;") == 6


def test_no_card_or_report_holds_the_token(tmp_path, monkeypatch):
    secret = "hf_" + "s" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    donor, text = tiny.save(tmp_path / "donor", "llama", num_hidden_layers=1), jobs.write_text(tmp_path)
    stitch.convert.heads(
        str(donor),
        kv_heads=1,
        text=str(text),
        tokens=4096,
        held_out=1024,
        context=32,
        out=tmp_path / "out",
        quiet=True,
    )
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {"README.md", "report.json"} <= {file.name for file in files}
    assert [file for file in files if secret.encode() in file.read_bytes()] == []
