"""A host that nothing has trained: of the architecture in a file, with the donor's vocabulary."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stitch.circuits import weights
from stitch.errors import UsageError
from stitch.models import ANATOMIES, Model

FORCED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # the donor's, since the tokenizer is


def read_host(path: Path, donor: Model, seed: int) -> Model:
    """A freshly initialised model of the architecture in a JSON file, with the donor's vocabulary.

    Raises: UsageError for a file that is no config, a family without anatomy, or tied embeddings: a donor's embedding and
    unembedding are not the same matrix once its final norm's gain is folded in.
    """
    try:
        wanted = json.loads(path.read_text(encoding="utf-8"))
        family = wanted.pop("model_type")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f'--host must be JSON such as {{"model_type": "llama", "hidden_size": 320, …}}; {path}: {type(error).__name__}, '
            f"{error}."
        ) from error
    if family not in weights.FAMILIES:
        raise UsageError(f"the host of a graft must be of one of {', '.join(weights.FAMILIES)}; got {family}.")
    if wanted.get("tie_word_embeddings"):
        raise UsageError(
            "the host's embeddings must not be tied: the donor's unembedding would overwrite its embedding; set "
            '"tie_word_embeddings": false.'
        )
    own = {name: getattr(donor.config, name, None) for name in FORCED}
    own["vocab_size"] = len(donor.embedding.weight)
    if any(name in wanted and wanted[name] != own[name] for name in FORCED):
        raise UsageError(f"the host has the donor's tokenizer; leave {', '.join(FORCED)} out of {path}.")
    wanted["tie_word_embeddings"] = False
    try:
        config = AutoConfig.for_model(family, **wanted, **own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:  # whatever the family checks
        raise UsageError(
            f"{path} must make a model; transformers says: {' '.join(str(error).split())[:200]}"
        ) from error
    host = Model(path.stem, net, donor.tokenizer, ANATOMIES[family], path.parent)
    weights.check(host, "the host of a graft")
    return host
