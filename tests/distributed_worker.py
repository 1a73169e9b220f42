"""One process of test_distributed.py: trains each model for three steps on its share of the batch.

    torchrun --nproc-per-node 2 distributed_worker.py STRATEGY FILE

Rank 0 writes losses, the first step's whole gradients and the gathered weights to FILE.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkern

MODELS = {
    "LSTM": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "projected": ("LSTM", {"proj_size": 3}),
    "GRU": ("GRU", {"num_layers": 2}),
    "RNN": ("RNN", {"bidirectional": True}),
    "LSTMCell": ("LSTMCell", {}),
}
LENGTHS = torch.tensor([7, 7, 3, 5, 1, 6])  # the rows of a whole batch


class Tagger(nn.Module):
    """Recurrent layers on packed sequences, or a cell on padded ones, and a head for each step."""

    def __init__(self, namespace, name):
        super().__init__()
        kind, options = MODELS[name]
        self.layers = getattr(namespace, kind)(4, 5, **options)
        width = options.get("proj_size", 5) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, input, lengths):
        if isinstance(self.layers, nn.RNNBase):
            packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.layers(packed)[0], total_length=len(input))
        else:
            states, outputs = None, []
            for x in input:
                states = self.layers(x, states)
                outputs.append(states[0])
            output = torch.stack(outputs)
        return self.head(output)


def make(namespace, name) -> Tagger:
    torch.manual_seed(7)
    return Tagger(namespace, name).double()


def train(model: nn.Module, rank: int, processes: int):
    """Losses of three steps on rows rank::processes, and the first step's gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(3)
    losses, gradients = [], {}
    for step in range(3):
        input = torch.randn(7, len(LENGTHS), 4, generator=generator, dtype=torch.float64)
        rows = slice(rank, None, processes)
        loss = model(input[:, rows], LENGTHS[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, p in model.named_parameters():
                whole = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                gradients[name.removeprefix("module.")] = whole.clone()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), gradients


def main() -> None:
    strategy, file = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    mesh = distributed.device_mesh.init_device_mesh("cpu", (processes,))
    found = {}
    for name in MODELS:
        model = make(seqkern, name)
        if strategy == "ddp":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model.layers, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert all(isinstance(p, DTensor) for p in model.parameters())
        losses, gradients = train(model, rank, processes)
        distributed.all_reduce(losses, distributed.ReduceOp.SUM)
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        found[name] = {"losses": losses / processes, "gradients": gradients, "weights": weights}
    if rank == 0:
        torch.save(found, file)
    distributed.barrier()
    distributed.destroy_process_group()
    # At an ordinary exit gloo's threads abort or hang a process now and then, with torch.nn too.
    os._exit(0)


if __name__ == "__main__":
    main()
