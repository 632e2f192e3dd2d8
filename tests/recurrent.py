"""Pico models in recurrent form, and donors for them."""

import torch

import tiny
from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.forms import RecurrentForm, wrap
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM
from stitch.models.sources import Source
from stitch.text.windows import Windows

WINDOW = 5
FAMILIES = {"gpt2": {}, "gpt_bigcode": {}, "llama": {}, "mistral": {"sliding_window": 128}, "qwen2": {}}


def recurrent(family: str = "llama", features: str = "hedgehog", seed: int = 0, **options) -> RecurrentForCausalLM:
    """A pico model with random feature maps."""
    model = tiny.model(family, seed, **FAMILIES[family])
    net = wrap(model, RecurrentForm(**{"features": features, "window": WINDOW, "sinks": 1, "hidden": 4, **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(net.memories.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return net


def windows(count: int = 24, length: int = 32, seed: int = 0) -> Windows:
    ids = tiny.ids(count, length, seed).int()
    return Windows(ids, torch.zeros_like(ids))


def donor(family: str = "gpt2") -> Donor:
    model = tiny.model(family)
    splits = {"fit": windows(), "sweep": windows(4, seed=1), "report": windows(4, seed=2)}
    return Donor(model, Source(family, model.folder, None, "folder"), splits, splits["sweep"], {"text": "random"})
