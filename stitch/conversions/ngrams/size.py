"""How large an n-gram memory is: bytes of its tables and of the blocks that they replace, and packing into a share of these."""

import dataclasses

import torch

from stitch.conversions.ngrams.assemble import is_tied
from stitch.conversions.ngrams.reading import TableIndex
from stitch.errors import UsageError
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.flops import block_parameters
from stitch.models.model import Model
from stitch.text.windows import Windows
from stitch.translation.packed import Packed
from stitch.translation.packing import pack
from stitch.translation.types import Token, Translation

TABLE_BYTES = 100.0  # default of the bytes of the tables, in percent of those of the blocks that they replace


def packed(model: Model, text: Windows, site: int, tables: Translation, percent: float, memory: int) -> Translation:
    """The tables, fitted on `text`, packed into `percent` of the bytes of the blocks that they replace.

    Where the donor's embedding is not its head, the table by the current token takes its place. It is neither packed nor counted.
    Raises: UsageError where no table is within the bytes.
    """
    limit = int(bytes_replaced(model, site) * percent / 100)
    kept = () if is_tied(model) else tuple(term for term in tables.terms if term.input == Token())
    others = dataclasses.replace(
        tables, terms=tuple(term for term in tables.terms if not kept or term.input != Token())
    )
    found = pack(others, limit, text.ids, model.vocabulary, model.dtype, memory=memory)
    if not found.terms:
        raise UsageError(f"table_bytes must leave room for a table; {percent:g} % are {limit:,} bytes: raise it.")
    return dataclasses.replace(found, terms=(*kept, *found.terms))


def bytes_replaced(model: Model, site: int) -> int:
    """Bytes of the blocks of the last part before `site`, in the model's dtype."""
    blocks = range(blocks_before_last_part(model.config), site)
    return sum(block_parameters(model.config, block) for block in blocks) * model.dtype.itemsize


def bytes_of(translation: Translation, dtype: torch.dtype, vocabulary: int) -> int:
    """Of tables in the model's dtype or packed, their keys and fall-backs.

    Unless it is packed, the table by the current token is an embedding, with a row for every id.
    """
    others = tuple(term for term in translation.terms if term.input != Token() or isinstance(term.weight, Packed))
    width = len(translation.bias)
    beside = dataclasses.replace(translation, terms=others).bytes(dtype) - 4 * width
    return beside + (len(others) < len(translation.terms)) * vocabulary * width * dtype.itemsize


def stored(translation: Translation, index: TableIndex) -> dict:
    """What is stored of a table that is packed: rows of n-grams, or directions."""
    for term in translation.terms:
        if term.input == index.by and isinstance(term.weight, Packed):
            return {"stored_rows": len(term.weight), "directions": term.weight.codes.shape[1]}
    return {}
