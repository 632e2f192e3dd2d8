"""A family whose code comes with the donor: what is made from it takes that code along, and loads where nobody else has it."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import cli
import tiny
from hub_double import hub  # noqa: F401
from jobs import write_text
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.composite.donor_code import save_net
from stitch.composite.exact import inexact
from stitch.composite.native import with_blocks, write_native
from stitch.conversions.recurrence.forms import RecurrentForm, wrap
from stitch.conversions.retokenization import write as retokenized
from stitch.errors import UsageError
from stitch.files.tokenizer import copy_tokenizer
from stitch.internals import weights
from stitch.modeling.modeling_composite import CLASSES
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.reader import Reader
from stitch.translation.types import Residual, Term, Translation
from without_package import run_without_package

# Code as people publish it: two files, of which one imports the other.
CONFIG = f"""
from transformers import PreTrainedConfig

class MineConfig(PreTrainedConfig):
    model_type = "mine"

    def __init__(self, vocab_size={tiny.VOCABULARY}, hidden_size=24, num_hidden_layers=4, **kwargs):
        self.tie_word_embeddings = False
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.max_position_embeddings = 1, 64
        super().__init__(**{{"bos_token_id": {tiny.BOS}, "eos_token_id": {tiny.BOS}, **kwargs}})
"""
NET = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from .configuration_mine import MineConfig

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.now, self.before = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, stream):
        earlier = nn.functional.pad(stream, (0, 0, 1, 0))[:, :-1]
        return stream + torch.CURVE(self.now(stream) + self.before(earlier))

class Mine(PreTrainedModel, GenerationMixin):
    config_class = MineConfig
    base_model_prefix = ""

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stack = nn.ModuleList([Block(config.hidden_size) for _ in range(config.num_hidden_layers)])
        self.scale = nn.LayerNorm(config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.out

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        stream = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        for block in self.stack:
            stream = block(stream)
        return CausalLMOutputWithPast(logits=self.out(self.scale(stream)))
"""
AUTO = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}


def mine(folder: Path, curve: str = "tanh", seed: int = 0) -> Path:
    """A donor with its code. Those with another `curve` have other code in files of the same names."""
    folder.mkdir(parents=True)
    (folder / "configuration_mine.py").write_text(CONFIG)
    (folder / "modeling_mine.py").write_text(NET.replace("CURVE", curve))
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": AUTO}))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, trust_remote_code=True).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


# A Llama with another activation function, in files of the same kind.
OF_LLAMA = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "FAMILY"
"""
NET_OF_LLAMA = """
import torch
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class Sine(torch.nn.Module):
    def forward(self, value):
        return torch.sin(value)

class LlamaForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for block in self.model.layers:
            block.mlp.act_fn = Sine()
"""
OWN = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"}


def llama_of_ones_own(folder: Path, family: str = "own_llama", auto: dict = OWN) -> Path:
    folder = tiny.save(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": family, "auto_map": auto}))
    (folder / "configuration_own.py").write_text(OF_LLAMA.replace("FAMILY", family))
    (folder / "modeling_own.py").write_text(NET_OF_LLAMA)
    return folder


def moved(a: Model, b: Model, site: int) -> Translation:
    return Translation("affine", (Term(Residual(site), tiny.noise(a.width, b.width) / 5),), torch.zeros(b.width))


def joined(a: Model, b: Model, folder: Path) -> Any:
    """All blocks of A but one and the last two of B, written to `folder`, and as they were in memory."""
    site = a.depth - 1
    net: Any = compose(a, b, site, b.depth - 2, translation := moved(a, b, site))
    write_checkpoint(folder, net.config, a.folder, b.folder, translation, loaded={"a": a.net, "b": b.net})
    return net


# Run where nothing of this package can be imported, nothing is registered, and no code was kept by an earlier process.
RELOADS = """
import json, sys
from pathlib import Path
for name in ("stitch", "sae", "matching", "cli"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[1]))
found = {}
for name in sys.argv[2:]:
    found[name] = []
    for folder in (name, name + "-again"):  # the second as this process has saved it
        model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not any(report.values()), (folder, report)
        written = model.generate(ids, max_new_tokens=5, do_sample=False).tolist()
        found[name].append([model(ids).logits.tolist(), written])
        model.save_pretrained(name + "-again")
