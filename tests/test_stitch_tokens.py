import pytest
import torch

import tiny
from stitch.errors import UsageError
from stitch.text.tokenizers import bos_of, require_same_ids
from stitch.text.windows import Windows, pack

DOCUMENTS = [("a", "hello world, this is the first"), ("b", "and a second one"), ("c", "x" * 50)]


def test_windows_hold_the_documents_in_order_each_after_a_bos():
    tokenizer = tiny.tokenizer()
    windows = pack(DOCUMENTS, tokenizer, context=8)
    stream = windows.ids[:, 1:].flatten().tolist()
    expected = [token for _, text in DOCUMENTS for token in [0, *tokenizer.encode(text, add_special_tokens=False)]]
    assert stream == expected[: len(stream)] and len(expected) - len(stream) < 7
    assert (windows.ids[:, 0] == tiny.BOS).all()


def test_every_token_knows_its_document():
    windows = pack(DOCUMENTS, tiny.tokenizer(), context=8)
    owners = windows.document[:, 1:].flatten()
    lengths = [len(text) + 1 for _, text in DOCUMENTS]
    expected = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[: len(owners)]
    assert (owners == expected).all()


def test_a_limit_is_rounded_up_to_whole_windows_and_is_a_prefix():
    everything = pack(DOCUMENTS, tiny.tokenizer(), context=8)
    some = pack(DOCUMENTS, tiny.tokenizer(), context=8, limit=17)
    assert some.ids.shape == (3, 8)
    assert torch.equal(some.ids, everything.ids[:3])


def test_text_shorter_than_a_window_gives_none():
    assert pack([("a", "hi")], tiny.tokenizer(), context=8).tokens == 0


def test_eos_starts_a_text_where_there_is_no_bos():
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    tokenizer.eos_token = "z"
    assert bos_of(tokenizer) == tokenizer.convert_tokens_to_ids("z")
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="BOS or an EOS"):
        bos_of(tokenizer)


def test_two_tokenizers_are_distinguished_by_the_number_of_ids():
    same, other = tiny.tokenizer(), tiny.tokenizer()
    require_same_ids(same, other, "m", "n")
    other.add_tokens(["<one>", "<two>", "<three>"])
    with pytest.raises(UsageError, match="m and n do not: 3 of 131 tokens differ"):
        require_same_ids(same, other, "m", "n")


def test_a_sample_of_windows_covers_all_documents():
    ids = torch.arange(40).view(10, 4).int()
    windows = Windows(ids, torch.arange(10)[:, None].expand(10, 4).int() * 3)
    some = windows.spread(17)
    assert some.ids[:, 0].tolist() == [0, 12, 24, 36]
    assert some.document.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(windows.spread(400).ids, ids) and windows.spread(1).ids.shape == (1, 4)
