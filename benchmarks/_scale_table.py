"""Prints the results of `make bench-scale` beside their targets: `python benchmarks/_scale_table.py LINES.jsonl`."""

import json
import sys
from pathlib import Path

from tables import markdown


def main() -> None:
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines() if line.startswith("{")]
    rows = [row for line in lines for row in ROWS[line["benchmark"]](line)]
    print(markdown(["what", "measured", "target"], rows), end="")


def matching(line: dict) -> list[tuple[str, str, str]]:
    kind = line.get("kind", "real")
    sparse, size = line["sparse"], line["features"]
    seconds = sum(spent for step, spent in sparse["seconds"].items() if step != "graph alone")
    found = f"{seconds:.1f} s, {sparse['peak_bytes'] / 1e9:.2f} GB, gap {sparse['gap']:.0e}"
    if "dense" not in line:
        target = {65_536: "45 s, 1 GB, gap 1e-4", 131_072: "180 s, 1.5 GB, gap 1e-4"}
        return [(f"matching, {size:,}² {kind}", found, target.get(size, ""))]
    dense = line["dense"]
    ratio = sum(dense["seconds"].values()) / seconds
    memory = sparse["peak_bytes"] / dense["peak_bytes"]
    found += f"; {ratio:.1f} times as fast as the dense product and scipy, with {memory:.2f} of their memory"
    target = ("10 times" if kind == "mixed" else "4 times") if size == 16_384 else ""
    return [(f"matching, {size:,}² {kind}", found, target)]


def sae_training(line: dict) -> list[tuple[str, str, str]]:
    fvu = {name: ", ".join(f"{value:.3f}" for value in line[name]["fvu"].values()) for name in ("stitch", "saelens")}
    ratio, cpu = line["ratio"]["seconds"], line["ratio"]["cpu_seconds"]
    found = f"{ratio:.2f} of SAELens' time, {cpu:.2f} of its CPU time; FVU {fvu['stitch']} beside {fvu['saelens']}"
    return [(f"SAEs, 2 sites, {line['features']:,} features", found, "0.6")]


def checkpoint(line: dict) -> list[tuple[str, str, str]]:
    spread = f"{min(line['ratios']):.2f} – {max(line['ratios']):.2f}"
    memory = f"{line['peak_bytes'] / 1e6:.0f} MB"
    return [("checkpoint against cp", f"{line['ratio']:.2f} ({spread}), {memory}", "1.25, 500 MB")]


def harvest(line: dict) -> list[tuple[str, str, str]]:
    spread = " – ".join(f"{value:.2f}" for value in line["range"])
    return [(f"harvest of {line['model']}, 4 sites", f"{line['share_of_bare_speed']:.3f} of bare ({spread})", "0.95")]


def decode(line: dict) -> list[tuple[str, str, str]]:
    spread = " – ".join(f"{value:.2f}" for value in line["range"])
    return [("decoding of a composite", f"{line['share_of_expected_speed']:.3f} of expected ({spread})", "0.97")]


def end_to_end(line: dict) -> list[tuple[str, str, str]]:
    which = "--brief" if line["brief"] else "whole report"
    found = f"{line['share']:.2f}; {line['share_of_passes']:.2f} with scoring; {sum(line['seconds'].values()):.0f} s"
    return [(f"stitch A B, {which}, against harvest and SAEs", found, "1.2")]


ROWS = {
    "matching_at_scale": matching,
    "matching_real": matching,
    "sae_training": sae_training,
    "checkpoint": checkpoint,
    "harvest": harvest,
    "decode": decode,
    "end_to_end": end_to_end,
}

if __name__ == "__main__":
    main()
