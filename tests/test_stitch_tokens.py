import pytest
import torch

import tiny
from stitch.config import Settings
from stitch.errors import UsageError
from stitch.jobs.pair.text import TextSize, text_size
from stitch.text.tokenizers import bos_of, require_same_ids
from stitch.text.windows import CONTEXT, LEAST_HELD_OUT, evenly, pack, require_rows, sample

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


def text_of(number: int, words: int) -> str:
    return " ".join(f"{number:02d}{word:04d}" for word in range(words))


LONG = [(str(number), text_of(number, 40 if number else 4000)) for number in range(30)]


def test_every_part_of_an_order_is_spread_evenly():
    order = evenly(1000)
    assert order.sort().values.tolist() == list(range(1000))
    for start, count in ((0, 10), (0, 100), (37, 50), (400, 300)):
        gaps = order[start : start + count].sort().values.diff()
        assert gaps.max() <= 3 * 1000 / count


def test_a_sample_is_spread_over_the_documents_in_proportion_to_their_length():
    windows = sample(LONG, tiny.tokenizer(), 16, 50 * 16)
    tokens = windows.document[:, 1:].flatten().bincount(minlength=30) / windows.document[:, 1:].numel()
    length = torch.tensor([len(text) for _, text in LONG]) / sum(len(text) for _, text in LONG)
    assert (tokens > 0).sum() >= 9 and (tokens - length).abs().max() < 0.03
    half = windows.first(25 * 16).document[:, 1:]
    assert half.unique().numel() >= 4 and abs(float((half == 0).float().mean()) - float(length[0])) < 0.06


def test_a_smaller_sample_is_the_beginning_of_a_larger_one():
    large, small = (sample(LONG, tiny.tokenizer(), 16, count * 16) for count in (50, 20))
    assert torch.equal(large.first(20 * 16).ids, small.ids) and torch.equal(large.ids[:20], small.ids)


def test_the_windows_of_a_sample_are_passages_of_the_text_that_start_anywhere_in_a_word():
    tokenizer = tiny.tokenizer()
    windows = sample(LONG, tokenizer, 16, 100 * 16)
    assert (windows.ids[:, 0] == tiny.BOS).all() and len(windows.ids.unique(dim=0)) == 100
    first = set()
    for ids, document in zip(windows.ids.tolist(), windows.document.tolist(), strict=True):
        pieces = [piece for piece in str(tokenizer.decode(ids)).split("<s>") if piece]
        owners = sorted(set(document))
        assert owners == list(range(owners[0], owners[0] + len(pieces)))
        assert all(piece in LONG[owner][1] for piece, owner in zip(pieces, owners, strict=True))
        first.add(pieces[0].find(" "))
    assert len(first) >= 6  # words have six characters


def test_a_sample_of_nearly_all_text_takes_the_packed_windows_in_another_order():
    everything = pack(LONG, tiny.tokenizer(), 16)
    some = sample(LONG, tiny.tokenizer(), 16, everything.tokens // 2)
    whole = sample(LONG, tiny.tokenizer(), 16, 10 * everything.tokens)
    assert whole.ids.shape == everything.ids.shape
    assert torch.equal(whole.ids.unique(dim=0), everything.ids.unique(dim=0))
    assert torch.equal(whole.first(some.tokens).ids, some.ids)


def test_a_text_without_white_space_is_cut_anywhere():
    windows = sample([("a", "x" * 5000), ("b", "y" * 3000)], tiny.tokenizer(), 8, 40)
    assert windows.ids.shape == (5, 8) and windows.document.unique().tolist() == [0, 1]


def test_only_the_text_of_the_windows_is_tokenised():
    class Counting:
        bos_token_id = eos_token_id = tiny.BOS
        characters = 0

        def encode(self, text: str, **_) -> list[int]:
            self.characters += len(text)
            return tiny.tokenizer().encode(text, add_special_tokens=False)

    counting = Counting()
    sample(LONG, counting, 16, 10 * 16)
    assert counting.characters < 10 * 16 * 8


def test_held_out_splits_have_enough_windows_for_intervals_and_windows_are_short():
    a, b = tiny.shared("gpt2"), tiny.shared("llama")

    def size(**changes) -> TextSize:
        return text_size(Settings(model_a="a", model_b="b", layer=2, **changes), a, b)

    assert size(tokens=20_000, context=32) == TextSize(fit=20_000, held_out=LEAST_HELD_OUT * 32, context=32)
    assert size(tokens=100_000, context=8).held_out == 10_000 and size(tokens=10**6, context=8).held_out == 65_536
    assert size(held_out=64).held_out == 64 and size().context == 128
    long = tiny.model("llama", max_position_embeddings=4096)
    assert text_size(Settings(model_a="a", model_b="b", layer=2), long, long).context == CONTEXT


def test_a_text_with_tokens_that_the_model_has_no_row_for_is_refused():
    windows = pack(DOCUMENTS, tiny.tokenizer(), context=8)
    largest = int(windows.ids.max())
    require_rows(windows, largest + 1, "a")
    with pytest.raises(UsageError, match=rf"that of a gives ids up to {largest}, and its embedding has {largest} rows"):
        require_rows(windows, largest, "a")
