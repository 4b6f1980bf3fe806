"""What a verification found, and its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.findings import Finding
from tokenlens.paired_numbers import CONTINUED
from tokenlens.run_folder import MANIFEST, SCHEMA_VERSION, sha256_of
from tokenlens.stage_effects import BY_SEED, EFFECTS, sentences
from tokenlens.variants import START
from tokenlens.verification_runs import PARTS, VERIFICATION

TABLES = (
    "numbers",
    "effects",
    "differences",
    "curves",
    "emergence",
    "costs",
    "plan",
    "continued",
    "stages",
    "stages_by_seed",
)
"""Written as CSV, each with that name."""

_TEXTS = {
    "setting",
    "variant",
    "preset",
    "objective",
    "model",
    "task",
    "source",
    "data",
    "measure",
    "against",
    "cell",
    "left_out",
    "what",
    "folder",
    "state",
    "basis",
    "command",
    "norm",
    "blocks",
    "part",
}
_COUNTS = {
    "number",
    "seed",
    "seeds",
    "resolution",
    "n",
    "start_n",
    "step",
    "parameters",
    "added_parameters",
    "flops",
    "added_flops",
}


@dataclass
class Verification:
    """What a verification found.

    Attributes:
        path: its folder.
        findings: F1 to F6; F1 and F2 for each variant, F3 for each setting.
        numbers: a row for each trained model and thing that was measured of it; see
            ``tokenlens.paired_numbers.NUMBERS``.
        effects: differences of variants over seeds, with intervals.
        differences: of each pair of one seed.
        curves: losses on the way.
        emergence: how far norm1 pulls CLS and patches apart, on the way.
        costs: parameters and FLOPs of specializations of ViT-B/16.
        plan: the tasks and which of them are done; empty where runs were given.
        left_out: folders that were not used, and why.
        settings: what ``verify.json`` says.
        continued: what training on from a start did to each number; see ``tokenlens.paired_numbers.continued``.
        stages: which stage of the norms separates CLS from patches, over seeds; see ``tokenlens.stage_effects``.
        stages_by_seed: the same of each model.
    """

    path: Path
    findings: list[Finding]
    numbers: pd.DataFrame
    effects: pd.DataFrame
    differences: pd.DataFrame
    curves: pd.DataFrame
    emergence: pd.DataFrame
    costs: pd.DataFrame
    plan: pd.DataFrame
    left_out: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    continued: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CONTINUED)))
    stages: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(EFFECTS)))
    stages_by_seed: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(BY_SEED)))

    @property
    def finished(self) -> bool:
        """Whether no task is left."""
        return bool((self.plan["state"] == "done").all())

    @property
    def stage_sentences(self) -> list[str]:
        """Which stage of the norms separates CLS from patches, in words; one for each setting."""
        return sentences(self.stages_by_seed, self.stages)

    def save(self, report: bool = True) -> Path:
        """Write tables, findings, figures and page into its folder, and last the manifest when nothing is left to do.

        Raises:
            OSError: if the disk is full or not writable.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)
        for name in TABLES:
            _write(self.path / f"{name}.csv", getattr(self, name).to_csv(index=False))
        write_json(self.path / "findings.json", [asdict(finding) for finding in self.findings])
        write_json(self.path / VERIFICATION, self.settings | {"left_out": self.left_out})
        if report:
            from tokenlens.report.verify_page import write_page

            write_page(self, self.path)
        if self.finished:
            _write_manifest(self.path)
        return self.path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Verification:
        """Read a folder that ``save`` has written, finished or not.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it was written by a newer version of tokenlens.
        """
        folder = Path(path)
        settings = read_settings(folder)
        if not settings or not (folder / "findings.json").is_file():
            raise FileNotFoundError(f"{folder} holds no verification: `tokenlens verify` writes {VERIFICATION} there")
        findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        for finding in findings:
            finding["interval"] = finding["interval"] and tuple(finding["interval"])
        # Folders of earlier versions lack some.
        tables = {name: _read_table(file) for name in TABLES if (file := folder / f"{name}.csv").is_file()}
        left_out = [(one[0], one[1]) for one in settings.get("left_out", [])]
        return Verification(
            folder, [Finding(**finding) for finding in findings], **tables, left_out=left_out, settings=settings
        )

    def __repr__(self) -> str:
        told = "; ".join(f"{one.name} ({one.subject}) {one.verdict}" for one in self.findings)
        return f"Verification({self.path}: {told})"


def _read_table(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    for name in set(table) - _TEXTS:
        if name in _COUNTS:
            table[name] = table[name].astype("int64")
        elif name == "paired":
            table[name] = table[name] == "True"
        else:
            # Python's float gives back the very number that was written; pandas' own parser does so in some versions.
            table[name] = np.array([float(text or "nan") for text in table[name]], dtype=np.float64)
    return table


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder's verify.json says; empty without one.

    Raises:
        ValueError: for a damaged one, or one of a newer version.
    """
    file = folder / VERIFICATION
    if not file.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = int(settings["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{folder} was written with schema version {version}, by a newer tokenlens; this one reads up to "
            f"{SCHEMA_VERSION}: pip install --upgrade tokenlens-vit"
        )
    return settings


def _write_manifest(folder: Path) -> None:
    """Sizes and hashes of its own files and of the manifests of its run folders, which have those of theirs."""
    own = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (file.relative_to(folder).parts[0] not in (*PARTS, START) or file.name == MANIFEST)
    ]
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in own
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files})


def write_json(file: Path, value: Any) -> None:
    """As a whole or not at all."""
    _write(file, json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _write(file: Path, text: str) -> None:
    """As a whole or not at all."""
    temporary = file.with_name(f".{file.name}.unfinished")
    try:
        # A path that is not Unicode holds lone surrogates; the replacement is JSON's own way to write them.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
