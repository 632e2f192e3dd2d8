"""A GPT-2 with an induction circuit set by hand in dimensions of its own; all other weights are noise."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny

Head = tuple[int, int]
CODE = 64  # width of a token's code, of the copy of the previous token's code, and of the one-hot positions
POSITIONS = 80
PREVIOUS, INDUCTION = (0, 1), (1, 2)  # (block, head)


def induction(
    folder: Path, gain: float = 4.0, noise: float = 0.002, at: tuple[Head, Head] = (PREVIOUS, INDUCTION), **changes
) -> Path:
    """Two heads at the given (block, head). The first copies the previous token's code to other dimensions; the
    second looks for the current token there and writes `gain` times the code of the token it finds.
    """
    width = 2 * CODE + POSITIONS
    shape = dict(n_embd=width, n_head=4, n_layer=3, n_positions=POSITIONS, n_inner=48) | changes
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, bos_token_id=tiny.BOS, eos_token_id=tiny.BOS, pad_token_id=tiny.PAD, **shape
    )
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config)
    size = width // 4
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2 or "bias" in name:
                parameter.copy_(noise * torch.randn_like(parameter))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        code, lane, place = slice(0, CODE), slice(CODE, 2 * CODE), slice(2 * CODE, width)
        net.transformer.wte.weight.zero_()
        net.transformer.wpe.weight.zero_()
        codes = torch.randn(tiny.VOCABULARY, size)
        embed = torch.linalg.qr(torch.randn(CODE, size)).Q.T  # codes span as many dimensions as a head has
        net.transformer.wte.weight[:, code] = codes @ embed
        angles = torch.arange(POSITIONS)[:, None] * torch.logspace(0.3, -1.6, POSITIONS // 2)
        net.transformer.wpe.weight[:, place] = torch.cat([angles.cos(), angles.sin()], 1)
        for (block, head), reads, writes, finds in ((at[0], code, lane, False), (at[1], code, code, True)):
            attention = net.transformer.h[block].attn
            query, key, value = attention.c_attn.weight.view(width, 3, 4, size)[:, :, head].unbind(1)
            for part in (query, key, value):
                part.zero_()
            output = attention.c_proj.weight[head * size : (head + 1) * size]
            output.zero_()
            value[reads] = embed.T
            output[:, writes] = (gain if finds else 1.0) * embed
            if finds:
                query[code], key[lane] = 6 * embed.T, 6 * embed.T
            else:
                half, planes = POSITIONS // 2, size // 2
                speeds = torch.logspace(0.3, -1.6, half)
                for plane in range(planes):
                    f = plane * half // planes
                    c, s = 2 * CODE + f, 2 * CODE + half + f
                    cos, sin = torch.cos(speeds[f]), torch.sin(speeds[f])
                    query[c, 2 * plane], query[s, 2 * plane] = 6 * cos, 6 * sin
                    query[c, 2 * plane + 1], query[s, 2 * plane + 1] = -6 * sin, 6 * cos
                    key[c, 2 * plane], key[s, 2 * plane + 1] = 6, 6
    net.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder
