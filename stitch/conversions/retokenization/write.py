"""The model with its new vocabulary, as a stock checkpoint with the new tokenizer beside it."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stitch.composite.compose import share
from stitch.composite.donor_code import save_net
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of, logits, scale, softcap
from stitch.conversions.retokenization.streams import final
from stitch.errors import UsageError
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.flow import FAMILY_ERRORS, one_line
from stitch.models.model import Model
from stitch.text.reader import Reader

SPECIAL = ("bos", "eos", "pad")  # roles that configs name
OF_TOKENS = (  # settings for generation that are ids of tokens, beside those of roles
    *("bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "force_words_ids", "forced_bos_token_id"),
    *("forced_eos_token_id", "forced_decoder_ids", "sequence_bias", "decoder_start_token_id"),
)
TRIED = 8  # tokens


def stays_tied(config: PreTrainedConfig, rows: Rows, head: Head) -> bool:
    """Whether one matrix can be both: the model has one, and the new rows are the same."""
    return bool(config.tie_word_embeddings) and rows.shape == head.shape and torch.equal(rows.float(), head.float())


def with_vocabulary(model: Model, rows: Rows, head: Head, new: Reader) -> PreTrainedModel:
    """The model with these rows of its embedding and its head. All other tensors share memory with those of `model`.

    A head with one column more than the model's width has a bias in the last.
    """
    if scale(model) != 1.0:
        head = head / scale(model)
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
    for name in OF_TOKENS:  # ids of its own tokens
        if hasattr(net.generation_config, name):
            setattr(net.generation_config, name, None)
    for role in SPECIAL:
        setattr(net.generation_config, f"{role}_token_id", new.vocabulary.roles.get(role))
    return net.eval()


@torch.no_grad()
def require_plain_ends(model: Model, new: Reader) -> None:
    """Raises UsageError where another embedding and head are not enough to read another vocabulary.

    Some tokens get other ids, and must be read as before: the logits must be those of the head alone, and no other part of the
    model may read token ids or be made for as many. Families that tests have tried are not tried again.
    """
    if model.anatomy.tested:
        return
    own, size = model.embedding.weight.detach(), len(new.vocabulary)
    special = {new.bos, model.bos, *model.tokenizer.all_special_ids}
    ids = torch.tensor([place for place in reversed(range(size)) if place not in special][:TRIED])
    before = torch.tensor([place for place in range(len(own)) if place not in special][: len(ids)])
    places, head = torch.arange(size, device=own.device) % len(own), head_of(model)
    places[ids] = before.to(own.device)
    places[new.bos] = first = int(before[0]) if model.bos is None else model.bos
    rows, head = own[places], head[(places + 1) % len(head)]
    try:
        net = with_vocabulary(model, rows, head, new)
        sequence = torch.cat([torch.tensor([new.bos]), ids]).to(model.device)
        found = net(input_ids=sequence[None], use_cache=False).logits[0].float()
        wanted = logits(final(model, before, first), head, softcap(model))
        with torch.device("meta"):
            again = AutoModelForCausalLM.from_config(net.config)
        shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (net, again)]
        is_same = found.shape == wanted.shape and bool(
            (found - wanted).abs().max() <= torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max()
        )
        different = None if is_same else "its logits are not those of its head alone, or it reads ids elsewhere"
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
