"""The steps of a training: forward, backward, optimizer, and what is written down on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tokenlens.training.checkpoints import read_newest, restore, training_state, write_checkpoint
from tokenlens.training.diagnostics import diagnose
from tokenlens.training.objectives.base import Objective, Progress, TrainingBatch
from tokenlens.training.optimizer import optimizer_of, set_schedule
from tokenlens.training.parallel import gathered, is_sharded, whole
from tokenlens.training.recipe import Recipe
from tokenlens.training.run import RunFolder
from tokenlens.training.seeds import seed_all
from tokenlens.training.stopping import StopRequest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batches = Iterator[tuple[TrainingBatch, list[dict[str, str]]]]

Report = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps done, the steps in all, and ``loss``, ``images_per_second`` (since the last row
of metrics.csv) and ``eta_seconds``."""


class NonFiniteLossError(ValueError):
    """NaN or infinity in the losses or in the gradients; says the step and the losses."""


@dataclass
class Tally:
    """Sums over some steps.

    Args:
        steps: how many.
        seconds: that they took, without checkpoints and diagnostics.
        waiting: seconds of these in which the step waited for its images.
        sums: of the losses and the norm of the gradient.
    """

    steps: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, waiting: float, values: Mapping[str, float]) -> None:
        """Count a step."""
        self.steps += 1
        self.seconds += seconds
        self.waiting += waiting
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Of the losses and the norm of the gradient."""
        return {name: value / self.steps for name, value in self.sums.items()}

    def images_per_second(self, batch_size: int) -> float:
        """Over all processes."""
        return self.steps * batch_size / self.seconds if self.seconds else 0.0


class TrainingLoop:
    """An objective on its way through all of its steps.

    Args:
        fabric: the engine, launched.
        recipe: of the training.
        objective: of the recipe; its parameters may be spread over the processes.
        images: how many there are to train on.
        steps: optimizer steps in all.
        stop: whether to end early.
        progress: see ``Report``.
        diagnosed: the batch of the diagnostics, if there are any.
        plain_twin: another copy of the kept model, for a number of classes; for weights that are spread.
        folder: to write to; None in all processes but the first.
    """

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        objective: Objective,
        *,
        images: int,
        steps: int,
        stop: StopRequest,
        progress: Report | None,
        diagnosed: Tensor | None,
        plain_twin: Callable[[int], nn.Module],
        folder: RunFolder | None,
    ) -> None:
        self.fabric, self.recipe, self.objective = fabric, recipe, objective
        self.images, self.steps, self.stop, self.progress = images, steps, stop, progress
        self.diagnosed, self.plain_twin, self.folder = diagnosed, plain_twin, folder
        self.model = fabric.setup_module(objective)
        self.optimizer = optimizer_of(objective, recipe)
        self._fabric_optimizer: Any = fabric.setup_optimizers(self.optimizer)
        self.step = 0
        self.row, self.whole_run = Tally(), Tally()
        self._saved = time.monotonic()
        self._logger: Any = None

    # -- going on

    def go_on(self, checkpoints: Any) -> list[str]:
        """Take the newest state from a folder of checkpoints, if there is one; returns names of unreadable ones."""
        state, damaged = read_newest(checkpoints)
        if state is not None:
            restore(state, self.objective, self.optimizer)
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.step = state["step"]
            self.row, self.whole_run = Tally(**state["row"]), Tally(**state["whole_run"])
        return damaged

    def save(self) -> None:
        """Write a checkpoint; all processes take part."""
        state = training_state(self.objective, self.optimizer)
        if self.folder is not None:
            content = {
                "step": self.step,
                "row": asdict(self.row),
                "whole_run": asdict(self.whole_run),
                "precision": self.fabric.strategy.precision.state_dict(),
                **state,
            }
            self.folder.sync()
            write_checkpoint(self.folder.checkpoints, self.step, content)
            self.folder.say(step=self.step, **self.speed(), skipped=self.folder.skipped_images())
        self._saved = time.monotonic()

    @property
    def parameters(self) -> dict[str, int]:
        """How many numbers are trained, and how many the kept model has."""
        kept = self.objective.result()
        trained = (parameter for parameter in self.objective.parameters() if parameter.requires_grad)
        return {"trained": sum(map(Tensor.numel, trained)), "model": sum(map(Tensor.numel, kept.parameters()))}

    def speed(self) -> dict[str, float]:
        """How long all steps took, and how much of it was waiting for images."""
        total = self.whole_run
        return {
            "seconds": round(total.seconds, 3),
            "images_per_second": round(total.images_per_second(self.recipe.batch_size), 3),
            "data_wait_share": round(total.waiting / total.seconds, 4) if total.seconds else 0.0,
        }

    # -- the steps

    def run(self, batches: Batches) -> None:
        """All steps that are left, or until it is asked to stop; then there is a checkpoint of the last one.

        Raises:
            NonFiniteLossError: before the optimizer's step that NaN or infinity would have spoilt.
            OSError: if the folder cannot be written to.
        """
        self.model.train()
        stopping = False
        if self.step == 0:
            self._diagnose()
        try:
            while self.step < self.steps and not stopping:
                stopping, due = self._one_step(batches)
                last = stopping or self.step == self.steps
                if self.step in (1, self.steps) or self.step % self.recipe.log_every == 0:
                    self._write_row()
                if self.recipe.diagnose_every and (
                    self.step % self.recipe.diagnose_every == 0 or self.step == self.steps
                ):
                    self._diagnose()
                if due or last:
                    self.save()
        finally:
            if self._logger is not None:
                self._logger.finalize("")

    def _one_step(self, batches: Batches) -> tuple[bool, bool]:
        """Returns whether to stop, and whether a checkpoint is due: the same in all processes."""
        began, waiting = time.perf_counter(), 0.0
        recipe, parts = self.recipe, self.recipe.accumulate
        progress = Progress(self.step, self.steps, self.images / recipe.batch_size, recipe.seed)
        self._lr, self._decay = set_schedule(self.optimizer, recipe, self.step, self.steps)
        sums: dict[str, Tensor] = {}
        skipped: list[dict[str, str]] = []
        for part in range(parts):
            asked = time.perf_counter()
            batch, unreadable = next(batches)
            batch = batch.to(self.fabric.device)
            waiting += time.perf_counter() - asked
            skipped += unreadable
            with self.fabric.no_backward_sync(self.model, enabled=part < parts - 1):
                seed_all(recipe.seed, self.step)  # the same for every part and process: they mix alike
                losses = self.model(batch, progress)
                self.fabric.backward(losses["loss"] / parts)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / parts
        self.objective.after_backward(progress)
        norm = self.fabric.clip_gradients(
            self.model, self._fabric_optimizer, max_norm=recipe.clip_grad or math.inf, error_if_nonfinite=False
        )
        assert norm is not None
        sums["grad_norm"] = whole(norm).detach().float()
        values, stopping, due, unreadable_somewhere = self._agreed(sums, len(skipped))
        self._check_finite(values)
        self._fabric_optimizer.step()
        self._fabric_optimizer.zero_grad()
        self.objective.after_step(progress)
        self.step += 1
        if unreadable_somewhere:
            self._note_skipped(skipped)
        seconds = time.perf_counter() - began
        self.row.add(seconds, waiting, values)
        self.whole_run.add(seconds, waiting, {})
        self._report(values["loss"])
        return stopping, due

    def _agreed(self, sums: Mapping[str, Tensor], skipped: int) -> tuple[dict[str, float], bool, bool, bool]:
        """The losses as means over the processes; whether any wants to stop, the first wants to save, any has skipped
        an image. All of it in one exchange."""
        save = self.fabric.is_global_zero and time.monotonic() - self._saved >= 60 * self.recipe.checkpoint_minutes
        wishes = torch.tensor([float(self.stop.wanted), float(save), float(skipped)])
        both = torch.cat([torch.stack(list(sums.values())), wishes.to(self.fabric.device)])
        means: Any = self.fabric.all_reduce(both, reduce_op="mean")
        *values, stopping, due, skips = means.tolist()
        return dict(zip(sums, values, strict=True)), stopping > 0, due > 0, skips > 0

    def _check_finite(self, values: Mapping[str, float]) -> None:
        # With 16 bits the scaler skips the steps whose gradients are too large, and halves its scale.
        watched = {
            name: value for name, value in values.items() if name != "grad_norm" or self.recipe.precision != "16-mixed"
        }
        if all(map(math.isfinite, watched.values())):
            return
        told = ", ".join(f"{name}={value:.6g}" for name, value in watched.items())
        raise NonFiniteLossError(
            f"NaN or infinity in step {self.step + 1} of {self.steps}, before its optimizer step: {told}. A lower lr, "
            "a longer warmup, clip_grad or 32-true may help"
        )

    # -- what is written down

    def _report(self, loss: float) -> None:
        if self.progress is not None and self.fabric.is_global_zero:
            speed = self.row.images_per_second(self.recipe.batch_size)
            left = (self.steps - self.step) * self.recipe.batch_size / speed if speed else math.nan
            self.progress(self.step, self.steps, {"loss": loss, "images_per_second": speed, "eta_seconds": left})

    def _note_skipped(self, skipped: list[dict[str, str]]) -> None:
        everyone = gathered(self.fabric, skipped)
        if self.folder is not None:
            self.folder.add("skipped.csv", [{"step": self.step, **item} for item in everyone])

    def _write_row(self) -> None:
        means = self.row.means()
        norm = means.pop("grad_norm")
        numbers = {
            "epoch": self.step * self.recipe.batch_size / self.images,
            **means,
            "lr": self._lr,
            "weight_decay": self._decay,
            "grad_norm": norm,
            "images_per_second": round(self.row.images_per_second(self.recipe.batch_size), 2),
        }
        if self.folder is not None:
            self.folder.add("metrics.csv", [{"step": self.step, **numbers}])
            self._tensorboard.log_metrics(numbers, self.step)
        self.row = Tally()

    @property
    def _tensorboard(self) -> Any:
        if self._logger is None:
            from lightning_fabric.loggers import TensorBoardLogger

            assert self.folder is not None
            self._logger = TensorBoardLogger(self.folder.path, "tensorboard", "", purge_step=self.step)
        return self._logger

    def _diagnose(self) -> None:
        if self.diagnosed is None:
            return
        amp = self.recipe.precision != "32-true"
        rows = diagnose(self.kept_model(), self.diagnosed.to(self.fabric.device), self.step, amp)
        if self.folder is not None:
            self.folder.add("diagnostics.csv", [row | {"model": self.recipe.model} for row in rows])

    def kept_model(self) -> nn.Module:
        """The model that is worth keeping, with all of its weights; all processes must ask."""
        kept = self.objective.result()
        if not is_sharded(self.objective):
            return kept
        [name] = [name for name, module in self.objective.named_modules() if module is kept]
        state = get_model_state_dict(self.objective, options=StateDictOptions(full_state_dict=True))
        twin = self.plain_twin(getattr(kept, "num_classes", 0)).to(self.fabric.device)
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        twin.load_state_dict(own)
        return twin
