"""The tokenizers of the embedded models: byte-level BPE, and BPE over words marked by ▁ that spells other characters as bytes."""

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stitch.demo.recipe import CONTEXT, TOKENS, Kind, Tokens
from stitch.text.vocabulary import METASPACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train_tokenizer(texts: list[str], kind: Kind) -> PreTrainedTokenizerFast:
    """A tokenizer that puts BOS before every text, as in training."""
    from tokenizers import processors

    tokens = TOKENS[kind]
    tokenizer = {"byte-level": _byte_level, "metaspace": _metaspace}[kind](texts, tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokens.bos} $A",
        pair=f"{tokens.bos} $A {tokens.bos} $B",
        special_tokens=[(tokens.bos, tokenizer.token_to_id(tokens.bos))],
    )
    # The normaliser would put a space behind a special token too. Text that spells one is therefore read as text.
    plain = {"split_special_tokens": True} if kind == "metaspace" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        padding_side="left",
        model_max_length=CONTEXT,
        **plain,
    )


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _byte_level(texts: list[str], tokens: Tokens) -> "Tokenizer":
    """As GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens.size,
        special_tokens=tokens.special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _metaspace(texts: list[str], tokens: Tokens) -> "Tokenizer":
    """As Llama 2's: a space is put in front of every text, words start with a space spelt ▁, and digits are tokens of their own.

    Characters outside ASCII become the bytes of their UTF-8, such as <0xE2>. Every byte of a text is kept, but for a ▁ in it,
    which is read as a space.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(METASPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(replacement=METASPACE, prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(METASPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    first = [*tokens.special, *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [*string.ascii_letters, *string.digits, *string.punctuation, "\n", "\t", METASPACE]
    trainer = trainers.BpeTrainer(
        vocab_size=tokens.size - len(first),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    entries = [*first, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    tokenizer.model = models.BPE(
        vocab={entry: place for place, entry in enumerate(entries)},
        merges=[tuple(pair) for pair in learnt["merges"]],
        byte_fallback=True,
    )
    tokenizer.add_special_tokens(tokens.special)
    return tokenizer
