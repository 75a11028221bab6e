"""The training loop of one run: a stack of members over epochs of batches, resumable at any step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.errors import AtomSieveError, Interrupted
from atomsieve.models import Ensemble
from atomsieve.runs.signals import StopRequest
from atomsieve.train.checkpoint import Progress, load_tensors, pack_run, pack_state, save_tensors, unpack_run
from atomsieve.train.config import LossSection
from atomsieve.train.data.batches import Prefetch, TrainBatch, make_batch
from atomsieve.train.data.sampler import Order, deal
from atomsieve.train.distributed import ProcessGroup
from atomsieve.train.log import RunLog, format_clock
from atomsieve.train.loss import batch_loss
from atomsieve.train.material import Material
from atomsieve.train.metrics import compute_validation_metrics
from atomsieve.train.optim import RunningMean, clip_members, gradient_norms, learning_rate, make_optimizer
from atomsieve.train.sharing import CommonUnits
from atomsieve.train.validation import member_scores, shallow_score, validate

log = logging.getLogger(__name__)

LOG_EVERY = 20
LOG_FIRST = 5
"""Steps between lines of the log up to FIRST_STEPS, so that a short training tells whether its loss fell."""
FIRST_STEPS = 200
DECODERS_SLOWER = 0.2
"""Highest learning rate of the decoders alone, as a part of that of the whole run."""
MAX_SKIPPED = 10
"""Steps in a row whose loss may be not finite before the run is given up."""


class Run:
    """Trains the members of one ensemble on one group of ranks.

    Parameters
    ----------
    ensemble : the members; after `fit` it holds their best weights (running means, where on).
    folder : checkpoints `last.safetensors` and `best.safetensors`; only the first rank of the group writes.
    order_seed : decides the order of the data.
    hours, core_minutes : wall time and processor time this run may take (None: no limit), after `config.budget`.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        material: Material,
        group: ProcessGroup,
        folder: Path,
        log_to: RunLog,
        *,
        order_seed: int,
        hours: float | None,
        core_minutes: float | None = None,
    ) -> None:
        self.ensemble, self.material, self.group, self.folder, self.out = ensemble, material, group, folder, log_to
        self.config = material.config
        self.hours, self.core_minutes = hours, core_minutes
        self.parameters = list(ensemble.parameters())
        self.dtype = self.parameters[0].dtype
        self.common = CommonUnits(ensemble.readout, self.config.ensemble.common_units)
        self.optimizer = make_optimizer(ensemble, self.config.optimizer)
        rules = self.config.optimizer
        self.mean = RunningMean(ensemble, rules.ema, rules.ema_part) if rules.ema else None
        self.best: dict[str, Tensor] | None = None
        self.progress = Progress(best=[float("inf")] * ensemble.encoders)
        self.order_seed = order_seed
        catalog, train = material.store.catalog, material.train
        self.order = Order(
            train,
            catalog.head[train],
            catalog.n_atoms[train],
            catalog.weights,
            self.config.batch,
            material.sizes,
            order_seed,
            material.store.block,
        )
        self._recent: list[NDArray[np.float64]] = []
        self._last_saved = time.monotonic()
        self._began = time.monotonic()
        self._before = 0.0
        self._processor_began, self._processor_before = time.process_time(), 0.0
        self._validated = -1
        self._resume()

    # -- time and schedule -----------------------------------------------------------------------------------------

    def done_part(self, batches_in_epoch: int) -> float:
        """Return the part (0..1) of the budget that is used: the largest over times, steps and epochs."""
        p, budget = self.progress, self.config.budget
        parts = [0.0]
        if self.hours is not None:
            parts.append(p.elapsed / (3600 * self.hours))
        if self.core_minutes is not None:
            parts.append(p.processor / (60 * self.core_minutes))
        if budget.steps is not None:
            parts.append(p.step / budget.steps)
        if budget.epochs is not None:
            parts.append((p.epoch + p.position / max(batches_in_epoch, 1)) / budget.epochs)
        return max(parts)

    def _elapsed_seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _processor_seconds(self) -> float:
        """Return this rank's share of the processor time of all starts."""
        return self._processor_before / self.group.size + time.process_time() - self._processor_began

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def last_path(self) -> Path:
        """The checkpoint that a new start continues from."""
        return self.folder / "last.safetensors"

    def _resume(self) -> None:
        exists = self.group.broadcast(self.last_path.is_file())
        if exists:
            tensors, state = load_tensors(self.last_path)
            self.best = unpack_run(tensors, self.ensemble, self.optimizer, self.mean)
            self.progress = Progress(**state)
            self._before, self._processor_before = self.progress.elapsed, self.progress.processor
            self._validated = self.progress.history[-1]["step"] if self.progress.history else -1
            log.info("continuing %s at step %d", self.folder.name, self.progress.step)

    def save(self) -> None:
        """Write the `last` checkpoint."""
        if self.group.is_first:
            tensors = pack_run(self.ensemble, self.optimizer, self.mean, self.best)
            save_tensors(self.last_path, tensors, pack_state(self.progress))
        self._last_saved = time.monotonic()

    # -- one step --------------------------------------------------------------------------------------------------

    def _make(self, batches: list[NDArray[np.int64]]) -> Callable[[int], TrainBatch]:
        material, group, head = self.material, self.group, self.material.store.catalog.head

        def make(k: int) -> TrainBatch:
            own = deal(batches[k], material.sizes.cost, group.size)[group.rank]
            own = own[np.argsort(head[own], kind="stable")]  # atoms of a head then follow each other
            return make_batch(
                material.store.fetch(own),
                own,
                batches[k],
                material.labels,
                self.config.model,
                self.dtype,
                group.device,
                material.bootstrap,
            )

        return make

    def gradient(self, batch: TrainBatch, rules: LossSection) -> Tensor:
        """Leave this rank's gradient in the parameters; return the loss parts [4,K] or [4,1] (this rank's share).

        rules : those of the present step, `LossSection.at`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if batch.graph is None:
            return torch.zeros(4, self.ensemble.encoders, dtype=torch.float64, device=self.group.device)
        out = self.ensemble(
            batch.graph,
            batch.head,
            batch.charge,
            batch.spin,
            forces=rules.force > 0,
            stress=rules.stress > 0,
            create_graph=rules.force > 0 or rules.stress > 0,
            force_members=self._draw_force_decoders(rules),
        )
        parts = batch_loss(out, batch, rules)
        parts.total.sum().backward(inputs=self._trained(rules))
        self.common.sum_gradients()
        return parts.stack()

    def _trained(self, rules: LossSection) -> list[torch.nn.Parameter]:
        """Return the parameters that a step trains by these rules: all, or those of the decoders alone."""
        return list(self.ensemble.readout.parameters()) if rules.spread_apart else self.parameters

    def _draw_force_decoders(self, rules: LossSection) -> list[int] | None:
        """Return the decoders whose forces enter the likelihood of this step; None where it needs none."""
        if not (rules.spread_taught and rules.force and rules.force_decoders):
            return None
        rng = np.random.default_rng([self.order_seed, self.progress.step, 5])
        return sorted(rng.choice(self.ensemble.members, rules.force_decoders, replace=False).tolist())

    def step(self, batch: TrainBatch, stop: bool, part: float) -> bool:
        """Do one optimiser step when a part (0..1) of the run is done; return whether any rank was asked to stop.

        Raises
        ------
        AtomSieveError
            after `MAX_SKIPPED` steps in a row without a finite loss.
        """
        self.progress.part, rules = part, self.config.loss.at(part)
        parts = self.gradient(batch, rules)
        n_local = len(batch.index)
        times = self._elapsed_seconds(), self._processor_seconds()
        own = torch.tensor([float(stop), *times, n_local, float(batch.n_atoms.sum())], dtype=torch.float64)
        trained = self._trained(rules)
        extra = self.group.sum_gradients(trained, torch.cat([parts.reshape(-1), own.to(parts.device)]))
        values = extra.cpu().numpy()
        losses, (stopped, elapsed, processor, structures, atoms) = values[:-5].reshape(4, -1), values[-5:]
        norms = gradient_norms(trained, self.ensemble.encoders)
        p = self.progress
        if np.isfinite(losses).all() and bool(torch.isfinite(norms).all()):
            clip_members(trained, norms, self.config.optimizer.clip)
            lr = self._learning_rate(part)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            p.step += 1
            p.skipped_in_row = 0
            if self.mean is not None:
                self.mean.update(self.ensemble, p.step)
            self._recent.append(np.concatenate([losses.mean(1), [float(norms.mean()), structures, time.monotonic()]]))
        else:
            self._skip(batch)
        p.structures += int(structures)
        p.atoms += int(atoms)
        p.elapsed, p.processor = elapsed / self.group.size, processor
        return stopped > 0

    def _learning_rate(self, part: float) -> float:
        """Return the learning rate; decoders alone start anew, slower, and fall linearly to the end."""
        done, decoders = self.config.loss.schedule(part)
        if decoders:
            start = self.config.loss.likelihood_from
            return DECODERS_SLOWER * self.config.optimizer.lr * max((1 - part) / (1 - start), 0.01)
        return learning_rate(done, self.config.optimizer, self.progress.plateau)

    def _skip(self, batch: TrainBatch) -> None:
        p = self.progress
        p.skipped += 1
        p.skipped_in_row += 1
        self.out.record("skipped", p.step, structures=batch.index.tolist())
        log.warning("step %d: loss or gradient is not finite; step left out (%d so far)", p.step, p.skipped)
        if p.skipped_in_row >= MAX_SKIPPED:
            raise AtomSieveError(
                f"the loss was not finite in {MAX_SKIPPED} steps in a row (step {p.step}); lower optimizer.lr (now "
                f"{self.config.optimizer.lr:g}) or optimizer.clip, or clean the data more strictly"
            )

    # -- the whole run ---------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the budget ends, patience runs out, or a stop is asked for.

        Raises
        ------
        Interrupted
            after SIGTERM or Ctrl-C, with everything saved.
        """
        if not self.progress.finished:
            with StopRequest() as stop:
                while not self._epoch(stop):
                    self.progress.epoch += 1
                    self.progress.position = 0
            self.progress.finished = True
            self.save()
        if self.best is not None:
            self.ensemble.load_state_dict(self.best, strict=False)

    def _epoch(self, stop: StopRequest) -> bool:
        """Go through the rest of the present epoch; return True when the run is to end."""
        p, batches = self.progress, self.order.epoch(self.progress.epoch)
        every = self.config.budget.eval_every
        with Prefetch(self._make(batches), len(batches), start=p.position) as ahead:
            for batch in ahead:
                part = self.done_part(len(batches))
                if part >= 1:
                    self.validate()
                    return True
                stopped = self.step(batch, stop.requested, part)
                p.position += 1
                if p.step % (LOG_EVERY if p.step > FIRST_STEPS else LOG_FIRST) == 0 and self._recent:
                    self._report(len(batches))
                if stopped:
                    self.save()
                    raise Interrupted(f"training stopped at step {p.step}; run the same command again to go on")
                due = p.step % every == 0 if every else p.position == len(batches)
                if due and self.validate():
                    return True
                if time.monotonic() - self._last_saved > 60 * self.config.budget.checkpoint_minutes:
                    self.save()
        return False

    def _report(self, batches: int) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        recent, p = np.array(self._recent), self.progress
        seconds = max(recent[-1, -1] - recent[0, -1], 1e-9)
        speed = recent[1:, -2].sum() / seconds if len(recent) > 1 else 0.0
        loss, energy, force, stress, norm = recent[:, :5].mean(0)
        self._recent = self._recent[-1:]
        self.out.record(
            "train",
            p.step,
            epoch=p.epoch,
            lr=lr,
            loss=loss,
            energy=energy,
            force=force,
            stress=stress,
            gradient_norm=norm,
            structures_per_second=speed,
            elapsed=p.elapsed,
            processor=p.processor,
            skipped=p.skipped,
        )
        self.out.show(self._row(lr, batches, loss, energy, force, speed), important=False)

    def _row(self, lr: float, batches: int, loss: float, energy: float, force: float, speed: float) -> dict[str, str]:
        p, part = self.progress, self.done_part(batches)
        left = format_clock(p.elapsed * (1 - part) / part) if part > 0 else ""
        return {
            "time": format_clock(p.elapsed),
            "epoch": f"{p.epoch + p.position / max(batches, 1):.2f}",
            "step": str(p.step),
            "lr": f"{lr:.2g}",
            "loss": f"{loss:.4f}",
            "energy": f"{energy:.4f}",
            "force": f"{force:.4f}",
            "struct/s": f"{speed:.0f}",
            "left": left,
        }

    def validate(self) -> bool:
        """Evaluate the running-mean weights, keep the best of each member; return True when patience has run out."""
        p, rules = self.progress, self.config
        if self._validated == p.step:
            return False
        self._validated = p.step
        self._start_anew(rules.loss.at(p.part))
        if len(self.material.val) == 0:
            self._keep(np.full(self.ensemble.encoders, -float(p.step)))
            return False
        if self.mean is not None:
            self.mean.swap(self.ensemble)
        try:
            result = validate(
                self.ensemble,
                self.material.store,
                self.material.labels,
                self.material.val,
                self.material.sizes,
                rules.batch,
                self.group,
                force_spread=False,
            )
        finally:
            if self.mean is not None:
                self.mean.swap(self.ensemble)
        if self.ensemble.shallow:
            scores = shallow_score(result, self.material.labels, rules.loss.at(p.part))
        else:
            scores = member_scores(result, self.material.labels, rules.loss)
        metrics = compute_validation_metrics(result, self.material.store.catalog.sources)
        improved = self._keep(scores)
        p.history.append({"step": p.step, "epoch": p.epoch, "elapsed": round(p.elapsed, 1), "score": scores.tolist()})
        self.out.record("validation", p.step, score=scores.tolist(), elapsed=p.elapsed, heads=metrics)
        if self.out.active:
            self.out.show(
                {"time": format_clock(p.elapsed), "step": str(p.step), "validation": f"{scores.mean():.4f}"},
                important=True,
            )
        p.since_best = 0 if improved else p.since_best + 1
        p.plateau_wait = 0 if improved else p.plateau_wait + 1
        if p.plateau_wait >= rules.optimizer.plateau_patience:
            p.plateau *= rules.optimizer.plateau_factor
            p.plateau_wait = 0
        patience = rules.budget.patience
        waits = rules.loss.spread_taught and not p.likelihood
        return patience is not None and p.since_best >= patience and not waits

    def _start_anew(self, rules: LossSection) -> None:
        """Forget the best of the time before the likelihood: its spread was not taught, and its score is another."""
        p = self.progress
        if rules.spread_taught and not p.likelihood:
            p.likelihood = True
            p.best = [float("inf")] * len(p.best)
            p.since_best = p.plateau_wait = 0

    @torch.no_grad()
    def _keep(self, scores: NDArray[np.float64]) -> bool:
        """Keep the present (running-mean) weights of each member with its best score so far; True if any has one."""
        better = np.isfinite(scores) & (scores < np.array(self.progress.best))
        if not better.any():
            return False
        named = dict(self.ensemble.named_parameters())
        if self.mean is not None:
            named = dict(zip(self.mean.names, self.mean.values, strict=True))  # type: ignore[arg-type]
        if self.best is None:
            self.best = {name: value.detach().clone() for name, value in named.items()}
        rows = torch.from_numpy(np.flatnonzero(better)).to(self.group.device)
        for name, value in named.items():
            self.best[name] = self.best[name].to(value.device)
            if self.ensemble.shallow:  # one unit: kept as a whole
                self.best[name].copy_(value.detach())
            else:
                self.best[name][rows] = value.detach()[rows]
        self.progress.best = np.where(better, scores, self.progress.best).tolist()
        if self.group.is_first:
            save_tensors(self.folder / "best.safetensors", self.best, {"score": self.progress.best})
        return True
