"""Training on mmengine's runner, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.dist import broadcast, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from siglip2_dense.data.loading import train_loader
from siglip2_dense.engine.evaluate import evaluate, report
from siglip2_dense.engine.pictures import Pictures
from siglip2_dense.engine.resume import load_state, save_state
from siglip2_dense.engine.run import BEST_HEAD, HEAD, Run
from siglip2_dense.errors import UserError


class JointOptimWrapper(OptimWrapperDict):
    """One backward pass for all heads, then a step of each head's own optimizer."""

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.zero_grad()
        loss.backward()
        for wrapper in self.values():
            wrapper.step()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        yield


class KeepHeads(Hook):
    """Watches the loss, evaluates, and keeps heads and state, so that neither a NaN nor a kill loses anything."""

    priority = "LOW"  # after the schedule has stepped, so that the saved state is that of the next step

    def __init__(self, run: Run, resume: bool):
        self.run, self.resume = run, resume
        self.spoilt: torch.Tensor | bool = False
        self.started = time.time()
        self.notes = {"identity": run.identity, "history": [], "best": None, "last": None, "seconds": 0.0, "lr": {}}

    def before_train(self, runner):
        if not self.resume:
            return
        notes = load_state(self.run.work_dir, runner, self.run.probe, self.run.identity)
        if notes is None:
            runner.logger.info(f"nothing to resume in {self.run.work_dir}: starting from the first step")
            return
        self.notes = notes
        runner.logger.info(f"resumed at step {runner.iter}")

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        # whatever a head draws, dropout say, is a function of the step
        torch.manual_seed(hash((self.run.seed, runner.iter, get_rank())) % 2**63)
        for name, groups in runner.optim_wrapper.param_groups.items():
            self.notes["lr"][name] = max(self.notes["lr"].get(name, 0.0), *(group["lr"] for group in groups))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        step, config = runner.iter + 1, self.run.config.train_cfg
        self.spoilt = self.spoilt | ~torch.isfinite(outputs["loss"])  # stays on the device: no waiting at each step
        last = step == runner.max_iters
        saving = last or step % config.get("save_interval", config.val_interval) == 0
        evaluating = last or step % config.val_interval == 0
        if saving or evaluating or step % self.run.config.log_interval == 0:
            self._stop_if_spoilt(step)
        if evaluating:
            self._evaluate(runner, step, last)
        if saving or evaluating:
            self._save(runner, step)

    def _stop_if_spoilt(self, step: int) -> None:
        finite = all(bool(p.isfinite().all()) for p in self.run.probe.heads.parameters())
        if finite and not bool(self.spoilt):
            return
        kept = self.run.work_dir / HEAD
        state = f"the last good head is {kept}" if kept.is_file() else "no head had been saved yet"
        raise UserError(f"the loss was not a finite number by step {step}; {state}. Try a lower learning rate.")

    def _evaluate(self, runner, step: int, last: bool) -> None:
        run = self.run
        for buffer in run.probe.heads.buffers():
            broadcast(buffer)  # batch norm's statistics are each rank's own; the saved head has the first one's
        pictures = None
        if last:
            pictures = Pictures(run.probe, run.val_data, run.work_dir / "pictures", run.config.get("pictures", 0))
        metrics = evaluate(run.probe, run.val_loader, f"evaluating {run.val_data.split} at step {step}", pictures)
        if not is_main_process():
            return
        found = report(metrics, run.probe.tasks)
        self.notes["history"].append({"step": step, "split": run.val_data.split, "metrics": found["metrics"]})
        runner.logger.info(found["table"])
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in found["metrics"].items()}, step=step)
        task = next(iter(run.probe.tasks.values()))  # with several heads, the first decides
        value = found["metrics"][run.headline]
        best = self.notes["best"]
        sign = 1 if task.higher_is_better else -1
        if best is None or sign * value > sign * best["metrics"][run.headline]:
            self.notes["best"] = {"metrics": found["metrics"], "step": step, "split": run.val_data.split}
            run.save_head(BEST_HEAD, step, found["metrics"])
        self.notes["last"] = {key: found[key] for key in ("metrics", "per_class", "intervals", "images")}

    def _save(self, runner, step: int) -> None:
        now = time.time()
        self.notes["seconds"] += now - self.started
        self.started = now
        if not is_main_process():
            return
        metrics = self.notes["history"][-1] if self.notes["history"] else {}
        self.run.save_head(HEAD, step, metrics.get("metrics", {}) if metrics.get("step") == step else {})
        save_state(self.run.work_dir, runner, self.run.probe, step, self.notes)

    def after_train(self, runner):
        if is_main_process():
            self.run.write_results(self.notes)


def train(run: Run, resume: bool = False) -> None:
    """Train to the end, evaluating and saving on the way; with ``resume``, go on from the last saved step."""
    config = run.config
    run.work_dir.mkdir(parents=True, exist_ok=True)
    optimizers = {
        name: OptimWrapper(OPTIMIZERS.build({**run.probe.optim[name], "params": head.parameters()}))
        for name, head in run.probe.heads.items()
    }
    loading = config.train_dataloader
    runner = Runner(
        model=run.probe,
        work_dir=str(run.work_dir),
        train_dataloader=train_loader(run.train_data, loading.batch_size, loading.get("num_workers", 0), run.seed),
        train_cfg=dict(by_epoch=False, max_iters=config.train_cfg.max_iters, val_interval=2**62),
        optim_wrapper=JointOptimWrapper(**optimizers),
        param_scheduler=config.get("param_scheduler") or dict(type="ConstantLR", factor=1.0, by_epoch=False),
        default_hooks=dict(
            checkpoint=None, sampler_seed=None, logger=dict(type="LoggerHook", interval=config.log_interval)
        ),
        custom_hooks=[KeepHeads(run, resume)],
        log_processor=dict(by_epoch=False),
        launcher=config.get("launcher", "none"),
        visualizer=dict(type="Visualizer", vis_backends=list(config.get("vis_backends", []))),
        randomness=dict(seed=run.seed),
        experiment_name=f"{run.work_dir.name}_{time.time_ns()}",
        cfg=_with_wrapper(config),
    )
    runner.train()


def _with_wrapper(config: Config) -> Config:
    """mmengine's default wrapper asks for a GPU."""
    config = config.copy()
    if get_world_size() > 1 and not torch.cuda.is_available():
        config.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    return config
