"""The translation of a composite: from streams of A, token ids and positions to the stream that enters B's half.

This file is saved with every checkpoint and imports only torch.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class TranslationModule(nn.Module):
    """y = bias + Σ terms, in float32 for any dtype of the model. `first` replaces y if BOS is at position 0.

    config: {"width": d_out, "first": bool, "bos_token_id": int | None, "terms": [
        {"kind": "residual", "site": 3, "back": 0, "width": dA, "identity": bool} |
        {"kind": "routed", "site": 3, "back": 0, "width": dA, "classes": C, "entries": V} |
        {"kind": "codes", "site": 3, "width": dA, "features": F, "activation": "relu" | "jumprelu" | "topk" | "rbf", "k": 32} |
        {"kind": "token", "back": 0, "entries": E, "keyed": bool, "fallback": {"of": "a" | "b", "width": d, "share": s} | None} |
        {"kind": "position", "entries": P} |
        {"kind": "ngram", "order": 2, "entries": E, "vocabulary": V}]}

    A table may also have "rank": R, "basis": bool (see `TableTerm`), and may be in the model's dtype. An identity term returns
    its input, truncated or zero-padded to d_out. Positions before the text's first token contribute nothing. A token table that
    is not keyed has a row for every id.
    """

    def __init__(self, config: dict):
        super().__init__()
        width = config["width"]
        self.bos_token_id = config.get("bos_token_id")
        self.bias = nn.Parameter(torch.zeros(width))
        self.first = nn.Parameter(torch.zeros(width)) if config.get("first") else None
        terms: list[Any] = [_TERMS[term["kind"]](term, width) for term in config["terms"]]
        self.terms = nn.ModuleList(terms)
        # Computed once, as decoding needs them at every token: the sites of A that the terms read, how many tokens back they
        # read, and the sites whose streams at earlier tokens they read.
        self.sites = {term.site for term in terms if isinstance(term, (ResidualTerm, CodesTerm))}
        self.history = max((term.back for term in terms), default=0)
        self.past_sites = sorted({term.site for term in terms if isinstance(term, ResidualTerm) and term.back})
        self.embeddings_read = {term.of for term in terms if isinstance(term, TokenTerm) and term.of is not None}

    @property
    def reads_tokens(self) -> bool:
        return self.first is not None or any(
            isinstance(term, (TokenTerm, NgramTerm, RoutedTerm)) for term in self.terms
        )

    def forward(
        self,
        streams: dict[int, Tensor],
        ids: Tensor | None,
        positions: Tensor,
        position_ids: Tensor | None = None,
        embeddings: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Streams of A by site [batch, past + seq, dA] and ids [batch, past + seq] → [batch, seq, d_out].

        `positions` [batch|1, seq] count from the text's first token and are negative at padding. `position_ids` are those of the
        models; None: the same. Streams and ids may begin with earlier tokens; the last `seq` are the current ones.
        `embeddings` [vocabulary, d] are those named in `embeddings_read`.
        """
        position_ids = positions if position_ids is None else position_ids
        inputs = TranslationInputs(streams, ids, positions, position_ids, embeddings=embeddings or {})
        with torch.autocast(device_type=self.bias.device.type, enabled=False):
            y = self.written(inputs)
            if y.ndim == 1:  # no term but the bias
                rows = next(iter(streams.values()))[..., 0] if ids is None else ids
                y = y.expand(len(rows), positions.shape[1], -1)
            if self.first is not None:
                assert ids is not None
                is_first = (positions == 0) & (inputs.ids_ago(0) == self.bos_token_id)
                y = torch.where(is_first.unsqueeze(-1), self.first.float(), y)
            return y

    def written(self, inputs: "TranslationInputs") -> Tensor:
        """The bias plus all terms."""
        y = self.bias.float()
        for term in self.terms:
            y = y + term(inputs)
        return y

    def take_tokens(self, vocabulary: int, config: dict) -> dict:
        """Makes the look-ups take all ids below `vocabulary`. Returns the config of this module, which was `config`, after that.

        New ids have no n-grams; in tables that have a row for every id they get the mean row, and of classes the most frequent.
        """
        terms: list[Any] = [
            term.take_tokens(vocabulary, entry) if isinstance(term, (TokenTerm, RoutedTerm, NgramTerm)) else entry
            for term, entry in zip(self.terms, config["terms"], strict=True)
        ]
        return {**config, "terms": terms}


