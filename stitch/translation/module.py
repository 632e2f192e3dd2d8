"""A fitted translation as the module of a checkpoint, applied within a composite or to harvested activations."""

import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stitch.activations.paired import Tokens
from stitch.errors import UsageError
from stitch.modeling.modeling_translation import TokenTerm, TranslationInputs, TranslationModule
from stitch.models.model import Model
from stitch.translation.packed import Packed
from stitch.translation.types import Codes, Ngram, Position, Residual, Routed, Term, Token, Translation
from stitch.translation.unfolded import Unfolded


def translation_config(translation: Translation, bos: int | None, site_a: int, width: int, vocabulary: int) -> dict:
    """The configuration of a module for `translation`, which reads A (of `width`, ids below `vocabulary`) up to `site_a`.

    Earlier sites of a composite may have another width: it is taken from the weights that read them.
    Raises UsageError for a first state without BOS, n-gram keys beyond 64 bits, a site after `site_a`, a look-up without table.
    """
    if translation.first is not None and bos is None:
        raise UsageError(
            "a first state needs a BOS token; the tokenizer of B has neither BOS nor EOS: give the translation none."
        )
    terms = []
    for term in translation.terms:
        match term.input:
            case Residual(site, back):
                entry: dict = {"kind": "residual", "site": site, "back": back}
                entry["width"] = width if term.weight is None else term.matrix.shape[0]
                entry["identity"] = term.weight is None
            case Routed(site, back, classes):
                entry = {"kind": "routed", "site": site, "back": back, "width": term.matrix.shape[1]}
                entry |= {"classes": len(term.matrix), "entries": len(classes)}
            case Codes(site, dictionary):
                entry = {
                    "kind": "codes",
                    "site": site,
                    "width": dictionary.encoder.shape[0],
                    "features": dictionary.encoder.shape[1],
                    "activation": dictionary.activation,
                    "k": dictionary.k,
                    "identity": term.weight is None,
                }
            case Token(back, keys):
                entry = {"kind": "token", "back": back, **_table(translation, term)}
                entry |= {} if keys is None else {"keyed": True}
                if (given := term.fallback) is not None:
                    entry["fallback"] = {"of": given.of, "width": len(given.weight) - 1, "share": given.share}
            case Position():
                entry = {"kind": "position", **_table(translation, term)}
            case Ngram(order, _):
                entry = {"kind": "ngram", "order": order, **_table(translation, term)}
                entry["vocabulary"] = vocabulary
                if vocabulary**order >= 2**63:
                    raise UsageError(f"n-grams of {vocabulary:,} ids must have an order below {order}: lower it.")
        if entry.get("site", 0) > site_a:
            raise UsageError(
                f"a translation at site {site_a} can read no later site; {translation.name} reads {entry['site']}."
            )
        terms.append(entry)
    return {"width": len(translation.bias), "first": translation.first is not None, "bos_token_id": bos, "terms": terms}


def _table(translation: Translation, term: Term) -> dict:
    """Number of rows of a table, and how they are stored."""
    if term.weight is None:
        raise UsageError(f"a look-up needs a table; {translation.name} has none for {term.input}.")
    if isinstance(term.weight, Packed):
        return {"entries": len(term.weight), "rank": term.weight.codes.shape[1], "basis": term.weight.basis is not None}
    return {"entries": len(term.weight)}


