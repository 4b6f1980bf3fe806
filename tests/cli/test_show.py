"""``tokenlens show`` as a user runs it."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from tests.support.command_line import MODEL, refused, tokenlens

QUICK = (MODEL, "--no-pretrained", "--img-size", 64)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(here):
    folder = here / "photos"
    folder.mkdir()
    for index, name in enumerate(("cat.jpg", "dog.jpg", "dog.png")):
        Image.linear_gradient("L").rotate(90 * index).convert("RGB").resize((80, 64)).save(folder / name)
    return [f"photos/{name}" for name in ("cat.jpg", "dog.jpg", "dog.png")]


def show(*arguments: object):
    return tokenlens("show", *QUICK, *arguments)


def test_a_figure_per_image_on_one_scale(here, photos):
    result = show("--images", *photos, "--format", "png,svg", "--out", "maps", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    names = ["cat-before-after", "dog-before-after", "dog-2-before-after"]
    assert told["files"] == [f"maps/{name}.{form}" for name in names for form in ("png", "svg")]
    assert (told["images"], told["untrained"], told["map"]) == (photos, True, "before-after")
    assert len(told["numbers"]) == 3 * 2 * 6
    assert {row["row"] for row in told["numbers"]} == {"before norm1", "after norm1"}
    largest = max(max(abs(row["min"]), abs(row["max"])) for row in told["numbers"])
    svgs = [(here / file).read_text(encoding="utf-8") for file in told["files"] if file.endswith("svg")]
    (end,) = {re.findall(r">(\d[\d.]*)</text>", svg)[-1] for svg in svgs}  # the last tick of the colour bar
    assert largest <= float(end) < largest + 0.1
    with Image.open(here / told["files"][0]) as picture:
        assert picture.size[0] == pytest.approx(170 / 25.4 * 200, abs=2)


@pytest.mark.parametrize(
    ("map", "options"),
    [
        ("cosine", ["--site", "k", "--head", 0, "--token", "1,2", "--block", "0,-1"]),
        ("attention", ["--block", 2, "--head", "0-1"]),
        ("pca", ["--together", "--site", "norm1"]),
        ("norm", ["--block", "0-2", "--width", "single"]),
        ("correspondence", ["--token", "1,1", "--token", "0,3", "--site", "final_norm"]),
    ],
)
def test_every_map(here, photos, map, options):
    result = show("--images", *photos[:2], "--map", map, *options)
    assert result.exit_code == 0, result.stderr
    names = ["correspondence"] if map == "correspondence" else [f"cat-{map}", f"dog-{map}"]
    assert result.stdout.splitlines() == [f"{map}: maps/{name}.png" for name in names]
    assert all((here / "maps" / f"{name}.png").stat().st_size > 3000 for name in names)


def test_the_sample_needs_nothing_and_replaced_files_are_named(here):
    (here / "maps").mkdir()
    (here / "maps" / "china-view000-before-after.png").touch()
    result = show("--limit", 1)
    assert result.exit_code == 0, result.stderr
    assert "images: sample: 1 view" in result.stderr
    assert "maps/china-view000-before-after.png was replaced" in result.stderr


def test_a_correspondence_says_its_patches(here, photos):
    told = json.loads(show(*photos, "--map", "correspondence", "--token", "2,1", "--json").stdout)
    assert [row["other_image"] for row in told["numbers"]] == photos[1:]
    assert all((row["row"], row["column"]) == (2, 1) for row in told["numbers"])


def test_a_norm_after_attention(here):
    """`show --map before-after` at a norm whose input is not a site, as in post-norm models"""
    result = tokenlens("show", "vit_relpos_small_patch16_rpn_224", "--no-pretrained", "--limit", 1)
    refused(result, "norm1 of block 0 does not normalize resid_pre (as in post-norm models)")
    assert not list(here.iterdir())


def test_unreadable_images_are_named(here, photos):
    (here / "broken.jpg").write_bytes(b"no image")
    result = show(*photos[:1], "broken.jpg")
    assert result.exit_code == 0, result.stderr
    assert "1 unreadable image was skipped: broken.jpg" in result.stderr


def test_wrong_images(here, photos):
    refused(show("--images", "nowhere.jpg"), "there is no nowhere.jpg")
    refused(show("--images", *photos, "nowhere.jpg"), "there is no file nowhere.jpg")
    refused(show("--images", photos[0], "--map", "correspondence", "--token", "0,0"), "needs another image")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--block", "99"], "there is no block 99: recorded, and counted from 0, are 0 to 5"),
        (["--block", "first"], "expected numbers like 0-5,11, got 'first'"),
        (["--token", "reg0"], "the model has no token 'reg0'; it has cls and patches (row, column)"),
        (["--token", "9,0"], "a patch is (row, column) with row 0 to 3 and column 0 to 3, got (9, 0)"),
        (
            ["--site", "resid_post"],
            "before-after takes one of the sites norm1, norm2, final_norm, got 'resid_post'",
        ),
        (
            ["--map", "norm", "--head", "1"],
            "heads at q, k and v only; leave out head at resid_post (got 1)",
        ),
        (["--map", "attention", "--head", "7"], "the block has heads 0 to"),
        (["--width", "3"], "a figure's width must be 30 to 1000 mm, got 3"),
    ],
)
def test_what_is_not_there_gets_a_sentence(here, arguments, sentence):
    """an image, token, patch, block, head or site that `show` is asked for and the model lacks"""
    refused(show("--limit", 1, *arguments), sentence)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--map", "heads"], "'heads' is not one of 'before-after', 'cosine'"),
        (["--map", "pca", "--token", "cls"], "--token does not apply to --map pca"),
        (["--together"], "--together does not apply to --map before-after"),
        (["--token", "4"], "expected cls, reg0, … or a patch as ROW,COLUMN, got '4'"),
        (["--token", "cls", "--token", "reg0"], "expected one --token, got 2"),
        (["--map", "correspondence"], "needs a patch of the first image: --token ROW,COLUMN"),
        (["--map", "attention", "--block", "0,1"], "expected one number for this map, got '0,1'"),
        (["--format", "jpg"], "expected some of svg, png, pdf, separated by commas, got 'jpg'"),
        (["--out", "file"], "file is a file, expected a folder"),
    ],
)
def test_wrong_usage_gets_a_sentence(here, arguments, sentence):
    (here / "file").touch()
    result = show("--limit", 1, *arguments)
    assert result.exit_code == 2
    assert " ".join(sentence.split()) in " ".join(result.stderr.replace("│", " ").split())
    assert [path.name for path in here.iterdir()] == ["file"]