Path("found.json").write_text(json.dumps(found))
"""


def elsewhere(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, with a cache of modules of its own."""
    kept = {
        name: os.environ[name]
        for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
        if name in os.environ
    }
    (place / "modules").mkdir(exist_ok=True)
    more = {
        "HF_MODULES_CACHE": str(place / "modules"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(place),
    }
    words = [sys.executable, *arguments]
    return subprocess.run(
        words, capture_output=True, text=True, cwd=place, env={"PATH": "/usr/bin:/bin", **kept, **more}
    )


def reloaded(place: Path, ids: torch.Tensor, *folders: Path) -> dict:
    run_without_package(RELOADS, json.dumps(ids.tolist()), *map(str, folders), cwd=place)
    return json.loads((place / "found.json").read_text())


@pytest.fixture
def donors(tmp_path) -> dict[str, Path]:
    return {"tanh": mine(tmp_path / "tanh"), "sin": mine(tmp_path / "sin", "sin", 1)}


@torch.no_grad()
def test_code_of_two_donors_with_files_of_the_same_names_goes_into_one_folder(donors, tmp_path):
    """Their blocks differ, so code of one in the place of the other's would change the logits."""
    tanh, sin = (load(donors[name], trust_remote_code=True) for name in ("tanh", "sin"))
    llama = load(tiny.save(tmp_path / "llama", "llama"))
    pairs = {"both": (tanh, sin), "twice": (tanh, tanh), "as-a": (sin, llama), "as-b": (llama, tanh)}
    nets = {name: joined(*pair, tmp_path / name) for name, pair in pairs.items()}
    count = {name: len(list((tmp_path / name).glob("donor_*.py"))) for name in pairs}
    assert count == {"both": 4, "twice": 2, "as-a": 2, "as-b": 2}
    for folder in donors.values():
        shutil.rmtree(folder)
    ids = tiny.ids(2, 9)
    for folder, found in reloaded(tmp_path, ids, *(tmp_path / name for name in pairs)).items():
        net = nets[Path(folder).name]
        for logits, written in found:
            assert torch.allclose(torch.tensor(logits), net(ids).logits, atol=1e-5)
            assert written == net.generate(ids, max_new_tokens=5, do_sample=False).tolist()


@torch.no_grad()
def test_a_composite_of_such_a_composite_and_its_copy_have_the_code_too(donors, tmp_path):
    tanh, sin = (load(donors[name], trust_remote_code=True) for name in ("tanh", "sin"))
    joined(tanh, sin, tmp_path / "first")
    first = load(tmp_path / "first", trust_remote_code=True)
    assert [inexact(first, site) for site in (3, 4, 5)] == [None] * 3
    at_its_seam = compose(first, tanh, 3, 2, moved(first, tanh, 3))  # its last part then has no block, and no parameter
    assert at_its_seam(tiny.ids()).logits.isfinite().all()
    net = joined(first, load(tiny.save(tmp_path / "llama", "llama")), tmp_path / "second")
    names = [sorted(file.name for file in (tmp_path / one).glob("donor_*.py")) for one in ("first", "second")]
    assert names[0] == names[1] and len(names[0]) == 4
    first.net.save_pretrained(tmp_path / "copy")
    assert {file.name for file in (tmp_path / "copy").glob("*.py")} == {
        file.name for file in (tmp_path / "first").glob("*.py")
    }
    ids = tiny.ids(2, 9)
    found = reloaded(tmp_path, ids, tmp_path / "second", tmp_path / "copy")
    for name, expected in (("second", net), ("copy", first.net)):
        for logits, _ in found[str(tmp_path / name)]:
            assert torch.allclose(torch.tensor(logits), expected(ids).logits, atol=1e-5)


def test_code_of_a_donor_in_a_composite_runs_with_the_flag_alone(donors, tmp_path, monkeypatch):
    model = load(donors["tanh"], trust_remote_code=True)
    joined(model, model, tmp_path / "out")
    monkeypatch.setattr("stitch.modeling.modeling_composite.CLASSES", fresh := {})
    monkeypatch.setattr("stitch.models.donor_code.CLASSES", fresh)
    mark = tmp_path / "ran"
    for file in (tmp_path / "out").glob("donor_*.py"):
        file.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{file.read_text()}")
    with pytest.raises(UsageError, match="set `trust_remote_code`"):
        load(tmp_path / "out")
    assert not mark.exists() and not fresh
    load(tmp_path / "out", trust_remote_code=True)
    assert mark.exists() and len(fresh) == 2 and fresh.keys().isdisjoint(CLASSES.keys() - fresh.keys())


def test_a_donor_that_transformers_knows_brings_no_code(tmp_path):
    """Many folders on the Hub name code that is not needed any more, and is not run without the flag."""
    folder = tiny.save(tmp_path / "llama", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling_old.Llama"}})
    )
    model = load(folder)
    joined(model, model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in written["a_config"] and "auto_map" not in written["b_config"]
    assert not list((tmp_path / "out").glob("donor_*.py")) and load(tmp_path / "out").depth


@torch.no_grad()
def test_whatever_is_made_of_such_a_model_loads_where_nobody_else_has_it(tmp_path):
    """By `join --native` and by conversions: stock models, a composite in memory, and a recurrent model."""
    model: Any = load(llama_of_ones_own(tmp_path / "own"), trust_remote_code=True)
    plain = load(tiny.save(tmp_path / "llama", "llama"))
    order = [0, 1, 3]
    write_native(tmp_path / "native", model, order, {})
    new = Reader.of("other", tiny.tokenizer())
    other = retokenized.with_vocabulary(model, model.embedding.weight + 1, model.head.weight, new)
    retokenized.write(other, model.folder, tmp_path / "retokenized", {})
    nets: dict[str, Any] = {
        "consolidated": model.net,
        "composite": compose(plain, model, 2, 1, moved(plain, model, 2)),
        "recurrent": wrap(model, RecurrentForm(features="none", window=32, sinks=0)),
    }
    for name, net in nets.items():
        save_net(net, tmp_path / name)
    nets |= {"native": with_blocks(model, order).net, "retokenized": other}
    code = {name: {file.name for file in (tmp_path / name).glob("*own.py")} for name in nets}
    named = {"configuration_own.py", "modeling_own.py"}
    assert all(code[name] == named for name in ("native", "retokenized", "consolidated")), code
    assert len(code["composite"]) == 2 and code["recurrent"] == code["composite"]
    tiny.tokenizer().save_pretrained(tmp_path / "composite")
    again = load(tmp_path / "composite", trust_remote_code=True)  # another composite of it has the same names
    joined(again, model, tmp_path / "second")
    assert {file.name for file in (tmp_path / "second").glob("donor_*.py")} == code["composite"]
    shutil.rmtree(model.folder)
    ids = tiny.ids(2, 9)
    for folder, found in reloaded(tmp_path, ids, *(tmp_path / name for name in nets)).items():
        wanted = nets[Path(folder).name](ids).logits
        assert not torch.allclose(wanted, plain.net(ids).logits, atol=0.1)
        for logits, _ in found:
            assert torch.allclose(torch.tensor(logits), wanted, atol=1e-5), folder


@torch.no_grad()
def test_blocks_that_are_in_the_model_itself_are_renumbered(tmp_path):
    model: Any = load(mine(tmp_path / "mine"), trust_remote_code=True)
    found = with_blocks(model, [0, 1, 3]).net(tiny.ids()).logits
    del model.net.stack[2]
    assert torch.equal(found, model.net(tiny.ids()).logits)


@torch.no_grad()
def test_code_of_others_under_the_name_of_a_known_family_is_looked_at(tmp_path):
    """Here under the names of Llama's family and class: it is cut as it is, and not taken for transformers' own."""
    model = load(llama_of_ones_own(tmp_path / "own", "llama"), trust_remote_code=True)
    stock = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "model_type": "llama"})).eval()
    stock.load_state_dict(model.net.state_dict())
    assert not torch.allclose(stock(tiny.ids()).logits, model.net(tiny.ids()).logits, atol=1e-3)
    assert not model.anatomy.tested and [inexact(model, site) for site in range(1, 4)] == [None] * 3
    with pytest.raises(UsageError, match="the donor of a graft must have the code of transformers"):
        weights.check(model, "the donor of a graft")
    alone = {"AutoModelForCausalLM": OWN["AutoModelForCausalLM"]}
    with pytest.raises(UsageError, match="must have a class for its config too"):
        load(llama_of_ones_own(tmp_path / "alone", "llama", alone), trust_remote_code=True)


