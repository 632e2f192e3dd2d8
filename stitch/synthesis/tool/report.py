"""Compiles a tool into a trained model and measures it: accuracy of its states, that of probes on the host, and cost on text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor

from stitch.composite.donor_code import save_net
from stitch.errors import UsageError
from stitch.evaluation.scores import evaluate, whole_model
from stitch.files.job import Job, run
from stitch.files.recipe import recipe
from stitch.files.store import Store
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.device import torch_device
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import resolve
from stitch.models.writer import Writer
from stitch.pages.card import page_and_card
from stitch.pages.tool import tool_page
from stitch.progress import Progress
from stitch.synthesis import checkpoint
from stitch.synthesis.automata.read import read_automaton
from stitch.synthesis.bounds import within
from stitch.synthesis.card import tool_card
from stitch.synthesis.report import tool_notes, tool_table
from stitch.synthesis.tool.accuracy import accuracy
from stitch.synthesis.tool.tool import FAINT, Tool, states_along, steps_of_tokens, with_tool
from stitch.text.windows import CONTEXT, Windows, report_windows

READOUT, REPORT = "readout.safetensors", "tool.json"
SAMPLE = 8  # windows on which factors of norms are measured
BATCH = 32  # windows per forward pass
MOST_FAINT = 10  # times the shortest residual stream: what is added would drown the host
MOST_TEXT = 10**9  # held-out tokens: more than a text has
RIDGE = 1e-3  # of probes, relative to the mean square of their inputs


def compile_tool(
    spec: str,
    host: str,
    out: Path,
    *,
    text: str = "docs",
    tokens: int = 50_000,
    faint: float = FAINT,
    device: str = "auto",
    normalise: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes a trained host with an additional automaton to `out`, a stock checkpoint, and measures it.

    `readout.safetensors` holds a vector for every state; the state is the one with the largest product with the last hidden
    state. The report has the cross-entropy on `tokens` tokens of held-out `text` before and after, and the accuracy of the
    state, in all, by tokens read and by state: of the tool in fp32 and bf16, of a linear probe on the unchanged host (at its
    best site), and of the most frequent state.

    Raises: UsageError when the automaton does not fit the host, or a number is out of its range.
    """

    if not 0 < faint <= MOST_FAINT:
        raise UsageError(f"faint must be above 0 and at most {MOST_FAINT}; got {faint}.")
    within("tokens", tokens, 1, MOST_TEXT)

    def plan() -> Job:
        automaton = read_automaton(spec, normalise=normalise)
        source = resolve(host, progress=progress)
        before = load(source.folder, name=host, dtype=torch.float32, device=torch_device(device))
        windows = report_windows(
            text, tokens, before.tokenizer, min(before.longest, CONTEXT), writer=Writer.of(before, 0), store=Store(),
            progress=progress,
        )  # fmt: skip
        ids = windows.ids.long()

        def make(scratch: Path, output: Path) -> dict:
            tool = with_tool(before, automaton, ids[:SAMPLE], faint)
            report = {
                "host": host,
                "automaton": spec,
                "faint": faint,
                "states": list(automaton.states),
                "symbols": list(automaton.symbols),
                "start": automaton.start,
                "steps": [list(row) for row in automaton.steps],
                "windows_per_block": tool.windows,
                "blocks": tool.blocks,
                "parameters": {"before": before.net.num_parameters(), "after": tool.net.net.num_parameters()},
                "tokens": windows.tokens,
            }

            output.mkdir()
            _write(output, tool, before)
            steps = steps_of_tokens(automaton, before.tokenizer, before.vocabulary)
            states = states_along(steps, ids, automaton.start)
            report["right"] = _rows(before, output, tool.read, windows, states, automaton.states, progress)
            rows = {"as it was": whole_model(before.net), "with the tool": whole_model(tool.net.net)}
            scores = evaluate(rows, windows, vocabulary=before.vocabulary, progress=progress)
            low, high = scores["with the tool"].interval(minus=scores["as it was"])
            report["text"] = [score.row(name) for name, score in scores.items()]
            report["price"] = {"nats": scores["with the tool"].ce - scores["as it was"].ce, "low": low, "high": high}
            settings = {
                "spec": spec, "host": host, "normalise": normalise, "faint": faint, "text": text, "tokens": tokens,
                "device": device,
            }  # fmt: skip
            report["provenance"] = {**surroundings(settings, {"host": (before, source)}), **windows.provenance}
            report["recipe"] = recipe("compile tool", report["provenance"])
            (output / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            page = tool_page(report, tool_table(report), tool_notes(report))
            for name, content in page_and_card(page, tool_card(report)).items():
                (output / name).write_bytes(content)
            return report

        return Job(make=make)

    return run("compile tool", plan, out, overwrite=overwrite)[0]


def _write(folder: Path, tool: Tool, host: Model) -> None:
    """The model with its tool, the host's tokenizer, and the readout."""
    save_net(tool.net.net, folder)
    copy_tokenizer(host.folder, folder)
    save_file({"states": tool.read.float().contiguous()}, folder / READOUT, metadata={"format": "pt"})


def _rows(
    before: Model,
    out: Path,
    read: Tensor,
    windows: Windows,
    states: Int64[Tensor, "windows context"],
    names: Sequence[str],
    progress: Progress | None,
) -> list[dict]:
    """Accuracies on the second half of the windows; probes are fitted on the first half."""
    half = len(windows.ids) // 2
    ids, test = windows.ids.long(), slice(half, None)
    document, truth = windows.document[test], states[test]
    found = {}  # predicted states of all tokens, by name
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        net = checkpoint.load(out, dtype, "sdpa", str(before.device))
        lanes = [_hidden(net, part)[-1] @ read.T for part in _parts(ids[test], f"tool, {name}", progress)]
        found[f"tool, {name}"] = torch.cat(lanes).argmax(-1).flatten()
    probes = _probes(before, ids[:half], states[:half], len(read), progress)
    fitted = [_predicted(before, ids[:half], site, probe, progress) for site, probe in enumerate(probes)]
    site = max(range(len(probes)), key=lambda site: float((fitted[site] == states[:half].flatten()).double().mean()))
    found[f"probe on the host's stream, site {site}"] = _predicted(before, ids[test], site, probes[site], progress)
    found["the most frequent state"] = torch.full_like(
        truth.flatten(), int(states[:half].flatten().bincount().argmax())
    )
    return [accuracy(name, predicted, truth, document, names) for name, predicted in found.items()]


@torch.inference_mode()
def _hidden(net, ids: Int64[Tensor, "rows context"]) -> list[Float[Tensor, "rows context d"]]:
    """The residual stream before every block, and the last hidden state, after the final norm."""
    return [
        one.double().cpu() for one in net(ids.to(net.device), output_hidden_states=True, use_cache=False).hidden_states
    ]


def _parts(ids: Tensor, stage: str, progress: Progress | None) -> Iterator[Tensor]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]
        if progress:
            progress(stage, min(start + BATCH, len(ids)), len(ids))


