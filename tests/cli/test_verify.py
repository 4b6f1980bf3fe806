"""``tokenlens verify`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import tokenlens
from tests.support.tiny_verification import tiny_data, tiny_regime
from tokenlens.storage.run_folder import check_manifest
from tokenlens.verification.scales.base import RegimeProbe
from tokenlens.verification.verify import verify


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def tiny(monkeypatch):
    """The regime called tiny, made tiny."""
    regime = tiny_regime(probes=(RegimeProbe("segmentation", 32), RegimeProbe("knn", 32, "cls")))
    monkeypatch.setattr("tokenlens.verification.scales.regime_of", lambda name: regime)
    monkeypatch.setattr("tokenlens.verification.verify.regime_of", lambda name: regime)
    return regime


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    regime = tiny_regime(probes=(RegimeProbe("segmentation", 32), RegimeProbe("knn", 32, "cls")))
    return verify(regime, data, seeds=1, out=tmp_path_factory.mktemp("verify") / "toy")


def test_the_plan_says_what_is_left_and_writes_nothing(tiny, data, tmp_path):
    result = tokenlens("verify", "--data", data, "--plan", "--seeds", 2, "--out", tmp_path / "toy")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["0", "train", "standard", "seed", "0"]
    assert lines[-1].startswith("16 of 16 tasks left, about ")
    assert not (tmp_path / "toy").exists()
    told = json.loads(tokenlens("verify", "--data", data, "--plan", "--out", tmp_path / "toy", "--json").stdout)
    assert len(told["tasks"]) == 24
    assert told["minutes"] > 0


def test_the_paper_plan_has_commands_for_a_cluster(data, tmp_path):
    result = tokenlens("verify", "--recipe", "paper", "--data", data, "--plan", "--out", tmp_path / "toy")
    assert "tokenlens train dinov2_base_imagenet22k --data" in result.stdout
    assert "--specialize paper --seed 0" in result.stdout


@pytest.mark.slow
def test_from_nothing_to_verdicts(tiny, data, tmp_path):
    out = tmp_path / "toy"
    stopped = tokenlens("verify", "--data", data, "--seeds", 1, "--out", out, "--max-minutes", "0", "--no-report")
    assert stopped.exit_code == 0
    assert "8 of 8 tasks are left" in stopped.stderr
    result = tokenlens("verify", "--data", data, "--seeds", 1, "--out", out)
    assert result.exit_code == 0
    assert "1 of 8: train: standard, seed 0" in result.stderr
    assert "F3 (paper against standard): INCONCLUSIVE." in result.stdout
    assert "F4 (paper against standard): SUPPORTED." in result.stdout
    assert "Scale: supervised, vit_tiny_patch16_224" in result.stdout
    assert result.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").exists()
    assert (out / "runs" / "paper_seed0" / "figures" / "emergence.svg").exists()


def test_given_runs_are_judged(run, tmp_path):
    out = tmp_path / "judged"
    result = tokenlens("verify", "--from", run.path, "--out", out, "--no-report", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [finding["name"] for finding in told["findings"]] == ["F1", "F1", "F2", "F2", "F3", "F4", "F5", "F6"]
    assert told["finished"]
    assert told["report"] is None
    again = tokenlens("verify", "--from", run.path, "--out", out, "--no-report")
    assert "F6 (paper against standard): INCONCLUSIVE." in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "tinny"), "no regime is called 'tinny'. Did you mean tiny?"),
        (("--data", "nowhere"), "there is no folder nowhere"),
        ((), "no data are given; expected a folder with classification/"),
        (("--from", "nowhere"), "there is no run folder nowhere"),
        (("--from", "nowhere", "--plan"), "leave them out with --from"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tokenlens("verify", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(Path(tmp_path).iterdir())


def test_an_unknown_variant_gets_a_sentence(tiny, data, tmp_path):
    result = tokenlens("verify", "--data", data, "--variants", "standard,papr", "--out", tmp_path / "toy")
    assert result.exit_code == 1
    assert "no variant is called 'papr'. Did you mean paper" in result.stderr
    assert not (tmp_path / "toy").exists()


def test_the_page_leads_with_the_verdicts(run):
    page = (run.path / "report.html").read_text(encoding="utf-8")
    first = page.index("<h2")
    assert page[first:].startswith('<h2 id="verdicts-title">Verdicts</h2>')
    table = page[page.index('<table class="verdicts">') :]
    table = table[: table.index("</table>")]
    for finding in run.findings:
        assert f"{finding.name}. " in table
    assert "inconclusive" in table
    assert "6 steps of 8" in table
    for name in ("verify_pairs", "verify_losses", "verify_emergence"):
        assert f'<figure id="{name}"' in page
        assert (run.path / "figures" / f"{name}.png").exists()
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_page_and_figures_are_drawn_again_from_the_numbers(run, tmp_path):
    before = (run.path / "report.html").read_text(encoding="utf-8")
    result = tokenlens("report", run.path)
    assert result.stdout.splitlines() == [f"report: {run.path / 'report.html'}"]
    assert (run.path / "report.html").read_text(encoding="utf-8") == before
    assert check_manifest(run.path)
    drawn = tokenlens("figure", run.path, "verify_pairs", "--out", tmp_path / "pairs.svg")
    assert drawn.exit_code == 0
    assert "difference of mean IoU" in (tmp_path / "pairs.svg").read_text(encoding="utf-8")
    wrong = tokenlens("figure", run.path, "cka", "--out", tmp_path / "cka.svg")
    assert wrong.exit_code == 1
    assert "is of an analysis, and this is a verification" in wrong.stderr
