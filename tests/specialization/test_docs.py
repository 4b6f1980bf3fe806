"""The component of docs/add-a-specialization.md, added to a copy of the package."""

import re
import shutil

import pytest

from tests.support.command_line import REPOSITORY, finished, process
from tests.support.markdown import blocks

PAGE = REPOSITORY / "docs" / "add-a-specialization.md"


def test_the_examples_run():
    for block in blocks(PAGE, "python"):
        if not block.path:
            exec(compile(block.text, str(PAGE), "exec"), {})


@pytest.mark.slow
def test_a_component_is_one_file_and_one_field(tmp_path):
    for folder in ("tokenlens", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    [component] = [block for block in blocks(PAGE, "python") if block.path]
    (tmp_path / component.path).write_text(component.text, encoding="utf-8")
    [line] = re.findall(r"`(attention_norm: Blocks =\s+None)`", PAGE.read_text(encoding="utf-8"))
    fields = tmp_path / "tokenlens" / "specialization" / "_specialization.py"
    text = fields.read_text(encoding="utf-8")
    registers = "    registers: Literal"
    fields.write_text(text.replace(registers, f"    {' '.join(line.split())}\n{registers}"), encoding="utf-8")
    chosen = "attention_norm and (hf_dinov2 or timm_vit or timm_beit or dinov2_hub) or same_names"
    arguments = ("-p", "no:cacheprovider", "tests/specialization/test_specialize.py", "-k", chosen, "-rA")
    running = process("-m", "pytest", *arguments, cwd=tmp_path, tree=tmp_path)
    exit_code, stdout, stderr = finished(running, 300)
    assert exit_code == 0, stdout + stderr
    assert len(re.findall(r"^PASSED .*attention_norm", stdout, re.MULTILINE)) >= 8
