"""Saves a converted model: a folder with weights, the donor's tokenizer, the report and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from stitch.composite.donor_code import save_net
from stitch.conversions.report import footnotes, model_card, table
from stitch.files.folders import to_json
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.model import Model
from stitch.pages.card import page_and_card
from stitch.pages.conversion import conversion_page


def save(net: PreTrainedModel, donor: Model, folder: Path, report: dict) -> None:
    """Writes weights, config and the code that these need, then tokenizer, report, page and model card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_net(net, folder)
    copy_tokenizer(donor.folder, folder)
    (folder / "report.json").write_bytes(to_json(report))
    page = conversion_page(report, table(report), footnotes(report))
    for name, content in page_and_card(page, model_card(report, remote_code=_needs_code(folder))).items():
        (folder / name).write_bytes(content)


def _needs_code(folder: Path) -> bool:
    config: Mapping = json.loads((folder / "config.json").read_text())
    return "auto_map" in config
