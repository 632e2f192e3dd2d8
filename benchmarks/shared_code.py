"""One code for several streams, as a trained reference, compared with separate SAEs that are matched: same tokens,
width and k.

One JSON line per seed and direction: CE, KL and cost of every row, paired intervals, quality of every dictionary. The
embedded pair (gpt2.3 and llama.4) has every row in both directions. `--other-seeds 1` adds the other ten of the twelve
directions between four streams, where one code of four streams is compared with codes of two, separate SAEs and ridge.
All are trained by the same trainer: a separate SAE is a code of one stream.

Finished lines are kept in `--work`; a repeated call prints them and continues.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _joint_sae import SharedCode, crosscoder, universal_sae
from _pair import row
from _shared_code import Streams, directions, re_paired, second_moments, through_code

from sae.config import SAEConfig
from sae.metrics import Quality, measure
from sae.schedule import steps_for
from sae.types import Dictionary
from stitch.activations.harvest import harvest
from stitch.activations.paired import Paired
from stitch.config import Settings
from stitch.evaluation.scores import Scores, evaluate
from stitch.evaluation.stage import Stage
from stitch.features.codes import code_stream
from stitch.features.matching import match
from stitch.features.saes import SAEs
from stitch.jobs import stages
from stitch.models.model import Model
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import ridge
from stitch.text.documents import Split
from stitch.translation import cross_code, matched
from stitch.translation.available import available, earlier_sites
from stitch.translation.fit import from_ridge
from stitch.translation.groups import needed
from stitch.translation.inputs import Input, Lift, Stream, reach, streams
from stitch.translation.rows import FREE
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Translation

MAIN = ("gpt2.3", "llama.4")  # the embedded pair; the two others are one block earlier
FOUR = ("gpt2.2", "gpt2.3", "llama.3", "llama.4")
SPLITS = ("fit", "sweep", "report")
COMPARED = (  # row minus row, in nats
    ("reference:universal-sae", "translation:permutation"),
    ("reference:universal-sae", "translation:cross-code"),
    ("reference:universal-sae", "translation:affine"),
    ("reference:universal-sae", "null:universal-shuffled"),
    ("reference:universal-sae", "null:universal-untrained"),
    ("reference:universal-sae+error", "translation:permutation+error"),
    ("reference:universal-sae+error", "translation:affine"),
    ("reference:universal-sae+error", "translation:features"),
    ("reference:crosscoder-directions", "translation:directions"),
    ("reference:crosscoder-directions", "translation:affine"),
    ("reference:crosscoder-alone", "reference:universal-sae"),
    ("reference:universal-features", "translation:features"),
    ("reference:universal-features", "null:universal-shuffled-features"),
    ("reference:universal-features", "null:universal-untrained-features"),
    ("reference:universal-features+free", "translation:features+free"),
    ("reference:universal-of-4", "reference:universal-sae"),
    ("reference:universal-of-4", "translation:permutation"),
    ("reference:universal-of-4", "translation:cross-code"),
    ("reference:universal-of-4+error", "reference:universal-sae+error"),
    ("reference:universal-of-4+error", "translation:affine"),
    ("reference:universal-of-4-features", "reference:universal-features"),
    ("reference:universal-of-4-features", "translation:features"),
    ("ceiling:universal-b", "ceiling:sae-b"),
    ("ceiling:universal-of-4-b", "ceiling:sae-b"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--passes", type=float, default=4.0, help="Training passes over the tokens.")
    parser.add_argument(
        "--other-seeds", type=int, default=0, help="Seeds for the ten other directions of four streams."
    )
    parser.add_argument("--work", type=Path, default=Path("build/shared_code"))
    arguments = parser.parse_args()
    others = [(a, b) for a in FOUR for b in FOUR if a != b and {a, b} != set(MAIN)]
    runs = [(pair, seed) for seed in range(arguments.seeds) for pair in (MAIN, MAIN[::-1])]
    runs += [(pair, seed) for seed in range(arguments.other_seeds) for pair in others]
    bench = cache(lambda: Bench(arguments))
    codes = cache(lambda seed: Trained(bench(), seed))
    for (source, target), seed in runs:
        settings = [arguments.tokens, arguments.held_out, arguments.features, arguments.k, arguments.passes, seed]
        place = arguments.work / ("-".join(map(str, [source, target, *settings])) + ".json")
        if not place.exists():
            line = {"benchmark": "shared_code", "source": source, "target": target, "seed": seed}
            line |= {name: getattr(arguments, name) for name in ("tokens", "features", "k", "passes")}
            line |= run(bench(), codes(seed), source, target)
            place.write_text(json.dumps(line))
        print(place.read_text(), flush=True)


class Bench:
    """The models, and their streams on the three splits."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.settings = Settings(
            model_a="demo:gpt2", model_b="demo:llama", layer=3, layer_b=4, tokens=arguments.tokens,
            held_out=arguments.held_out, features=arguments.features, k=arguments.k,
        )  # fmt: skip
        gpt2, llama, _ = stages.load_pair(self.settings)
        self.settings = stages.complete(self.settings, gpt2, llama)
        self.models = {"gpt2": gpt2, "llama": llama}
        windows = stages.read_windows(self.settings, gpt2, llama)
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.folder = TemporaryDirectory(dir=arguments.work)
        # By direction, then split: moments without codes, which are the same for every seed.
        self.plain: dict[tuple[str, str], dict[str, Moments]] = {}
        self.streams: dict[str, Streams] = {}
        for split in SPLITS:
            found = {}
            for name, model in self.models.items():
                own = {int(stream.partition(".")[2]) for stream in FOUR if stream.startswith(name)}
                sites = sorted({site for last in own for site in (*earlier_sites(last), last)})
                harvested = harvest(model, windows[split], sites, Path(self.folder.name) / split / name, per_shard=64)
                found |= {f"{name}.{site}": (harvested, site) for site in own}
            self.streams[split] = Streams.of({name: found[name] for name in FOUR})
        tokens = int(self.streams["fit"].keep.sum())
        self.config = SAEConfig(
            features=arguments.features, k=arguments.k, batch_size=1024, steps=steps_for(tokens, arguments.passes, 1024)
        )

    def model(self, stream: str) -> tuple[Model, int]:
        name, _, site = stream.partition(".")
        return self.models[name], int(site)


