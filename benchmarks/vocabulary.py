"""Time by stage and peak memory of the main job on a pair whose vocabulary is planted: 4,000 ids, or 150,000.

Both vocabularies read the same text, words that are drawn by Zipf's law from 4,000; the other 146,000 ids occur nowhere.
One JSON line for each, in a process of its own; `--label` names the version that is measured.

`--large` measures instead a pair of Llamas in the shapes of Qwen2 0.5B and 1.5B, with 151,936 ids and random weights stored as
bfloat16. Its command runs as a process of its own with `--tokens 20000` and what `--options` says besides.

`--unseen` measures what is lost at tokens without a row, and by not having rows for all ids, on the embedded pair with so many
tokens to fit on (default 40,000).
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

from _processes import last_line, measured, peak_bytes

VOCABULARIES = (4_000, 150_000)
WIDTH, BLOCKS, CONTEXT, TOKENS, HELD_OUT, WORDS = 192, 4, 128, 20_000, 2_048, 3_900
LARGE = 151_936
QWEN = {  # width, neurons, blocks, heads
    "a": (896, 4864, 24, 14),
    "b": (1536, 8960, 28, 12),
}


def save_models(folder: Path, vocabulary: int) -> None:
    """A random Llama and a random GPT-2, or two Llamas of Qwen's shapes for LARGE ids, with one id per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "<unk>", *(f"w{number}" for number in range(vocabulary - 2))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", unk_token="<unk>")
    shared = dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0)
    large = {
        side: AutoConfig.for_model(
            "llama", hidden_size=width, intermediate_size=neurons, num_hidden_layers=blocks, num_attention_heads=heads,
            num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True, **shared,
        )
        for side, (width, neurons, blocks, heads) in QWEN.items()
    }  # fmt: skip
    pico = {
        "a": AutoConfig.for_model(
            "llama", hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, **shared,
        ),
        "b": AutoConfig.for_model("gpt2", n_embd=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=CONTEXT, **shared),
    }  # fmt: skip
    dtype = torch.bfloat16 if vocabulary == LARGE else torch.float32
    for number, (side, config) in enumerate((large if vocabulary == LARGE else pico).items()):
        torch.manual_seed(number)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder / side)
        tokenizer.save_pretrained(folder / side)


def save_text(path: Path) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    shares = 1 / np.arange(1, WORDS + 1)
    drawn = generator.choice(WORDS, (1200, 60), p=shares / shares.sum())
    path.write_text("\n".join(json.dumps({"text": " ".join(f"w{word}" for word in row)}) for row in drawn.tolist()))


def one_run(vocabulary: int) -> dict:
    from stitch.config import Settings
    from stitch.jobs.join import stitch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last_line([sys.executable, __file__, "--make", folder, "--vocabulary", vocabulary])  # its memory is not counted
        settings = Settings(
            model_a=str(folder / "a"), model_b=str(folder / "b"), layer=2, text=str(folder / "text.jsonl"), tokens=TOKENS,
            held_out=HELD_OUT, context=CONTEXT, features=2 * WIDTH, sae_passes=0.5, reference_steps=0, device="cpu",
        )  # fmt: skip
        report, out = stitch(settings, folder / "composite")
        size = sum(file.stat().st_size for file in out.glob("*.safetensors") if file.name.startswith("model"))
        return {"seconds": report["seconds"], "peak_bytes": peak_bytes(), "bytes": size,
                "with_rows": report.get("look_ups", {}).get("tokens_with_rows", vocabulary)}  # fmt: skip


def large_run(options: str) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last_line([sys.executable, __file__, "--make", folder, "--vocabulary", LARGE])
        command = (
            "join",
            folder / "a",
            folder / "b",
            "--layer",
            12,
            "--tokens",
            TOKENS,
            "--text",
            folder / "text.jsonl",
        )
        command = (*command, "--device", "cpu", "--out", folder / "composite", *shlex.split(options))
        process = measured([sys.executable, Path(__file__).resolve().parent.parent / "cli.py", *command])
        report = json.loads((folder / "composite" / "report.json").read_text())
        size = sum(file.stat().st_size for file in (folder / "composite").glob("model*.safetensors"))
    kept = {key: report[key] for key in ("seconds", "look_ups", "settings") if key in report}
    return {"benchmark": "vocabulary_large", "vocabulary": LARGE, "options": options, **process, **kept, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--options", default="")
    parser.add_argument("--unseen", type=int, nargs="?", const=40_000, metavar="TOKENS")
    parser.add_argument("--label", default="now")
    parser.add_argument("--vocabulary", type=int, action="append")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        save_models(given.make, *given.vocabulary)
        save_text(given.make / "text.jsonl")
        print("{}")
    elif given.one:
        print(json.dumps(one_run(*given.vocabulary)))
    elif given.unseen:
        from _unseen import unseen

        for line in unseen(given.unseen):
            print(json.dumps(line), flush=True)
    elif given.large:
        print(json.dumps(large_run(given.options)))
    else:
        for vocabulary in given.vocabulary or VOCABULARIES:
            found = last_line([sys.executable, __file__, "--one", "--vocabulary", vocabulary])
            print(
                json.dumps({"benchmark": "vocabulary", "version": given.label, "vocabulary": vocabulary, **found}),
                flush=True,
            )


if __name__ == "__main__":
    main()
