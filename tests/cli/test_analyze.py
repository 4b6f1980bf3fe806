"""The commands as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tokenlens_cli import _output
from tokenlens_cli._errors import guarded, sentence
from tokenlens_cli.analyze import default_folder
from tokenlens_cli.app import app, command_names
from typer.testing import CliRunner

from tests.support.command_line import MODEL, TINY, finished, process, tiny_analyze, tokenlens
from tokenlens.analysis.analysis import Analysis
from tokenlens.models import shipped

HEAVY = {
    "torch",
    "timm",
    "numpy",
    "pandas",
    "scipy",
    "matplotlib",
    "seaborn",
    "sklearn",
    "PIL",
    "jinja2",
    "safetensors",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with its report."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = tiny_analyze(folder)
    assert result.exit_code == 0, result.stderr
    return folder, result


# -- analyze


def test_analyze_says_where_the_report_is(run):
    folder, result = run
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{MODEL}, untrained (random weights): ")
    assert "4 images" in lines[0]
    assert [line.split(maxsplit=1)[0] for line in lines[1:3]] == ["F1", "F2"]
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
    assert [finding["name"] for finding in told["findings"]] == ["F1", "F2"]
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
        48,
        "--limit",
        5,
    )
    assert result.exit_code == 0, result.stderr
    analysis = Analysis.load(tmp_path / "run")
    assert "effective_rank" in analysis.metrics
    told = analysis.provenance
    assert (told["seed"], told["batch_size"], told["dtype"], told["device"]) == (5, 3, "bfloat16 autocast", "cpu")
    assert told["image_size"] == [48, 48]
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


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("vit_base_patch16_224", "vit_base_patch16_224"),
        ("vit_base_patch16_224.mae", "vit_base_patch16_224.mae"),
        ("hf-hub:timm/vit_tiny", "hf-hub_timm_vit_tiny"),
        ("local-dir:../../etc/x", "local-dir_.._.._etc_x"),
        ("../../x", "_.._x"),
        ("..", "model"),
        ("/", "_"),
        ("", "model"),
        ("~/x\n", "_x_"),
        ("C:\\models\\vit", "C_models_vit"),
    ],
)
def test_the_default_folder_is_one_folder_in_reports(model, folder):
    assert default_folder(model).as_posix() == f"reports/{folder}"


def test_long_names_get_different_short_folders():
    one, two = default_folder("local-dir:" + "x" * 300), default_folder("local-dir:" + "x" * 301)
    assert one != two
    assert len(one.name) <= 100


def test_out_defaults_to_reports_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tokenlens("analyze", MODEL, *TINY, "--no-report")
    assert result.stdout.splitlines()[-1] == f"run: {Path('reports') / MODEL}"
    assert (tmp_path / "reports" / MODEL / "MANIFEST.json").exists()


def test_every_option_reads_its_environment_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = {
        "TOKENLENS_ANALYZE_PRETRAINED": "0",
        "TOKENLENS_ANALYZE_IMG_SIZE": "32",
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
    assert tokenlens("analyze", MODEL, env={"TOKENLENS_ANALYZE_LIMIT": "0"}).exit_code == 2


# -- report


def test_report_draws_again_without_model_and_images(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert tiny_analyze(folder, "--metrics", "token_norm").exit_code == 0
    monkeypatch.setattr("tokenlens.models.loading.load_model", None)
    page = folder / "report.html"
    before, table = page.read_text(encoding="utf-8"), (folder / "table.csv").read_bytes()
    page.unlink()
    next((folder / "figures").glob("*.svg")).write_text("edited")
    result = tokenlens("report", folder, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"model": MODEL, "run": str(folder), "report": str(page)}
    assert page.read_text(encoding="utf-8") == before
    assert (folder / "table.csv").read_bytes() == table
    Analysis.load(folder)


def test_report_of_a_run_without_one(tmp_path, monkeypatch):
    tiny_analyze(tmp_path / "run", "--no-report")
    page = tmp_path / "run" / "report.html"
    monkeypatch.setattr("tokenlens.report.write_report", lambda _, folder: (folder / "report.html").write_text("drawn"))
    result = tokenlens("report", tmp_path / "run")
    assert result.stdout == f"report: {page}\n"
    assert page.read_text() == "drawn"
    assert Analysis.load(tmp_path / "run").model == MODEL


# -- list


def test_list_metrics_says_what_costs():
    result = tokenlens("list", "metrics")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    from tokenlens.metrics.base import metrics

    assert sorted(rows) == metrics.names()
    assert "opt-in: a singular value decomposition" in rows["effective_rank"]
    assert "opt-in" not in rows["cls_patch_cosine"]
    told = json.loads(tokenlens("list", "metrics", "rank", "--json").stdout)
    assert told["count"] == 1
    assert told["items"][0]["opt_in"] is True
    assert told["items"][0]["sites"] == ["resid_post"]


@pytest.mark.parametrize("kind", ["figures", "families"])
def test_list_describes_everything(kind):
    result = tokenlens("list", kind)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 3
    for line in result.stdout.splitlines():
        assert len(line.split()) > 2, line


def test_list_models_is_never_cut_silently():
    few = tokenlens("list", "models", "--limit", 3)
    assert len(few.stdout.splitlines()) == 3
    count = int(re.match(r"3 of (\d+) models; ", few.stderr)[1])
    told = json.loads(tokenlens("list", "models", "--limit", 0, "--json").stdout)
    assert told["count"] == told["shown"] == len(told["items"]) == count
    names = [item["name"] for item in told["items"]]
    assert {
        "vit_base_patch16_224.dino",
        "deit_base_distilled_patch16_224.fb_in1k",
        "vit_small_patch14_dinov2.lvd142m",
        "eva02_base_patch14_224.mim_in22k",
        "beit_base_patch16_224.in22k_ft_in22k",
    } <= set(names)
    assert not [name for name in names if name.startswith(("resnet", "swin", "convnext"))]
    assert names[: len(shipped.names())] == list(shipped.names()), "what needs no download comes first"
    without = [item for item in told["items"][len(shipped.names()) :] if item["description"]]
    assert without
    assert all(item["description"] == "no published weights" and "." not in item["name"] for item in without)


def test_list_models_by_pattern():
    found = tokenlens("list", "models", "dinov2").stdout.splitlines()
    assert len(found) > 6
    assert all("dinov2" in name for name in found)
    one = tokenlens("list", "models", "vit_small_patch14_dinov2*").stdout
    assert one.split() == ["vit_small_patch14_dinov2.lvd142m"]


def test_a_pattern_without_a_match_names_the_nearest():
    result = tokenlens("list", "metrics", "cls_patch_cosin3")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "near it: cls_patch_cosine" in result.stderr


# -- help and start


def all_commands():
    group = typer.main.get_command(app)
    return [group, *group.commands.values()]


def test_every_command_and_option_is_described():
    for command in all_commands():
        assert len((command.help or "").split()) > 4, command.name
        for parameter in command.params:
            assert len((parameter.help or "").split()) >= 3, f"{command.name} {parameter.name}"
            # All environment variables follow from the option: --no-report is TOKENLENS_ANALYZE_NO_REPORT.
            assert f"--{parameter.name.replace('_', '-')}" in [*parameter.opts, f"--{parameter.opts[0]}"]


def test_help_names_every_command():
    shown = tokenlens("--help").stdout
    for name in command_names():
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)
        assert tokenlens(name, "--help").exit_code == 0
    assert "Exit codes" in shown


def test_version():
    import tokenlens as package

    assert tokenlens("--version").stdout == f"tokenlens {package.__version__}\n"
    # A variable of this name is common; it must not print a version instead of doing the work.
    assert tokenlens("list", "figures", env={"TOKENLENS_VERSION": "1"}).stdout != f"tokenlens {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["analyze"], ["list", "nonsense"], ["analyze", "x", "--nonsense"]]
)
def test_wrong_usage_ends_with_2(arguments):
    assert tokenlens(*arguments).exit_code == 2


def test_help_and_completion_import_nothing_heavy(tmp_path):
    code = """
