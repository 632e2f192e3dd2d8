"""Pico models of eleven families, built from configs in milliseconds: six blocks each, with different widths and
heads.
"""

import functools
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model

VOCABULARY, DEPTH, BOS, PAD = 128, 6, 0, 1
FAMILIES = sorted(ANATOMIES)
_COMMON = dict(vocab_size=VOCABULARY, bos_token_id=BOS, eos_token_id=BOS, pad_token_id=PAD, num_hidden_layers=DEPTH)
_GROUPED = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
_MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"] * 2
SHAPES: dict[str, dict] = {
    "gpt2": dict(n_embd=32, n_head=4, n_positions=128, n_inner=48),
    "gpt_bigcode": dict(n_embd=32, n_head=4, n_positions=128, n_inner=48),
    "llama": dict(hidden_size=40, intermediate_size=56, **_GROUPED, tie_word_embeddings=True),
    "mistral": dict(hidden_size=32, intermediate_size=56, **_GROUPED, sliding_window=5),
    "qwen2": dict(hidden_size=48, intermediate_size=40, **_GROUPED),
    "qwen3": dict(hidden_size=32, intermediate_size=40, head_dim=12, **_GROUPED),
    "gemma2": dict(
        hidden_size=32, intermediate_size=40, head_dim=8, **_GROUPED, sliding_window=6, query_pre_attn_scalar=8
    ),
    "gemma3_text": dict(
        hidden_size=24,
        intermediate_size=40,
        head_dim=8,
        **_GROUPED,
        sliding_window=7,
        query_pre_attn_scalar=8,
        layer_types=_MIXED_LAYERS,
    ),
    "gpt_neox": dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, max_position_embeddings=128),
    "phi": dict(hidden_size=48, intermediate_size=64, num_attention_heads=4, max_position_embeddings=128),
    "olmo2": dict(hidden_size=32, intermediate_size=48, **_GROUPED),
}


def net(family: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A model with weights so large that omitting one block changes the logits by whole units."""
    config = AutoConfig.for_model(family, **{**_COMMON, **SHAPES[family], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(
                    noise * (1.0 if "emb" in name or "wte" in name or "wpe" in name else parameter.shape[-1] ** -0.5)
                )
            else:
                parameter.add_(0.1 * noise)  # norms and biases: close to their initial values, but all different
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One id per character: BOS, PAD and printable ASCII. BOS is added in front, padding on the left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "<unk>", *characters])}
    vocabulary |= {f"<{index}>": index for index in range(len(vocabulary), VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    )


def model(family: str, seed: int = 0, folder: Path | None = None, **changes) -> Model:
    """A pico `Model`. `folder` is only a name; nothing is written (see `save`)."""
    return Model(family, net(family, seed, **changes), tokenizer(), ANATOMIES[family], folder or Path(family))


def save(folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """Writes a pico checkpoint as transformers does: config, safetensors, tokenizer."""
    net(family, seed, **changes).to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def ids(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids, starting with BOS."""
    drawn = torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = BOS
    return drawn


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


shared = functools.cache(model)  # for tests that only read it
