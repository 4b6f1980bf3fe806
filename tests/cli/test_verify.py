"""``tokenlens verify`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import refused, tokenlens
from tests.support.tiny_verification import replace_scale, tiny_data, tiny_scale
from tokenlens.storage.run_folder import check_manifest
from tokenlens.verification import ScaleProbe, Verification

TINY = tiny_scale(probes=(ScaleProbe("segmentation", 32), ScaleProbe("knn", 32, "cls")), analyzed_images=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def tiny(monkeypatch):
    """The scale called tiny, made tiny."""
    replace_scale(TINY, monkeypatch)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The result of the command, with a stop before the first task, and its folder."""
    out = tmp_path_factory.mktemp("verify") / "toy"
    arguments = ("verify", "--data", data, "--seeds", 1, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        replace_scale(TINY, patch)
        stopped = tokenlens(*arguments, "--max-minutes", "0", "--no-report")
        return stopped, tokenlens(*arguments), out


@pytest.fixture
def run(finished):
    return Verification.load(finished[2])


def test_the_plan_says_what_is_left_and_writes_nothing(tiny, data, tmp_path):
    result = tokenlens("verify", "--data", data, "--plan", "--seeds", 2, "--out", tmp_path / "toy")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["0", "train", "standard", "seed", "0"]
    assert lines[-1].startswith("tasks left: 16 of 16, about ")
    assert not (tmp_path / "toy").exists()
    printed = tokenlens("verify", "--data", data, "--plan", "--out", tmp_path / "toy", "--json")
    plan = json.loads(printed.stdout)
    assert len(plan["tasks"]) == 24
    assert plan["minutes"] > 0


def test_a_plan_needs_no_data(tmp_path):
    result = tokenlens("verify", "--plan", "--seeds", 2, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("tasks left: 24 of 24, about ")
    assert "DATA stands for a folder with classification/" in result.stderr
    assert not (tmp_path / "run").exists()
    paper = tokenlens("verify", "--plan", "--scale", "paper", "--seeds", 1)
    assert "tokenlens train dinov2_base_imagenet22k --data DATA/classification --specialize paper" in paper.stdout
    assert paper.stdout.splitlines()[-1].endswith("time unknown")  # nobody said how many images there are
    found = json.loads(tokenlens("verify", "--plan", "--scale", "paper", "--json").stdout)
    assert (found["minutes"], found["tasks"][0]["minutes"]) == (None, None)


def test_the_paper_plan_has_commands_for_a_cluster(data, tmp_path):
    result = tokenlens("verify", "--scale", "paper", "--data", data, "--plan", "--out", tmp_path / "toy")
    assert "tokenlens train dinov2_base_imagenet22k --data" in result.stdout
    assert "--specialize paper --seed 0" in result.stdout


@pytest.mark.slow
def test_from_nothing_to_verdicts(finished):
    stopped, result, out = finished
    assert stopped.exit_code == 0
    assert "tasks left: 8 of 8" in stopped.stderr
    assert result.exit_code == 0
    assert "1 of 8: train: standard, seed 0" in result.stderr
    assert "F3 (paper against standard): NOT APPLICABLE." in result.stdout
    assert "F4 (paper against standard): SUPPORTED." in result.stdout
    assert result.stdout.startswith("Scale, unless another is given: supervised, vit_tiny_patch16_224")
    assert result.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").exists()
    assert (out / "runs" / "paper_seed0" / "figures" / "emergence.svg").exists()


def test_given_runs_are_judged(run, tmp_path):
    arguments = ("verify", "--from", run.path, "--out", tmp_path / "judged", "--no-report")
    result = tokenlens(*arguments, "--json")
    assert result.exit_code == 0
    judged = json.loads(result.stdout)
    assert [finding["name"] for finding in judged["findings"]] == [
        *(name for name in ("F1(a)", "F1(b)", "F1(c)", "F2(a)", "F2(b)") for _ in range(2)),
        *("F3", "F4", "F5", "F6"),
    ]
    assert judged["finished"]
    assert judged["report"] is None
    assert "F6 (paper against standard): NOT APPLICABLE." in tokenlens(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scale", "tinny"), "no scale is called 'tinny'. Did you mean tiny?"),
        (("--data", "nowhere"), "there is no folder nowhere"),
        ((), "no data were given; expected a folder with classification/"),
        (("--from", "nowhere"), "there is no run folder nowhere"),
        (("--from", "nowhere", "--plan"), "leave them out with --from"),
    ],
)
def test_error_messages_gets_a_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tokenlens("verify", *arguments), said)
    assert not list(Path(tmp_path).iterdir())


def test_an_unknown_variant_gets_a_sentence(tiny, data, tmp_path):
    result = tokenlens("verify", "--data", data, "--variants", "standard,papr", "--out", tmp_path / "toy")
    refused(result, "no variant is called 'papr'. Did you mean paper")
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
    refused(wrong, "needs a result of kind 'analysis', got 'verification'")
