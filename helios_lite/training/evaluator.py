"""One evaluation, within a training or by itself. It leaves the training bit for bit as it was."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Iterator, Sequence

import torch

from helios_lite.metrics.accumulator import MetricAccumulator
from helios_lite.metrics.metric_objects import restore, state_of, values_of
from helios_lite.model_internals.attributes import metric_objects, networks
from helios_lite.model_internals.evaluation_weights import evaluation_weights
from helios_lite.processes import rng
from helios_lite.processes.devices import cudnn_benchmark
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")


class Evaluator:
    """Evaluates a split. The state of a training is left bit for bit as it was.

    Args:
        session: the session.
        in_training: whether it is that of a training, which goes on afterwards; otherwise the model stays in evaluation
            mode.
    """

    def __init__(self, session: Session, *, in_training: bool) -> None:
        self._session, self._in_training = session, in_training

    def evaluate(self, phase: str, names: Sequence[str], cycle: int, limit: int | None = None) -> dict[str, float]:
        """Evaluate and return the metrics over all ranks by full name. Call on every rank.

        Args:
            phase: "valid" or "test".
            names: the prefixes of the metrics of the parts of the split.
            cycle: the number of the validation; not used for a test.
            limit: number of batches of each loader, None for all that it has.
        """
        session, model, context = self._session, self._session.model, self._session.context
        testing = phase == "test"
        name = "on_testing" if testing else "on_validation"
        arguments = () if testing else (cycle,)
        metrics = MetricAccumulator(session.device)
        with _inert(session) if self._in_training else evaluation_mode(session), context.parallel.uneven_forward():
            context.begin_phase(phase, metrics)
            model.eval()
            try:
                session.hooks.call(f"{name}_start", *arguments)
                context.parallel.finish_forward()
                context.parallel.share_buffers()  # Once more, since the hooks may have put averaged weights in place.
                is_idle = self._run_batches(phase, names, limit, metrics)
                context.parallel.finish_forward()  # What a hook sends between ranks needs all of them.
                context.begin_phase(phase, metrics)
                session.hooks.call_in_reverse(f"{name}_end", *arguments)
                context.parallel.finish_forward()
                for score_name, score in (model._test_scores if testing else model._val_scores).items():
                    metrics.update(f"{phase}/{score_name}", score, 1)
                summary = metrics.compute(session.world, is_idle=is_idle)
                values = dict(summary.values)
                for metric_name, metric in summary.objects.items():
                    values |= values_of(metric_name, metric)
            except BaseException as error:
                session.hooks.report_exception(error)  # Before the weights and modes of the training are restored.
                raise
            finally:
                metrics.reset()  # Those of the next evaluation begin anew.
            return session.hooks.process_metrics(phase, values)

    def _run_batches(self, phase: str, names: Sequence[str], limit: int | None, metrics: MetricAccumulator) -> bool:
        """Evaluate the batches of this rank, and return whether a loader had none, so that its names are missing."""
        session, model, context = self._session, self._session.model, self._session.context
        name, run_step = ("on_testing", model.test_step) if phase == "test" else ("on_validation", model.valid_step)
        has_batch_hooks = session.hooks.is_overridden(f"{name}_batch_start", f"{name}_batch_end")
        moves = session.needs_transfer
        step, is_idle = 0, False
        for prefix in names:
            batches, length = session.loader(prefix).epoch(0)
            session.progress.start(prefix, length)
            done = 0
            for done, (data, size, *_) in enumerate(itertools.islice(batches, limit), start=1):
                context.begin_phase(prefix, metrics, size)
                batch = model.batch_to_device(data, phase) if moves else data
                if has_batch_hooks:
                    context.hold_batch(batch)
                    session.hooks.call(f"{name}_batch_start", step)
                run_step(batch, step)
                if has_batch_hooks:
                    session.hooks.call(f"{name}_batch_end", step)
                    context.hold_batch(None)
                del batch  # Its memory is free while the next one is loaded.
                step += 1
                session.progress.update(done)
            session.progress.finish()
            is_idle |= done == 0
            if len(names) > 1:  # A metric object that several of them share has a value for each.
                metrics.detach_objects()
        return is_idle


@contextlib.contextmanager
def evaluation_mode(session: Session, *indices: int) -> Iterator[None]:
    """Context without gradients and cuDNN's measurements; on exit it restores the RNG states.

    Its random numbers depend on the seed of the run and the indices alone.
    """
    # no_grad and not inference_mode: a buffer that is made here (a cache of positions) must be usable in training.
    # cuDNN would measure its algorithms again for every new shape of a batch, and results would depend on the choice.
    with rng.fork_rng(session.device), torch.no_grad(), cudnn_benchmark(False):
        rng.seed_all(rng.derive_seed(session.options.seed, *indices), session.device)
        yield


@contextlib.contextmanager
def _inert(session: Session) -> Iterator[None]:
    """Context of an evaluation: on exit it restores the modes of modules and the training's metrics as well."""
    model, context = session.model, session.context
    context.precision.keep_loss()
    before = [(metric, copy.deepcopy(state_of(metric))) for metric in metric_objects(model).values()]
    logged = [*session.metrics.objects.values()]
    for metric in logged:  # The validation may use those that the next row of the training has begun.
        metric.reset()
    modes = [(module, module.training) for net in networks(model) for module in net.modules()]
    try:
        with evaluation_weights(model), evaluation_mode(session):  # Each validation has the same random numbers.
            yield
    except BaseException:
        logged = [metric for metric, _ in before]  # It may be done again.
        raise
    finally:
        model.train()
        for module, training in modes:  # A part that the user had frozen stays in the mode it had.
            module.training = training
        for metric, state in before:
            if any(metric is each for each in logged):
                restore(metric, state)
        context.begin_phase("train", session.metrics)