import os, sys
import tokenlens
from typer.testing import CliRunner
from tokenlens_cli.app import app
dir(tokenlens), tokenlens.__version__
for arguments in (["--help"], ["analyze", "--help"], ["--version"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
words = "tokenlens analyze x --metrics token_n"
os.environ.update(_TOKENLENS_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="4")
try:
    app(prog_name="tokenlens")
except SystemExit:
    pass
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
    exit_code, stdout, stderr = finished(process("-c", code, cwd=tmp_path))
    assert exit_code == 0, stderr
    assert "token_norm" in stdout
    assert not HEAVY & set(stdout.splitlines()[-1].split())


# -- messages


def test_a_bug_is_called_one():
    assert sentence(TypeError("x")) == (
        "TypeError: x; this was not expected, so it is a bug here or in the model: --debug shows where"
    )
    assert "was not expected" in sentence(KeyError("x"))
    assert sentence(LookupError("no model is\n  called x")) == "no model is called x"
    assert "smaller --batch-size" in sentence(MemoryError())


def test_debug_shows_the_traceback(tmp_path):
    plain = tiny_analyze(tmp_path / "run", "--metrics", "nonsense")
    assert "Traceback" not in plain.stderr
    assert plain.stderr.splitlines()[-1].startswith("error: no metric is called 'nonsense'")
    debug = tiny_analyze(tmp_path / "run", "--metrics", "nonsense", "--debug")
    assert "Traceback" in debug.stderr
    assert debug.exit_code == plain.exit_code == 1


def test_progress_is_told_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(_output.time, "monotonic", lambda: next(clock))
    with _output.progress_of("analyzing x") as progress:
        progress(10, 100)
        progress(20, 100)
        progress(30, 100)
        progress(80, None)
    assert capsys.readouterr().err.splitlines() == [
        "analyzing x",
        "20 of 100 images, 1 images/s, about 80 s left",
        "80 images, 2 images/s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(_output.sys.stderr, "isatty", lambda: True, raising=False)
    with _output.progress_of("analyzing [x]") as progress:
        progress(1, 2)
        progress(3, None)
    assert capsys.readouterr().out == ""


def test_json_has_no_nan(capsys):
    _output.print_json({"a": float("nan"), "b": [np.float32(0.5), np.int64(2), np.nan, float("inf")], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [0.5, 2, None, None], "c": "x"}


def test_a_closed_pipe_is_no_error():
    def command() -> None:
        """Prints to a reader that has gone."""
        raise BrokenPipeError(32, "Broken pipe")

    once = typer.Typer()
    once.command()(guarded(command))
    result = CliRunner().invoke(once, [])
    assert (result.exit_code, result.stderr) == (1, "")


# -- several processes

PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    arguments = (
        "analyze",
        MODEL,
        *TINY[:3],
        "--limit",
        9,
        "--batch-size",
        2,
        "--metrics",
        "all",
        "--no-report",
        "--json",
    )
    running = process(*PROCESSES, "-m", "tokenlens_cli", *arguments, "--out", tmp_path / "two", cwd=tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun sets it: the order of a sum must not differ
    try:
        assert tokenlens(*arguments, "--out", tmp_path / "one").exit_code == 0
    finally:
        torch.set_num_threads(threads)
    exit_code, stdout, stderr = finished(running)
    assert exit_code == 0, stderr
    assert json.loads(stdout)["images"] == 9
    assert stderr.count(f"loading {MODEL}") == 1
    one, two = Analysis.load(tmp_path / "one"), Analysis.load(tmp_path / "two")
    assert two.provenance["world_size"] == 2
    assert two.provenance["images"] == one.provenance["images"]
    assert two.per_image.equals(one.per_image)
    assert two.arrays.keys() == one.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_allclose(two.arrays[name].values, array.values, rtol=1e-6, atol=1e-9)
    numbers = ["value", "sd", "ci_low", "ci_high"]
    assert two.table.drop(columns=numbers).equals(one.table.drop(columns=numbers))
    np.testing.assert_allclose(two.table[numbers].to_numpy(), one.table[numbers].to_numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(
        "import os\n"
        "from tokenlens import analysis\n"
        "from tokenlens_cli.app import app\n"
        "def broken(*args, **options):\n"
        "    raise ValueError('this rank alone is broken')\n"
        "if os.environ['RANK'] == '1':\n"
        "    analysis.batches = broken\n"
        "app(prog_name='tokenlens')\n",
        encoding="utf-8",
    )
    out = tmp_path / "reports"
    running = process(*PROCESSES, script, "analyze", MODEL, *TINY, "--batch-size", 1, "--out", out / "x", cwd=tmp_path)
    exit_code, stdout, stderr = finished(running)
    assert exit_code == 1
    assert stderr.count("error: ") == stderr.count("error: this rank alone is broken") == 1
    assert not out.exists() or not list(out.iterdir())
    assert stdout == ""
