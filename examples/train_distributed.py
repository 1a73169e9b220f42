"""Trains the next-word predictor on several processes, with DDP or FSDP2, and gathers the result.

    torchrun --nproc-per-node 2 -m examples.train_distributed --strategy fsdp

Each process takes its share of every batch, so that the losses are those of one process with the
whole batch (dropout apart: each process draws its own masks). `python -m
examples.train_distributed` is that one process. The weights are gathered at the end, loaded into a
model of torch.nn's layers, and measured there on unseen text.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from benchmarks.progress import Progress

from . import text
from .model import NextWord, perplexity
from .next_word import CELLS
from .program import NAMESPACES, number


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--strategy", choices=("ddp", "fsdp"), default="ddp", help="default ddp")
    add("--impl", choices=NAMESPACES, default="seqkern", help="whose layers (default seqkern)")
    add("--cell", choices=CELLS, default="LSTM")
    add("--steps", type=number(int, 0), default=100, help="default 100")
    add("--words", type=number(int, 100), default=2000, help="vocabulary (default 2000)")
    add("--size", type=number(int, 0), default=128, help="embedding, hidden (default 128)")
    add("--layers", type=number(int, 0), default=2, help="recurrent layers (default 2)")
    add("--dropout", type=number(float, -1e-9, 1), default=0.1, help="between them (default 0.1)")
    add("--batch", type=number(int, 0), default=32, help="sequences, of all processes (default 32)")
    add("--length", type=number(int, 0, 5000), default=32, help="words of each (default 32)")
    add("--rate", type=number(float, 0), default=5e-3, help="Adam's step size (default 0.005)")
    add("--seed", type=number(int, -1), default=0)
    add("--save", type=Path, metavar="FILE", help="write the gathered weights there")
    return options


def distribute(model: nn.Module, strategy: str) -> nn.Module:
    """The model for one of several processes."""
    if strategy == "ddp":
        return DistributedDataParallel(model)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model.layers, mesh=mesh)  # its weights are gathered only while it runs
    return fully_shard(model, mesh=mesh)


def train(model: nn.Module, words: text.Text, options, rank: int, processes: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    bar = Progress(options.steps, f"{options.strategy} x {processes}")
    torch.manual_seed(1_000_003 * options.seed + rank)  # dropout masks
    for step in range(options.steps):
        inputs, targets = words.batch(step, options.length, options.batch, options.seed)
        logits, _ = model(inputs[:, rank::processes])
        loss = cross_entropy(logits.flatten(0, 1), targets[:, rank::processes].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach() / processes
        if processes > 1:
            distributed.all_reduce(mean)
        if rank == 0:
            bar.update(step + 1, f"loss {mean:.4f}")
            if (step + 1) % 20 == 0 or step + 1 == options.steps:
                bar.clear()
                print(f"step {step + 1}: loss {mean:.6f}")


def main() -> None:
    options = parser().parse_args()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun sets both
    rank = int(os.environ.get("RANK", "0"))
    if options.batch % processes:
        parser().error(f"--batch {options.batch} is no multiple of the {processes} processes")
    if processes > 1:
        distributed.init_process_group("gloo")
    words = text.load(options.words)
    torch.manual_seed(options.seed)
    shape = options.cell, options.words, options.size, options.layers, options.dropout
    model = NextWord(NAMESPACES[options.impl], *shape)
    if processes > 1:
        model = distribute(model, options.strategy)
    train(model, words, options, rank, processes)

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        plain = NextWord(nn, *shape)
        plain.load_state_dict(weights)
        print(f"perplexity of unseen text, by torch.nn: {perplexity(plain, words.valid):.2f}")
        if options.save:
            torch.save(weights, options.save)
            print(f"weights in {options.save}")
    if processes > 1:
        distributed.barrier()  # else torchrun may end rank 0 before its file is written
        distributed.destroy_process_group()
        # At an ordinary exit gloo's threads abort or hang a process now and then, with torch.nn too.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
