"""What a training tells about itself: rows of metrics, bars, tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite import checkpoint, console
from helios_lite.distributed import unwrapped, whole
from helios_lite.loggers import JsonlLogger
from helios_lite.resume import ResumableRun
from helios_lite.run import at_the_end


class ReportingRun(ResumableRun):
    """A training's log points, and what people see of it."""

    optimizers: dict[str, Optimizer]
    """The model's, by name; looked up once in an epoch."""

    def announce(self) -> None:
        """Open the run's own log of metrics and the bars; write and show what is about to run."""
        trainer, model = self.trainer, self.model
        if not self.world.is_main:
            self.loggers = []
            return
        if self.folder is not None:
            checkpoint.write_json({"trainer": trainer.config(), "hparams": model.hparams}, self.folder / "config.json")
            self.rows = JsonlLogger(self.folder / "metrics.jsonl", self.kept_rows)
            self.stack.enter_context(at_the_end(self.rows.close))
            self.loggers.append(self.rows)
        for sink in self.loggers:
            sink.log_config({**trainer.config(), "hparams": model.hparams})
        if trainer.print_banner:
            where = "without files" if self.folder is None else f"in {self.folder}"
            text = console.banner_text(where, self.device, self.world.size, trainer.strategy, trainer.precision)
            console.show_banner(model.append_to_banner(text))
            console.show_table(model.summary())
        total, unit = (trainer.max_epochs, "epoch") if trainer.max_steps is None else (trainer.max_steps, "step")
        self.bars = console.Bars(trainer.progress)
        self.bars.show_run(total, unit, lambda: (self.state.step if unit == "step" else self.state.epoch, self.shown()))

    def shown(self) -> str:
        """Return what stands beside the run's bar: the monitored value, else the loss."""
        latest, score = self.runtime.latest, self.state.best_score
        if score is not None:
            return f"best={score:.4g}"
        return f"loss={latest['train/loss']:.4g}" if "train/loss" in latest else ""

    def flush(self) -> None:
        """Write a row of what was logged since the last one; nothing if there was no update since."""
        state = self.state
        if state.step == self.flushed_step:
            return
        if self.trainer.log_param_norm:
            self.report_parameters()
        values = self.finite_metrics()
        self.tick()
        values |= self.learning_rates()
        values["train/step_seconds"] = (self.clock - self.flush_clock) / (state.step - self.flushed_step)
        self.metrics.clear()
        self.flushed_step, self.flush_clock = state.step, self.clock
        self.record(values)

    def record(self, values: dict[str, float]) -> None:
        """Give a row of metrics to all loggers; rank 0 has some."""
        self.runtime.latest.update(values)
        for sink in self.loggers:
            sink.log_metrics({"epoch": self.state.epoch, "seconds": self.state.seconds, **values}, self.state.step)

    def learning_rates(self) -> dict[str, float]:
        """Return every parameter group's rate: "train/lr", with the optimizer's name and the group if several."""
        rates = {}
        for name, optimizer in self.optimizers.items():
            for i, group in enumerate(optimizer.param_groups):
                path = ["train/lr"]
                path += [name] * (len(self.optimizers) > 1) + [str(i)] * (len(optimizer.param_groups) > 1)
                rates["/".join(path)] = float(group["lr"])
        return rates

    def report_gradients(self, optimizer: Optimizer, parameters: list[Tensor], norm: Tensor) -> None:
        """Log the 2-norm of an optimizer's gradients, and if asked for that of each. Call on every rank."""
        which = [name for name, part in self.optimizers.items() if part is optimizer and len(self.optimizers) > 1]
        self.metrics.add("/".join(["train/grad_norm", *which]), norm, 1, "last")
        if self.trainer.log_grad_norm == "per-parameter":
            self.report_each("grad_norm", [(p, p.grad) for p in parameters if p.grad is not None])

    @torch.no_grad()
    def report_parameters(self) -> None:
        """Log the 2-norm of all parameters that are trained, and if asked for that of each. Call on every rank."""
        trained = {id(p): p for net in self.model._modules() for p in net.parameters() if p.requires_grad}
        self.metrics.add("train/param_norm", whole(nn.utils.get_total_norm(trained.values())), 1, "last")
        if self.trainer.log_param_norm == "per-parameter":
            self.report_each("param_norm", [(p, p) for p in trained.values()])

    def report_each(self, kind: str, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Log the 2-norm of what belongs to each parameter, under the parameter's name."""
        nets = [(name, unwrapped(part)) for name, part in self.model._stateful() if isinstance(part, nn.Module)]
        names = {id(p): f"{name}.{path}" for name, net in nets for path, p in net.named_parameters()}
        for (parameter, _), norm in zip(pairs, torch._foreach_norm([tensor for _, tensor in pairs]), strict=True):
            self.metrics.add(f"train/{kind}/{names.get(id(parameter), '?')}", whole(norm), 1, "last")