@dataclass(frozen=True)
class TranslationInputs:
    """Streams, ids, positions and embeddings that the terms of a translation read."""

    streams: dict[int, Tensor]
    ids: Tensor | None
    positions: Tensor
    position_ids: Tensor
    embeddings: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    _ids_ago: dict[int, Tensor] = field(init=False, default_factory=dict)  # cached: several terms need the same
    _reaches: dict[int, Tensor] = field(init=False, default_factory=dict)

    def stream_ago(self, site: int, back: int) -> Tensor:
        """The stream `back` tokens ago [batch, seq, dA]. Zero before the text's second token, as its first token is a sink."""
        x = self._ago(self.streams[site], back).float()
        return x if back == 0 else x * self.reaches(back + 1)

    def ids_ago(self, back: int) -> Tensor:
        """Ids `back` tokens ago [batch, seq]. They are part of the text where `reaches(back)`."""
        assert self.ids is not None
        if back not in self._ids_ago:
            self._ids_ago[back] = self._ago(self.ids, back)
        return self._ids_ago[back]

    def reaches(self, back: int) -> Tensor:
        """Whether the text had begun `back` tokens ago [batch|1, seq, 1]."""
        if back not in self._reaches:
            self._reaches[back] = (self.positions >= back).unsqueeze(-1)
        return self._reaches[back]

    def _ago(self, sequence: Tensor, back: int) -> Tensor:
        length = self.positions.shape[1]
        missing = back + length - sequence.shape[1]
        if missing > 0:
            sequence = torch.cat([sequence[:, :1].expand(-1, missing, *sequence.shape[2:]), sequence], 1)
        stop = sequence.shape[1] - back
        return sequence[:, stop - length : stop]


class ResidualTerm(nn.Module):
    """x @ weight, where x is the residual stream entering block `site` of A, `back` tokens ago. Without weight: x."""

    def __init__(self, term: dict, width: int):
        super().__init__()
        self.site, self.back, self.width = term["site"], term.get("back", 0), width
        self.weight = None if term.get("identity") else nn.Parameter(torch.zeros(term["width"], width))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        x = inputs.stream_ago(self.site, self.back)
        return _resize(x, self.width) if self.weight is None else x @ self.weight.float()


class RoutedTerm(ResidualTerm):
    """x @ weight[c], where c is the class of the current token."""

    def __init__(self, term: dict, width: int):
        super().__init__({**term, "identity": True}, width)
        self.classes: Tensor
        self.register_buffer("classes", torch.zeros(term["entries"], dtype=torch.int64))
        self.weight = nn.Parameter(torch.zeros(term["classes"], term["width"], width))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        assert self.weight is not None
        classes = self.classes.index_select(0, inputs.ids_ago(0).flatten())
        return by_class(inputs.stream_ago(self.site, self.back), classes, self.weight)

    def take_tokens(self, vocabulary: int, term: dict) -> dict:
        missing = vocabulary - term["entries"]
        if missing <= 0:
            return term
        self.classes = torch.cat([self.classes, self.classes.mode().values.expand(missing)])
        return {**term, "entries": vocabulary}


FEW_ROWS = (
    32  # rows, as in decoding: copying their matrices is faster than sorting by class, which synchronises with a GPU
)


def by_class(x: Tensor, classes: Tensor, weight: Tensor) -> Tensor:
    """Rows of x [..., d_in], each multiplied by the matrix of its class. weight is [classes, d_in, d_out]."""
    flat, of = x.flatten(0, -2), classes.flatten()
    if len(flat) <= FEW_ROWS:
        own = weight.index_select(0, of)  # five times as fast as weight[of]
        return torch.bmm(flat[:, None], own.float()).view(*x.shape[:-1], weight.shape[2])
    order = of.argsort(stable=True)
    counts = of.bincount(minlength=len(weight)).tolist()
    parts = [part @ matrix.float() for part, matrix in zip(flat[order].split(counts), weight, strict=True) if len(part)]
    return torch.cat(parts)[order.argsort()].view(*x.shape[:-1], weight.shape[2])


