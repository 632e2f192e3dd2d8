"""A composite is uploaded with the real client, downloaded, and loaded in a process that cannot import this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from hub_double import HubDouble
from jobs import settings, write_text
from stitch.jobs.join import stitch

ELSEWHERE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
try:
    import stitch
    sys.exit("the package must not be importable here")
except ImportError:
    pass
repo = "user/composite"
model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(repo)
ids = torch.tensor(json.loads(sys.argv[1]))
options = dict(max_new_tokens=16, min_new_tokens=16, do_sample=False)
with torch.no_grad():
    logits = model(ids).logits
    cached = model.generate(ids[:1], use_cache=True, **options)
    plain = model.generate(ids[:1], use_cache=False, **options)
    prompts = ["the head", "a", "layer and token"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1]:]
    alone = [model.generate(**tokenizer(p, return_tensors="pt"), **options)[0, -16:] for p in prompts]
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True).eval()
with torch.no_grad():
    reloaded = again(ids).logits
text = pipeline("text-generation", model=model, tokenizer=tokenizer)("the head", **options)[0]["generated_text"]
json.dump({
    "logits": logits.tolist(), "cache": torch.equal(cached, plain), "saved": torch.equal(logits, reloaded),
    "padding": all(torch.equal(one, other) for one, other in zip(together, alone)), "text": text,
}, open(sys.argv[3], "w"))
"""


@pytest.mark.slow
def test_a_pushed_composite_is_the_same_model_in_another_environment(tmp_path: Path):
    a, b = tiny.save(tmp_path / "gpt2", "gpt2"), tiny.save(tmp_path / "qwen3", "qwen3", hidden_size=48)
    wanted = settings(a, b, write_text(tmp_path), tokens=8192, sae_passes=0.3, brief=True, reference_steps=None)
    _, folder = stitch(wanted, tmp_path / "composite")
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = tiny.ids(2, 9)
    with HubDouble(tmp_path / "hub") as hub:
        environment = {
            name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "HF_HUB_OFFLINE"}
        }
        environment |= hub.environment(tmp_path / "home")
        root = Path(__file__).parent.parent
        pushed = subprocess.run(
            [sys.executable, "-m", "cli", "push", folder, "user/composite"],
            env={**environment, "PYTHONPATH": str(root)}, capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.strip().endswith("user/composite")
        files = hub.files("user/composite")
        assert {"README.md", "config.json", "modeling_composite.py", "model.safetensors", "report.json"} <= files.keys()
        assert files["sae-a/sae_weights.safetensors"] == (folder / "sae-a" / "sae_weights.safetensors").read_bytes()
        # The installed package is hidden by a module that fails to import.
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        (hidden / "stitch.py").write_text("raise ImportError")
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, json.dumps(ids.tolist()), tmp_path / "saved", tmp_path / "found"],
            env={**environment, "PYTHONPATH": str(hidden)}, capture_output=True, text=True, cwd=hidden,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found").read_text())
    with torch.no_grad():
        assert torch.equal(torch.tensor(found["logits"]), net(ids).logits)
    assert found["cache"] and found["saved"] and found["padding"]
    assert found["text"].startswith("the head")  # a model with random weights may go on with special tokens alone
