"""What commands do with a pico model of a family: each is really run, on little text and with few steps."""

import copy
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # pico models and texts are those of the tests

import _families

import jobs
import tiny
from stitch.circuits.find import find_circuit
from stitch.composite.parts import Part
from stitch.config import Settings
from stitch.conversions.consolidation.arms import arms
from stitch.conversions.consolidation.convert import consolidate
from stitch.conversions.heads.convert import convert_heads
from stitch.conversions.ngrams.convert import convert_ngram
from stitch.conversions.ngrams.memory import NgramShape
from stitch.conversions.recurrence.convert import convert_recurrent
from stitch.conversions.retokenization.convert import retokenize
from stitch.errors import StitchError, UsageError
from stitch.grafts.graft import graft
from stitch.grafts.request import GraftRequest
from stitch.jobs.chain import chain
from stitch.jobs.evaluate import evaluate_models
from stitch.jobs.join import stitch
from stitch.jobs.sweep import sweep
from stitch.models.loading import AnyModel, load, load_any
from stitch.models.model import Model
from tokenizers_made import made

TOKENS = 768  # to fit on: fewer than commands ask for, as nothing is said about how good the results are
SMALL: dict[str, Any] = dict(tokens=TOKENS, held_out=256, context=32, device="cpu")
LONGEST = 64  # tokens of a window where a command does not ask for fewer
WIDE = 128  # tokens: sliding windows of trained models are longer than the texts that are read, as these are here
PROMPTS, LENGTH = 8, 6
DRAWN = 512  # prompts to choose from: the model's answer must be a character
HOST = dict(
    model_type="llama", hidden_size=192, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=6, intermediate_size=96,
    max_position_embeddings=128, attention_bias=True, mlp_bias=True,
)  # fmt: skip
CIRCUIT = {"heads": {"1": [0]}, "neurons": {"2": [0, 1]}}
# Where commands load models. Here they get one that is loaded already.
LOADERS = (
    "stitch.conversions.donor", "stitch.circuits.find", "stitch.grafts.request", "stitch.jobs.pair.models", "stitch.jobs.chain",
    "stitch.conversions.retokenization.request",
)  # fmt: skip
# Less work than commands do for their users. That they run at all does not depend on it.
READERS = (
    "stitch.conversions.donor",
    "stitch.text.windows",
    "stitch.conversions.retokenization.request",
    "stitch.config",
)
LESS: dict[str, int] = {
    **{f"{place}.LEAST_TOKENS": TOKENS for place in READERS}, "stitch.conversions.donor.LONGEST_CONTEXT": LONGEST,
    "stitch.conversions.recurrence.recall.TOKENS": 256, "stitch.jobs.other_ranges.DRAWS": 1,
    "stitch.jobs.pair.text.LEAST_HELD_OUT": 8,
}  # fmt: skip
EDITS = ("converted", "baseline:closed form")  # of the eight that `convert consolidate` compares