def _probes(
    before: Model, ids: Tensor, states: Tensor, count: int, progress: Progress | None
) -> list[Float[Tensor, "d1 states"]]:
    """Ridge regressions from every site, with a constant, to the one-hot state."""
    zero = torch.zeros((), dtype=torch.float64)
    grams, crosses, start = [zero] * (before.depth + 1), [zero] * (before.depth + 1), 0
    for part in _parts(ids, "probes", progress):
        wanted = torch.nn.functional.one_hot(states[start : start + len(part)].flatten(), count).double()
        start += len(part)
        for site, x in enumerate(_hidden(before.net, part)):
            x = _with_constant(x)
            grams[site], crosses[site] = grams[site] + x.T @ x, crosses[site] + x.T @ wanted
    found = []
    for gram, cross in zip(grams, crosses, strict=True):
        damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        found.append(torch.linalg.solve(damped, cross))
    return found


def _predicted(
    before: Model, ids: Tensor, site: int, probe: Tensor, progress: Progress | None
) -> Int64[Tensor, " tokens"]:
    parts = [
        (_with_constant(_hidden(before.net, part)[site]) @ probe).argmax(-1) for part in _parts(ids, "probes", progress)
    ]
    return torch.cat(parts)


def _with_constant(x: Float[Tensor, "rows context d"]) -> Float[Tensor, "tokens d1"]:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1).flatten(0, 1)
