"""A million tokens of one run of a compiled machine: every frame compared with the interpreter's. One JSON line per part.

    drafts      four machines, decoded as by `stitch run`: tokens per second, memory and margin in every tenth
    unbroken    the binary counter with true positions and no token read twice
    growing     its first 8,000 tokens with all keys kept, beside those that `stitch run` keeps
    generate    as many tokens by transformers' generate, prompted again whenever the context of 2,048 tokens is full
    positions   eight frames as far behind the rules as in the middle of a run
    nulls       frames that are right without a rule, without a cell of the last frame, or as copies of the last frame

`python benchmarks/long_trace.py positions nulls` measures only these. `--tokens` sets the length of runs.
"""

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from _long_machines import MACHINES, Long, between_walls, counter
from _processes import peak_bytes
from transformers import DynamicCache

from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.build import build
from stitch.synthesis.decode import KEPT, Frame, Machine, decoded
from stitch.synthesis.write import MARGIN

ALL = 10**6  # frames in the cache: more than any run here has


class SlidingCache(DynamicCache):
    """A cache from whose middle keys were dropped. The others keep their positions."""

    dropped = 0

    def drop(self, start: int, end: int) -> None:
        for layer in self.layers:
            layer.keys = torch.cat([layer.keys[..., :start, :], layer.keys[..., end:, :]], -2)
            layer.values = torch.cat([layer.values[..., :start, :], layer.values[..., end:, :]], -2)
        self.dropped += end - start


class Unbroken(Machine):
    """Reads no token twice: keys of old frames are dropped, and tokens have their positions in the whole run."""

    @torch.inference_mode()
    def frames(self, prompt: list[int], frame: list[int], steps: int) -> Iterator[Frame]:
        size, cache = len(frame), SlidingCache(config=self.net.config)
        self._read(prompt, cache, 1)
        unread = frame
        for _ in range(steps):
            new, margin = self._next(unread, frame, cache, [])
            yield Frame([self.tokens[number] for number in new], margin)
            frame, unread = new, new[-1:]
            if cache.get_seq_length() - len(prompt) > self.kept * size:
                cache.drop(len(prompt), cache.get_seq_length() - size)  # the farthest head looks as far back as a frame

    def _read(self, ids: list[int], cache: SlidingCache, answers: int) -> tuple[list[int], list[float]]:
        start = cache.get_seq_length() + cache.dropped
        logits = self.net(
            torch.tensor([ids]),
            position_ids=torch.arange(start, start + len(ids))[None],
            past_key_values=cache,
            logits_to_keep=answers,
        ).logits[0]
        best = logits.topk(2)
        return best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()


def loaded(machine: Long, work: Path):
    """The machine's checkpoint, read back from disk by plain transformers."""
    shutil.rmtree(work / "machine", ignore_errors=True)
    checkpoint.save(
        build(kinds.blueprint_of(machine.description), machine.description["arch"]),
        machine.description,
        work / "machine",
    )
    return checkpoint.load(work / "machine", torch.float32, "sdpa")


