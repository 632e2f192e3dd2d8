"""What models cost to run and to keep: FLOPs, parameters, bytes on disk, and bytes read per token."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import nn

from sae.types import Dictionary
from stitch.composite.compose import early_half, late_half, shares_matrix
from stitch.modeling.modeling_translation import TranslationModule
from stitch.models.flops import block_flops
from stitch.models.model import Model
from stitch.translation.module import translation_config
from stitch.translation.types import Translation


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    flops       per token: 2 per weight that is multiplied, the head included, and those of attention over a whole window
    parameters  numbers stored, tied ones once
    bytes       on disk: parameters, keys of tables and classes of tokens
    bytes_read  per token when tokens are decoded one at a time: weights that are multiplied, and a row of every table.
                Keys and values of earlier tokens are not counted.
    """

    flops: float = 0.0
    parameters: int = 0
    bytes: int = 0
    bytes_read: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.bytes_read + other.bytes_read,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops - other.flops,
            self.parameters - other.parameters,
            self.bytes - other.bytes,
            self.bytes_read - other.bytes_read,
        )

    def within(self, other: "Cost") -> bool:
        """Whether it takes no more FLOPs and no more bytes on disk than another."""
        return self.flops <= other.flops * (1 + 1e-9) and self.bytes <= other.bytes

    def to_dict(self) -> dict:
        return asdict(self)


def cost_of(net: nn.Module, flops: float, itemsize: int | None = None) -> Cost:
    """The cost of running the whole network, which may be on the meta device. Parameters that modules share count once.

    `itemsize` is the number of bytes per parameter; None: that of each parameter's dtype.
    """
    parameters, stored, read = 0, 0, 0
    seen: set[int] = set()
    looked_up = {id(parameter) for module in net.modules() for parameter in _looked_up(module)}
    multiplied = {id(p) for module in net.modules() if not any(True for _ in _looked_up(module)) for p in _own(module)}
    for module in net.modules():
        for parameter in _own(module):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            size = parameter.numel() * (itemsize or parameter.element_size())
            only_looked_up = id(parameter) in looked_up - multiplied
            parameters += parameter.numel()
            stored += size
            read += size // max(1, len(parameter)) if only_looked_up else size
        for name, buffer in _stored_buffers(module):
            stored += buffer.numel() * buffer.element_size()
            if name == "codes":  # numbers of a packed table, of which a row is read
                parameters += buffer.numel()
                read += buffer.shape[1]
    return Cost(flops, parameters, stored, read)


def _own(module: nn.Module) -> Iterable[nn.Parameter]:
    return (parameter for parameter in module._parameters.values() if parameter is not None)


