"""Trains and writes an embedded model: `python -m stitch.demo.make NAME --work DIR --out DIR`.

It can be interrupted; the same command continues from the last snapshot and ends with the same weights.
"""

import argparse
from pathlib import Path

import torch

from stitch.demo.recipe import RECIPES
from stitch.demo.ship import readme, ship
from stitch.demo.train import train
from stitch.files.front_matter import CARD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the snapshots")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[arguments.name]
    model, curve = train(recipe, arguments.work, log=lambda line: print(line, flush=True))
    card = ship(arguments.name, recipe, model, curve, arguments.work / "tokenizer", arguments.out)
    (arguments.out / CARD).write_text(readme(arguments.name))
    print(
        f"{card['name']}: {card['parameters']:,} parameters, cross-entropy {card['report']['ce']:.3f} on the report split"
    )


if __name__ == "__main__":
    main()
