"""Loads a checkpoint in a process that cannot import this package, and tries everything that a user would do with
it.
"""

import json
from pathlib import Path

from torch import Tensor

from without_package import run_without_package

PROMPTS = ["one fine day", "so", "the quick"]
CLEAN = """
import functools, json, sys
for name in ("stitch", "sae", "matching"):
    sys.modules[name] = None  # importing the package would now fail
import torch, transformers
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
transformers.logging.set_verbosity_error()
ids = torch.tensor(json.loads(sys.argv[2]))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), (folder, report)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    result = {"logits": model(ids).logits}
    result["cached"] = model.generate(ids, max_new_tokens=8, do_sample=False)
    result["uncached"] = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    if "AutoModel" in model.config.auto_map:
        body = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert torch.equal(body(ids).last_hidden_state, model(ids, output_hidden_states=True).hidden_states[-1]), folder
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True)
    result["again"] = again(ids).logits
    if folder.name in sys.argv[3].split(","):
        prompts = json.loads(sys.argv[4])
        encode = functools.partial(tokenizer, return_tensors="pt")
        batch = encode(prompts, padding=True)
        length = batch["input_ids"].shape[1]
        together = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, length:]
        alone = [
            model.generate(**encode(prompt), max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, -6:]
            for prompt in prompts
        ]
        result["together"], result["alone"] = together, torch.stack(alone)
        generate = pipeline("text-generation", model=str(folder), trust_remote_code=True)
        text = generate(prompts[0], max_new_tokens=6, min_new_tokens=6, do_sample=False, return_full_text=False)
        said = tokenizer.decode(alone[0], skip_special_tokens=True)  # entries beyond ASCII are several when read again
        for name, words in (("piped", text[0]["generated_text"]), ("said", said)):
            result[name] = encode(words, add_special_tokens=False)["input_ids"]
        mapped = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, device_map={"": "cpu"})
        result["mapped"] = mapped(ids).logits
        narrow = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
        result["narrow"] = narrow(ids).logits
        for name, parameter in narrow.named_parameters():
            kept = "translation." in name and not name.endswith(".table")
            assert parameter.dtype == (torch.float32 if kept else torch.bfloat16), name
    save_file({key: value.contiguous() for key, value in result.items()}, folder / "result")
"""


def run_clean(folder: Path, ids: Tensor, deeply: str, cwd: Path) -> None:
    run_without_package(CLEAN, str(folder), json.dumps(ids.tolist()), deeply, json.dumps(PROMPTS), cwd=cwd)
