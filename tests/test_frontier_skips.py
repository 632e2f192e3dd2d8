"""Alternatives that join blocks in the place of the composite's: within its bytes and its FLOPs."""

import tiny
from jobs import write_text
from stitch.composite.costs import Cost, early, late
from stitch.frontier.alternative import Means
from stitch.frontier.skips import joined
from stitch.text.documents import SPLITS, Split, read, select
from stitch.text.windows import Windows, sample


def test_packed_tables_keep_within_the_bytes_and_the_flops(tmp_path):
    """A packed table multiplies with a small matrix, so that fewer bytes are what brings FLOPs down."""
    a, b = tiny.model("gpt2"), tiny.model("qwen3")
    documents = [*read(str(write_text(tmp_path)))]
    windows: dict[Split, Windows] = {split: sample(select(documents, split), b.tokenizer, 16, 1024) for split in SPLITS}
    size = early(a, 2, 16).bytes + late(b, 2, 16).bytes + 4 * 3 * a.width * b.width + 12_000

    def cost(flops: float) -> Cost:
        means = Means(
            limit=Cost(flops, 0, size, 0), windows=windows, context=16, ngrams=0, routes=0, seed=0, memory=2**28,
            scratch=tmp_path / "scratch",
        )  # fmt: skip
        found = joined(a, b, 2, 2, "translation:affine+free", "", means)
        assert found is not None and found.cost.bytes <= size
        assert not [*means.scratch.iterdir()]  # activations are gone
        return found.cost

    most, least = cost(1e9).flops, cost(0.0).flops
    assert least < most, "tables multiply"
    between = (least + most) / 2
    assert cost(between).flops <= between
