"""The steps of a training: forward, backward, optimizer, and the numbers that are written on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tokenlens.training.batches import Batches
from tokenlens.training.checkpoints import collect_state, read_newest_checkpoint, restore_state, write_checkpoint
from tokenlens.training.diagnostics import diagnose
from tokenlens.training.objectives.base import Objective, Progress
from tokenlens.training.optimizer import make_optimizer, set_schedule
from tokenlens.training.parallel import gather_items, gather_tensor, is_sharded
from tokenlens.training.recipe import Recipe
from tokenlens.training.run_writer import RunWriter
from tokenlens.training.seeds import seed_all
from tokenlens.training.stopping import StopRequest
from tokenlens.training.trained_run import CHECKPOINTS, DIAGNOSTICS, METRICS, SKIPPED

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class Tally:
    """Running totals over steps.

    Args:
        steps: their number.
        seconds: their duration, without checkpoints and diagnostics.
        waiting: seconds of these spent waiting for images.
        sums: total of each loss and of the gradient norm.
    """

    steps: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, waiting: float, values: Mapping[str, float]) -> None:
        """Add a step."""
        self.steps += 1
        self.seconds += seconds
        self.waiting += waiting
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return the mean per step of each loss and of the gradient norm."""
        return {name: value / self.steps for name, value in self.sums.items()}

    def images_per_second(self, batch_size: int) -> float:
        """Return the speed over all processes."""
        return self.steps * batch_size / self.seconds if self.seconds else 0.0


