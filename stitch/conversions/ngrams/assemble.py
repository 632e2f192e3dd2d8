"""An n-gram memory and the blocks after it as one model: a composite whose first half is only an embedding, the token table."""

import copy
import dataclasses
from typing import Any

import torch

from stitch.composite.compose import late_half, stitch_config
from stitch.modeling.modeling_composite import StitchForCausalLM
from stitch.modeling.modeling_halves import early_net
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.translation.module import embeddings_of, translation_module
from stitch.translation.types import Residual, Term, Token, Translation

TOGETHER = 4096  # rows of the token table that are computed at a time


def build_composite(model: Model, site: int, translation: Translation) -> StitchForCausalLM:
    """Blocks `site`.. of `model`, its final norm and head, with `translation` as their input. In evaluation mode.

    The blocks share the donor's tensors. In a composite, `site` must be in the last part, and only that part remains.
    """
    last, before = model.parts[-1], blocks_before_last_part(model.config)
    by_token = tuple(term for term in translation.terms if term.input == Token())
    others = tuple(term for term in translation.terms if term.input != Token())
    read = dataclasses.replace(translation, terms=(Term(Residual(0), None), *others))
    config = stitch_config(last, last, 0, site - before + (last.kept.start if last.kept else 0), read)
    with torch.device("meta"):
        net = StitchForCausalLM(config)
    early: Any = early_net(config.a_config, config.a_flow, 0)
    early.to(model.device, model.dtype)
    with torch.no_grad():
        for parameter in early.parameters():  # including learned positions, for which the translation has a table
            parameter.zero_()
        embedding = early.get_input_embeddings()
        embedding.weight.fill_(1)
        scale = embedding(torch.zeros(1, dtype=torch.long, device=model.device)).float().mean()  # Gemma's √d
        tables = Translation("by token", by_token, torch.zeros(last.width))
        rows, held = translation_module(tables, model, model, site), embeddings_of(model, model)
        for ids in torch.arange(config.vocab_size, device=model.device).split(TOGETHER):
            embedding.weight[ids] = (rows({}, ids[None], torch.ones_like(ids)[None], embeddings=held)[0] / scale).to(
                model.dtype
            )
    net.a, net.b = early, late_half(model, site).net
    net.translation = translation_module(read, model, model, site)
    net.connect()
    net.generation_config = copy.deepcopy(model.net.generation_config)
    net.generation_config.cache_implementation = None  # some families ask for a static cache
    return net.eval()
