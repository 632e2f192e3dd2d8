"""Small cases of the commands that write a folder of their own, beside those that `small_commands` has."""

import json
from pathlib import Path

from safetensors.torch import save_file

import planted
import sae
import tiny
import tokenizers_made
from jobs import gpt2_and_qwen3

EVEN = {"transitions": {"0": {"e": "1"}, "1": {"e": "0"}}, "start": "0", "outputs": {"0": "0", "1": "1"}}
HOST = dict(
    model_type="llama", hidden_size=320, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=planted.POSITIONS,
)  # fmt: skip
SMALL = "--tokens 4096 --held-out 1024 --context 32 --device cpu --text {text}"
SITES = "--layer 2 --tokens 4096 --context 32 --device cpu --text {text}"

# Words of a command by its name; what stands in braces is one of its files.
WRITTEN = {
    "convert heads": "{llama} --kv-heads 1 " + SMALL,
    "convert ngram": "{llama} --drop 2 --rows 2000 --memory 256M " + SMALL,
    "convert recurrent": "{llama} --window 4 --steps 2 --logit-steps 1 " + SMALL,
    "convert consolidate": "{gpt2} --context {note} --cost 0.05 --tokens 4096 --held-out 4096 --device cpu --text {text}",
    "retokenize": "{gpt2} --tokenizer {letters} --tokens 4096 --documents 8 --context 24 --device cpu --text {text}",
    "graft": "{donor} --behaviour induction --host {host} --circuit {circuit} --prompts 8 --device cpu --graft {donor}=induction",
    "compile automaton": "{even} --length 16 --mode vsa --dimension 16 --seed 3 --device cpu",
    "compile machine": "--window 4 --context 256 --device cpu",
    "compile pattern": "offset:3 --arch llama --length 32 --device cpu",
    "compile induction": "--tokenizer {gpt2} --context 32 --device cpu",
    "compile tool": "{even} --host {gpt2} --faint 0.05 --tokens 1024 --device cpu --text {text}",
    "transfer sae": "{gpt2} {qwen3} {sae} --sae-passes 1 " + SITES,
    "transfer probe": "{gpt2} {qwen3} {probe} " + SITES,
    "transfer vector": "{gpt2} {qwen3} {vectors} --strength 2 " + SITES,
}
SLOW = (
    "convert heads",
    "convert ngram",
    "convert recurrent",
    "convert consolidate",
    "retokenize",
    "graft",
    "compile machine",
    "transfer sae",
)


def make_files(folder: Path) -> dict[str, Path]:
    """What the commands name in braces."""
    found = {name: folder / name for name in ("sae", "donor")}
    found |= {"llama": tiny.save(folder / "llama", "llama"), **gpt2_and_qwen3(folder)}
    planted.induction(found["donor"])
    sae.save(sae.train(tiny.noise(512, 32), features=64, k=4, passes=1), found["sae"], {})

    def write(name: str, content: str) -> None:
        found[name.partition(".")[0]] = folder / name
        (folder / name).write_text(content)

    found["letters"] = folder / "letters"
    tokenizers_made.byte_level(300).save_pretrained(found["letters"])
    write("even.json", json.dumps(EVEN))
    write("host.json", json.dumps(HOST))
    write("circuit.json", json.dumps({"heads": {"0": [1], "1": [2]}, "neurons": {}}))
    write("note.txt", "norm head block early late match pair plan. " * 2)
    for name, tensors in (
        ("probe", {"weight": tiny.noise(2, 32), "bias": tiny.noise(2)}),
        ("vectors", {"v": 3 * tiny.noise(32)}),
    ):
        found[name] = folder / f"{name}.safetensors"
        save_file(tensors, found[name])
    return found
