"""Behaviours against rules that implement them: a rule answers every clean prompt of its own behaviour and no
corrupt one.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import tiny
from stitch.circuits.behaviours.bracket_text import KINDS, closed_brackets
from stitch.circuits.behaviours.brackets import MARKS
from stitch.circuits.behaviours.named import BEHAVIOURS, make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.score import Reference, answered, score
from stitch.errors import StitchError, UsageError
from stitch.text.documents import read, select


@functools.cache
def with_words() -> PreTrainedTokenizerFast:
    """Words that start with a space, brackets, and 200 other tokens."""
    words = ["Ġone", "Ġtwo", "Ġthree", *sorted(set("".join(MARKS))), *(f"t{index}" for index in range(200))]
    vocabulary = {token: index for index, token in enumerate(["<s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")


def after_its_last_occurrence(ids: list[int]) -> int:
    earlier = [place for place in range(len(ids) - 1) if ids[place] == ids[-1]]
    return ids[earlier[-1] + 1] if earlier else 0


def before(ids: list[int]) -> int:
    return ids[-2] if len(ids) > 1 else 0


def itself_if_the_last_one_came_twice(ids: list[int]) -> int:
    return ids[-1] if len(ids) > 2 and ids[-2] == ids[-3] else 0


def closing(ids: list[int]) -> int:
    tokenizer, open_marks = with_words(), []
    closers = {pair[0]: pair[1] for pair in MARKS}
    for token in tokenizer.convert_ids_to_tokens(ids):
        if open_marks and token == closers[open_marks[-1]]:
            open_marks.pop()
        elif token in closers:
            open_marks.append(token)
    return tokenizer.convert_tokens_to_ids(closers[open_marks[-1]]) if open_marks else 0


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Documents in which "t<i> t100" is followed by "t<i + 50>" for i up to 40, and all other tokens are random."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    with path.open("w") as file:
        for number in range(400):
            kinds = torch.randint(40, (40,), generator=generator).tolist()
            words = [f"t{kind} t100 t{kind + 50} t{150 + (kind + number) % 7}" for kind in kinds]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return str(path)


def next_in_the_text(ids: list[int]) -> int:
    tokens = with_words().convert_ids_to_tokens(ids)
    if len(tokens) < 2 or tokens[-1] != "t100" or not tokens[-2].startswith("t"):
        return 0
    return with_words().convert_tokens_to_ids(f"t{int(tokens[-2][1:]) + 50}")


RULES: dict[str, Callable[[list[int]], int]] = {
    "induction": after_its_last_occurrence,
    "previous-token": before,
    "duplicate-token": itself_if_the_last_one_came_twice,
    "brackets": closing,
    "ngram": next_in_the_text,
}


def following(rule: Callable[[list[int]], int]) -> Callable[[Tensor], Tensor]:
    """Logits of a model that follows the rule."""
    vocabulary = len(with_words())

    def logits(ids: Tensor) -> Tensor:
        rows = [[rule(row[: place + 1]) for place in range(len(row))] for row in ids.tolist()]
        return 20.0 * torch.nn.functional.one_hot(torch.tensor(rows), vocabulary).float()

    return logits


@pytest.mark.parametrize("behaviour", RULES)
def test_a_rule_answers_clean_prompts_of_its_behaviour_and_no_corrupt_ones(behaviour: str, text: str):
    asked = make_prompts(behaviour, with_words(), count=20, text=text)
    clean, corrupt = score(following(RULES[behaviour]), asked)
    assert (clean["right"], corrupt["right"]) == (1.0, 0.0)
    assert clean["probability"] > 0.99 and clean["nats"] < 0.01


def what_followed_most(ids: list[int]) -> int:
    counts = Counter(ids[place + 1] for place in range(len(ids) - 1) if ids[place] == ids[-1])
    best = [token for token, count in counts.items() if count == max(counts.values())]
    return best[sum(ids) % len(best)] if best else 0


def test_resampled_tokens_bound_the_accuracy_of_a_rule_that_looks_one_token_back():
    """The order-one rule reaches the bound. A rule that looks two tokens back exceeds it, because it knows which
    earlier occurrence it is at.
    """
    asked = make_prompts("iid-induction", with_words(), count=60)
    found, corrupt = score(following(what_followed_most), asked)
    assert asked.order_one is not None and 0.6 < asked.order_one < 0.9
    assert found["right"] == pytest.approx(asked.order_one, abs=0.03) and corrupt["right"] < 0.05

    def two_back(ids: list[int]) -> int:
        places = [place for place in range(1, len(ids) - 1) if ids[place - 1 : place + 1] == ids[-2:]]
        return ids[places[0] + 1] if places else what_followed_most(ids)

    assert score(following(two_back), asked)[0]["right"] > asked.order_one + 0.1
    assert set(RULES) | {"iid-induction", "natural-ngram", "natural-copying", "natural-brackets"} == set(BEHAVIOURS)


@pytest.mark.parametrize("behaviour", RULES)
def test_other_rules_do_not_have_the_behaviour(behaviour: str, text: str):
    asked = make_prompts(behaviour, with_words(), count=20, text=text)
    others = {name: score(following(rule), asked)[0]["right"] for name, rule in RULES.items() if name != behaviour}
    for name, right in others.items():
        # In "a b a b" the token that followed last time is also the previous token.
        assert right == 1 if (name, behaviour) == ("induction", "previous-token") else right < 0.2, (name, right)


@pytest.mark.parametrize("behaviour", ["induction", "iid-induction"])
@pytest.mark.parametrize(("longest", "farthest"), [(256, 200), (120, 95), (25, 16)])
def test_sequences_of_many_lengths_stand_twice_at_many_distances(behaviour: str, longest: int, farthest: int):
    of = make_prompts(behaviour, with_ids(1000), count=60, longest=longest)
    assert of.clean.shape[1] == longest and of.distance is not None
    assert of.distance.min() == 8 and 0.95 * farthest < of.distance.max() <= farthest
    assert int(((of.distance >= 8) & (of.distance < 8 * (farthest / 8) ** 0.5)).sum()) == pytest.approx(30, abs=2)
    for clean, corrupt, asked, back in zip(of.clean, of.corrupt, of.asked, of.distance.tolist(), strict=True):
        places = asked.nonzero()[:, 0]
        second = torch.cat([places, places[-1:] + 1])
        assert torch.equal(clean[second], clean[second - back])
        assert (clean != corrupt).nonzero()[:, 0].tolist() == [
            place for place in (second - back).tolist() if clean[place] != corrupt[place]
        ]
        assert (clean != corrupt).sum() >= 0.7 * len(second)
    sizes = of.asked.sum(1) + 1
    assert sizes.min() == 8 and (sizes.max() > 20 or longest < 40) and len(of.asked.long().argmax(1).unique()) > 5


def with_ids(number: int) -> PreTrainedTokenizerFast:
    """A tokenizer with so many tokens beside BOS."""
    vocabulary = {"<s>": 0, "<unk>": 1, **{f"t{index}": index + 2 for index in range(number)}}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")


def test_every_second_prompt_has_other_tokens():
    """A circuit is chosen on the one half and reported on the other. A vocabulary that is too small is not halved."""
    for number, shared in ((1000, {0}), (300, None)):
        clean = make_prompts("induction", with_ids(number), count=40).clean
        both = set(clean[::2].flatten().tolist()) & set(clean[1::2].flatten().tolist())
        assert both == shared if shared is not None else len(both) > 200


def test_contexts_and_vocabularies_without_room_for_two_sequences_are_refused():
    with pytest.raises(UsageError, match="context and a vocabulary of at least 25 and 32 tokens; the model has 24 and"):
        make_prompts("induction", with_words(), longest=24)
    with pytest.raises(UsageError, match="has 256 and 31: choose another"):
        make_prompts("induction", with_ids(31))
    assert make_prompts("induction", with_ids(32), count=4).clean.shape == (4, 25)


def test_answers_are_scored_by_distance():
    """Of a rule that sees 40 tokens, and answers all of them right on the way."""

    def near(ids: list[int]) -> int:
        return after_its_last_occurrence(ids[-40:])

    of = make_prompts("induction", with_words(), count=120)
    clean, corrupt = score(following(near), of)
    found = {(one["least"], one["most"]): one for one in clean["distances"]}
    assert found[8, 16]["right"] == found[16, 32]["right"] == 1 and found[64, 128]["right"] == 0
    assert 0 < found[32, 64]["right_low"] < found[32, 64]["right"] < found[32, 64]["right_high"] < 1
    assert sum(one["prompts"] for one in found.values()) == 120
    assert {one["right"] for one in corrupt["distances"]} == {0}
    assert clean["beyond"] == clean["right"] - corrupt["right"]
    assert clean["beyond_low"] < clean["beyond"] < clean["beyond_high"]


def test_passages_of_held_out_text_stand_twice(text: str):
    """Once they are read, a rule that looks them up copies them; a first reading shows what else it gets right."""
    of = make_prompts("natural-copying", with_words(), count=8, text=text)
    assert of.clean.shape == (8, 1 + 60 + 20 + 60) and of.asked.nonzero()[:, 1].tolist() == [*range(81, 140)] * 8
    assert torch.equal(of.clean[:, 1:61], of.clean[:, 81:]) and torch.equal(of.clean[:, 61:], of.corrupt[:, 61:])
    assert not (of.clean[:, 1:61] == of.corrupt[:, 1:61]).all(1).any()

    def third_back(ids: list[int]) -> int:
        places = [place for place in range(3, len(ids) - 1) if ids[place - 2 : place + 1] == ids[-3:]]
        return ids[places[0] + 1] if places else 0

    clean, corrupt = score(following(third_back), of)
    assert (
        clean["right"] > 0.9
        and clean["beyond"] == pytest.approx(clean["right"] - corrupt["right"])
        and corrupt["right"] < 0.5
    )
    starts = {
        split: {tuple(with_words().encode(one, add_special_tokens=False)[:60]) for _, one in select(read(text), split)}
        for split in ("sweep", "report")
    }
    for split, first in (("sweep", 0), ("report", 1)):
        assert {tuple(row) for row in of.clean[first::2, 1:61].tolist()} <= starts[split]
    with pytest.raises(UsageError, match=r"split .* at least 201 documents of 80 tokens; .* lower `count`"):
        make_prompts("natural-copying", with_words(), count=400, text=text)


def test_the_last_token_of_a_usual_n_gram_in_held_out_text_is_asked_for(text: str):
    of = make_prompts("natural-ngram", with_words(), count=40, text=text)
    found, corrupt = score(following(next_in_the_text), of)
    assert (found["right"], corrupt["right"]) == (1.0, 0.0)
    assert of.clean.shape == (40, 97) and of.asked.nonzero()[:, 1].tolist() == [96] * 40
    assert torch.equal((of.clean != of.corrupt).nonzero(), torch.tensor([[row, 95] for row in range(40)]))
    assert of.answers[:, -1].unique(return_counts=True)[1].max() <= 2  # 40 kinds of n-gram, by turns
    texts = {
        split: [with_words().encode(one, add_special_tokens=False) for _, one in select(read(text), split)]
        for split in ("sweep", "report")
    }
    asked = [[*row[1:], answer] for row, answer in zip(of.clean.tolist(), of.answers[:, -1].tolist(), strict=True)]
    for split, first in (("sweep", 0), ("report", 1)):
        for row in asked[first::2]:
            assert any(one[at : at + 97] == row for one in texts[split] for at in range(len(one) - 96))
    with pytest.raises(UsageError, match=r"at least 200 documents with an n-gram that occurs often .* lower `count`"):
        make_prompts("natural-ngram", with_words(), count=400, text=text)


@pytest.fixture(scope="module")
def bracketed(tmp_path_factory) -> str:
    """Documents of 240 words, in which brackets of three kinds, one within the other too, are open for 1 to 60 words."""
    path = tmp_path_factory.mktemp("text") / "brackets.jsonl"
    generator = torch.Generator().manual_seed(0)

    def drawn(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    def words(count: int, depth: int = 0) -> list[str]:
        if depth > 1 or count < 4:
            return [f"t{drawn(200)}" for _ in range(count)]
        kind, inside = KINDS[drawn(3)], min(count - 3, 1 + drawn(60))
        return [
            "t0", kind[0], *words(inside, depth + 1), kind[1], *words(max(0, count - inside - 3), depth)
        ]  # fmt: skip

    with path.open("w") as file:
        for _ in range(900):
            file.write(json.dumps({"text": " ".join(words(240))}) + "\n")
    return str(path)


def test_the_bracket_that_closes_next_in_held_out_text_is_asked_for(bracketed: str):
    of = make_prompts("natural-brackets", with_words(), count=60, text=bracketed)
    found, corrupt = score(following(closing), of)
    assert (found["right"], corrupt["right"]) == (1.0, 0.0)
    assert of.clean.shape == (60, 97) and of.distance is not None and of.distance.min() >= 8 and of.distance.max() > 40
    places = (of.clean != of.corrupt).nonzero()
    assert torch.equal(places[:, 0], torch.arange(60)) and torch.equal(97 - places[:, 1], of.distance)
    assert of.answers[of.asked].unique(return_counts=True)[1].tolist() == [20, 20, 20]
    texts = {
        split: [with_words().encode(one, add_special_tokens=False) for _, one in select(read(bracketed), split)]
        for split in ("sweep", "report")
    }
    for split, first in (("sweep", 0), ("report", 1)):
        asked = [[*row[1:], answer] for row, answer in zip(of.clean.tolist(), of.answers[:, -1].tolist(), strict=True)]
        for row in asked[first::2]:
            assert any(one[at : at + 97] == row for one in texts[split] for at in range(len(one) - 96))
    with pytest.raises(UsageError, match=r"at least 200 documents with a bracket that closes 8 to 96 .* lower `count`"):
        make_prompts("natural-brackets", with_words(), count=400, text=bracketed)
    with pytest.raises(UsageError, match="single tokens: choose another"):
        make_prompts("natural-brackets", with_ids(50), text=bracketed)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (["a", "(", "b", "[", "c", "]", ")"], [(3, 5, 1), (1, 6, 0)]),
        (
            ["f", "()", "(", "x", "()", ")"],
            [(2, 5, 0)],
        ),  # pairs inside a token are not returned, and take no partner away
        (["f(", "x", ")", " (", "y", ") "], [(3, 5, 0)]),  # nor is a bracket in a longer token; blanks do not count
        (["(", "x", "]", ")", "{", "}"], [(4, 5, 2)]),  # what closes another kind leaves nothing open
        ([")", "(", "x", "):", ")"], []),
    ],
)
def test_brackets_close_the_last_one_that_is_open(tokens: list[str], found: list[tuple[int, int, int]]):
    assert [(one.opening, one.closing, one.kind) for one in closed_brackets(tokens)] == found


def test_prompts_depend_on_the_seed_alone():
    one, same, other = (make_prompts("induction", with_words(), count=4, seed=seed).clean for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_probabilities_are_relative_to_the_options():
    asked = Prompts(
        torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), torch.tensor([[False, True]]), torch.tensor([[0, 3]]), (3, 4)
    )
    logits = torch.zeros(1, 2, 6)
    logits[0, 1] = torch.tensor([9.0, 9.0, 9.0, 0.0, 1.0, 9.0]).log_softmax(0)
    row, _ = score(lambda ids: logits, asked)
    assert row["right"] == 0 and row["probability"] == pytest.approx(1 / (1 + torch.e))
    assert row["nats"] == pytest.approx(-torch.tensor(row["probability"]).log().item())


def test_prompts_that_take_several_passes_are_answered_as_in_one_pass(monkeypatch: pytest.MonkeyPatch):
    asked, passes = make_prompts("induction", with_words(), count=7, seed=0), []
    logits, other = reading(passes, 1 / 20), reading([], 1 / 10)
    whole, apart = flat(answered(logits, asked.clean, asked)), score(logits, asked, None, Reference(other, asked))
    assert passes == [7, 7, 7]
    monkeypatch.setattr("stitch.circuits.score.TOKENS_AT_ONCE", 3 * asked.clean.shape[1] + 1)
    assert flat(answered(logits, asked.clean, asked)) == pytest.approx(whole)
    again = score(logits, asked, None, Reference(other, asked))
    assert again[0]["kl"] == pytest.approx(apart[0]["kl"]) and apart[0]["kl"] > 0.01 and "kl" not in apart[1]
    assert passes == [7, 7, 7, 3, 3, 1, 3, 3, 1, 3, 3, 1]
    monkeypatch.setattr("stitch.circuits.score.TOKENS_AT_ONCE", 1)  # a longer prompt is passed through by itself
    assert flat(answered(logits, asked.clean, asked)) == pytest.approx(whole)


@pytest.mark.parametrize("kept, reads", [(2**28, 1), (0, 3)])
def test_a_reference_reads_its_prompts_once_unless_its_answers_take_too_much(kept, reads, monkeypatch):
    monkeypatch.setattr("stitch.circuits.score.KEPT", kept)
    asked, passes = make_prompts("induction", with_words(), count=7, seed=0), []
    logits, other = reading([], 1 / 20), reading(passes, 1 / 10)
    reference = Reference(other, asked)
    found = [score(logits, asked, None, reference)[0]["kl"] for _ in range(3)]
    assert len(passes) == reads and len({*found}) == 1
    expected, got = (each(asked.clean)[asked.asked].double().log_softmax(1) for each in (other, logits))
    assert found[0] == pytest.approx(float((expected.exp() * (expected - got)).sum() / asked.asked.sum()))


def reading(passes: list[int], scale: float):
    """Logits by token, times `scale`, that count the prompts of each pass."""
    table = torch.randn(len(with_words()), 40, generator=torch.Generator().manual_seed(0))

    def logits(ids: Tensor) -> Tensor:
        passes.append(len(ids))
        return table[ids] @ table.T * scale

    return logits


def flat(row: dict) -> dict:
    """A row with the scores at every distance beside the others."""
    by_distance = {f"{key} {one['least']}": value for one in row["distances"] for key, value in one.items()}
    return {**{key: value for key, value in row.items() if key != "distances"}, **by_distance}


def written(folder, *lines: dict | str):
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_prompts_from_a_file(tmp_path):
    lines = (
        {"clean": "t1 t2 t3", "corrupt": "t1 t9 t3", "answer": "t4"},
        {"clean": "t5", "corrupt": "t6", "answer": "t7"},
    )
    tokenizer = with_words()
    found = make_prompts(str(written(tmp_path, *lines)), tokenizer)

    def ids(text: str) -> list[int]:
        return tokenizer.convert_tokens_to_ids(text.split())

    assert found.clean.tolist() == [ids("<s> t1 t2 t3"), ids("<s> t5 <s> <s>")]
    assert found.corrupt.tolist() == [ids("<s> t1 t9 t3"), ids("<s> t6 <s> <s>")]
    assert found.asked.nonzero().tolist() == [[0, 3], [1, 1]]
    assert found.answers[found.asked].tolist() == ids("t4 t7")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["", "{}"], "line 2 needs 'clean'; line 2 needs 'corrupt'; line 2 needs 'answer'"),
        ([{"clean": "t1 t2", "corrupt": "t1", "answer": "t3"}], "line 1: .*equally many tokens, got 2 and 1"),
        ([{"clean": "t1", "corrupt": "t2", "answer": "t3 t4"}], "one token, got 't3 t4'"),
        ([""], "at least one prompt; it is empty"),
    ],
)
def test_unusable_prompt_files_are_refused(lines, message, tmp_path):
    with pytest.raises(StitchError, match=message):
        make_prompts(str(written(tmp_path, *lines)), with_words())


def test_unknown_or_incomplete_behaviours_are_refused(text: str):
    with pytest.raises(UsageError, match=r"one of induction, iid-induction, .*; got inductoin\."):
        make_prompts("inductoin", with_words())
    without_brackets = Tokenizer(models.WordLevel({"<s>": 0, "Ġone": 1}, "<s>"))
    with pytest.raises(UsageError, match="at least two kinds"):
        make_prompts(
            "brackets", PreTrainedTokenizerFast(tokenizer_object=without_brackets, bos_token="<s>", unk_token="<s>")
        )
    with pytest.raises(UsageError, match=r"at least 99 pairs of tokens with one usual successor; .* has 40"):
        make_prompts("ngram", with_words(), count=99, text=text)
    with pytest.raises(UsageError, match="words that start with a space"):
        make_prompts("brackets", tiny.tokenizer())
