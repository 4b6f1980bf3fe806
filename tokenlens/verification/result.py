"""The result of a verification, and its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from tokenlens.analysis.findings import Finding
from tokenlens.storage.files import write_json, write_text
from tokenlens.storage.hashing import file_sha256
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import MANIFEST, SCHEMA_VERSION
from tokenlens.storage.tables import read_table
from tokenlens.verification.numbers import CONTINUED, DIFFERENCES, EFFECTS, MEASUREMENT, NUMBERS
from tokenlens.verification.rules import COSTS
from tokenlens.verification.runs import PARTS
from tokenlens.verification.stage_effects import STAGE_EFFECTS, STAGES_BY_SEED, describe_stages
from tokenlens.verification.tasks import PLAN
from tokenlens.verification.trained_models import CURVES, EMERGENCE
from tokenlens.verification.variants import START

SETTINGS_FILE = SETTINGS["verification"]

TABLES = {
    "numbers": NUMBERS,
    "effects": EFFECTS,
    "differences": DIFFERENCES,
    "curves": CURVES,
    "emergence": EMERGENCE,
    "costs": COSTS,
    "plan": PLAN,
    "continued": CONTINUED,
    "stages": STAGE_EFFECTS,
    "stages_by_seed": STAGES_BY_SEED,
}
"""Tables of a verification with their columns; each is a CSV file of that name."""

_TEXT_COLUMNS = {
    *("setting", "variant", "preset", "objective", "model", "against", "cell", "left_out", "norm", "blocks", "part"),
    *("what", "folder", "state", "basis", "command"),
    *(name for name in MEASUREMENT if name != "resolution"),
}


def _empty(table: str) -> pd.DataFrame:
    return pd.DataFrame(columns=list(TABLES[table]))


@dataclass
class Verification(Result):
    """The verdicts of a verification and the numbers that they rest on.

    Attributes:
        path: its folder.
        findings: F1 to F6; F1 and F2 for each variant, F3 for each setting.
        numbers: a row per trained model and measurement; see ``tokenlens.verification.numbers``.
        effects: differences between variants over seeds, with intervals.
        differences: differences from the standard model of the same seed.
        curves: losses by training step.
        emergence: how far norm1 separates CLS from patches, by training step.
        costs: parameters and FLOPs of the specializations of ViT-B/16.
        plan: the tasks and their states; empty if existing runs were judged.
        left_out: folders that were not used, with the reason.
        settings: content of ``verify.json``.
        continued: how training changed each number of the start.
        stages: which stage of the norms separates CLS from patches, over seeds.
        stages_by_seed: the same for each model.
    """

    kind: ClassVar[str] = "verification"

    path: Path
    findings: list[Finding]
    numbers: pd.DataFrame
    effects: pd.DataFrame = field(default_factory=partial(_empty, "effects"))
    differences: pd.DataFrame = field(default_factory=partial(_empty, "differences"))
    curves: pd.DataFrame = field(default_factory=partial(_empty, "curves"))
    emergence: pd.DataFrame = field(default_factory=partial(_empty, "emergence"))
    costs: pd.DataFrame = field(default_factory=partial(_empty, "costs"))
    plan: pd.DataFrame = field(default_factory=partial(_empty, "plan"))
    left_out: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    continued: pd.DataFrame = field(default_factory=partial(_empty, "continued"))
    stages: pd.DataFrame = field(default_factory=partial(_empty, "stages"))
    stages_by_seed: pd.DataFrame = field(default_factory=partial(_empty, "stages_by_seed"))

    @property
    def finished(self) -> bool:
        """Whether no task is left."""
        return bool((self.plan["state"] == "done").all())

    @property
    def stage_sentences(self) -> list[str]:
        """Which stage of the norms separates CLS from patches, in a sentence per setting."""
        return describe_stages(self.stages_by_seed, self.stages)

    @property
    def table(self) -> pd.DataFrame:
        """The same as ``numbers``."""
        return self.numbers

    @property
    def provenance(self) -> dict[str, Any]:  # type: ignore[override]
        """The same as ``settings``."""
        return self.settings

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, report: bool = True) -> Path:
        """Write tables, findings, figures and the page.

        In the folder of this verification they are written next to its runs, and the manifest only when no task is
        left. Anywhere else they form a run folder without the runs.

        Raises:
            FileExistsError, OSError: see ``Result.save``.
        """
        if Path(path).resolve() != self.path.resolve():
            return super().save(path, overwrite, report)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)
        self._write(self.path)
        if report:
            self._write_report(self.path)
        if self.finished:
            _write_manifest(self.path)
        return self.path

    def _write(self, folder: Path) -> None:
        for name in TABLES:
            write_text(folder / f"{name}.csv", getattr(self, name).to_csv(index=False))
        write_json(folder / "findings.json", [asdict(finding) for finding in self.findings])
        write_json(folder / SETTINGS_FILE, self.settings | {"left_out": self.left_out})

    @classmethod
    def _read(cls, folder: Path) -> Verification:
        settings = settings_of(folder)
        if not (folder / "findings.json").is_file():
            raise FileNotFoundError(f"{folder} holds no verdicts yet: run the same `tokenlens verify` again to resume")
        findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        for finding in findings:
            finding["interval"] = finding["interval"] and tuple(finding["interval"])
        # Folders of earlier versions lack some tables.
        tables = {
            name: read_table(file, texts=_TEXT_COLUMNS, counts=())
            for name in TABLES
            if (file := folder / f"{name}.csv").is_file()
        }
        left_out = [(one[0], one[1]) for one in settings.get("left_out", [])]
        return cls(folder, [Finding(**finding) for finding in findings], **tables, left_out=left_out, settings=settings)

    def __repr__(self) -> str:
        verdicts = "; ".join(f"{finding.name} ({finding.subject}) {finding.verdict}" for finding in self.findings)
        return f"Verification({self.path}: {verdicts})"


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's verify.json; empty if there is none.

    Raises:
        ValueError: if it is damaged or of a newer version of tokenlens.
    """
    settings = read_settings(folder, Verification.kind) if (folder / SETTINGS_FILE).is_file() else {}
    if "regime" in settings:  # the name of a scale in folders of earlier versions
        settings["scale"] = settings.pop("regime")
    return settings


def _write_manifest(folder: Path) -> None:
    """Write hashes of the folder's own files and of the manifests of its run folders, which cover their files."""
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (file.relative_to(folder).parts[0] not in (*PARTS, START) or file.name == MANIFEST)
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files})
