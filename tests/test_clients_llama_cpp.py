"""Stock results in llama.cpp: converted to GGUF, they generate the tokens that transformers generates.

Needs the package xllamacpp, and llama.cpp's converter: the environment variable LLAMA_CPP names a folder with its source.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stitch.composite.native import write_native
from stitch.conversions.heads.convert import convert_heads
from stitch.grafts.graft import graft
from stitch.grafts.request import GraftRequest
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.synthesis.compile import compile_automaton, compile_machine
from stitch.synthesis.description import described
from stitch.synthesis.kinds import trials_of

runtime = pytest.importorskip("xllamacpp")
LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LLAMA_CPP, reason="LLAMA_CPP does not name a folder with llama.cpp's source"),
]
HOST = Path(__file__).parents[1] / "examples" / "llama-tiny.json"
AUTOMATON = Path(__file__).parents[1] / "examples" / "automaton_mod_7.json"
TOKENS = 24

# The converter recognises tokenizers by a hash of ids, and does not know the demo's. It splits text as GPT-2's does.
#
# Nor does it know the tokenizers of compiled models, whose tokens are whole words. All are given to llama.cpp as user-defined
# tokens, which it finds in a text before anything else.
CONVERT = """
import json, runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"

def whole_words(self):
    vocabulary = json.loads((self.dir_model / "tokenizer.json").read_text())["model"]["vocab"]
    words, write = sorted(vocabulary, key=vocabulary.get), self.gguf_writer
    write.add_tokenizer_model("llama")
    write.add_tokenizer_pre("default")
    write.add_token_list(words)
    write.add_token_scores([0.0] * len(words))
    write.add_token_types([3] + [4] * (len(words) - 1))  # control, user-defined
    write.add_add_space_prefix(False)
    write.add_bos_token_id(0)
    write.add_eos_token_id(0)

if sys.argv[4:] == ["whole words"]:
    from conversion.gpt2 import GPT2Model
    from conversion.llama import LlamaModel
    LlamaModel.set_vocab = GPT2Model.set_vocab = whole_words
sys.argv = ["convert_hf_to_gguf.py", sys.argv[2], "--outfile", sys.argv[3], "--outtype", "f32"]
runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def to_gguf(folder: Path, *extra: str, check: bool = True) -> tuple[Path, str]:
    """The converted model, and what the converter said."""
    path = folder.with_suffix(".gguf")
    command = [sys.executable, "-c", CONVERT, LLAMA_CPP, str(folder), str(path), *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return path, done.stderr


def serve(path: Path):
    settings = runtime.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = str(path), 256, 1, 1
    return runtime.Server(settings)


def greedy(server, prompt: str | list[int], tokens: int = TOKENS) -> tuple[list[int], str]:
    """Ids and text of the continuation of a prompt."""
    wanted = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    (said,) = server.handle_completions(wanted)["choices"]
    return [token["id"] for token in said["logprobs"]["content"]], said["text"]


def shortened(model: str, folder: Path) -> None:
    """As `stitch join M M --native` writes it."""
    write_native(folder, load(resolve(model).folder), [0, 1, 4, 5], {})


def with_n_ctx(folder: Path) -> None:
    shortened("demo:gpt2", folder)
    add_n_ctx(folder)


def add_n_ctx(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["n_ctx"] = config["n_positions"]  # the converter reads it, and transformers 5 no longer writes it
    (folder / "config.json").write_text(json.dumps(config))


def fewer_heads(model: str, folder: Path) -> None:
    convert_heads(model, folder, kv_heads=1, tokens=4096, held_out=4096, context=64, device="cpu")


def grafted(folder: Path) -> None:
    graft([GraftRequest("demo:induction", "induction")], str(HOST), folder, count=16, device="cpu")


RESULTS = {
    "join --native, Llama": lambda folder: shortened("demo:llama", folder),
    "join --native, GPT-2": with_n_ctx,
    "convert heads, Llama": lambda folder: fewer_heads("demo:llama", folder),
    "convert heads, GPT-2": lambda folder: fewer_heads("demo:gpt2", folder),
    "graft": grafted,
}


@pytest.mark.parametrize("made", RESULTS)
@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(made, tmp_path):
    folder = tmp_path / "model"
    RESULTS[made](folder)
    server = serve(to_gguf(folder)[0])
    net, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ids = [0, *torch.randint(3, net.config.vocab_size, (12,), generator=generator).tolist()]
        ids += ids[1:5]
        wanted = net.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, suppress_tokens=[0]
        )
        found, text = greedy(server, ids)
        assert found == wanted[0, len(ids) :].tolist()
        assert text == tokenizer.decode(found)


def test_a_gpt2_of_transformers_5_lacks_a_field_that_the_converter_reads(tmp_path):
    shortened("demo:gpt2", tmp_path / "model")
    assert "KeyError: 'n_ctx'" in to_gguf(tmp_path / "model", check=False)[1]


def test_a_composite_is_refused_by_the_converter(tmp_path):
    import composites

    folder = composites.write(tmp_path)
    path, said = to_gguf(shutil.copytree(folder, tmp_path / "copy"), check=False)
    assert "StitchForCausalLM is not supported" in said and not path.exists()


COMPILED = {
    "automaton, Llama": lambda folder: compile_automaton(str(AUTOMATON), folder, length=24, device="cpu"),
    "Turing machine, Llama": lambda folder: compile_machine(folder, window=5, context=224, device="cpu"),
}


@pytest.mark.parametrize("made", COMPILED)
def test_a_compiled_model_answers_as_the_interpreter(made, tmp_path):
    """Its tokenizer is given in the form above."""
    folder = tmp_path / "model"
    COMPILED[made](folder)
    server, tokenizer = serve(to_gguf(folder, "whole words")[0]), AutoTokenizer.from_pretrained(folder)
    asked = 0
    for trial in trials_of(described(folder), 300, seed=0):
        for ids, answers in zip(trial.ids[:4].tolist(), trial.answers[:4].tolist(), strict=True):
            for place in [number for number, answer in enumerate(answers) if answer >= 0][-12:]:
                found, text = greedy(server, ids[: place + 1], 1)
                assert found == [answers[place]] and text == tokenizer.decode(found)
                assert greedy(server, tokenizer.decode(ids[1 : place + 1]), 1)[0] == found
                asked += 1
    assert asked >= 18


def test_the_tokenizer_of_a_compiled_model_is_refused_by_the_converter(tmp_path):
    COMPILED["automaton, Llama"](tmp_path / "model")
    command = [
        sys.executable,
        f"{LLAMA_CPP}/convert_hf_to_gguf.py",
        str(tmp_path / "model"),
        "--outfile",
        str(tmp_path / "a.gguf"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "WordLevel error: Missing [UNK] token" in done.stderr


def test_a_compiled_gpt2_has_an_mlp_of_a_width_that_the_converter_does_not_ask_for(tmp_path):
    """It writes four times the width of the stream."""
    compile_automaton(str(AUTOMATON), tmp_path / "model", length=24, arch="gpt2", device="cpu")
    add_n_ctx(tmp_path / "model")
    path = to_gguf(tmp_path / "model", "whole words")[0]
    with pytest.raises(RuntimeError, match="Failed to init server"):
        serve(path)
