"""A family whose code comes with the donor: composites of it take that code along, and load where nobody else has it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import cli
import tiny
from jobs import write_text
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.composite.exact import inexact
from stitch.errors import UsageError
from stitch.files.tokenizer import copy_tokenizer
from stitch.modeling.modeling_composite import CLASSES
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.translation.types import Residual, Term, Translation

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
    kept = {name: os.environ[name] for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR") if name in os.environ}
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
    done = elsewhere(place, "-I", "-c", RELOADS, json.dumps(ids.tolist()), *map(str, folders))
    assert done.returncode == 0, done.stderr[-3000:]
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
