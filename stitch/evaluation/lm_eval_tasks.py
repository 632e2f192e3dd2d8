"""lm-eval on a loaded model: its own scores and standard errors, without what it prints."""

import io
import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from sae.messages import one_line
from stitch.errors import StitchError
from stitch.models.loading import AnyModel
from stitch.progress import Progress, Steps

MOST_ROWS = 32
HELD = 3  # copies of a batch's logits that lm-eval holds at once


def index(folder: Path | None, progress: Progress | None) -> Any:
    """All tasks that lm-eval knows, and those in `folder`. Raises: StitchError where lm-eval cannot read them."""
    with _quietly("index its tasks"):
        from lm_eval.tasks import TaskManager

        if progress is not None:
            progress("index of lm-eval's tasks", 0, 1)
        found = TaskManager(include_path=None if folder is None else str(folder))
        if progress is not None:
            progress("index of lm-eval's tasks", 1, 1)
        return found


def read_data(tasks: Sequence[str], manager: Any, progress: Progress | None) -> None:
    """Reads the tasks with their data, as `score` does again. Raises: StitchError where it would fail after loading a model."""
    with _quietly("read its tasks"):
        step = Steps("data of the tasks", 1, progress)
        manager.load(list(tasks))
        step()


def score(
    model: AnyModel, name: str, tasks: Sequence[str], manager: Any, *, memory: int, progress: Progress | None
) -> dict:
    """`metrics` of a model by (task, metric), each with `value`, `stderr`, and in `about` what the model does not change.

    `memory` bounds the logits of a batch. Raises: StitchError with lm-eval's reason where it fails.
    """
    with _quietly(f"score {name}"):
        import lm_eval

        run: Any = lm_eval.simple_evaluate  # whose type a decorator hides
        lm = _counting(model, name, memory, progress)
        # At the end it asks git and pip about this machine; git prints where there is no repository.
        unasked = {"get_git_commit_hash": lambda: None, "add_env_info": lambda found: None}
        with patch.multiple(lm_eval.evaluator, create=True, **unasked):
            found = run(lm, tasks=list(tasks), task_manager=manager, log_samples=False)
        lm.aside()
    return {
        "metrics": dict(_metrics(found)),
        "versions": {task: one for task, one in found["versions"].items() if isinstance(one, (int, float, str))},
        "library": {"lm-eval": version("lm-eval")},
    }


def _metrics(found: dict) -> Iterator[tuple[tuple[str, str], dict]]:
    """lm-eval's keys are `acc,none` and `acc_stderr,none`, the second word being a filter of the answers."""
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            name = metric if kind == "none" else f"{metric} ({kind})"
            about = {
                "documents": found.get("n-samples", {}).get(task, {}).get("effective"),
                "higher_is_better": found.get("higher_is_better", {}).get(task, {}).get(metric),
            }
            stderr = values.get(f"{metric}_stderr,{kind}")
            yield (task, name), {"value": _number(value), "stderr": _number(stderr), "about": about}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _counting(model: AnyModel, name: str, memory: int, progress: Progress | None) -> Any:
    """The model as lm-eval runs it, which says after every batch how many requests are done.

    Rows of a batch are as many as the longest of the requests allows.
    """
    from lm_eval.models.huggingface import HFLM

    base: Any = HFLM  # whose type lm-eval's decorators hide

    class Counting(base):
        stage, done, total = "", 0, 0
        aside = Steps(f"data and requests, {name}", 1, progress)  # what lm-eval does while the model waits

        def begin(self, what: str, requests: list) -> None:
            texts = ["".join(part for part in one.args if isinstance(part, str)) for one in requests]
            longest = max((len(self.tok_encode(text)) for text in texts), default=0)
            each = HELD * 4 * model.vocabulary * max(1, min(longest, self.max_length))
            self.batch_size_per_gpu = max(1, min(MOST_ROWS, memory // each))
            self.aside()
            self.stage, self.done, self.total = f"{what}, {name}", 0, len(requests)
            self.count(0)

        def count(self, rows: int) -> None:
            self.done = min(self.done + rows, self.total)  # a long text is several rows of one request
            if progress is not None:
                progress(self.stage, self.done, self.total)

        def end(self) -> None:
            self.count(self.total)
            self.aside = Steps(f"scores and standard errors, {name}", 1, progress)

        def loglikelihood(self, requests, disable_tqdm=False):
            self.begin("tasks", requests)
            found = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            self.end()
            return found

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            self.begin("texts", requests)
            found = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            self.end()
            return found

        def generate_until(self, requests, disable_tqdm=False):
            self.begin("answers", requests)
            found = super().generate_until(requests, disable_tqdm=disable_tqdm)
            self.end()
            return found

        def _model_call(self, inps, attn_mask=None, labels=None):
            found = super()._model_call(inps, attn_mask=attn_mask, labels=labels)
            self.count(len(inps))
            return found

        def _model_generate(self, context, *arguments, **options):
            found = super()._model_generate(context, *arguments, **options)
            self.count(len(context))
            return found

    return Counting(pretrained=model.net, tokenizer=model.tokenizer, backend="causal", batch_size=1)


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Without lm-eval's log, bars and lines, and with the caller's random numbers kept.

    Raises: StitchError of one line for whatever lm-eval, a task or its data raise.
    """
    import datasets
    from tqdm import std

    log, bar, drawn = logging.getLogger("lm_eval"), std.tqdm.__init__, (random.getstate(), np.random.get_state())
    level, bars = log.level, datasets.are_progress_bars_disabled()

    def without_bar(self: Any, *arguments: Any, **options: Any) -> None:
        bar(self, *arguments, **{**options, "disable": True})

    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(io.StringIO()), torch.random.fork_rng(), patch.object(std.tqdm, "__init__", without_bar):
            yield
    except StitchError:
        raise
    except Exception as error:  # of lm-eval, of a task's code, of datasets and of the network
        raise StitchError(f"lm-eval failed to {what}: {one_line(error)}") from error
    finally:
        log.setLevel(level)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        if not bars:
            datasets.enable_progress_bars()