@pytest.mark.parametrize("declared", [False, True], ids=["told transformers", "register_for_auto_class"])
def test_a_class_that_is_registered_goes_along_where_its_author_has_said_so(tmp_path, monkeypatch, declared):
    """Composites and stock models alike. Otherwise they load wherever it is registered again."""
    family = f"own_registered_{declared}".lower()
    (package := tmp_path / family).mkdir()
    (package / "configuration_own.py").write_text(OF_LLAMA.replace("FAMILY", family))
    (package / "modeling_own.py").write_text(NET_OF_LLAMA)
    monkeypatch.syspath_prepend(tmp_path)
    config: Any = importlib.import_module(f"{family}.configuration_own").OwnConfig
    net: Any = importlib.import_module(f"{family}.modeling_own").LlamaForCausalLM
    AutoConfig.register(family, config)
    AutoModelForCausalLM.register(config, net)
    folder = tiny.save(tmp_path / "own", "llama")
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, "model_type": family}))
    if declared:
        config.register_for_auto_class()
        net.register_for_auto_class("AutoModelForCausalLM")
    model = load(folder)
    joined(model, model, tmp_path / "composite")
    write_native(tmp_path / "native", model, [0, 1], {})
    save_net(model.net, tmp_path / "converted")
    for name in ("composite", "native", "converted"):
        assert len(list((tmp_path / name).glob("*own.py"))) == 2 * declared, name
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert ("auto_map" in written.get("b_config", written)) == declared


