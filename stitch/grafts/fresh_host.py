"""The host of a graft as a config file describes it: freshly initialised, of a size that a machine can hold."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stitch.errors import UsageError
from stitch.files.specification import faulty, read_json, shown
from stitch.internals import weights
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model

FORCED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # taken from the donor, as the tokenizer is
# Also read by transformers, though its config does not list them; with a value of their kind.
ALSO_READ = {"torch_dtype": "float32", "rope_theta": 1e4, "rope_scaling": {}, "head_dim": 64}
BLOCKS, WIDTH = ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd")
LEAST = dict.fromkeys((*BLOCKS, *WIDTH), 1) | dict.fromkeys(("max_position_embeddings", "n_positions"), 2)
MOST_PARAMETERS = 10**9  # 4 GB in fp32
MOST_BLOCKS, MOST_SIZE = 1_000, 10**6  # of a config; a model is built before its parameters are counted


def read_host(path: Path, donor: Model, seed: int) -> Model:
    """A freshly initialised model of the architecture in a JSON file, with the donor's vocabulary.

    Raises: UsageError for a file that is no config, a family that grafts do not support, settings that the family does not have
    or that give no working model, too many parameters, and tied embeddings: a donor's embedding and unembedding differ once its
    final norm's gain is folded in.
    """
    values = read_json(path, "the host")
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UsageError(
            f'host must be JSON such as {{"model_type": "llama", "hidden_size": 320, …}}; {path} has no model_type.'
        )
    family = values.pop("model_type")
    if family not in weights.FAMILIES:
        raise UsageError(
            f"{path}: the host of a graft must be of one of {', '.join(weights.FAMILIES)}; got {family}: choose one."
        )
    if values.get("tie_word_embeddings"):
        raise UsageError(
            f"{path}: the host's embeddings must not be tied: the donor's unembedding would overwrite its embedding; set "
            '"tie_word_embeddings": false.'
        )
    forced = {name: getattr(donor.config, name, None) for name in FORCED}
    forced["vocab_size"] = len(donor.embedding.weight)
    if any(name in values and values[name] != forced[name] for name in FORCED):
        raise UsageError(f"the host has the donor's tokenizer; leave {', '.join(FORCED)} out of {path}.")
    if faults := list(_faults(values, family)):
        raise faulty(str(path), faults)
    net = _made(path, family, {**values, **forced, "tie_word_embeddings": False}, seed)
    host = Model(path.stem, net, donor.tokenizer, ANATOMIES[family], path.parent)
    weights.check(host, "the host of a graft")
    return host


def _faults(values: dict[str, Any], family: str) -> Iterator[str]:
    """Settings that the family does not have, or whose value is of another kind than its default."""
    config = AutoConfig.for_model(family)
    listed = {name: getattr(config, name, None) for name in (*config.to_dict(), *config.attribute_map)}
    known = {**ALSO_READ, **listed}
    for name, value in values.items():
        default = known.get(name)
        if name not in known:
            close = get_close_matches(name, known, n=1)
            yield f"{family} has no {shown(name)}" + (f" (did you mean {close[0]}?)" if close else "")
        elif value is None or default is None:
            continue
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                yield f"{name} must be true or false, got {shown(value)}"
        elif isinstance(default, int):
            least, most = LEAST.get(name, 0), MOST_BLOCKS if name in BLOCKS else MOST_SIZE
            if type(value) is not int or not least <= value <= most:
                yield f"{name} must be a whole number from {least} to {most:,}, got {shown(value)}"
        elif isinstance(default, float):
            if type(value) not in (int, float):
                yield f"{name} must be a number, got {shown(value)}"
        elif not isinstance(value, type(default)):
            yield f"{name} must be like {shown(default)}, got {shown(value)}"


def _made(path: Path, family: str, values: dict[str, Any], seed: int) -> PreTrainedModel:
    """The model, once it is known to be small enough and to compute something."""
    try:
        config = AutoConfig.for_model(family, **values)
        with torch.device("meta"):
            count = AutoModelForCausalLM.from_config(config, dtype=torch.float32).num_parameters()
        if count > MOST_PARAMETERS:
            raise UsageError(
                f"{path} must make a model of up to {MOST_PARAMETERS:,} parameters; it has {count:,}: lower its sizes."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            works = bool(net(torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits.isfinite().all())
    except UsageError:
        raise
    except Exception as error:  # the checks of the family's config and model
        raise UsageError(
            f"{path} must make a model; transformers says: {' '.join(str(error).split())[:200]}"
        ) from error
    if not works:
        raise UsageError(f"{path} must make a model; what it computes is not finite: give its settings usual values.")
    return net