def traced(
    net, machine: Long, tokens: int, by: type[Machine] = Machine, *, kept: int = KEPT, drafts: bool = True
) -> dict:
    """A run of at least `tokens` tokens, in tenths. Time is that of decoding, without comparing."""
    size = len(machine.frame)
    frames = -(-tokens // size)
    run = by(net, machine.description["context"], machine.tokens, machine.ends, kept, drafts)
    found = iter(run.frames(machine.prompt, machine.frame, frames))
    last = [machine.tokens[number] for number in machine.frame]
    done, wrong, margin, copied, tenths = 0, 0, torch.inf, 0, []
    for tenth in range(10):
        seconds, cpu, read = 0.0, 0.0, 0
        count = frames * (tenth + 1) // 10 - frames * tenth // 10
        for _ in range(count):
            began, began_cpu = time.perf_counter(), time.process_time()
            frame = next(found)
            seconds, cpu = seconds + time.perf_counter() - began, cpu + time.process_time() - began_cpu
            wrong += frame.tokens != next(machine.expected)
            copied += sum(one == other for one, other in zip(frame.tokens, last, strict=True))
            read += tokens_read(last, frame.tokens)
            done, margin, last = done + len(frame.tokens), min(margin, frame.margin), frame.tokens
        tenths.append(
            {
                "tenth": tenth + 1,
                "tokens": count * size,
                "tokens_per_second": count * size / seconds,
                "tokens_per_cpu_second": count * size / cpu,
                **({"read_per_token": read / (count * size)} if drafts else {}),
                "peak_bytes": peak_bytes(),
            }
        )
    rates = [one["tokens_per_second"] for one in tenths]
    return {
        "frame": size,
        "prompt": len(machine.prompt),
        "parameters": net.num_parameters(),
        "frames": frames,
        "tokens": done,
        "wrong_frames": wrong,
        "margin": margin / MARGIN,
        "equal_to_last_frame": copied / done,
        "seconds": sum(one["tokens"] / one["tokens_per_second"] for one in tenths),
        "cpu_seconds": sum(one["tokens"] / one["tokens_per_cpu_second"] for one in tenths),
        "tokens_per_cpu_second": done / sum(one["tokens"] / one["tokens_per_cpu_second"] for one in tenths),
        "tokens_per_second": done / sum(one["tokens"] / one["tokens_per_second"] for one in tenths),
        "slowest_tenth": min(rates),
        "fastest_tenth": max(rates),
        "peak_growth_bytes": tenths[-1]["peak_bytes"] - tenths[0]["peak_bytes"],
        "tenths": tenths,
    }


def tokens_read(last: Sequence[str], frame: Sequence[str]) -> int:
    """The tokens that passes with drafts read for a frame: each pass, all after the wrong guess before."""
    wrong = [place for place, token in enumerate(frame[:-1]) if token != last[place]]
    return sum(len(frame) - start for start in (0, *(place + 1 for place in wrong)))


def drafts(work: Path, tokens: int, machines: Sequence[str] = tuple(MACHINES)) -> Iterator[dict]:
    for name in machines:
        machine = MACHINES[name]()
        yield {"machine": name, **traced(loaded(machine, work), machine, tokens)}


def unbroken(work: Path, tokens: int) -> Iterator[dict]:
    machine = counter()
    yield {"machine": "binary counter", **traced(loaded(machine, work), machine, tokens, Unbroken)}


def growing(work: Path, tokens: int) -> Iterator[dict]:
    """One token per pass, so that only the number of keys differs."""
    tokens, context = min(tokens, 8_000), 8_192
    for name, kept in (("all", ALL), (f"rules and {KEPT} frames", KEPT)):
        machine = counter(context=context)
        yield {"keys": name, **traced(loaded(machine, work), machine, tokens, kept=kept, drafts=False)}


def generate(work: Path, tokens: int) -> Iterator[dict]:
    machine = counter()
    net, size, context = loaded(machine, work), len(machine.frame), machine.description["context"]
    seconds, cpu, last, done, wrong = 0.0, 0.0, machine.frame, 0, 0
    while done < min(tokens, 8_000):
        began, began_cpu = time.perf_counter(), time.process_time()
        new = decoded(net, machine.prompt + last, (context - len(machine.prompt) - size) // size * size)
        seconds, cpu = seconds + time.perf_counter() - began, cpu + time.process_time() - began_cpu
        for start in range(0, len(new), size):
            wrong += [machine.tokens[number] for number in new[start : start + size]] != next(machine.expected)
        done, last = done + len(new), new[-size:]
    yield {
        "machine": "binary counter",
        "tokens": done,
        "wrong_frames": wrong,
        "tokens_per_second": done / seconds,
        "tokens_per_cpu_second": done / cpu,
    }


def positions(work: Path, tokens: int) -> Iterator[dict]:
    """The rules at the first positions, and eight frames from position `start` on, with the right frames given."""
    for name, make in (("binary counter", counter), ("random machine, 128 rules", between_walls)):
        machine = make()
        net, frames, size = loaded(machine, work), 8, len(machine.frame)
        later = [machine.tokens.index(token) for frame in itertools.islice(machine.expected, frames) for token in frame]
        ids = torch.tensor([[*machine.frame, *later]])
        for start in (
            len(machine.prompt),
            1_000,
            2_000,
            4_000,
            8_000,
            16_000,
            100_000,
            1_000_000,
            3_000_000,
            10_000_000,
        ):
            cache = DynamicCache(config=net.config)
            with torch.inference_mode():
                net(torch.tensor([machine.prompt]), past_key_values=cache)
                at = start + torch.arange(ids.shape[1])[None]
                logits = net(ids, position_ids=at, past_key_values=cache).logits[0, size - 1 : -1]
            answers = ids[0, size:, None]
            leads = logits.gather(1, answers)[:, 0] - logits.scatter(1, answers, -torch.inf).max(1).values
            yield {
                "machine": name,
                "start": start,
                "asked": len(leads),
                "wrong": int((leads <= 0).sum()),
                "margin": float(leads.min()) / MARGIN,
            }


def nulls(work: Path, tokens: int, frames: int = 200) -> Iterator[dict]:
    """Each frame from the right frame before it, with something left out of what the window keeps."""
    machine = between_walls()
    net = loaded(machine, work)
    shown = [machine.frame] + [
        [machine.tokens.index(token) for token in frame] for frame in itertools.islice(machine.expected, frames)
    ]
    windows = {
        "rules and last frame": lambda frame: (machine.prompt, frame),
        "no rules": lambda frame: (machine.prompt[:1], frame),
        "half of the rules": lambda frame: (machine.prompt[:193] + machine.prompt[-1:], frame),
        "last frame without its first cell": lambda frame: (machine.prompt, frame[1:]),
    }
    for name, window in windows.items():
        right = 0
        for before, after in itertools.pairwise(shown):
            prompt, last = window(before)
            run = Machine(net, machine.description["context"], machine.tokens, machine.ends)
            right += [machine.tokens[number] for number in after] == next(run.frames(prompt, last, 1)).tokens
        yield {"window": name, "frames": frames, "right": right}
    copies = sum(before == after for before, after in itertools.pairwise(shown))
    yield {"window": "none: a copy of the last frame", "frames": frames, "right": copies}


PARTS = (positions, nulls, growing, generate, drafts, unbroken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *(part.__name__ for part in PARTS)])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--machines", nargs="*", choices=[*MACHINES], default=[*MACHINES], help="Those of `drafts`.")
    given = parser.parse_args()
    for part in PARTS:
        if not given.parts or part.__name__ in given.parts:
            with tempfile.TemporaryDirectory() as work:
                measure = partial(part, machines=given.machines) if part is drafts else part
                for row in measure(Path(work), given.tokens):
                    row = {"part": part.__name__, **row, "threads": torch.get_num_threads(), "torch": torch.__version__}
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
