"""Finds out where a decoder keeps its blocks and its residual stream, by watching one forward pass.

The blocks are the module list in which every block takes what the one before it returned, and which is as long as the config
says. What is found is the `flow` of `stitch/modeling/modeling_halves.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae.messages import printable
from stitch.errors import UsageError
from stitch.modeling.modeling_halves import Half, late_net
from stitch.models.shared import share

TOKENS = 6


@dataclass
class _Call:
    """The first call of a module in a pass: streams that it took, by position or name, what it returned, and when."""

    taken: dict[int | str, Tensor]
    returned: Any
    number: int


@dataclass
class _Chain:
    path: str
    calls: list[_Call]
    argument: int | str
    output: list[int] | None

    @property
    def last(self) -> Tensor:
        returned = self.calls[-1].returned
        return returned if self.output is None else returned[self.output[0]]


# What a family's own code raises where it is run in a way that it does not provide for.
FAMILY_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
# Said of what `modeling_halves.py` has in the place of parts that do not run.
LEFT_OUT = re.compile(r"(?:PassingBlock|Unused|UnusedEmbedding)'?(?: object)? has no attribute ['`](\w+)['`]")


def one_line(error: Exception) -> str:
    """Such an error as messages quote it."""
    if missing := LEFT_OUT.search(str(error)):
        return f"the model reads `{missing[1]}` of a part of it that would not run"
    said = printable(" ".join(str(error).split()))[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def flow_of(net: PreTrainedModel, *, blocks: str | None = None, settled: bool = False) -> dict:
    """Where `net` keeps its stream. It may be on any device, but not on torch's meta device.

    `blocks` is the path of the module list, if that is known. With `settled` it is also tried which embeddings the blocks after
    the first need, and whether they need token ids.
    Raises: UsageError where no module list is a chain of as many blocks as the config says, or nothing computes logits from it.
    """
    family, depth = net.config.model_type, getattr(net.config.get_text_config(decoder=True), "num_hidden_layers", None)
    ids = torch.arange(2, 2 + TOKENS, device=net.device)[None]
    try:
        calls, logits = _calls(net, ids)
    except FAMILY_ERRORS as error:
        raise UsageError(
            f"a model must read a short text to be cut; {family} fails ({one_line(error)}): choose another family."
        ) from error
    lists = (
        (path, one) for path, one in net.named_modules() if isinstance(one, nn.ModuleList) and blocks in (None, path)
    )
    chains = [chain for path, one in lists if len(one) == depth and (chain := _chain(path, one, calls))]
    if not chains:
        raise UsageError(
            f"a model can be cut where each of its blocks takes what the one before it returned; in {family} no list of "
            f"{depth} modules, its num_hidden_layers, does: choose another family."
        )
    chain = min(chains, key=lambda one: one.path.count("."))
    prefix = net.base_model_prefix
    body = prefix if prefix and chain.path.startswith(f"{prefix}.") else ""
    paths = {id(module): path for path, module in net.named_modules(remove_duplicate=False)}
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or head is None:
        raise UsageError(
            f"a model needs a table of token embeddings and a head to be cut; a {family} model does not tell them."
        )
    stream = chain.calls[-1].taken[chain.argument]  # the first block may be given the embeddings in another dtype
    idle = _idle(net, chain, calls) if settled else []
    elsewhere = tuple(f"{path}." for path in (chain.path, *idle))
    flow = {
        "class": type(net).__name__, "body": body, "blocks": chain.path, "exit": _exit(net, chain, calls),
        "input": paths[id(embedding)], "head": paths[id(head)], "argument": chain.argument, "output": chain.output,
        "float32": stream.dtype == torch.float32 != net.dtype, "idle": idle, "ids": False,
        "depth": len(chain.calls), "width": stream.shape[-1], "embedded": embedding.embedding_dim,
        "unused": [
            path for path, module in net.named_modules()
            if isinstance(module, nn.Embedding) and not path.startswith(elsewhere)
        ],
    }  # fmt: skip
    return _settled(net, flow, chain, ids, logits) if settled and len(chain.calls) > 1 else flow


@torch.no_grad()
def _settled(net: PreTrainedModel, flow: dict, chain: _Chain, ids: Tensor, logits: Tensor) -> dict:
    """The flow that leaves out most of those with which the blocks after the first give the same logits; else `flow`."""
    all_of_it = {"unused": [], "idle": []}
    for change in ({}, {"unused": []}, {"idle": []}, all_of_it, {**all_of_it, "ids": True}):
        tried = {**flow, **change}
        try:
            with torch.device("meta"):
                late = late_net(net.config, tried, 1, flow["depth"])
            share(late, net)
            half = Half(late.eval(), tried, 1, flow["depth"]).open()
            found = half.run(chain.calls[1].taken[chain.argument], input_ids=ids, use_cache=False).logits
        except FAMILY_ERRORS:
            continue
        if torch.equal(found, logits):
            return tried
    return flow


@torch.no_grad()
def _calls(net: PreTrainedModel, ids: Tensor) -> tuple[dict[int, _Call], Tensor]:
    """The first call of every module in a pass over `ids`, by the module's identity, and the logits."""
    found: dict[int, _Call] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if id(module) not in found:
            taken = {place: value for place, value in [*enumerate(args), *kwargs.items()] if _may_be_stream(value)}
            found[id(module)] = _Call(taken, output, len(found))

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in net.modules()]
    try:
        logits = net(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return found, logits


def _may_be_stream(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()


def _chain(path: str, blocks: nn.ModuleList, calls: dict[int, _Call]) -> _Chain | None:
    """`blocks` as a chain, where all were called, and more than half of them take what the one before returned.

    Not all need to: some loops add or scale between certain blocks.
    """
    own = [calls[id(block)] for block in blocks if id(block) in calls]
    if not own or len(own) < len(blocks):
        return None
    for argument in sorted(set.intersection(*(set(call.taken) for call in own)), key=str):
        for output in _outputs(own[0].returned):
            links = [
                _same(before.returned if output is None else before.returned[output[0]], after.taken[argument])
                for before, after in pairwise(own)
            ]
            if 2 * sum(links) >= len(links):
                return _Chain(path, own, argument, output)
    return None


def _outputs(returned: Any) -> Iterator[list[int] | None]:
    if isinstance(returned, Tensor):
        yield None
    elif isinstance(returned, (tuple, list)):
        yield from ([place, len(returned)] for place, value in enumerate(returned) if _may_be_stream(value))


def _same(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and torch.equal(one, other)


def _idle(net: nn.Module, chain: _Chain, calls: dict[int, _Call]) -> list[str]:
    """The outermost modules with parameters beside the blocks in which nothing was called."""
    found: list[str] = []
    for path, module in net.named_modules():
        around = not path or chain.path == path or chain.path.startswith(f"{path}.")
        if around or any(path.startswith(f"{outer}.") for outer in (chain.path, *found)):
            continue
        has_parameters = next(module.parameters(), None) is not None
        if has_parameters and not any(id(inner) in calls for inner in module.modules()):
            found.append(path)
    return found


def _exit(net: nn.Module, chain: _Chain, calls: dict[int, _Call]) -> str | None:
    """The module that takes the stream after the last block; None where an operation without a module does."""
    for path, module in net.named_modules():
        call = calls.get(id(module))
        if call is None or not path or path == chain.path or path.startswith(f"{chain.path}."):
            continue
        if call.number > chain.calls[-1].number and 0 in call.taken and _same(chain.last, call.taken[0]):
            return path
    return None
