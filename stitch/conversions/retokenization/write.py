"""The model with its new vocabulary, as a stock checkpoint with the new tokenizer beside it."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stitch.composite.compose import share
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.model import Model
from stitch.text.reader import Reader

SPECIAL = ("bos", "eos", "pad")  # roles that configs name


def stays_tied(config: PreTrainedConfig, rows: Rows, head: Head) -> bool:
    """Whether one matrix can be both: the model has one, and the new rows are the same."""
    return bool(config.tie_word_embeddings) and rows.shape == head.shape and torch.equal(rows.float(), head.float())


def with_vocabulary(model: Model, rows: Rows, head: Head, new: Reader) -> PreTrainedModel:
    """The model with these rows of its embedding and its head. All other tensors share memory with those of `model`.

    A head with one column more than the model's width has a bias in the last.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size, config.tie_word_embeddings = len(rows), stays_tied(config, rows, head)
    config._name_or_path = ""
    for role in SPECIAL:
        setattr(config, f"{role}_token_id", new.vocabulary.roles.get(role))
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    share(net, model.net, lambda path: path)
    made = Model(model.name, net, new.tokenizer, model.anatomy, model.folder)
    made.embedding.weight = _parameter(rows, model)
    made.head.weight = (
        made.embedding.weight if config.tie_word_embeddings else _parameter(head[:, : model.width], model)
    )
    if head.shape[1] > model.width:
        made.head.bias = _parameter(head[:, -1], model)
    for module in (made.embedding, made.head):
        for name in ("num_embeddings", "out_features"):
            if hasattr(module, name):
                setattr(module, name, len(rows))
    net.generation_config = copy.deepcopy(model.net.generation_config)
    for role in SPECIAL:
        setattr(net.generation_config, f"{role}_token_id", new.vocabulary.roles.get(role))
    return net.eval()


def _parameter(values: torch.Tensor, model: Model) -> nn.Parameter:
    return nn.Parameter(values.to(model.embedding.weight).contiguous(), requires_grad=False)


def write(net: PreTrainedModel, tokenizer: Path, folder: Path, files: dict[str, bytes]) -> None:
    """Weights, config, the files of the tokenizer in the folder `tokenizer`, and `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
