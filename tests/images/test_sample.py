"""The sample images are seeded views of real photographs."""

from tests.support.image_batches import collect, read_all, shrink
from tokenlens.images.sample import view
from tokenlens.images.sources import open_images


def test_sample_is_seeded_views_of_real_photographs() -> None:
    source = open_images("sample", transform=shrink)
    assert source.total == 64
    for word in ("64 views", "china.jpg", "flower.jpg", "grace_hopper.jpg", "seed 0"):
        assert word in source.description
    batches = read_all(source, 16)
    names = collect(batches, "names")
    assert len(set(names)) == len(set(collect(batches, "hashes"))) == 64
    assert names[:4] == ["china-view000", "flower-view001", "grace_hopper-view002", "china-view003"]
    assert source.skipped == []
    few = read_all(open_images("sample", transform=shrink, limit=5), 16)
    assert collect(few, "hashes") == collect(batches, "hashes")[:5]
    other = read_all(open_images("sample", transform=shrink, limit=5, seed=1), 16)
    assert not set(collect(other, "hashes")) & set(collect(few, "hashes"))

    # The views never change: sizes from NumPy's frozen RandomState (2.4), seen 2026-11-22.
    assert [view(index).size for index in range(4)] == [(231, 275), (235, 247), (231, 208), (324, 254)]
