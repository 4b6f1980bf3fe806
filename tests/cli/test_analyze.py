"""``tokenlens analyze`` as a user runs it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.command_line import MODEL, TINY, finished, process, tiny_analyze, tokenlens
from tests.support.image_files import encoded, picture
from tokenlens.analysis import Analysis


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with its report."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = tiny_analyze(folder)
    assert result.exit_code == 0, result.stderr
    return folder, result


def test_analyze_says_where_the_report_is(run):
    folder, result = run
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{MODEL}, untrained (random weights): ")
    assert "4 images" in lines[0]
    assert [line.split(maxsplit=1)[0] for line in lines[1:6]] == ["F1(a)", "F1(b)", "F1(c)", "F2(a)", "F2(b)"]
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert "untrained" in (folder / "report.html").read_text(encoding="utf-8").lower()
    assert (folder / "MANIFEST.json").exists()
    assert list((folder / "figures").glob("*.svg"))


def test_progress_and_messages_are_on_stderr(run):
    _, result = run
    assert f"analyzing {MODEL}" in result.stderr
    assert "not applicable, the model has no register token: reg_cls_cosine, reg_patch_cosine" in result.stderr
    assert "analyzing" not in result.stdout


def test_json_is_one_object_on_stdout(tmp_path):
    result = tiny_analyze(tmp_path / "run", "--no-report", "--json", "--limit", 1)
    told = json.loads(result.stdout)
    assert told["model"] == MODEL
    assert told["untrained"] is True
    assert told["images"] == 1
    assert told["report"] is None
    assert Path(told["run"]) == tmp_path / "run"
    assert told["numbers"] == len(Analysis.load(tmp_path / "run").table)
    assert told["not_applicable"]["reg_cls_cosine"]
    assert [finding["name"] for finding in told["findings"]] == ["F1(a)", "F1(b)", "F1(c)", "F2(a)", "F2(b)"]
    assert "NaN" not in result.stdout  # one image has no spread and no interval


def test_no_report_draws_nothing(tmp_path):
    result = tiny_analyze(tmp_path / "run", "--no-report", "--metrics", "cls_patch_cosine, token_norm")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"run: {tmp_path / 'run'}"
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "MANIFEST.json",
        "analysis.json",
        "arrays.safetensors",
        "table.csv",
    }
    assert Analysis.load(tmp_path / "run").metrics == ["cls_patch_cosine", "token_norm"]


def test_options_reach_the_analysis(tmp_path):
    result = tiny_analyze(
        tmp_path / "run",
        "--no-report",
        "--metrics",
        "all",
        "--batch-size",
        3,
        "--seed",
        5,
        "--amp",
        "--device",
        "cpu",
        "--workers",
        0,
        "--img-size",
        "48x32",
        "--model-arg",
        "reg_tokens=2",
        "--model-arg",
        "global_pool=avg",
        "--limit",
        5,
    )
    assert result.exit_code == 0, result.stderr
    analysis = Analysis.load(tmp_path / "run")
    assert "effective_rank" in analysis.metrics
    told = analysis.provenance
    assert (told["seed"], told["batch_size"], told["dtype"], told["device"]) == (5, 3, "bfloat16 autocast", "cpu")
    assert told["image_size"] == [48, 32]
    assert told["model_args"] == {"reg_tokens": 2, "global_pool": "avg"}
    assert "created with reg_tokens=2, global_pool='avg'" in result.stderr
    assert analysis.table["group"].eq("reg").any()
    assert analysis.images == 5


def test_a_folder_of_images_and_a_checkpoint(tmp_path, weights, photographs):
    result = tokenlens(
        "analyze",
        MODEL,
        "--checkpoint",
        weights,
        "--images",
        photographs,
        "--img-size",
        64,
        "--no-report",
        "--out",
        tmp_path / "run",
    )
    assert result.exit_code == 0, result.stderr
    analysis = Analysis.load(tmp_path / "run")
    assert not analysis.untrained
    assert analysis.images == 2
    assert str(weights) in analysis.provenance["weights"]["source"]
    assert "untrained" not in result.stdout


def test_out_defaults_to_reports_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tokenlens("analyze", MODEL, *TINY, "--no-report")
    assert result.stdout.splitlines()[-1] == f"run: {Path('reports') / MODEL}"
    assert (tmp_path / "reports" / MODEL / "MANIFEST.json").exists()


def test_every_option_reads_its_environment_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = {
        "TOKENLENS_ANALYZE_PRETRAINED": "0",
        "TOKENLENS_ANALYZE_IMG_SIZE": "32x48",
        "TOKENLENS_ANALYZE_MODEL_ARG": "reg_tokens=2 depth=1",
        "TOKENLENS_ANALYZE_LIMIT": "3",
        "TOKENLENS_ANALYZE_OUT": "elsewhere",
        "TOKENLENS_ANALYZE_NO_REPORT": "1",
        "TOKENLENS_ANALYZE_JSON": "1",
        "TOKENLENS_ANALYZE_METRICS": "token_norm",
        "TOKENLENS_ANALYZE_BATCH_SIZE": "2",
    }
    result = tokenlens("analyze", MODEL, env=env)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["run"], told["images"], told["metrics"]) == ("elsewhere", 3, ["token_norm"])
    analysis = Analysis.load(tmp_path / "elsewhere")
    assert (analysis.blocks, analysis.provenance["image_size"]) == (1, [32, 48])
    assert tokenlens("analyze", MODEL, env={"TOKENLENS_ANALYZE_LIMIT": "0"}).exit_code == 2
    assert tokenlens("analyze", MODEL, env={"TOKENLENS_ANALYZE_IMG_SIZE": "32x"}).exit_code == 2


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    for number, seed in enumerate((0, 1, 2, 0, 3, 4, 2, 5, 6, 6, 7)):  # copies in batches of both processes
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number:02}.png").write_bytes(encoded(picture(seed)))
    arguments = (
        "analyze",
        MODEL,
        *TINY[:3],
        "--images",
        tmp_path / "images",
        "--batch-size",
        2,
        "--metrics",
        "all",
        "--no-report",
        "--json",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [  # as torchrun starts them, which would import torch a third time
        process("-m", "tokenlens_cli", *arguments, "--out", tmp_path / "two", cwd=tmp_path, RANK=rank, **settings)
        for rank in "01"
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun sets it: the order of a sum must not differ
    try:
        assert tokenlens(*arguments, "--out", tmp_path / "one").exit_code == 0
    finally:
        torch.set_num_threads(threads)
    (first_code, stdout, stderr), (second_code, *silent) = map(finished, ranks)
    assert (first_code, second_code) == (0, 0), stderr
    assert json.loads(stdout)["images"] == 8
    assert [copy["copy_of"] for copy in json.loads(stdout)["copies"]] == ["00.png", "02.png", "08.png"]
    assert f"loading {MODEL}" in stderr
    assert silent == ["", ""]
    one, two = Analysis.load(tmp_path / "one"), Analysis.load(tmp_path / "two")
    assert two.provenance["world_size"] == 2
    assert two.provenance["images"] == one.provenance["images"]
    assert two.per_image.columns.equals(one.per_image.columns)
    # Copies are left out, so that the batches differ, and with them the rounding of a few numbers.
    found, expected = two.per_image.to_numpy(), one.per_image.to_numpy()
    np.testing.assert_allclose(found, expected, rtol=5e-6, atol=1e-8)
    assert np.mean((found == expected) | np.isnan(expected)) > 0.99
    assert two.arrays.keys() == one.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_allclose(two.arrays[name].values, array.values, rtol=1e-6, atol=1e-9)
    numbers = ["value", "sd", "ci_low", "ci_high"]
    assert two.table.drop(columns=numbers).equals(one.table.drop(columns=numbers))
    np.testing.assert_allclose(two.table[numbers].to_numpy(), one.table[numbers].to_numpy(), rtol=5e-6, atol=1e-8)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path):
    """an error in one of several processes"""
    script = tmp_path / "broken.py"
    script.write_text(
        "import importlib, os\n"
        "from tokenlens_cli.app import app\n"
        "def broken(*args, **options):\n"
        "    raise ValueError('this rank alone is broken')\n"
        "if os.environ['RANK'] == '1':\n"
        "    importlib.import_module('tokenlens.analysis.analyze').iterate_distinct = broken\n"
        "app(prog_name='tokenlens')\n",
        encoding="utf-8",
    )
    out = tmp_path / "reports"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    running = process(*torchrun, script, "analyze", MODEL, *TINY, "--batch-size", 1, "--out", out / "x", cwd=tmp_path)
    exit_code, stdout, stderr = finished(running)
    assert exit_code == 1
    assert stderr.count("error: ") == stderr.count("error: this rank alone is broken") == 1
    assert not out.exists() or not list(out.iterdir())
    assert stdout == ""
