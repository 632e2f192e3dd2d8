"""Commands that write a folder, on pico models, each at a size that takes a second or two."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import tiny
from jobs import gpt2_and_qwen3

SMALL = ("--tokens", "4096", "--context", "32", "--device", "cpu", "-q")
BRIEF = ("--brief", "--features", "64", "--k", "8", "--sae-passes", "0.2")
TEXT = ("--text", "{text}")
COMMANDS = {
    "join": ("join", "{gpt2}", "{qwen3}", "--layer", "2", *TEXT, *SMALL, *BRIEF),
    "native": ("join", "{gpt2}", "{gpt2}", "--layer", "2", "--layer-b", "4", "--native", *TEXT, *SMALL),
    "chain": ("chain", "{parts}", *TEXT, *SMALL, *BRIEF),
    "sweep": ("sweep", "{two}", "{qwen3}", *TEXT, *SMALL),
    "depth": ("sweep", "{gpt2}", "--depth", *TEXT, *SMALL),
    "heads": ("convert", "heads", "{gpt2}", "--kv-heads", "1", "--held-out", "4096", *TEXT, *SMALL),
    "ngram": ("convert", "ngram", "{gpt2}", "--drop", "1", *TEXT, *SMALL),
    "recurrent": (
        *("convert", "recurrent", "{qwen3}", "--held-out", "2048", "--steps", "2", "--logit-steps", "1"),
        *TEXT, *SMALL,
    ),
    "consolidate": (
        *("convert", "consolidate", "{gpt2}", "--context", "{document}", "--held-out", "4096", "--tokens", "4096"),
        *TEXT, "--device", "cpu", "-q",
    ),
}  # fmt: skip
RESUMED = ("join", "native", "chain", "sweep", "depth")  # those that go on where an interrupted run stopped


def make_inputs(folder: Path) -> dict[str, Path]:
    """What the commands name in braces."""
    found = {**gpt2_and_qwen3(folder), "two": tiny.save(folder / "two", "gpt2", n_layer=2)}
    parts, document = folder / "chain.yaml", folder / "document.txt"
    parts.write_text(f"parts:\n  - {{model: {found['gpt2']}, to: 2}}\n  - {{model: {found['qwen3']}, from: 3}}\n")
    document.write_text("the feature of a model is a layer of the stream and the head is early")
    return {**found, "parts": parts, "document": document}


def words_of(name: str, inputs: Mapping[str, Path], out: Path) -> Sequence[str]:
    """The words of a command that replaces an output at `out`."""
    words = [word.format(**inputs) for word in COMMANDS[name]]
    return [*words, "--out", str(out), "--overwrite"]
