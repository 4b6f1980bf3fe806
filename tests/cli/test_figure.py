"""``tokenlens figure`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import tokenlens
from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison
from tokenlens.storage.run_folder import check_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure") / "run"
    return synthetic_analysis(blocks=4, heads=2, channels=16).save(folder, report=False)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure") / "comparison"
    return synthetic_comparison(models=2, n=8, blocks=(3, 3), heads=2, channels=16).save(folder, report=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_figure_lands_in_the_current_folder(run, here):
    result = tokenlens("figure", run, "depth_profile")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "figure: depth_profile.svg\n"
    assert (here / "depth_profile.svg").is_file()
    again = tokenlens("figure", run, "depth_profile")
    assert "depth_profile.svg was replaced" in again.stderr


def test_it_draws_comparisons_in_the_size_and_formats_of_a_paper(comparison, here):
    result = tokenlens(
        "figure",
        comparison,
        "compare_summary",
        "--width",
        "single",
        "--height",
        150,
        "--format",
        "svg,pdf,png",
        "--out",
        "paper",
        "--outlines",
        "--dpi",
        100,
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["files"] == [f"paper/compare_summary.{form}" for form in ("svg", "pdf", "png")]
    assert (told["width_mm"], told["height_mm"]) == (85, 150)
    assert "<text" not in (here / "paper" / "compare_summary.svg").read_text(encoding="utf-8")
    assert (here / "paper" / "compare_summary.pdf").read_bytes().startswith(b"%PDF")


def test_the_files_ending_is_the_format(run, here):
    result = tokenlens("figure", run, "cka", "--out", "paper/fig1.pdf", "--width", "120mm")
    assert result.stdout == "figure: paper/fig1.pdf\n"
    assert [file.name for file in (here / "paper").iterdir()] == ["fig1.pdf"]


def test_options_reach_the_figure(run, here):
    result = tokenlens(
        "figure",
        run,
        "depth_profile",
        "--set",
        "metric=cls_patch_cosine",
        "--set",
        "sites=attn_out,mlp_out",
        "--set",
        "log=false",
        "--blocks",
        "0-2",
        "--style",
        "grayscale",
    )
    assert result.exit_code == 0, result.stderr
    text = (here / "depth_profile.svg").read_text(encoding="utf-8")
    assert "at attn_out" in text
    assert ">3</text>" not in text


def test_variables_of_the_environment_are_read(run, here):
    result = tokenlens("figure", run, "cka", env={"TOKENLENS_FIGURE_WIDTH": "single", "TOKENLENS_FIGURE_JSON": "1"})
    assert json.loads(result.stdout)["width_mm"] == 85


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["depth_profil"], 1, "no figure is called 'depth_profil'. Did you mean depth_profile"),
        (["compare_heads"], 1, "the figure compare_heads needs a result of kind 'comparison', got 'analysis'"),
        (["cka", "--width", "wide"], 1, "a number of millimetres, got 'wide'"),
        (["cka", "--width", "5"], 1, "a figure's width must be 30 to 1000 mm, got 5"),
        (["cka", "--set", "colour=red"], 1, "the figure cka has no option colour. Options: ax, blocks, width"),
        (["cka", "--set", "colour"], 2, "expected OPTION=VALUE, got 'colour'"),
        (["cka", "--set", "width=single"], 2, "width cannot be set with --set"),
        (["cls_attention_map", "--set", "block=first"], 1, "cls_attention_map does not accept block=first"),
        (["cka", "--blocks", "first"], 1, "blocks must be a number, a list, a range, a slice or text like '0-5,11'"),
        (["cka", "--blocks", "7"], 1, "there is no block '7' to draw: vit_small_patch14_dinov2 has 0 to 3"),
        (["cka", "--format", "jpg"], 2, "expected some of svg, png, pdf, separated by commas, got 'jpg'"),
        (["cka", "--out", "x.jpg"], 2, "x.jpg ends in .jpg, expected one of svg, png, pdf"),
        (["cka", "--out", "x.svg", "--format", "pdf"], 2, "x.svg ends in .svg, but --format says pdf"),
        (["cka", "--out", "my figure.svg"], 1, "a figure's name may contain letters, digits and"),
        (["cka", "--style", "grayscal"], 1, "no matplotlib style and no file 'grayscal'. Did you mean grayscale?"),
        (["depth_profile", "--set", "metric=knn"], 1, "no metric is called 'knn'. Available: attention_entropy"),
    ],
)
def test_wrong_input_gets_a_sentence_and_writes_nothing(run, here, arguments, code, sentence):
    result = tokenlens("figure", run, *arguments)
    assert result.exit_code == code
    assert " ".join(sentence.split()) in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not list(here.iterdir())


def test_a_folder_that_is_no_run_is_said(here):
    result = tokenlens("figure", here, "cka")
    assert result.exit_code == 1
    assert "MANIFEST.json" in result.stderr


@pytest.mark.parametrize("out", ["run", "run/figures", "run/figures/new/cka.svg"])
def test_a_run_folder_is_not_written_into(run, monkeypatch, out):
    monkeypatch.chdir(run.parent)
    before = sorted(Path("run").rglob("*"))
    result = tokenlens("figure", run, "cka", "--out", out)
    assert result.exit_code == 1
    assert "in the run folder" in result.stderr
    assert sorted(Path("run").rglob("*")) == before
    check_manifest(run)


def test_figures_are_listed_with_what_they_are_of():
    told = json.loads(tokenlens("list", "figures", "--json").stdout)
    kinds = {item["name"]: item["of"] for item in told["items"]}
    assert kinds["depth_profile"] == "analysis"
    assert kinds["compare_summary"] == "comparison"
    assert "of a comparison: " in tokenlens("list", "figures", "compare_heads").stdout
