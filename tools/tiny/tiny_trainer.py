"""The trainer of the tiny network: one step, the state that a step changes, and the growth to more layers."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import tiny_corpus
from longcat_ops.loading.grow import grow_depth
from longcat_ops.training import BiasController, Watch
from tiny_export import read_checkpoint, write_checkpoint
from tiny_model import TinyLongcat, initial_parameters, parameter_shapes
from tiny_optimizer import TinyOptimizer

TARGET_REAL = 4.0  # of 6 chosen experts: the 2:1 of the report's 8 of 12
WARMUP_STEPS = 30
GROWTH = 2  # the r of the report: 14 layers became 28


def working_dtype(name: str) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
    return getattr(torch, name)


def rate_factor(step: int, steps: int) -> float:
    """Warm-up, a plateau for the first 40 %, then a straight line to 2 %."""
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS, max(1, steps // 4)))
    return warm * min(1.0, max(0.02, 1 - (step / steps - 0.4) / 0.6))


def window_length(step: int, steps: int) -> int:
    """Short windows first, then longer ones, so that positions up to 1024 are trained."""
    return 256 if step < 0.5 * steps else 512 if step < 0.8 * steps else 1024


class Trainer:
    """Everything that a step changes; `state_dict` holds all of it. masters: None for initial ones by the seed."""

    def __init__(self, args: argparse.Namespace, config: dict, stream: torch.Tensor, masters: dict | None = None):
        self.args, self.config, self.step, self.seconds, self.cpu_seconds = args, config, 0, 0.0, 0.0
        masters = masters or initial_parameters(config, torch.Generator().manual_seed(args.seed))
        self.optimizer = TinyOptimizer(masters, args.learning_rate, working_dtype(args.dtype))
        self.network = TinyLongcat(self.optimizer.working, config)
        self.sampler = tiny_corpus.WindowSampler(stream, args.seed + 1)
        self.controllers = self.make_controllers(args.mu_final, args.steps)
        resting = {f"{kind} {name}": t for kind, name, t in self.optimizer.tensors()}
        self.watch = Watch(resting, every=args.watch_every, at_once=args.watch_tensors) if args.watch_every else None

    def make_controllers(self, mu_final: float, decay_steps: int) -> list[BiasController]:
        sizes = [self.config[name] for name in ("n_routed_experts", "zero_expert_num", "moe_topk")]
        return [
            BiasController(*sizes, TARGET_REAL, mu=self.args.mu, mu_final=mu_final, decay_steps=decay_steps)
            for _ in range(self.config["num_layers"])
        ]

    def losses(self, ids: torch.Tensor):
        """(next-token loss, MTP loss, MTP distillation loss, output)."""
        length, vocab = ids.shape[1] - 2, self.config["vocab_size"]
        out = self.network(ids[:, : length + 1])
        target, draft = self.network.logits(out.hidden).float(), self.network.logits(out.mtp_hidden).float()
        loss = F.cross_entropy(target.view(-1, vocab), ids[:, 1 : length + 1].reshape(-1))
        mtp_loss = F.cross_entropy(draft.view(-1, vocab), ids[:, 2 : length + 2].reshape(-1))
        teacher = target[:, 1:].detach().softmax(-1).reshape(-1, vocab)
        distill = F.cross_entropy(draft[:, :-1].reshape(-1, vocab), teacher)
        return loss, mtp_loss, distill, out

    def backward(self, ids: torch.Tensor):
        """(next-token loss, MTP loss, tokens per expert of each layer, gradients by name)."""
        loss, mtp_loss, distill, out = self.losses(ids)
        total = loss + self.args.mtp_weight * mtp_loss + self.args.distill_weight * distill
        trained = {name: w for name, w in self.optimizer.working.items() if w.requires_grad}
        found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        gradients = {name: g.contiguous() for name, g in zip(trained, found, strict=True) if g is not None}
        return loss.detach(), mtp_loss.detach(), out.counts, gradients

    def train_step(self) -> dict:
        args, begin, cpu_begin = self.args, time.perf_counter(), time.process_time()
        length = window_length(self.step, args.steps)
        ids = self.sampler.next(max(1, args.batch_tokens // length), length)
        run = self.watch.run if self.watch else lambda fn, *args: fn(*args)
        loss, mtp_loss, all_counts, gradients = run(self.backward, ids)
        if self.watch:
            self.watch.before_update()
        norm = self.optimizer.step(gradients, rate_factor(self.step, args.steps))
        for layer, (controller, counts) in enumerate(zip(self.controllers, all_counts, strict=True)):
            self.set_bias(layer, controller.update(counts))
        self.step += 1
        if self.watch:
            self.watch.after_update()
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu_begin
        real = [c.real_per_token(n) for c, n in zip(self.controllers, all_counts, strict=True)]
        return {
            "loss": loss.item(),
            "mtp": mtp_loss.item(),
            "norm": norm,
            "real": real,
            "tokens": ids.shape[0] * length,
        }

    def set_bias(self, layer: int, bias: torch.Tensor) -> None:
        name = f"model.layers.{layer}.mlp.router.e_score_correction_bias"
        self.optimizer.masters[name].copy_(bias)
        self.optimizer.working[name].copy_(bias)

    def state_dict(self) -> dict:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "controllers": [c.state_dict() for c in self.controllers],
        }

    def load_state_dict(self, state: dict) -> None:
        self.step, self.seconds, self.cpu_seconds = state["step"], state["seconds"], state["cpu_seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        for controller, saved in zip(self.controllers, state["controllers"], strict=True):
            controller.load_state_dict(saved)


def shallow(config: dict) -> dict:
    """The network that is trained first: with as many layers that GROWTH of each make all."""
    if config["num_layers"] % GROWTH:
        raise ValueError(f"{config['num_layers']} layers do not come from stacking some {GROWTH} times")
    return config | {"num_layers": config["num_layers"] // GROWTH}


def grown(trainer: Trainer, stream: torch.Tensor) -> Trainer:
    """A trainer of the layers of `trainer` stacked GROWTH times, by `grow_depth` over a float32 checkpoint.

    As the report has it, count of samples and schedule of the learning rate go on. So do the bias controllers of the
    layers; the moments of the optimizer begin anew.
    """
    trainer.args.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=trainer.args.state) as folder:
        small, deep = Path(folder) / "small", Path(folder) / "deep"
        write_checkpoint(trainer.optimizer.masters, trainer.config, small, fp8=False)
        grow_depth(small, deep, GROWTH)
        stored, config = read_checkpoint(deep)
        masters = {name: stored[name].clone() for name in parameter_shapes(config)}  # the order that a state is in
    found = Trainer(trainer.args, config, stream, masters)
    state = trainer.state_dict()
    state["controllers"] = state["controllers"] * GROWTH
    state["optimizer"] = found.optimizer.state_dict()
    found.load_state_dict(state)
    return found


def save_state(trainer: Trainer, directory: Path) -> None:
    """Saves atomically: a broken write leaves the last state in place."""
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / "state.pt.part"
    torch.save(trainer.state_dict(), part)
    part.replace(directory / "state.pt")