def test_code_that_is_not_run_is_not_named_in_what_is_made(tmp_path):
    """`auto_map` of a Llama names files that are not copied: with it the written folder could not be loaded with the flag."""
    folder = tiny.save(tmp_path / "llama", "llama")
    config = json.loads((folder / "config.json").read_text())
    named = {**config, "auto_map": {"AutoModelForCausalLM": "modeling_old.Llama"}}
    (folder / "config.json").write_text(json.dumps(named))
    model = load(folder)
    write_native(tmp_path / "native", model, [0, 1], {})
    save_net(model.net, tmp_path / "converted")
    for name in ("native", "converted"):
        assert "auto_map" not in json.loads((tmp_path / name / "config.json").read_text())
        AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=True)


def test_code_on_the_hub_is_downloaded_with_the_flag_alone(hub, tmp_path):  # noqa: F811
    folder = mine(tmp_path / "mine")
    hub.add("user/mine", {file.name: file.read_bytes() for file in folder.iterdir()})
    source = resolve("user/mine")
    assert not list(source.folder.glob("*.py"))
    with pytest.raises(UsageError, match="set `trust_remote_code`"):
        load(source.folder)
    source = resolve("user/mine", trust_remote_code=True)
    assert {file.name for file in source.folder.glob("*.py")} == {"configuration_mine.py", "modeling_mine.py"}
    assert load(source.folder, trust_remote_code=True).depth == 4
    with pytest.raises(UsageError, match="set `trust_remote_code`"):  # the code is in the cache now
        load(resolve("user/mine").folder)


def test_every_command_with_the_flag_hands_it_to_the_download():
    """The others: `inspect` of a name, a compiled tool's host, what a report names, and `undo` run no code."""
    without = {
        "models/describe.py",
        "synthesis/compile.py",
        "synthesis/tool/report.py",
        "conversions/consolidation/undo.py",
    }
    package, found = Path(cli.__file__).parent / "stitch", {}
    for file in package.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            if isinstance(call, ast.Call) and name in ("resolve", "resolve_all"):
                hands = any(given.arg == "trust_remote_code" for given in call.keywords)
                found.setdefault(file.relative_to(package).as_posix(), []).append(hands)
    assert len(found) > 10
    lacking = {file: calls for file, calls in found.items() if not all(calls)}
    assert lacking.keys() - without == {"jobs/tasks.py"} and sorted(lacking["jobs/tasks.py"]) == [False, True]


