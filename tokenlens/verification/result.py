"""What a verification found, and its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from tokenlens.analysis.findings import Finding
from tokenlens.storage.files import write_json, write_text
from tokenlens.storage.hashing import file_sha256
from tokenlens.storage.result import Result, read_settings
from tokenlens.storage.run_folder import MANIFEST, SCHEMA_VERSION
from tokenlens.storage.tables import read_table
from tokenlens.verification.numbers import CONTINUED
from tokenlens.verification.runs import PARTS, VERIFICATION
from tokenlens.verification.stage_effects import BY_SEED, EFFECTS, sentences
from tokenlens.verification.variants import START

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


@dataclass
class Verification(Result):
    """What a verification found.

    Attributes:
        path: its folder.
        findings: F1 to F6; F1 and F2 for each variant, F3 for each setting.
        numbers: a row for each trained model and thing that was measured of it; see
            ``tokenlens.verification.numbers.NUMBERS``.
        effects: differences of variants over seeds, with intervals.
        differences: of each pair of one seed.
        curves: losses on the way.
        emergence: how far norm1 pulls CLS and patches apart, on the way.
        costs: parameters and FLOPs of specializations of ViT-B/16.
        plan: the tasks and which of them are done; empty where runs were given.
        left_out: folders that were not used, and why.
        settings: what ``verify.json`` says.
        continued: what training on from a start did to each number; see ``tokenlens.verification.numbers.continued``.
        stages: which stage of the norms separates CLS from patches, over seeds; see ``tokenlens.verification.stage_effects``.
        stages_by_seed: the same of each model.
    """

    kind: ClassVar[str] = "verification"

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

    @property
    def table(self) -> pd.DataFrame:  # type: ignore[override]
        """The same as ``numbers``."""
        return self.numbers

    @property
    def provenance(self) -> dict[str, Any]:  # type: ignore[override]
        """The same as ``settings``."""
        return self.settings

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, report: bool = True) -> Path:
        """Write tables, findings, figures and page.

        In the verification's own folder, ``path``, they join the runs that are there, and the manifest is written last,
        when no task is left. Elsewhere they make a run folder of their own, without the runs.

        Raises:
            FileExistsError, OSError: as ``Result.save``.
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
        write_json(folder / VERIFICATION, self.settings | {"left_out": self.left_out})

    @classmethod
    def _read(cls, folder: Path) -> Verification:
        settings = read_settings(folder, cls.kind)
        if not (folder / "findings.json").is_file():
            raise FileNotFoundError(f"{folder} holds no verdicts yet: run the same `tokenlens verify` again to resume")
        findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        for finding in findings:
            finding["interval"] = finding["interval"] and tuple(finding["interval"])
        # Folders of earlier versions lack some.
        tables = {
            name: read_table(file, texts=_TEXTS, counts=())
            for name in TABLES
            if (file := folder / f"{name}.csv").is_file()
        }
        left_out = [(one[0], one[1]) for one in settings.get("left_out", [])]
        return cls(folder, [Finding(**finding) for finding in findings], **tables, left_out=left_out, settings=settings)

    def __repr__(self) -> str:
        told = "; ".join(f"{one.name} ({one.subject}) {one.verdict}" for one in self.findings)
        return f"Verification({self.path}: {told})"


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what a folder's verify.json says; empty without one.

    Raises:
        ValueError: for a damaged one, or one of a newer version.
    """
    return read_settings(folder, Verification.kind) if (folder / VERIFICATION).is_file() else {}


def _write_manifest(folder: Path) -> None:
    """Sizes and hashes of its own files and of the manifests of its run folders, which have those of theirs."""
    own = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (file.relative_to(folder).parts[0] not in (*PARTS, START) or file.name == MANIFEST)
    ]
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in own
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files})
