"""Greedy decoding of compiled checkpoints, token by token or in frames: the tapes or memories that machines write in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stitch.errors import UsageError


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
class Machine:
    """A compiled universal machine: its network, context in tokens, vocabulary, and the tokens with which a run ends."""

    net: Any
    context: int
    tokens: Sequence[str]
    ends: Sequence[str]

    def frames(self, prompt: list[int], frame: list[int], steps: int) -> Iterator[list[str]]:
        """The tokens of up to `steps` frames after `frame`, all of its length; the last may be shorter and end the run.

        The next frame depends on the prompt and the last frame only. When the context is full, decoding continues from these.

        Raises: UsageError when the prompt and two frames do not fit the context.
        """
        size, ids, done = len(frame), prompt + frame, 0
        if len(ids) + size > self.context:
            raise UsageError(
                f"the program and two frames of {size} tokens must fit the context of {self.context:,}; they take "
                f"{len(ids) + size:,}. Compile with a larger `context`."
            )
        ends = [self.tokens.index(end) for end in self.ends]
        while done < steps:
            room = (self.context - len(ids)) // size
            if not room:
                ids = prompt + ids[-size:]
                continue
            new = decoded(self.net, ids, min(room, steps - done) * size, ends)
            ids += new
            for start in range(0, len(new), size):
                done += 1
                yield [self.tokens[number] for number in new[start : start + size]]
            if new[-1] in ends:
                return