class Trained:
    """Everything that is trained for one seed. Each code is trained when first needed."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed = bench, seed
        self.seconds: dict[str, float] = {}
        self.trained = cache(self._trained)

    def _trained(self, kind: str, *names: str) -> SharedCode:
        """`kind` is universal or crosscoder, or a null of the universal SAE: shuffled or untrained."""
        streams = self.bench.streams["fit"].only(*names)
        config = replace(self.bench.config, seed=self.seed)
        if kind == "untrained":  # one step of almost zero length: the initial weights, with thresholds for k
            config = replace(config, steps=1, lr=1e-12)

        def batches(start: int):
            found = streams.batches(config.batch_size, seed=self.seed, start=start)
            return re_paired(found, self.seed) if kind == "shuffled" else found

        start = time.perf_counter()
        code = (crosscoder if kind == "crosscoder" else universal_sae)(config, streams.widths, batches)
        self.seconds["-".join([kind, *names])] = round(time.perf_counter() - start, 1)
        print(f"trained {kind} {names} in {self.seconds['-'.join([kind, *names])]} s", file=sys.stderr)
        return code

    def sae(self, stream: str) -> Dictionary:
        return self.trained("universal", stream).streams[stream]

    def pair(self, source: str, target: str, kind: str = "universal") -> SharedCode:
        return self.trained(kind, *sorted((source, target)))

    @property
    def four(self) -> SharedCode:
        return self.trained("universal", *FOUR)


def run(bench: Bench, codes: Trained, source: str, target: str) -> dict:
    start = time.perf_counter()
    paired = {split: found.pair(source, target) for split, found in bench.streams.items()}
    rows = translations(bench, codes, source, target, paired)
    fitted = time.perf_counter()
    (a, site_a), (b, site_b) = bench.model(source), bench.model(target)
    first = paired["fit"].b.read(0, site_b)[0, 0].float()
    stage = Stage(a, b, site_a, site_b, paired["report"], bench.settings.memory)
    spliced = {
        "ceiling:sae-b": codes.sae(target),
        "ceiling:universal-b": codes.pair(source, target).streams[target],
        "ceiling:universal-of-4-b": codes.four.streams[target],
    }
    scores = evaluate(
        {
            "a": stage.whole(a.net),
            "b": stage.whole(b.net),
            **{name: stage.translated(found.starting_with(first)) for name, found in rows.items()},
            **{name: stage.spliced_b(dictionary) for name, dictionary in spliced.items()},
        },
        stage.windows, vocabulary=stage.vocabulary, reference=stage.whole(b.net), memory=stage.memory,
    )  # fmt: skip
    results = [found.row(name) for name, found in scores.items()]
    for result in results:
        if result["name"] in rows:
            result["kmac"] = rows[result["name"]].multiply_adds / 1000
    qualities = {"separate": {name: codes.sae(name) for name in (source, target)}}
    qualities |= {"universal": codes.pair(source, target).streams, "universal-of-4": codes.four.streams}
    report = bench.streams["report"]
    return {
        "results": results,
        "differences": differences(scores),
        "dictionaries": {
            kind: {name: vars(quality(found, report, name)) for name, found in dictionaries.items()}
            for kind, dictionaries in qualities.items()
        },
        "seconds": {"fit": round(fitted - start), "evaluation": round(time.perf_counter() - fitted), **codes.seconds},
    }


def quality(dictionary: Dictionary, streams: Streams, name: str) -> Quality:
    return measure(dictionary, (batch[name] for batch in streams.only(name).chunks()))


def differences(scores: dict[str, Scores]) -> list[dict]:
    return [row(scores, name, other) for name, other in COMPARED if name in scores and other in scores]


def translations(
    bench: Bench, codes: Trained, source: str, target: str, paired: dict[str, Paired]
) -> dict[str, Translation]:
    """Rows by name. Only the embedded pair has the nulls, the crosscoder, and rows with free inputs."""
    every = {source, target} == set(MAIN)
    site = paired["fit"].site_a
    a, b, shared, four = codes.sae(source), codes.sae(target), codes.pair(source, target), codes.four
    free = free_inputs(bench, source, target, paired, a, b) if every else {}
    inputs: dict[str, Input] = {"x": Stream(site), **free}
    if (source, target) not in bench.plain:
        bench.plain[source, target] = {split: moments_of(paired[split], inputs) for split in ("fit", "sweep")}
    plain = bench.plain[source, target]

    def with_lift(dictionary: Dictionary, joined: bool = False) -> Lifted:
        """`joined`: with the free inputs, if the row needs them."""
        return Lifted(paired, inputs if joined else {"x": inputs["x"]}, plain, Lift(site, dictionary))

    def on_x(name: str, lifted: "Lifted") -> Translation:
        return lifted.ridge(name, ("codes", "x"))

    sae = with_lift(a, every)
    rows = {"translation:affine": from_ridge("translation:affine", ridge(plain["fit"], plain["sweep"], ("x",)), inputs)}
    rows["translation:features"] = on_x("translation:features", sae)
    rows |= through_matching(bench, codes, paired, a, b, sae)

    def universal(name: str, code: SharedCode, lifted: Lifted) -> None:
        written = through_code(name.partition(":")[2], code, source, target, site)
        rows[name] = written
        rows[f"{name}+error"] = matched.error_carry(f"{written.name}+error", written, lifted.fit, lifted.held_out)

    lifted = with_lift(shared.streams[source], every)
    universal("reference:universal-sae", shared, lifted)
    rows["reference:universal-features"] = on_x("reference:universal-features", lifted)
    lifted_four = with_lift(four.streams[source])
    universal("reference:universal-of-4", four, lifted_four)
    rows["reference:universal-of-4-features"] = on_x("reference:universal-of-4-features", lifted_four)
    if not every:
        return rows

    crossed = codes.pair(source, target, "crosscoder")
    second = second_moments(crossed, bench.streams["fit"].only(source, target))
    arguments = (crossed, source, target, site)
    rows["reference:crosscoder-directions"] = directions("crosscoder-directions", *arguments, second, plain["fit"])
    rows["reference:crosscoder-alone"] = through_code("crosscoder-alone", *arguments)
    rows["translation:affine+free"] = from_ridge(
        "translation:affine+free", ridge(plain["fit"], plain["sweep"], tuple(inputs)), inputs
    )
    for name, found in (("translation:features", sae), ("reference:universal-features", lifted)):
        rows[f"{name}+free"] = found.ridge(f"{name}+free", ("codes", *inputs))
    for kind in ("shuffled", "untrained"):
        null = codes.pair(source, target, kind)
        rows[f"null:universal-{kind}"] = through_code(f"universal-{kind}", null, source, target, site)
        name = f"null:universal-{kind}-features"
        rows[name] = on_x(name, with_lift(null.streams[source]))
    return rows


def through_matching(
    bench: Bench, codes: Trained, paired: dict[str, Paired], a: Dictionary, b: Dictionary, lifted: "Lifted"
) -> dict[str, Translation]:
    """The baselines: separate SAEs matched one to one (Hungarian) and with several partners, and the shuffled
    matching.
    """
    fit, site = paired["fit"], paired["fit"].site_a
    with TemporaryDirectory(dir=bench.folder.name) as folder:
        stream = code_stream(fit, a, b, chunk=2048, folder=Path(folder))
        found = match(stream, "hungarian", seed=codes.seed, budget_bytes=bench.settings.memory // 4)
    mean = lifted.fit.means["target"]
    permutation = matched.permutation("permutation", found.used, a, b, site, mean)
    crossed = cross_code.cross_code(found.graph, b, torch.from_numpy(found.deviation_b), lifted.fit, lifted.held_out)
    return {
        "translation:permutation": permutation,
        "translation:permutation+error": matched.error_carry(
            "permutation+error", permutation, lifted.fit, lifted.held_out
        ),
        "translation:directions": matched.directions("directions", found.used, a, b, site, lifted.fit),
        "translation:cross-code": cross_code.translation("cross-code", crossed, a, b, site, lifted.fit),
        "null:shuffled-matching": matched.permutation("shuffled-matching", found.shuffles[0], a, b, site, mean),
    }


def free_inputs(
    bench: Bench, source: str, target: str, paired: dict[Split, Paired], a: Dictionary, b: Dictionary
) -> dict[str, Input]:
    """Inputs that cost almost nothing at inference. The untrained lifts among the available inputs are not used
    here.
    """
    unmeasured = Quality(tokens=0, fvu=0.0, r2=0.0, l0=float(bench.config.k), dead=0.0)
    saes = SAEs(a, b, unmeasured, unmeasured, bench.config, bench.config)
    fit, models = paired["fit"], (bench.model(source)[0], bench.model(target)[0])
    tokens = token_tables(*models, fit.a.windows, paired["sweep"].a.windows, fit.site_b)
    found = available(*models, fit, saes, 0, tokens=tokens)
    return {name: found[name] for name in FREE if name in found}


def moments_of(
    paired: Paired, inputs: dict[str, Input], wanted: Callable[[tuple[str, str]], bool] = lambda _: True
) -> Moments:
    """Moments of the inputs and the target, for the products of two variables that are `wanted`."""
    bounded = {name for name, found in inputs.items() if not isinstance(found, Stream)}

    def chunks():
        for tokens in paired.with_history(streams(inputs.values()), reach(inputs.values()), 2048):
            yield {**{name: found.columns(tokens) for name, found in inputs.items()}, "target": tokens.target}

    return accumulate(chunks(), [key for key in needed(tuple(inputs)) if wanted(key)], bounded)


class Lifted:
    """Moments of a pair with the codes of a dictionary of A. Products without codes are taken from `plain`."""

    def __init__(
        self, paired: dict[str, Paired], inputs: dict[str, Input], plain: dict[str, Moments], lift: Lift
    ) -> None:
        self.inputs: dict[str, Input] = {"codes": lift, **inputs}
        self.fit, self.held_out = (self._moments(paired[split], plain[split]) for split in ("fit", "sweep"))

    def _moments(self, paired: Paired, plain: Moments) -> Moments:
        own = moments_of(paired, self.inputs, lambda key: "codes" in key)
        sums, squares = {**plain.sums, **own.sums}, {**plain.squares, **own.squares}
        return Moments(own.count, sums, squares, {**plain.products, **own.products})

    def ridge(self, name: str, names: tuple[str, ...]) -> Translation:
        return from_ridge(name, ridge(self.fit, self.held_out, names, apart="codes"), self.inputs)


if __name__ == "__main__":
    main()