class Desk:
    """A folder with a pico model of a family, with a Llama, and with the text and the prompts that commands are given."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.text = str(jobs.write_text(folder, 110))
        (folder / "note.txt").write_text("a model of the head and a plan for the early block")
        (folder / "queries.txt").write_text(
            "the plan of the head is a block and the early model is the head of it. " * 2
        )
        (folder / "circuit.json").write_text(json.dumps(CIRCUIT))
        (folder / "host.json").write_text(json.dumps(HOST))
        made("byte fallback").save_pretrained(folder / "tokenizer")
        self.loaded = {"llama": load(tiny.save(folder / "llama", "llama"))}
        _write_prompts(self.loaded["llama"], folder / "llama.jsonl")

    def put(self, net: PreTrainedModel, family: str) -> None:
        """Puts a family's model on the desk, with windows of attention that are as long as the text."""
        shutil.rmtree(self.folder / "families", ignore_errors=True)
        self.family = f"families/{family}"
        folder = self.folder / self.family
        _families.with_window(net, WIDE).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        model = load(folder)  # of some families with a tokenizer of their own in place of that in the folder
        self.loaded[self.family] = replace(model, tokenizer=tiny.tokenizer()).with_flow(model.flow)

    def __call__(self, name: str) -> str:
        return str(self.folder / name)

    @contextmanager
    def out(self) -> Iterator[Path]:
        with TemporaryDirectory() as folder:
            yield Path(folder) / "out"

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, commands get copies of the loaded models in place of loading them."""

        def loaded(folder: Path, **arguments: Any) -> Model:
            kept = {self.folder / name: model for name, model in self.loaded.items()}
            # What the command itself has written, as a chain's first composite, is really loaded.
            return _copied(kept[folder]) if (folder := Path(folder)) in kept else load(folder, **arguments)

        def loaded_any(*arguments: Any) -> AnyModel:
            return replace(load_any(*arguments), tokenizer=tiny.tokenizer())

        with ExitStack() as stack:
            for place in LOADERS:
                stack.enter_context(patch(f"{place}.load", loaded))
            for place, value in LESS.items():
                stack.enter_context(patch(place, value))
            stack.enter_context(patch("stitch.conversions.consolidation.convert.arms", _few_edits))
            stack.enter_context(patch("stitch.jobs.evaluate.load_any", loaded_any))
            yield


def _few_edits(*args: Any) -> dict[str, Callable]:
    return {name: make for name, make in arms(*args).items() if name in EDITS}


def _copied(model: Model) -> Model:
    flow, net = model.flow, copy.deepcopy(model.net)
    return Model(model.name, net, model.tokenizer, model.anatomy, model.folder).with_flow(flow)


@torch.no_grad()
def _write_prompts(model: Model, path: Path) -> None:
    """A behaviour that any model has: the answers to random prompts are its own, and other prompts have other answers."""
    ids, other = (tiny.ids(DRAWN, 1 + LENGTH, seed) for seed in (0, 1))
    best, best_of_other = (
        model.net(input_ids=side, use_cache=False).logits[:, -1].argmax(-1).tolist() for side in (ids, other)
    )
    characters = range(3, 98)
    rows = [
        {"clean": _text(model, clean), "corrupt": _text(model, corrupt), "answer": model.tokenizer.decode([answer])}
        for clean, corrupt, answer, wrong in zip(ids, other, best, best_of_other, strict=True)
        if answer in characters and answer != wrong and {*clean.tolist()[1:], *corrupt.tolist()[1:]} <= {*characters}
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:PROMPTS]))


def _text(model: Model, ids: torch.Tensor) -> str:
    return model.tokenizer.decode(ids[1:].tolist())


def _join(desk: Desk, out: Path) -> None:
    stitch(_pair(desk, layer=2, layer_b=3), out)


def _native(desk: Desk, out: Path) -> None:
    stitch(_pair(desk, layer=2, layer_b=3, native=True), out)


def _pair(desk: Desk, **changes: Any) -> Settings:
    """The family as A and as B: every row of the report is computed with it on both sides."""
    family = Path(desk(desk.family))
    return jobs.settings(family, family, Path(desk.text), features=None, **SMALL, **changes)


def _chain(desk: Desk, out: Path) -> None:
    """Its first blocks, some of a Llama, and its last ones."""
    parts = [Part(desk(desk.family), 0, 2), Part(desk("llama"), 2, 4), Part(desk(desk.family), 4)]
    chain(parts, out, text=desk.text, features=None, brief=True, **SMALL)


def _sweep(desk: Desk, out: Path) -> None:
    small = {name: value for name, value in SMALL.items() if name != "held_out"}
    family = desk(desk.family)
    sweep(family, family, out, text=desk.text, memory=2**28, **small)


def _eval(desk: Desk, out: Path) -> None:
    report = evaluate_models(
        desk(desk.family), desk("llama"), text=desk.text, tokens=TOKENS, context=SMALL["context"], device="cpu"
    )
    if not all(math.isfinite(row["ce"]) for row in report["results"]):
        raise ValueError("a cross-entropy is not finite")


def _heads(desk: Desk, out: Path) -> None:
    convert_heads(desk(desk.family), out, kv_heads=1, text=desk.text, **SMALL)


def _recurrent(desk: Desk, out: Path) -> None:
    convert_recurrent(desk(desk.family), out, features="random", text=desk.text, **SMALL)


def _ngram(desk: Desk, out: Path) -> None:
    shape = NgramShape(order=2, rows=256, skips=1)
    convert_ngram(desk(desk.family), out, drop=2, shape=shape, text=desk.text, memory=2**28, **SMALL)


def _consolidate(desk: Desk, out: Path) -> None:
    small = {name: value for name, value in SMALL.items() if name != "context"}
    consolidate(
        desk(desk.family),
        [Path(desk("note.txt"))],
        out,
        queries=[Path(desk("queries.txt"))],
        cost=0.05,
        text=desk.text,
        **small,
    )


def _circuit(desk: Desk, out: Path) -> None:
    _write_prompts(desk.loaded[desk.family], desk.folder / "own.jsonl")
    find_circuit(desk(desk.family), desk("own.jsonl"), text=desk.text, device="cpu")


def _donor(desk: Desk, out: Path) -> None:
    _write_prompts(desk.loaded[desk.family], desk.folder / "own.jsonl")
    _grafted(desk, out, desk.family, "own", "host.json")


def _host(desk: Desk, out: Path) -> None:
    _grafted(desk, out, "llama", "llama", desk.family)


def _grafted(desk: Desk, out: Path, donor: str, prompts: str, host: str) -> None:
    request = GraftRequest(desk(donor), desk(f"{prompts}.jsonl"), Path(desk("circuit.json")))
    graft([request], desk(host), out, text=desk.text, tokens=512, device="cpu")


def _retokenize(desk: Desk, out: Path) -> None:
    retokenize(
        desk(desk.family),
        out,
        tokenizer=desk("tokenizer"),
        text=desk.text,
        tokens=TOKENS,
        documents=2,
        context=120,
        device="cpu",
    )


COMMANDS: dict[str, Callable[[Desk, Path], None]] = {
    "join": _join, "chain": _chain, "sweep": _sweep, "eval": _eval,
    "heads": _heads, "recurrent": _recurrent, "ngram": _ngram, "consolidate": _consolidate, "circuit": _circuit, "donor": _donor,
    "host": _host, "retokenize": _retokenize, "native": _native,
}  # fmt: skip


def outcomes(net: PreTrainedModel, family: str, desk: Desk, commands: Sequence[str] = tuple(COMMANDS)) -> dict:
    """`commands`: "yes", "no" where it is refused, or "fails", by command. `refusals`: the reasons."""
    try:
        desk.put(net, family)
    except StitchError as error:  # transformers does not load what it has saved
        found = dict.fromkeys(commands, ("no", _one_line(error)))
    else:
        with desk.lent():
            found = {name: outcome(COMMANDS[name], desk) for name in commands}
    found = {
        name: (kind, said.replace(desk(desk.family), family).replace(desk(""), ""))
        for name, (kind, said) in found.items()
    }
    return {
        "commands": {name: kind for name, (kind, _) in found.items()},
        "refusals": [
            {"command": name, "why": _clause(said, family), "said": said}
            for name, (kind, said) in found.items()
            if said
        ],
    }


def outcome(command: Callable[[Desk, Path], None], desk: Desk) -> tuple[str, str]:
    """ "yes", "no" or "fails", and the reason where it is not "yes"."""
    with desk.out() as out:
        try:
            command(desk, out)
            if (out / "config.json").exists():
                _open(out)
        except Exception as error:  # of a family's own code: anything
            return _reason(error)
    return "yes", ""


@torch.no_grad()
def _open(folder: Path) -> None:
    """Loads what was written as its user does. Raises: ValueError where it has no finite logits."""
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=(folder / "modeling_composite.py").exists())
    largest = float(net(input_ids=tiny.ids(), use_cache=False).logits.abs().max())
    if not math.isfinite(largest):
        raise ValueError("the written model has no finite logits")


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, StitchError):
        return "no" if isinstance(error, UsageError) else "fails", _one_line(error)
    return "fails", f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _clause(said: str, family: str) -> str:
    """The first words of a reason, without the model's name; of a failed trial those that say what differs."""
    known = re.sub(rf"{re.escape(family)} \(\w+\)", "the model", said).replace(f"of {family} models", "of its blocks")
    first = re.split(r"[;:] ", known)[0]
    if different := re.search(r"(the model does not|they are not): (.*?)(?: by [0-9.e+]+)?(?:[:;.] | \(|$)", known):
        first = f"with a window over the whole text {different[2]}" if "window" in first else different[2]
    return re.sub(rf"(?<![\w-]){re.escape(family)}(?![\w-])", "the model", first)
