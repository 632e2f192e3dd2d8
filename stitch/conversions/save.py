"""Saves a converted model: a folder with weights, the donor's tokenizer, the report and a model card."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PreTrainedModel

from stitch.composite.checkpoint import TOKENIZER_FILES
from stitch.conversions.report import model_card
from stitch.files.folders import appear, to_json
from stitch.models.model import Model


def save_stock(net: PreTrainedModel, donor: Model, out: Path, report: dict) -> None:
    """A checkpoint that plain `transformers` loads. The folder is written completely or not at all."""
    save(donor, out, report, net.save_pretrained)


def save(donor: Model, out: Path, report: dict, write: Callable[[Path], object]) -> None:
    """Calls `write` for config, weights and modeling code if needed, then adds tokenizer, report and model card."""

    def fill(folder: Path) -> None:
        write(folder)
        for name in TOKENIZER_FILES:
            if (donor.folder / name).is_file():
                shutil.copyfile(donor.folder / name, folder / name)
        (folder / "report.json").write_bytes(to_json(report))
        (folder / "README.md").write_bytes(model_card(report, remote_code=_needs_code(folder)))

    appear(out, fill, "convert", overwrite=True)  # what may be replaced was checked before the work began, and is again


def _needs_code(folder: Path) -> bool:
    config: Mapping = json.loads((folder / "config.json").read_text())
    return "auto_map" in config
