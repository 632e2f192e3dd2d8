"""Random pico models written as GGUF files, with small tokenizers."""

from pathlib import Path
from typing import Any

import numpy
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

SHAPE = dict(
    hidden_size=32, intermediate_size=64, num_attention_heads=4, max_position_embeddings=32, tie_word_embeddings=True
)


def pico_gguf(
    file: Path,
    split: str = "smollm",
    licence: str = "",
    base: str = "",
    packed: GGMLQuantizationType | None = None,
) -> torch.nn.Module:
    """Writes a Llama with a byte-level BPE (four merges, two special tokens) and returns the model.

    `licence` and the address `base` of a model that it was made from stand in the file's metadata. With `packed` the matrices
    are drawn as blocks of that type, and have the values that the package gguf reads there; the model is wider then.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<|endoftext|>", "<|im_start|>", *bytes_to_unicode().values(), "th", "the", "ĠĠ", "Ġthe"]
    shape = SHAPE if packed is None else {**SHAPE, "hidden_size": 256, "intermediate_size": 256}
    config = LlamaConfig(vocab_size=len(tokens), num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=1e-5, **shape)
    writer, model = _writer(file, "llama", config), _random(LlamaForCausalLM(config))
    if licence:
        writer.add_license(licence)
        writer.add_base_model_count(1)
        writer.add_base_model_repo_url(0, base)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e", "Ġ Ġ", "Ġ the"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)

    def stored(name: str, weight: numpy.ndarray) -> numpy.ndarray:
        heads = {"attn_q": 4, "attn_k": 2}.get(name)  # the halves of these are interleaved
        if heads is None:
            return weight
        return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    def read(name: str, weight: numpy.ndarray) -> numpy.ndarray:
        heads = {"attn_q": 4, "attn_k": 2}.get(name, 1)
        return (
            weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape) if heads > 1 else weight
        )

    _write(writer, model, {"ffn_norm": "post_attention_layernorm"}, stored, packed, read)
    return model


def pico_gemma(file: Path) -> torch.nn.Module:
    """Writes a Gemma 3 with a SentencePiece BPE of bytes and a few pieces, and returns the model.

    The first five of its six blocks attend to the last four positions. Its norms, which transformers stores less 1, are
    drawn at random.
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    given, data = ["  ", "\n\n"], [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁t", "he", "▁the", "▁", "t", "h", "e"]
    tokens = [*special, *given, *data, *pieces]
    config = Gemma3TextConfig(
        vocab_size=len(tokens), num_hidden_layers=6, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=256,
        sliding_window=4, rms_norm_eps=1e-6, **SHAPE,
    )  # fmt: skip
    writer, model = _writer(file, "gemma3", config), _random(Gemma3ForCausalLM(config))
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_sliding_window(4)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0] * (len(tokens) - len(pieces)) + [-float(rank) for rank in range(len(pieces))])
    types = ((special, TokenType.CONTROL), (given, TokenType.USER_DEFINED), (data, TokenType.BYTE))
    writer.add_token_types([kind for some, kind in (*types, (pieces, TokenType.NORMAL)) for _ in some])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    names = {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm"}
    names |= {"post_ffw_norm": "post_feedforward_layernorm"}
    names |= {f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    _write(writer, model, names, lambda name, weight: weight + 1 if name.endswith("norm") else weight)
    return model


def _random(model: torch.nn.Module) -> torch.nn.Module:
    """Draws all weights of `model`, norms too, with seed 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1 if parameter.ndim > 1 else 0.3, generator=generator)
    return model.eval()


def _writer(file: Path, architecture: str, config: Any) -> GGUFWriter:
    """A writer that has noted the sizes in `config`."""
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    theta = config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config.vocab_size)
    return writer


def _drawn(shape: tuple[int, ...], kind: GGMLQuantizationType, seed: int) -> numpy.ndarray:
    """Blocks of a quantised type: random bytes, with scales of about 1 / 1,000 where a type begins or ends with them."""
    values, size = GGML_QUANT_SIZES[kind]
    blocks = numpy.random.default_rng(seed).integers(0, 256, (shape[0], shape[1] // values, size), dtype=numpy.uint8)
    scale = numpy.array([1e-3], numpy.float16).view(numpy.uint8)
    places = {"Q6_K": [-2], "Q3_K": [-2], "Q2_K": [-4, -2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q8_0": [0]}[kind.name]
    for place in places:
        blocks[..., place % size : place % size + 2] = scale
    return blocks.reshape(shape[0], -1)


def _write(
    writer: GGUFWriter, model: torch.nn.Module, more: dict[str, str], stored: Any, packed: Any = None, read: Any = None
) -> None:
    """Adds the weights and closes the file. `more` are GGUF's names of a block's tensors that only some families have.

    `stored` turns a weight into what the file holds, by its name in the file. With `packed` matrices are drawn instead, and
    `read` is the inverse of `stored`.
    """
    names = {"attn_norm": "input_layernorm", "attn_output": "self_attn.o_proj", **more}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
    names |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def add(theirs: str, name: str, full: str) -> None:
        weight = state[f"{name}.weight"]
        if packed is None or weight.ndim == 1:
            writer.add_tensor(full, stored(theirs, weight))
            return
        blocks = _drawn(weight.shape, packed, len(writer.tensors[0]))
        writer.add_tensor(full, blocks, raw_dtype=packed)
        weight[:] = read(theirs, dequantize(blocks, packed))  # it shares memory with the model

    add("token_embd", "model.embed_tokens", "token_embd.weight")
    writer.add_tensor("output_norm.weight", stored("output_norm", state["model.norm.weight"]))
    for block in range(model.config.num_hidden_layers):
        for theirs, ours in names.items():
            add(theirs, f"model.layers.{block}.{ours}", f"blk.{block}.{theirs}.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
