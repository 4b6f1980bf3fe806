"""``tokenlens intervene`` as a user runs it."""

from __future__ import annotations

import json

import pytest

from tests.support.coloured_images import mask_folders
from tests.support.command_line import MODEL, TINY, refused, tokenlens
from tokenlens.interventions import Intervention
from tokenlens.storage.result import Result

QUICK = ("--by", "mean,shuffle", "--blocks", "0,-1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("intervene") / "run"
    result = tokenlens("intervene", MODEL, *TINY, *QUICK, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "Replacing [CLS] changes patches most" in result.stdout
    assert "next:" in result.stderr
    return out


def test_it_writes_a_run_folder_with_a_page(run):
    found = Result.load(run)
    assert isinstance(found, Intervention)
    assert set(found.table["by"]) == {"mean", "shuffle"}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "What a replacement changes at the end of the model" in page
    assert "the weights are random" in page.lower() or not found.untrained
    assert (run / "figures" / "intervention_effect.svg").is_file()


def test_the_page_and_the_figure_can_be_drawn_again(run, tmp_path):
    assert tokenlens("report", run).exit_code == 0
    drawn = tokenlens("figure", run, "intervention_effect", "--out", tmp_path / "effect.pdf")
    assert drawn.exit_code == 0, drawn.stderr
    assert (tmp_path / "effect.pdf").stat().st_size > 1000


def test_json_is_one_object(tmp_path):
    result = tokenlens("intervene", MODEL, *TINY, *QUICK, "--no-report", "--json", "--out", tmp_path / "run")
    told = json.loads(result.stdout)
    assert told["numbers"] == len(Intervention.load(tmp_path / "run").table)
    assert told["report"] is None


def test_replacements_are_listed():
    listed = tokenlens("list", "replacements").stdout
    assert all(name in listed for name in ("zero", "mean", "noise", "shuffle", "itself"))


def test_a_fitted_probe_is_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    data = mask_folders(tmp_path / "masks", train=4, test=3)
    small = ("--no-pretrained", "--img-size", 64)
    fitted = tokenlens("probe", MODEL, "--task", "segmentation", "--data", data, *small, "--out", tmp_path / "probe")
    assert fitted.exit_code == 0, fitted.stderr
    probe, out = ("--probe", tmp_path / "probe", "--no-pretrained"), ("--no-report", "--out", tmp_path / "run")
    result = tokenlens("intervene", MODEL, *probe, "--by", "zero", "--blocks", 0, "--json", "--no-photos", *out)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)["probe"]
    assert (told["value"], told["n"]) == (told["score_of_run"], 3)
    found = Intervention.load(tmp_path / "run")
    assert found.photographs.jpegs == ()
    assert set(found.select("probe_score")["part"]) == {"after", "change"}
    refused(tokenlens("intervene", MODEL, *probe, "--images", data, "--out", tmp_path / "no"), "leave images out")
    refused(tokenlens("intervene", MODEL, "--data", data, *TINY, "--out", tmp_path / "no"), "give the probe run")
    data.rename(tmp_path / "moved")
    refused(tokenlens("intervene", MODEL, *probe, "--out", tmp_path / "no"), "there is no folder")
    again = ("intervene", MODEL, *probe, "--data", tmp_path / "moved", "--by", "itself", "--blocks", 0)
    assert tokenlens(*again, "--overwrite", *out).exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--replace", "reg"), "no reg token"),
        (("--by", "zeros"), "Did you mean zero"),
        (("--site", "q"), "attention kernel"),
        (("--blocks", "99"), "blocks 0 to"),
    ],
)
def test_wrong_inputs_get_one_sentence(tmp_path, options, words):
    refused(tokenlens("intervene", MODEL, *TINY, *options, "--out", tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


def test_wrong_usage(tmp_path):
    assert tokenlens("intervene", MODEL, "--blocks", "one").exit_code == 2
    assert tokenlens("intervene", MODEL, "--by", ",").exit_code == 2