ProgressCallback = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps done, the steps in total, and ``loss``, ``images_per_second`` (since the last
row of metrics.csv) and ``eta_seconds``."""


class NonFiniteLossError(ValueError):
    """NaN or infinity in the losses or the gradients; the message has the step and the losses."""


class TrainingLoop:
    """The state of a training between two steps, and the steps themselves.

    Args:
        fabric: the engine, launched.
        recipe: the recipe.
        objective: the recipe's objective; its parameters may be sharded over processes.
        images: number of training images.
        steps: number of optimizer steps in total.
        stop: whether to end early.
        progress: see ``ProgressCallback``.
        fixed_batch: images for the diagnostics, (N, 3, height, width); None for no diagnostics.
        make_backbone: makes another copy of the backbone, unsharded, for a number of classes.
        writer: writes the run folder; None in all processes but the first.
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
        progress: ProgressCallback | None,
        fixed_batch: Tensor | None,
        make_backbone: Callable[[int], nn.Module],
        writer: RunWriter | None,
    ) -> None:
        self.fabric, self.recipe, self.objective = fabric, recipe, objective
        self.images, self.steps, self.stop, self.progress = images, steps, stop, progress
        self.fixed_batch, self.make_backbone, self.writer = fixed_batch, make_backbone, writer
        self.model = fabric.setup_module(objective)
        self.optimizer = make_optimizer(objective, recipe)
        self._fabric_optimizer: Any = fabric.setup_optimizers(self.optimizer)
        self.step = 0
        self.since_last_row, self.whole_run = Tally(), Tally()
        self._last_save = time.monotonic()
        self._logger: Any = None

    def resume(self, checkpoints: Path) -> list[str]:
        """Load the newest state from a folder of checkpoints, if there is one; return the names of damaged files."""
        state, damaged = read_newest_checkpoint(checkpoints)
        if state is not None:
            restore_state(state, self.objective, self.optimizer)
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.step = state["step"]
            self.since_last_row, self.whole_run = Tally(**state["row"]), Tally(**state["whole_run"])
        return damaged

    def save_checkpoint(self) -> None:
        """Write a checkpoint; all processes take part."""
        state = collect_state(self.objective, self.optimizer)
        if self.writer is not None:
            content = {
                "step": self.step,
                "row": asdict(self.since_last_row),
                "whole_run": asdict(self.whole_run),
                "precision": self.fabric.strategy.precision.state_dict(),
                **state,
            }
            self.writer.flush_to_disk()
            write_checkpoint(self.writer.path / CHECKPOINTS, self.step, content)
            self.writer.update(step=self.step, **self.speed(), skipped=self.writer.count_skipped_images())
        self._last_save = time.monotonic()

    @property
    def parameters(self) -> dict[str, int]:
        """Number of trained parameters, and of parameters of the resulting model."""
        kept = self.objective.result()
        trained = (parameter for parameter in self.objective.parameters() if parameter.requires_grad)
        return {"trained": sum(map(Tensor.numel, trained)), "model": sum(map(Tensor.numel, kept.parameters()))}

    def speed(self) -> dict[str, float]:
        """Return the duration of all steps, the speed, and the share of time spent waiting for images."""
        total = self.whole_run
        return {
            "seconds": round(total.seconds, 3),
            "images_per_second": round(total.images_per_second(self.recipe.batch_size), 3),
            "data_wait_share": round(total.waiting / total.seconds, 4) if total.seconds else 0.0,
        }

    def run(self, batches: Batches) -> None:
        """Do the remaining steps, or stop early on request; a checkpoint of the last step is written either way.

        Raises:
            NonFiniteLossError: before an optimizer step that NaN or infinity would have spoilt.
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
                    self.save_checkpoint()
        finally:
            if self._logger is not None:
                self._logger.finalize("")

    def _one_step(self, batches: Batches) -> tuple[bool, bool]:
        """Return whether to stop and whether a checkpoint is due, the same in all processes."""
        began, waiting = time.perf_counter(), 0.0
        recipe, parts = self.recipe, self.recipe.accumulate
        progress = Progress(self.step, self.steps, self.images / recipe.batch_size, recipe.seed)
        self._lr, self._decay = set_schedule(self.optimizer, recipe, self.step, self.steps)
        sums: dict[str, Tensor] = {}
        skipped: list[dict[str, str]] = []
        for part in range(parts):
            requested = time.perf_counter()
            batch, unreadable = next(batches)
            batch = batch.to(self.fabric.device)
            waiting += time.perf_counter() - requested
            skipped += unreadable
            with self.fabric.no_backward_sync(self.model, enabled=part < parts - 1):
                seed_all(recipe.seed, self.step)  # the same in every part and process, so that they mix alike
                losses = self.model(batch, progress)
                self.fabric.backward(losses["loss"] / parts)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / parts
        self.objective.after_backward(progress)
        norm = self.fabric.clip_gradients(
            self.model, self._fabric_optimizer, max_norm=recipe.clip_grad or math.inf, error_if_nonfinite=False
        )
        assert norm is not None
        sums["grad_norm"] = gather_tensor(norm).detach().float()
        values, stopping, due, any_skipped = self._agree(sums, len(skipped))
        self._check_finite(values)
        self._fabric_optimizer.step()
        self._fabric_optimizer.zero_grad()
        self.objective.after_step(progress)
        self.step += 1
        if any_skipped:
            everyone = gather_items(self.fabric, skipped)
            if self.writer is not None:
                self.writer.append(SKIPPED, [{"step": self.step, **item} for item in everyone])
        seconds = time.perf_counter() - began
        self.since_last_row.add(seconds, waiting, values)
        self.whole_run.add(seconds, waiting, {})
        self._report(values["loss"])
        return stopping, due

    def _agree(self, sums: Mapping[str, Tensor], skipped: int) -> tuple[dict[str, float], bool, bool, bool]:
        """Exchange between processes, in one call, what all of them must know.

        Returns:
            The losses as means over processes; whether any process wants to stop; whether the first one wants to save;
            whether any process skipped an image.
        """
        save = self.fabric.is_global_zero and time.monotonic() - self._last_save >= 60 * self.recipe.checkpoint_minutes
        wishes = torch.tensor([float(self.stop.wanted), float(save), float(skipped)])
        both = torch.cat([torch.stack(list(sums.values())), wishes.to(self.fabric.device)])
        means: Any = self.fabric.all_reduce(both, reduce_op="mean")
        *values, stopping, due, skips = means.tolist()
        return dict(zip(sums, values, strict=True)), stopping > 0, due > 0, skips > 0

    def _check_finite(self, values: Mapping[str, float]) -> None:
        # In float16 the scaler skips steps whose gradients overflow, and halves its scale.
        watched = {
            name: value for name, value in values.items() if name != "grad_norm" or self.recipe.precision != "16-mixed"
        }
        if all(map(math.isfinite, watched.values())):
            return
        numbers = ", ".join(f"{name}={value:.6g}" for name, value in watched.items())
        raise NonFiniteLossError(
            f"NaN or infinity in step {self.step + 1} of {self.steps}, before its optimizer step: {numbers}. A lower "
            "lr, a longer warmup, clip_grad or 32-true may help"
        )

    def _report(self, loss: float) -> None:
        if self.progress is not None and self.fabric.is_global_zero:
            speed = self.since_last_row.images_per_second(self.recipe.batch_size)
            left = (self.steps - self.step) * self.recipe.batch_size / speed if speed else math.nan
            self.progress(self.step, self.steps, {"loss": loss, "images_per_second": speed, "eta_seconds": left})

    def _write_row(self) -> None:
        means = self.since_last_row.means()
        norm = means.pop("grad_norm")
        numbers = {
            "epoch": self.step * self.recipe.batch_size / self.images,
            **means,
            "lr": self._lr,
            "weight_decay": self._decay,
            "grad_norm": norm,
            "images_per_second": round(self.since_last_row.images_per_second(self.recipe.batch_size), 2),
        }
        if self.writer is not None:
            self.writer.append(METRICS, [{"step": self.step, **numbers}])
            if self._logger is None:
                from lightning_fabric.loggers import TensorBoardLogger

                self._logger = TensorBoardLogger(self.writer.path, "tensorboard", "", purge_step=self.step)
            self._logger.log_metrics(numbers, self.step)
        self.since_last_row = Tally()

    def _diagnose(self) -> None:
        if self.fixed_batch is None:
            return
        amp = self.recipe.precision != "32-true"
        rows = diagnose(self.unsharded_result(), self.fixed_batch.to(self.fabric.device), self.step, amp)
        if self.writer is not None:
            self.writer.append(DIAGNOSTICS, [row | {"model": self.recipe.model} for row in rows])

    def unsharded_result(self) -> nn.Module:
        """Return the objective's resulting model with all of its weights; all processes must call it."""
        result = self.objective.result()
        if not is_sharded(self.objective):
            return result
        [name] = [name for name, module in self.objective.named_modules() if module is result]
        state = get_model_state_dict(self.objective, options=StateDictOptions(full_state_dict=True))
        copy = self.make_backbone(getattr(result, "num_classes", 0)).to(self.fabric.device)
        prefix = f"{name}."
        copy.load_state_dict({key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)})
        return copy