def translation_tensors(translation: Translation, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of `TranslationModule` for `translation`: float32, tables in the model's `dtype`, keys int64.

    Tables that are kept as factors are folded.
    """
    tensors = {"bias": translation.bias.float()}
    if translation.first is not None:
        tensors["first"] = translation.first.float()
    for index, term in enumerate(translation.terms):
        prefix = f"terms.{index}"
        if isinstance(term.input, Codes):
            dictionary = term.input.dictionary
            tensors[f"{prefix}.encoder"] = dictionary.encoder.float()
            tensors[f"{prefix}.encoder_bias"] = dictionary.encoder_bias.float()
            if dictionary.threshold is not None:
                tensors[f"{prefix}.threshold"] = dictionary.threshold.float()
        if isinstance(term.input, (Ngram, Token)) and term.input.keys is not None:
            tensors[f"{prefix}.keys"] = term.input.keys.clone()  # save_pretrained refuses terms that share them
        if isinstance(term.input, Routed):
            tensors[f"{prefix}.classes"] = term.input.classes
        if term.fallback is not None:
            tensors[f"{prefix}.fallback"] = term.fallback.weight.float()
        if isinstance(term.weight, Unfolded):
            tensors[f"{prefix}.table"] = term.weight.folded(dtype)
        elif isinstance(term.weight, Packed):
            tensors |= {f"{prefix}.codes": term.weight.codes, f"{prefix}.scales": term.weight.scales}
            tensors |= {} if term.weight.basis is None else {f"{prefix}.basis": term.weight.basis}
        elif term.weight is not None:
            name, kind = ("table", dtype) if term.is_table else ("weight", torch.float32)
            tensors[f"{prefix}.{name}"] = term.weight.to(kind)
    return tensors


def translation_module(translation: Translation, a: Model, b: Model, site_a: int) -> TranslationModule:
    """The module that a composite of A and B has, on B's device, for use on cached activations."""
    with torch.device("meta"):
        module = TranslationModule(translation_config(translation, b.bos, site_a, a.width, b.vocabulary))
    fill(module, translation, b.dtype, b.device)
    return module.eval()


def unfolded_module(translation: Translation, a: Model, b: Model, site_a: int) -> TranslationModule:
    """The same without folding: rows of tables that are kept as factors are computed for the tokens that it is called with.

    It gives what `translation_module` gives, and many such modules share the factors.
    """
    config = translation_config(translation, b.bos, site_a, a.width, b.vocabulary)
    others = list(translation.terms)
    with torch.device("meta"):
        module = TranslationModule(config)
        for index, term in enumerate(translation.terms):
            if isinstance(term.weight, Unfolded):
                given = config["terms"][index], config["width"], term.weight, b.dtype
                module.terms[index], others[index] = _UnfoldedTerm(*given), replace(term, weight=None)
    fill(module, replace(translation, terms=tuple(others)), b.dtype, b.device)
    return module.eval()


class _UnfoldedTerm(TokenTerm):
    """A token term whose rows are computed from factors, once for each distinct id of a call, and rounded to `dtype`."""

    def __init__(self, term: dict, width: int, factors: Unfolded, dtype: torch.dtype) -> None:
        super().__init__(term, width)
        self.register_parameter("table", None)
        self._factors, self._dtype = factors, dtype

    def rows(self, place: Tensor) -> Tensor:
        distinct, inverse = place.unique(return_inverse=True)
        return self._factors.rows(distinct).to(self._dtype).float()[inverse]


def embeddings_of(a: Model, b: Model) -> dict[str, Float[Tensor, "vocabulary d"]]:
    """The matrices that a composite of A and B holds and a fall-back may read; see `Fallback`. Nothing is copied."""
    return {"a": a.embedding.weight, "b": b.head.get_parameter("weight")}


def fill(module: TranslationModule, translation: Translation, dtype: torch.dtype, device: torch.device) -> None:
    tensors = {name: tensor.to(device) for name, tensor in translation_tensors(translation, dtype).items()}
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(True)


def copy_translations(old: nn.Module, new: nn.Module) -> None:
    """Copies the translation modules of `old` to the same places in `new`, with their dtypes."""
    for name, module in list(old.named_modules()):
        if isinstance(module, TranslationModule):
            new.set_submodule(name, copy.deepcopy(module))


class Applied:
    """`translation` as a function of harvested tokens. It reads A up to `site` and has no `first`; ids are below `vocabulary`.

    Tables are folded. Without `embeddings` (see `embeddings_of`), ids that have no row add nothing.
    """

    def __init__(
        self, translation: Translation, site: int, vocabulary: int, embeddings: dict[str, Tensor] | None = None
    ) -> None:
        self._embeddings = {of: matrix.cpu() for of, matrix in (embeddings or {}).items()}
        if not self._embeddings:
            terms = tuple(replace(term, fallback=None) for term in translation.terms)
            translation = replace(translation, terms=terms)
        with torch.device("meta"):
            self._module = TranslationModule(translation_config(translation, None, site, 0, vocabulary))
        tensors = {name: tensor.cpu() for name, tensor in translation_tensors(translation, torch.float32).items()}
        self._module.load_state_dict(tensors, assign=True)
        read = {
            (term.input.site, 0 if isinstance(term.input, Codes) else term.input.back)
            for term in translation.terms
            if isinstance(term.input, (Residual, Routed, Codes))
        }
        self.streams = sorted(read)  # (site, tokens back)
        self.history = self._module.history  # tokens back

    @torch.no_grad()
    def __call__(self, tokens: Tokens) -> Float[Tensor, "_ d_b"]:
        """ŷ of each token. The tokens must have the streams named in `streams` and `history` ids before the current one."""
        positions = tokens.positions[None]
        ids = tokens.ids[None, :, 0]
        given = _Harvested({}, ids, positions, positions, tokens, embeddings=self._embeddings)
        return self._module.written(given)[0]


@dataclass(frozen=True)
class _Harvested(TranslationInputs):
    """Tokens as a batch of one sequence. Each token brings its own past, as it does not follow the one before it."""

    tokens: Tokens

    def stream_ago(self, site: int, back: int) -> Float[Tensor, "1 _ d_a"]:
        return self.tokens.streams[site, back].float()[None]

    def ids_ago(self, back: int) -> Int[Tensor, "1 _"]:
        return self.tokens.ids[None, :, back].clamp_min(0)

    def reaches(self, back: int) -> Bool[Tensor, "1 _ 1"]:
        return (self.tokens.ids[None, :, back] >= 0).unsqueeze(-1)