class CodesTerm(nn.Module):
    """z @ weight, where z are latents of a sparse autoencoder on the residual stream entering block `site` of A."""

    back = 0

    def __init__(self, term: dict, width: int):
        super().__init__()
        features = term["features"]
        self.site, self.width, self.activation, self.k = term["site"], width, term["activation"], term.get("k") or 0
        self.encoder = nn.Parameter(torch.zeros(term["width"], features))
        self.encoder_bias = nn.Parameter(torch.zeros(features))
        has_threshold = self.activation in ("jumprelu", "rbf")
        self.threshold = nn.Parameter(torch.zeros(features)) if has_threshold else None
        self.weight = None if term.get("identity") else nn.Parameter(torch.zeros(features, width))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        z = self.encode(inputs.stream_ago(self.site, 0))
        return _resize(z, self.width) if self.weight is None else z @ self.weight.float()

    def encode(self, x: Tensor) -> Tensor:
        pre = x @ self.encoder.float() + self.encoder_bias.float()
        if self.activation == "rbf":
            assert self.threshold is not None
            return (pre - x.square().sum(-1, keepdim=True) * self.threshold.float()).exp()
        if self.threshold is not None:
            return pre * (pre > self.threshold.float())
        if self.activation == "relu":
            return pre.relu()
        kept = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())


class TableTerm(nn.Module):
    """A table: `table`, or in fewer bytes 8-bit `codes` with a scale per row, times `basis` where there is one."""

    def __init__(self, term: dict, width: int):
        super().__init__()
        entries, rank = term["entries"], term.get("rank")
        self.table = nn.Parameter(torch.zeros(entries, width)) if rank is None else None
        self.codes: Tensor | None
        self.register_buffer("codes", None if rank is None else torch.zeros(entries, rank, dtype=torch.int8))
        self.scales = None if rank is None else nn.Parameter(torch.zeros(entries))
        self.basis = nn.Parameter(torch.zeros(rank, width)) if rank is not None and term["basis"] else None

    def rows(self, place: Tensor) -> Tensor:
        """Rows of the table by number, in float32."""
        if self.table is not None:
            return nn.functional.embedding(place, self.table).float()
        assert self.codes is not None and self.scales is not None
        found = self.codes[place].float() * self.scales[place].float().unsqueeze(-1)
        return found if self.basis is None else found @ self.basis.float()

    def add_rows(self, count: int) -> None:
        """Adds `count` rows, each of them the mean of the present ones."""
        if self.table is not None:
            self.table = _longer(self.table, self.table.float().mean(0, keepdim=True), count)
            return
        assert self.codes is not None and self.scales is not None
        mean = (self.codes.float() * self.scales.float().unsqueeze(-1)).mean(0, keepdim=True)
        scale = mean.abs().amax(1).clamp_min(1e-12) / 127
        self.codes = torch.cat([self.codes, (mean / scale).round().to(torch.int8).expand(count, -1)])
        self.scales = _longer(self.scales, scale, count)


def _longer(parameter: nn.Parameter, row: Tensor, count: int) -> nn.Parameter:
    """The parameter with `count` copies of `row` at its end."""
    added = row.to(parameter.dtype).expand(count, *parameter.shape[1:])
    return nn.Parameter(torch.cat([parameter.detach(), added]), requires_grad=parameter.requires_grad)


