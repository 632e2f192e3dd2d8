"""A small job for `stitch`: text with a small vocabulary, and settings that take seconds."""

import json
from pathlib import Path

import numpy as np

import tiny
from stitch.config import Settings

WORDS = "feature model layer token stream weight matrix norm head block early late match pair plan".split()


def write_text(folder: Path, documents: int = 260, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    lines = [json.dumps({"text": " ".join(generator.choice(WORDS, 25))}) for _ in range(documents)]
    path = folder / "text.jsonl"
    path.write_text("\n".join(lines))
    return path


def gpt2_and_qwen3(folder: Path) -> dict[str, Path]:
    """Two pico models of different width, and a text."""
    return {
        "gpt2": tiny.save(folder / "gpt2", "gpt2"),
        "qwen3": tiny.save(folder / "qwen3", "qwen3", seed=1, hidden_size=48),
        "text": write_text(folder),
    }


def settings(a: Path, b: Path, text: Path, **changes) -> Settings:
    base = dict(
        model_a=str(a), model_b=str(b), layer=2, text=str(text), tokens=4096, context=32, features=64, k=8,
        sae_passes=2.0, reference_steps=5, device="cpu", memory=2**28,
    )  # fmt: skip
    return Settings(**(base | changes))  # pyright: ignore[reportArgumentType]
