"""Greedy decoding of compiled checkpoints, token by token or in frames: the tapes or memories that machines write in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from stitch.errors import UsageError

KEPT = 4  # frames in the cache at most, besides the one being written; with fewer or many more, decoding is slower


@torch.inference_mode()
def decoded(net: Any, ids: list[int], count: int, ends: list[int] | None = None) -> list[int]:
    """The `count` most likely tokens after `ids`, or fewer if one of `ends` is among them."""
    prompt = torch.tensor([ids], device=net.device)
    found = net.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return found[0, len(ids) :].tolist()


@dataclass(frozen=True)
class Frame:
    """The tokens of a frame, and the smallest lead of one of them over all other tokens, in logits."""

    tokens: list[str]
    margin: float


@dataclass(frozen=True)
class Machine:
    """A compiled universal machine: its network, context in tokens, vocabulary, and the tokens with which a run ends.

    The next frame depends on the prompt and the last frame only. Therefore the cache holds the prompt and up to `kept` frames.
    When it is full, all frames are dropped and the last is read again, directly after the prompt: its positions are new, so a
    run may be longer than the context, and a step takes as long at any length.

    With `drafts`, the network reads the last frame as a guess of the next one. Tokens after its first wrong guess are dropped
    and decoded again, so all tokens are those of greedy decoding, and one pass gives several of them. Source: speculative
    decoding, Leviathan et al. 2023, with guesses copied from the text (prompt lookup decoding, Saxena 2023).
    """

    net: Any
    context: int
    tokens: Sequence[str]
    ends: Sequence[str]
    kept: int = KEPT
    drafts: bool = True

    @torch.inference_mode()
    def frames(self, prompt: list[int], frame: list[int], steps: int) -> Iterator[Frame]:
        """Up to `steps` frames after `frame`, all of its length; the last may be shorter and end the run.

        Raises: UsageError when the prompt and two frames do not fit the context.
        """
        size, ends = len(frame), [self.tokens.index(end) for end in self.ends]
        room = min(self.context - len(prompt), (self.kept + 1) * size)
        if room < 2 * size:
            raise UsageError(
                f"the program and two frames of {size} tokens must fit the context of {self.context:,}; they take "
                f"{len(prompt) + 2 * size:,}. Compile with a larger `context`."
            )
        cache = DynamicCache(config=self.net.config)
        self._read(prompt, cache, 1)
        unread = frame
        for _ in range(steps):
            after_prompt = cache.get_seq_length() - len(prompt)
            if after_prompt + len(unread) + size > room:
                cache.crop(-after_prompt)
                unread = frame
            new, margin = self._next(unread, frame, cache, ends)
            yield Frame([self.tokens[number] for number in new], margin)
            if new[-1] in ends:
                return
            frame, unread = new, new[-1:]

    def _next(
        self, unread: list[int], frame: list[int], cache: DynamicCache, ends: list[int]
    ) -> tuple[list[int], float]:
        """The frame after `frame`, and its margin. All of its tokens but the last are in the cache afterwards."""
        new, margin = [], torch.inf
        while len(new) < len(frame) and not (new and new[-1] in ends):
            guess = frame[len(new) : -1] if self.drafts else []
            best, leads = self._read(unread + guess, cache, len(guess) + 1)
            right = next((place for place, token in enumerate(guess) if token != best[place]), len(guess))
            if right < len(guess):
                cache.crop(right - len(guess))
            new += best[: right + 1]
            margin = min(margin, *leads[: right + 1])
            unread = new[-1:]
        return new, margin

    def _read(self, ids: list[int], cache: DynamicCache, answers: int) -> tuple[list[int], list[float]]:
        """The most likely tokens after each of the last `answers` tokens, and their leads. The cache then holds all `ids`."""
        given = torch.tensor([ids], device=self.net.device)
        logits = self.net(given, past_key_values=cache, use_cache=True, logits_to_keep=answers).logits[0]
        best = logits.float().topk(2)
        return best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()
