"""Time to write a composite of two bf16 checkpoints of 1.5 billion parameters, against `cp` of as many bytes. One JSON
line.

Shapes are those of Qwen2-1.5B; weights are noise, since only headers are read. Each run is a separate process. All
write to the same file system, and each is flushed with fsync before the clock stops. Peak memory is the operating
system's figure.

`--mergekit PATH` also times a passthrough merge of the same blocks (no translation is needed, since widths are equal)
with the `mergekit-yaml` at PATH, which may belong to another environment. Its time is that of a whole process, imports
included, and is compared with `process`, the same for stitch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _processes import in_bytes, last_line, peak_bytes

WIDTH, LAYERS, SITE = 1536, 28, 14


def config():
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151_936, max_position_embeddings=32_768, tie_word_embeddings=True,
    )  # fmt: skip


def write_donor(folder: Path, seed: int) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    from stitch.files.shards import Held, write_shards

    torch.manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen2ForCausalLM(config()).state_dict().items()}
    del shapes["lm_head.weight"]  # tied
    noise = torch.randn(2**22).bfloat16()
    folder.mkdir()
    tensors = {
        name: Held(noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].view(shape))
        for name, shape in shapes.items()
    }
    write_shards(folder, tensors, 5_000_000_000)
    wanted = config()
    wanted.architectures = ["Qwen2ForCausalLM"]
    wanted.save_pretrained(folder)


def by_stitch(work: Path, target: Path) -> None:
    import torch

    from stitch.composite.checkpoint import write_checkpoint
    from stitch.modeling.modeling_composite import StitchConfig
    from stitch.modeling.modeling_halves import flow_of_cut
    from stitch.translation.module import translation_config
    from stitch.translation.types import Residual, Term, Translation

    translation = Translation("affine", (Term(Residual(SITE), torch.randn(WIDTH, WIDTH)),), torch.zeros(WIDTH))
    start = time.perf_counter()
    donor = config()  # the donors' weights are not loaded, as in mergekit
    seam, flow = translation_config(translation, None, SITE, WIDTH, donor.vocab_size), flow_of_cut(donor)
    wanted = StitchConfig(donor, donor, SITE, SITE, seam, flow, flow)
    write_checkpoint(target, wanted, work / "a", work / "b", translation)
    synchronise(target)
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}))


def by_mergekit(program: str, work: Path, target: Path) -> tuple[float, int]:
    """Seconds and peak memory of a mergekit process that joins the same blocks."""
    slices = "".join(
        f"  - sources: [{{model: {work / name}, layer_range: [{start}, {end}]}}]\n"
        for name, start, end in (("a", 0, SITE), ("b", SITE, LAYERS))
    )
    asked = work / "merge.yaml"
    asked.write_text(f"merge_method: passthrough\ndtype: bfloat16\nslices:\n{slices}")
    start = time.perf_counter()
    process = subprocess.Popen([program, asked, target], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{program} must succeed; it ended with {os.waitstatus_to_exitcode(status)}.")
    synchronise(target)
    return time.perf_counter() - start, in_bytes(used.ru_maxrss)


def by_cp(work: Path, target: Path) -> float:
    """Copies the checkpoint that stitch wrote."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", work / "stitch", target], check=True)
    synchronise(target)
    return time.perf_counter() - start


def synchronise(folder: Path) -> None:
    for place in folder.iterdir():
        with place.open("rb") as file:
            os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mergekit", help="Path of a mergekit-yaml to compare with.")
    parser.add_argument("--part", choices=("donors", "stitch"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "donors":
        for seed, name in enumerate("ab"):
            write_donor(given.work / name, seed)
        return
    if given.part == "stitch":
        by_stitch(given.work, given.work / "stitch")
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        work = Path(folder).resolve()  # mergekit would take a relative path for a name on the Hub
        command = [sys.executable, __file__, "--work", str(work), "--part"]
        # a child's peak memory starts at its parent's, so this process must stay small
        subprocess.run([*command, "donors"], check=True)
        rounds = []
        for _ in range(given.repeats):
            subprocess.run(["rm", "-rf", *(work / name for name in ("stitch", "cp", "mergekit"))], check=True)
            start = time.perf_counter()
            found = {**last_line([*command, "stitch"]), "process": time.perf_counter() - start}
            found["cp"] = by_cp(work, work / "cp")
            if given.mergekit:
                merged = by_mergekit(given.mergekit, work, work / "mergekit")
                found["mergekit"], found["mergekit_peak_bytes"] = merged
            rounds.append(found)
        size = sum(place.stat().st_size for place in (work / "stitch").iterdir())
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = [round(one["seconds"] / one["cp"], 3) for one in rounds]
    found = {"bytes": size, **{name: round(value, 2) for name, value in median.items()}}
    found |= {"ratio": statistics.median(ratios), "ratios": ratios}
    if given.mergekit:
        found["mergekit_ratios"] = [round(one["mergekit"] / one["process"], 2) for one in rounds]
    print(json.dumps({"benchmark": "checkpoint", **found}))


if __name__ == "__main__":
    main()
