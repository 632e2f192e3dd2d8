"""The model with its new vocabulary, as a stock checkpoint with the new tokenizer beside it."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stitch.composite.compose import share
from stitch.composite.donor_code import save_net
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of, logits, softcap
from stitch.conversions.retokenization.streams import embedding, final
from stitch.errors import UsageError
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.flow import FAMILY_ERRORS, one_line
from stitch.models.model import Model
from stitch.text.reader import Reader

SPECIAL = ("bos", "eos", "pad")  # roles that configs name
TRIED = 8  # tokens


def stays_tied(config: PreTrainedConfig, rows: Rows, head: Head) -> bool:
    """Whether one matrix can be both: the model has one, and the new rows are the same."""
    return bool(config.tie_word_embeddings) and rows.shape == head.shape and torch.equal(rows.float(), head.float())


def with_vocabulary(model: Model, rows: Rows, head: Head, new: Reader) -> PreTrainedModel:
    """The model with these rows of its embedding and its head. All other tensors share memory with those of `model`.

    A head with one column more than the model's width has a bias in the last.
    """
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings, config._name_or_path = stays_tied(config, rows, head), ""
    config.get_text_config(decoder=True).vocab_size = len(rows)
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


@torch.no_grad()
def require_plain_ends(model: Model, new: Reader) -> None:
    """Raises UsageError where another embedding and head are not enough to read another vocabulary.

    The logits must be those of the head alone, and no other part of the model may be made for token ids. Families that tests have
    tried are not tried again.
    """
    if model.anatomy.tested:
        return
    own, size = model.embedding.weight.detach(), len(new.vocabulary)
    places, head = torch.arange(size, device=own.device), head_of(model)
    rows, head = own[places % len(own)], head[(places + 1) % len(head)]
    ids = torch.arange(max(0, size - TRIED), size)
    try:
        net = with_vocabulary(model, rows, head, new)
        sequence = torch.cat([torch.tensor([new.bos]), ids]).to(model.device)
        found = net(input_ids=sequence[None], use_cache=False).logits[0].float()
        with embedding(model, rows):
            wanted = logits(final(model, ids, new.bos), head, softcap(model))
        with torch.device("meta"):
            again = AutoModelForCausalLM.from_config(net.config)
        shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (net, again)]
        is_same = found.shape == wanted.shape and bool(
            (found - wanted).abs().max() <= torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max()
        )
        different = None if is_same else "its logits are not those of its head alone"
        if shapes[0] != shapes[1]:
            different = "its config has another size for one of them"
    except FAMILY_ERRORS as error:
        different = f"it fails ({one_line(error)})"
    if different:
        raise UsageError(
            f"another embedding and head must be enough for another vocabulary; in {model.name} ({model.config.model_type}) they "
            f"are not: {different}. Choose another model."
        )


def _parameter(values: torch.Tensor, model: Model) -> nn.Parameter:
    return nn.Parameter(values.to(model.embedding.weight).contiguous(), requires_grad=False)


def write(net: PreTrainedModel, tokenizer: Path, folder: Path, files: dict[str, bytes]) -> None:
    """Weights, config and the code that these need, the files of the tokenizer in the folder `tokenizer`, and `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_net(net, folder)
    copy_tokenizer(tokenizer, folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
