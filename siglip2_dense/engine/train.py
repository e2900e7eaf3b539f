"""Training on mmengine's runner, and what is kept of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_reduce, broadcast, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from siglip2_dense.data.loading import stop_workers
from siglip2_dense.engine.distributed import wrapper_of
from siglip2_dense.engine.evaluate import evaluate, keep_rows, report
from siglip2_dense.engine.loggers import backends
from siglip2_dense.engine.optimizers import JointOptimWrapper, optimizers_of, schedules_of
from siglip2_dense.engine.oracle import Oracle
from siglip2_dense.engine.pictures import Pictures
from siglip2_dense.engine.resume import STATE_FILE, load_state, save_state, state_of
from siglip2_dense.engine.run import BEST_HEAD, HEAD, RESULTS, Run
from siglip2_dense.engine.sharding import ShardedRunner, gathered, is_sharded, local, shard
from siglip2_dense.errors import UserError
from siglip2_dense.models.probe import seed_devices
from siglip2_dense.registry import check_arguments


class KeepHeads(Hook):
    """Watches the loss, evaluates, and keeps heads and state, so that no NaN, kill or bad image loses anything."""

    priority = "LOW"  # after the schedule has stepped, so that the saved state is that of the next step
    says = dict(type="RuntimeInfoHook")  # what tells the log of losses and learning rates

    def __init__(self, run: Run, resume: bool):
        self.run, self.resume = run, resume
        self.config = run.config.train_cfg
        self.spoilt: torch.Tensor | bool = False  # which of the step's losses have not been finite
        self.mark = time.time()
        self.notes: dict[str, Any] = {  # plain data, saved with the state
            "identity": run.identity,
            "history": [],  # what was measured at which step
            "best": None,
            "last": None,
            "rates": {},  # the highest learning rate of each head
            "training_seconds": 0.0,  # in steps alone
            "seconds": 0.0,  # with evaluation and saving
        }

    def before_train(self, runner):
        if not self.resume:
            return
        notes = load_state(self.run.work_dir, runner, self.run.probe, self.run.identity)
        if notes is None:
            runner.logger.info(f"nothing to resume in {self.run.work_dir}: starting from the first step")
            return
        self.notes = notes
        runner.logger.info(f"resumed at step {runner.iter}")
        measured = notes["history"][-1]["step"] if notes["history"] else 0
        if self._is_due(runner, runner.iter, self.config.val_interval) and measured != runner.iter:
            state = state_of(runner, self.run.probe)  # it was stopped between saving and measuring
            self._evaluate(runner, runner.iter, state["trained"])
            self._save(runner, runner.iter, state)
        self.mark = time.time()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        def drawn(seed: int) -> int:  # what is drawn, in a head's dropout say, is a function of a seed and the step
            return hash((seed, runner.iter, get_rank())) % 2**63

        probe = self.run.probe
        probe.step, probe.draws = runner.iter, {name: drawn(seed) for name, seed in probe.seeds.items()}
        seed_devices(drawn(self.run.seed))
        for name, groups in runner.optim_wrapper.param_groups.items():
            self.notes["rates"][name] = max(self.notes["rates"].get(name, 0.0), *(group["lr"] for group in groups))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        step = runner.iter + 1
        # stays on the device: no waiting at each step
        self.spoilt = self.spoilt | ~torch.stack(list(outputs.values())).isfinite()
        evaluating = self._is_due(runner, step, self.config.val_interval)
        saving = evaluating or self._is_due(runner, step, self.config.get("save_interval", self.config.val_interval))
        if saving or step % self.run.config.log_interval == 0:
            self._stop_if_spoilt(step)
        if not saving:
            return
        self.notes["training_seconds"] += time.time() - self.mark
        state = state_of(runner, self.run.probe)
        self._save(runner, step, state)  # before the evaluation too: whatever fails there, the head is kept
        if evaluating:
            self._evaluate(runner, step, state["trained"])
            self._save(runner, step, state)

    def after_train(self, runner):
        if is_main_process():
            self.run.write_results(self.notes)

    @staticmethod
    def _is_due(runner, step: int, interval: int) -> bool:
        return step == runner.max_iters or step % interval == 0

    def _stop_if_spoilt(self, step: int) -> None:
        """Raise UserError, on all ranks or on none, when a loss or a weight is not finite."""
        whole = torch.stack([local(p).isfinite().all() for p in self.run.probe.parameters()])
        spoilt = torch.cat([self.spoilt, ~whole]).any().int()
        all_reduce(spoilt, "max")
        if not spoilt.item():
            return
        kept = self.run.work_dir / HEAD
        state = f"the last good head is {kept}" if kept.is_file() else "no head had been saved yet"
        raise UserError(f"the loss was not a finite number by step {step}; {state}. Try a lower learning rate.")

    def _evaluate(self, runner, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """tensors: what was trained, whole on the first rank."""
        run = self.run
        share_buffers(run.probe)
        pictures = oracle = None
        if step == runner.max_iters:
            oracle = Oracle(run.probe, run.val_data, run.config.val_dataloader.dataset.to_dict())
            count = run.config.get("pictures", 0)
            pictures = Pictures(run.probe.tasks, len(run.val_data), run.work_dir / "pictures", count)
        label = f"evaluating {run.val_data.split} at step {step}"
        with gathered(run.probe):
            metrics = evaluate(run.probe, run.val_loader, label, pictures, oracle)
        ideal = {} if oracle is None else oracle.finish()
        if is_main_process():
            self._note(runner, step, metrics, ideal, tensors)

    def _note(self, runner, step: int, metrics: dict, ideal: dict, tensors: dict[str, torch.Tensor]) -> None:
        run, found = self.run, report(metrics, self.run.probe.tasks, ideal)
        if step == runner.max_iters:
            keep_rows(run.work_dir / RESULTS, metrics, run.probe.tasks)
        measured = {"metrics": found["metrics"], "step": step, "split": run.val_data.split}
        self.notes["history"].append(measured)
        self.notes["last"] = {key: found[key] for key in ("metrics", "per_class", "intervals", "oracle", "images")}
        runner.logger.info(found["table"])
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in found["metrics"].items()}, step=step)
        best = self.notes["best"]
        if best is None or run.sign * measured["metrics"][run.headline] > run.sign * best["metrics"][run.headline]:
            self.notes["best"] = measured
            run.save_head(BEST_HEAD, tensors, step, measured["metrics"], self.notes["rates"])

    def _save(self, runner, step: int, state: dict) -> None:
        now = time.time()
        self.notes["seconds"] += now - self.mark
        self.mark = now
        if not is_main_process():
            return
        last = self.notes["history"][-1] if self.notes["history"] else {}
        metrics = last["metrics"] if last.get("step") == step else {}
        self.run.save_head(HEAD, state["trained"], step, metrics, self.notes["rates"])
        save_state(self.run.work_dir, runner, state, step, self.notes)


def train(run: Run, resume: bool = False, keep: type[KeepHeads] = KeepHeads, shown: Config | None = None) -> dict:
    """Train to the end, evaluating and saving on the way; with ``resume``, go on from the last saved step.

    shown: the config for the log, where the run's own is made of it. Returns what ``keep`` has noted. Raises UserError
    for a work dir that holds another run, unless it is to be resumed.
    """
    config = run.config
    curves = backends(config.get("vis_backends"), run.work_dir)
    if config.train_cfg.get("sharded"):
        shard(run.probe)
    prepare(run.work_dir, resume)
    optimizers = optimizers_of(run.probe)
    schedules = list(config.get("param_scheduler") or [dict(type="ConstantLR", factor=1.0, by_epoch=False)])
    for schedule in schedules:
        check_arguments(PARAM_SCHEDULERS, schedule)
        if "eta_max" in schedule and run.probe.towers:
            raise UserError(
                f"param_scheduler: {schedule['type']} takes every learning rate to eta_max, the encoder's too; leave "
                "eta_max out, and each rises to its own."
            )
        if schedule.get("eta_min") and run.probe.towers:
            raise UserError(
                f"param_scheduler: {schedule['type']} takes every learning rate to eta_min={schedule['eta_min']}, the "
                "encoder's smaller ones too; give eta_min_ratio."
            )
    joint = JointOptimWrapper(**optimizers)
    joint.clip_norm = run.probe.clip_norm
    loader = run.train_loader()
    keeper = keep(run, resume)
    runner = (ShardedRunner if is_sharded(run.probe) else Runner)(
        model=run.probe,
        work_dir=str(run.work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=config.train_cfg.max_iters, val_interval=2**62),
        optim_wrapper=joint,
        param_scheduler=schedules_of(optimizers, schedules),
        default_hooks=dict(
            runtime_info=keep.says,
            checkpoint=None,
            sampler_seed=None,
            logger=dict(type="LoggerHook", interval=config.log_interval),
        ),
        custom_hooks=[keeper],
        log_processor=dict(by_epoch=False),
        launcher=config.get("launcher", "none"),
        visualizer=dict(type="Visualizer", vis_backends=curves),
        randomness=dict(seed=run.seed),
        experiment_name=f"{run.work_dir.name}_{time.time_ns()}",
        cfg=_with_wrapper(shown or config, run.probe),
    )
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(not is_sharded(run.probe))  # a pass would end with all blocks' weights in bf16
    try:
        runner.train()
    finally:
        torch.set_autocast_cache_enabled(cached)
        stop_workers(loader)
        stop_workers(run.val_loader)
    return keeper.notes


def share_buffers(probe) -> None:
    """Batch norm's statistics are each rank's own: bring them to those of the first, which the saved heads have."""
    for buffer in probe.heads.buffers():
        broadcast(buffer)


def prepare(work_dir: Path, resume: bool) -> None:
    """A work dir without another run's files, and without what a kill left half written."""
    held = [name for name in (HEAD, STATE_FILE) if (work_dir / name).exists()]
    if held and not resume:
        raise UserError(
            f"{work_dir} holds a run already ({held[0]}); go on from it with --resume, or give another --work-dir."
        )
    dist.is_initialized() and dist.barrier()  # no rank may write before all have looked
    if is_main_process():
        work_dir.mkdir(parents=True, exist_ok=True)
        for leftover in work_dir.glob(".*.tmp"):
            leftover.unlink()


def _with_wrapper(config: Config, probe) -> Config:
    config = config.copy()
    if dist.is_initialized():
        config.model_wrapper_cfg = wrapper_of(probe)
    return config