def _looked_up(module: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters of which a token reads a single row, or a single matrix."""
    names = {
        "table",
        "scales",
        *(["weight"] if isinstance(module, nn.Embedding) or "classes" in module._buffers else []),
    }
    return (parameter for name, parameter in module._parameters.items() if name in names and parameter is not None)


def _stored_buffers(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    names = ("keys", "classes", "codes")
    return ((name, buffer) for name in names if (buffer := module._buffers.get(name)) is not None)


def whole(model: Model, context: int) -> Cost:
    """The cost of a whole model on windows of `context` tokens."""
    blocks = sum(block_flops(model.config, block, context) for block in range(model.depth))
    return cost_of(model.net, blocks + head_flops(model))


def early(model: Model, site: int, context: int) -> Cost:
    """The cost of a model's embedding and its blocks before `site`."""
    blocks = sum(block_flops(model.config, block, context) for block in range(site))
    return _counted(model, early_half, site, blocks)


def late(model: Model, site: int, context: int) -> Cost:
    """The cost of a model's blocks from `site` on, its final norm and head."""
    blocks = sum(block_flops(model.config, block, context) for block in range(site, model.depth))
    return _counted(model, _late_net, site, blocks + head_flops(model))


def _late_net(model: Model, site: int) -> nn.Module:
    return late_half(model, site).net


# A report asks for the sizes of the same halves a hundred times, and each half is built to be counted. The number and the shapes
# of a net's blocks must not change once it was counted; weights may.
_SIZES: WeakKeyDictionary[nn.Module, dict[tuple, Cost]] = WeakKeyDictionary()


def _counted(model: Model, build: Callable[[Model, int], nn.Module], site: int, flops: float) -> Cost:
    known, key = _SIZES.setdefault(model.net, {}), (build, site, model.kept, model.dtype)
    if key not in known:
        known[key] = cost_of(build(model, site), 0.0)
    return replace(known[key], flops=flops)


def halves(a: Model, site: int, b: Model, onto: int, context: int) -> Cost:
    """The cost of A's embedding and blocks before `site`, and of B's from `onto` on and its head, which may share a matrix."""
    return early(a, site, context) + late(b, onto, context) - _stored_once(a, b)


def _stored_once(a: Model, b: Model) -> Cost:
    """What the sum of two halves counts twice: the matrix that is A's embedding and B's head, and a row of it that is read."""
    if not shares_matrix(a, b):
        return Cost()
    weight = a.embedding.weight
    size = weight.numel() * weight.element_size()
    return Cost(0.0, weight.numel(), size, size // len(weight))


def head_flops(model: Model) -> float:
    """FLOPs per token of the product with the head's weights."""
    return 2.0 * model.head.get_parameter("weight").numel()


def of_translation(translation: Translation, a: Model, b: Model, site: int) -> Cost:
    """The cost of a translation in a composite of A, cut at `site`, and B. Its tables are stored in B's dtype."""
    with torch.device("meta"):
        module = TranslationModule(translation_config(translation, b.bos, site, a.width, b.vocabulary))
        for term in module.terms:
            if term._parameters.get("table") is not None:
                term.register_parameter("table", nn.Parameter(term.get_parameter("table").to(b.dtype)))
    return cost_of(module, 2.0 * translation.multiply_adds)


def of_dictionary(dictionary: Dictionary) -> Cost:
    """The cost of encoding and decoding with an SAE in float32. The decoder's sparse product is counted as if it were dense."""
    d = dictionary
    tensors = (d.encoder, d.encoder_bias, d.threshold, d.decoder, d.decoder_bias)
    numbers = sum(tensor.numel() for tensor in tensors if tensor is not None)
    return Cost(2.0 * (dictionary.encoder.numel() + dictionary.decoder.numel()), numbers, 4 * numbers, 4 * numbers)


@dataclass(frozen=True)
class Costs:
    """Costs of joining `source` to `target` at any pair of sites, for windows of `context` tokens.

    Where the target reads other tokens than the source, `own_tokens` is how many of its own it reads per token of the source.
    """

    source: Model
    target: Model
    context: int
    own_tokens: float = 1.0

    @cached_property
    def whole_source(self) -> Cost:
        return whole(self.source, self.context)

    @cached_property
    def whole_target(self) -> Cost:
        """Per token of the source, in the target's own tokens."""
        if self.target.original is None:
            return whole(self.target, self.context)
        cost = whole(self.target.original.model, self.context)
        return replace(cost, flops=cost.flops * self.own_tokens, bytes_read=int(cost.bytes_read * self.own_tokens))

    def early(self, site: int) -> Cost:
        """The source's embedding and blocks before a site; of a composite, a site after its last seam."""
        return early(self.source, site, self.context)

    def late(self, site: int) -> Cost:
        """The target's blocks from a site on, its final norm and head."""
        return late(self.target, site, self.context)

    def halves(self, site: int, onto: int) -> Cost:
        """Both halves of a composite, without a translation."""
        return self.early(site) + self.late(onto) - _stored_once(self.source, self.target)

    @property
    def costlier_donor(self) -> float:
        """FLOPs per token of the donor that costs more."""
        return max(self.whole_source.flops, self.whole_target.flops)

    def composite(self, site: int, onto: int, translation: Translation) -> Cost:
        """The source's first `site` blocks, a translation and the target's blocks from `onto` on. A translation that reads no
        stream of the source needs none of its blocks, but its embedding if a fall-back reads it."""
        seam = of_translation(translation, self.source, self.target, site)
        if translation.sites:
            return self.joined(site, onto, seam)
        return self.without_source(onto, seam, translation.reads_embedding)

    def without_source(self, onto: int, seam: Cost, reads_embedding: bool) -> Cost:
        """A translation that costs `seam` and reads no stream, and the target's blocks from `onto` on."""
        return seam + (self.halves(0, onto) if reads_embedding else self.late(onto))

    def joined(self, site: int, onto: int, seam: Cost) -> Cost:
        """The source's first `site` blocks, a translation that costs `seam`, and the target's blocks from `onto` on."""
        return self.halves(site, onto) + seam

    def flops(self, site: int, onto: int, multiply_adds: int) -> float:
        """FLOPs per token of the source's first `site` blocks, a translation of `multiply_adds`, the target's from `onto`."""
        return self.early(site).flops + 2.0 * multiply_adds + self.late(onto).flops

    def share(self, site: int, onto: int, flops: float) -> float:
        """The composite's place between source (0) and target (1) by FLOPs, clipped to 0..1.

        Where both models cost the same, it is the share of the composite's blocks that are the target's.
        """
        ends = self.whole_source.flops, self.whole_target.flops
        if ends[0] == ends[1]:
            late = self.target.depth - onto
            return late / max(1, site + late)
        return min(1.0, max(0.0, (flops - ends[0]) / (ends[1] - ends[0])))
