"""Pico models in quantised checkpoints, each beside one in plain floats with the values that its weights stand for."""

import json
from collections.abc import Callable
from pathlib import Path

import _families
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny

BLOCK = 4  # rows and columns that share a scale in these tests; 128 in real checkpoints
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def write(folder: Path, source: Path, tensors: dict[str, Tensor], config: dict | None = None) -> Path:
    """The model in `source` with other tensors, and with `quantization_config` in its config."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        whole = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**whole, "quantization_config": config}))
    return folder


def blocks_of_fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix in FP8 with a scale per block, and the values that these stand for."""
    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    plain = (packed.float() * scale[:, None, :, None]).reshape(weight.shape)
    return {"": packed.reshape(weight.shape), "_scale_inv": scale}, plain


def whole_in_fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same with one scale for the matrix."""
    scale = weight.abs().max() / 448
    packed = (weight / scale).to(torch.float8_e4m3fn)
    return {"": packed, "_scale_inv": scale}, packed.float() * scale


def fp8(root: Path, family: str = "llama", *, in_blocks: bool = True) -> tuple[Path, Path]:
    """A model in FP8, and one in float32 with the values that its weights stand for."""
    pack, size = (blocks_of_fp8, [BLOCK, BLOCK]) if in_blocks else (whole_in_fp8, None)
    net = _families.net(family) if family not in tiny.SHAPES else tiny.net(family)
    net.save_pretrained(root / "source")
    tiny.tokenizer().save_pretrained(root / "source")
    packed, plain = {}, {}
    for name, weight in load_file(root / "source" / "model.safetensors").items():
        packed[name] = plain[name] = weight
        if name.endswith("proj.weight"):
            parts, plain[name] = pack(weight)
            packed |= {name + end: part for end, part in parts.items()}
    method = {"quant_method": "fp8", "weight_block_size": size, "activation_scheme": "dynamic"}
    return write(root / "packed", root / "source", packed, method), write(root / "plain", root / "source", plain)


def mxfp4(root: Path) -> tuple[Path, Path]:
    """A gpt-oss whose experts are in MXFP4: two values of 4 bits in a byte, and a power of two for every 32."""
    config = _families.config("gpt_oss")
    config.hidden_size = config.intermediate_size = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    net.save_pretrained(root / "source")
    tiny.tokenizer().save_pretrained(root / "source")
    draw = torch.Generator().manual_seed(0)
    packed, plain = {}, {}
    for name, weight in load_file(root / "source" / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = plain[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        shape = experts, outputs, inputs // 32
        codes = torch.randint(0, 16, (*shape, 16, 2), generator=draw, dtype=torch.uint8)
        exponents = torch.randint(120, 126, shape, generator=draw, dtype=torch.uint8)
        packed |= {f"{name}_blocks": codes[..., 0] | (codes[..., 1] << 4), f"{name}_scales": exponents}
        values = (
            FP4[codes.long() % 8] * (1 - 2 * (codes.float() // 8)) * 2.0 ** (exponents.float() - 127)[..., None, None]
        )
        plain[name] = values.reshape(experts, outputs, inputs).transpose(1, 2).to(torch.bfloat16)
    method = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    return write(root / "packed", root / "source", packed, method), write(root / "plain", root / "source", plain)


def compressed(kind: str) -> Callable[[Path], tuple[Path, Path]]:
    """A Llama whose linear layers are as llm-compressor writes them."""

    def made(root: Path) -> tuple[Path, Path]:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        layout, levels, group, arguments = {
            "int4": ("pack-quantized", 7, 32, {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
            "int8": ("int-quantized", 127, 64, {"num_bits": 8, "type": "int", "strategy": "channel"}),
            "fp8": ("float-quantized", 448, 64, {"num_bits": 8, "type": "float", "strategy": "channel"}),
        }[kind]
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments), format=layout)
        pack = BaseCompressor.get_value_from_registry(layout).compress
        tiny.save(root / "source", "llama", hidden_size=64, intermediate_size=64)
        packed, plain = {}, {}
        for name, weight in load_file(root / "source" / "model.safetensors").items():
            if not name.endswith("proj.weight"):
                packed[name] = plain[name] = weight
                continue
            scale = weight.unflatten(1, (-1, group)).abs().amax(-1) / levels
            wide = scale.repeat_interleave(group, 1)
            exact = weight / wide
            plain[name] = wide * (exact.to(torch.float8_e4m3fn).float() if kind == "fp8" else exact.round())
            parts = pack({"weight": weight, "weight_scale": scale}, scheme)
            packed |= {name.removesuffix("weight") + own: part for own, part in parts.items()}
        method = {
            "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        }  # fmt: skip
        return write(root / "packed", root / "source", packed, method), write(root / "plain", root / "source", plain)

    return made


def bits_and_bytes(**how) -> Callable[[Path], tuple[Path, Path]]:
    """A Llama as transformers quantises it, and one with the values that bitsandbytes' own function gives."""

    def made(root: Path) -> tuple[Path, Path]:
        from bitsandbytes.functional import dequantize_4bit

        source = tiny.save(root / "source", "llama", hidden_size=64, intermediate_size=64)
        config = transformers.BitsAndBytesConfig(**how)
        net = transformers.AutoModelForCausalLM.from_pretrained(
            source, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        )
        plain = load_file(source / "model.safetensors")
        for name, module in net.named_modules():
            if f"{name}.weight" in plain and name.endswith("proj"):
                weight = module.weight
                plain[f"{name}.weight"] = (
                    dequantize_4bit(weight.data, weight.quant_state).float()
                    if "load_in_4bit" in how
                    else weight.data.float() * weight.SCB[:, None] / 127
                )
        net.save_pretrained(root / "packed")
        tiny.tokenizer().save_pretrained(root / "packed")
        return root / "packed", write(root / "plain", source, plain)

    return made