def test_a_tokenizer_takes_its_code_along(tmp_path):
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    named = {"auto_map": {"AutoTokenizer": ["tokenization_mine.Slow", None]}}
    (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "from" / "tokenization_mine.py").write_text("from .words_mine import WORDS\n")
    (tmp_path / "from" / "words_mine.py").write_text("WORDS = 3\n")
    (tmp_path / "from" / "other.py").write_text("")
    copy_tokenizer(tmp_path / "from", tmp_path / "to")
    assert {file.name for file in (tmp_path / "to").glob("*.py")} == {"tokenization_mine.py", "words_mine.py"}


def stitched(*words) -> None:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_commands_that_write_stock_models_of_a_family_of_the_users_own_copy_its_code(tmp_path):
    own, text = llama_of_ones_own(tmp_path / "own"), write_text(tmp_path)
    small = [
        "--device",
        "cpu",
        "--quiet",
        "--trust-remote-code",
        "--text",
        text,
        "--tokens",
        4096,
        "--context",
        32,
        "--out",
    ]
    outs = {name: tmp_path / name for name in ("native", "ngram", "retokenized")}
    stitched("join", own, own, *"--layer 2 --layer-b 3 --native --features 64 --k 8".split(), *small, outs["native"])
    stitched("convert", "ngram", own, "--drop", 1, *small, outs["ngram"])
    stitched("retokenize", own, "--tokenizer", "demo:neox", *small, outs["retokenized"])
    shutil.rmtree(own)
    reloaded(tmp_path, tiny.ids(2, 9), *outs.values())
    for folder in outs.values():
        card = (folder / "README.md").read_text()
        assert "trust_remote_code=True" in card and "brings code of its own, which is copied with it" in card


@pytest.mark.slow
def test_a_family_of_the_users_own_goes_through_the_command_line(donors, tmp_path):
    """`join`, `chain` and `eval` with --trust-remote-code; what they write loads where neither package nor donors are."""
    llama, text = tiny.save(tmp_path / "llama", "llama"), write_text(tmp_path)
    tanh, sin = donors.values()
    small = ["--brief", *"--tokens 4096 --context 32 --features 64 --k 8 --device cpu --memory 256M".split()]
    small += ["--quiet", "--trust-remote-code", "--text", text, "--out"]
    own, as_b, chain = outs = [tmp_path / name for name in ("own", "as-b", "chain")]
    stitched("join", tanh, sin, "--layer", 2, "--layer-b", 2, *small, own)
    stitched("join", llama, tanh, "--layer", 3, "--layer-b", 2, *small, as_b)
    parts = tmp_path / "parts.yaml"
    parts.write_text(f"parts:\n- {{model: {own}, to: 3}}\n- {{model: {llama}, from: 4}}\n")
    stitched("chain", parts, *small, chain)
    card = (own / "README.md").read_text()
    assert card.count("brings code of its own, which is copied with it") == 4  # two models, in notes and in the list
    for folder in donors.values():
        shutil.rmtree(folder)
    ids = tiny.ids(2, 9)
    found = reloaded(tmp_path, ids, *outs)
    program = f"import sys; sys.path.insert(0, {str(Path(cli.__file__).parent)!r}); import cli; cli.app()"
    scored = ["eval", "--text", str(text), "--context", "32", "--device", "cpu"]
    for folder in outs:
        (logits, written), _ = found[str(folder)]
        net: Any = load(folder, trust_remote_code=True).net
        with torch.no_grad():
            assert torch.allclose(torch.tensor(logits), net(ids).logits, atol=1e-4)
        assert len(written[0]) > 9
        done = elsewhere(tmp_path, "-c", program, *scored, str(folder), "--trust-remote-code")
        assert done.returncode == 0, done.stderr
    refused = elsewhere(tmp_path, "-c", program, *scored, str(own))
    assert refused.returncode == 2 and "--trust-remote-code" in refused.stderr + refused.stdout
