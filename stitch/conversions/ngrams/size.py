"""How large an n-gram memory is: bytes of its tables and of the blocks that they replace, and packing into a share of these."""

import dataclasses
import math

from stitch.conversions.ngrams.assemble import keeps_embedding
from stitch.conversions.ngrams.reading import TableIndex
from stitch.errors import UsageError
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.flops import block_parameters
from stitch.models.model import Model
from stitch.text.windows import Windows
from stitch.translation.packed import Packed
from stitch.translation.packing import pack
from stitch.translation.types import Term, Token, Translation

TABLE_BYTES = 100.0  # default of the bytes of the tables, in percent of those of the blocks that they replace


def packed(model: Model, text: Windows, site: int, tables: Translation, percent: float, memory: int) -> Translation:
    """The tables, fitted on `text`, packed into `percent` of the bytes of the blocks that they replace.

    Where the donor's embedding is not its head, the table by the current token takes its place. It is neither packed nor counted.
    Raises: UsageError where no table is within the bytes.
    """
    if math.isinf(percent):
        return tables
    limit = int(bytes_replaced(model, site) * percent / 100)
    embedding, others = _apart(tables, model)
    found = pack(others, limit, text.ids, model.vocabulary, model.dtype, memory=memory)
    if others.terms and not found.terms:
        raise UsageError(f"table_bytes must leave room for a table; {percent:g} % are {limit:,} bytes: raise it.")
    return dataclasses.replace(found, terms=(*embedding, *found.terms))


def _apart(tables: Translation, model: Model) -> tuple[tuple[Term, ...], Translation]:
    """The tables that become the embedding, and the others."""
    embedding = () if keeps_embedding(model) else tuple(term for term in tables.terms if term.input == Token())
    others = tuple(term for term in tables.terms if not embedding or term.input != Token())
    return embedding, dataclasses.replace(tables, terms=others)


def bytes_replaced(model: Model, site: int) -> int:
    """Bytes of the blocks of the last part before `site`, in the model's dtype."""
    blocks = range(blocks_before_last_part(model.config), site)
    return sum(block_parameters(model.config, block) for block in blocks) * model.dtype.itemsize


def bytes_of(translation: Translation, model: Model) -> int:
    """Of tables in the model's dtype or packed, their keys and fall-backs. A table that becomes the embedding has all ids."""
    embedding, others = _apart(translation, model)
    return (
        others.bytes(model.dtype)
        - 4 * model.width
        + bool(embedding) * model.vocabulary * model.width * model.dtype.itemsize
    )


def stored(translation: Translation, index: TableIndex) -> dict:
    """What is stored of a table: its rows, none where packing left it out, and of a packed one the numbers per row."""
    weight = next((term.weight for term in translation.terms if term.input == index.by), None)
    found = {"stored_rows": 0 if weight is None else len(weight)}
    return {**found, "directions": weight.codes.shape[1]} if isinstance(weight, Packed) else found