class TokenTerm(TableTerm):
    """The row of `table` for the id of the token `back` tokens ago.

    With `keys`, which are sorted, only these ids have a row. Others have their embedding @ `fallback`, whose last row is a
    constant; without it nothing.
    """

    def __init__(self, term: dict, width: int):
        super().__init__(term, width)
        self.back = term.get("back", 0)
        self.keys: Tensor | None
        self.register_buffer("keys", torch.zeros(term["entries"], dtype=torch.int64) if term.get("keyed") else None)
        fallback = term.get("fallback") or {}
        self.of = fallback.get("of")  # the embedding that the fall-back reads
        self.fallback = nn.Parameter(torch.zeros(fallback["width"] + 1, width)) if fallback else None

    def forward(self, inputs: TranslationInputs) -> Tensor:
        ids = inputs.ids_ago(self.back)
        found = self.rows(ids) if self.keys is None else self._keyed(ids.contiguous(), self.keys, inputs)
        return found if self.back == 0 else found * inputs.reaches(self.back)

    def take_tokens(self, vocabulary: int, term: dict) -> dict:
        missing = vocabulary - term["entries"]
        if self.keys is not None or missing <= 0:
            return term
        self.add_rows(missing)
        return {**term, "entries": vocabulary}

    def _keyed(self, ids: Tensor, keys: Tensor, inputs: TranslationInputs) -> Tensor:
        place = torch.searchsorted(keys, ids).clamp_max(len(keys) - 1)
        known = keys.take(place) == ids
        found = self.rows(place)
        if self.fallback is None or self.of is None:
            return found * known.unsqueeze(-1)
        weight, embedding = self.fallback.float(), inputs.embeddings[self.of]
        if ids.numel() <= FEW_ROWS:  # choosing the ids without a row would synchronise with a GPU
            others = nn.functional.embedding(ids, embedding).float() @ weight[:-1] + weight[-1]
            return torch.where(known.unsqueeze(-1), found, others)
        others = nn.functional.embedding(ids[~known], embedding).float() @ weight[:-1] + weight[-1]
        return found.masked_scatter(~known.unsqueeze(-1), others)


class PositionTerm(TableTerm):
    """The row of `table` for the position id."""

    back = 0

    def forward(self, inputs: TranslationInputs) -> Tensor:
        return self.rows(inputs.position_ids)


class NgramTerm(TableTerm):
    """The row of `table` for an n-gram in `keys`, zero for other n-grams. The key of ids … b, a (a the latest) is … + b·V + a."""

    def __init__(self, term: dict, width: int):
        super().__init__(term, width)
        self.back, self.vocabulary = term["order"] - 1, term["vocabulary"]
        self.keys: Tensor
        self.register_buffer("keys", torch.zeros(term["entries"], dtype=torch.int64))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        key = ngram_keys([inputs.ids_ago(back) for back in range(self.back + 1)], self.vocabulary)
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        known = (self.keys.take(place) == key).unsqueeze(-1) & inputs.reaches(self.back)
        return self.rows(place) * known

    def take_tokens(self, vocabulary: int, term: dict) -> dict:
        if vocabulary <= self.vocabulary:
            return term
        if vocabulary ** (self.back + 1) >= 2**63:
            raise ValueError(f"n-grams of {self.back + 1} ids must fit 64 bits; got a vocabulary of {vocabulary:,}.")
        ids, rest = [], self.keys
        for _ in range(self.back + 1):
            ids.append(rest % self.vocabulary)
            rest = rest // self.vocabulary
        self.keys, self.vocabulary = ngram_keys(ids, vocabulary), vocabulary  # the order of the keys stays the same
        return {**term, "vocabulary": vocabulary}


def ngram_keys(ids: list[Tensor], vocabulary: int) -> Tensor:
    """One int64 per n-gram. `ids` are those of the latest token, the one before it, and so on."""
    key = ids[-1].long()
    for column in reversed(ids[:-1]):
        key = key * vocabulary + column
    return key.contiguous()


_TERMS = {
    "residual": ResidualTerm,
    "routed": RoutedTerm,
    "codes": CodesTerm,
    "token": TokenTerm,
    "position": PositionTerm,
    "ngram": NgramTerm,
}


def _resize(x: Tensor, width: int) -> Tensor:
    return x[..., :width] if x.shape[-1] >= width else nn.functional.pad(x, (0, width - x.shape[-1]))
