"""Several processes under torchrun (gloo): what one process with the whole batch gives. And
activation checkpointing, which runs a forward pass twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import LENGTHS, MODELS, make, train
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import seqkern
from examples.model import NextWord

ROOT = Path(__file__).resolve().parent.parent


def run(*command, processes=2):
    """The output of a program, started by torchrun where there are several processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    result = subprocess.run(
        [sys.executable, *(launch if processes > 1 else ()), *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("strategy", ("ddp", "fsdp"))
def test_two_processes_are_one(strategy, tmp_path):
    """Losses, gradients and the weights after three steps; these load into torch.nn."""
    file = tmp_path / "found.pt"
    run(ROOT / "tests" / "distributed_worker.py", strategy, file)
    found = torch.load(file)
    assert found.keys() == MODELS.keys()
    for name, result in found.items():
        whole = make(seqkern, name)
        losses, gradients = train(whole, 0, 1)
        torch.testing.assert_close(result["losses"], losses)
        torch.testing.assert_close(result["gradients"], gradients)
        assert all(g.abs().max() > 0 for g in gradients.values())
        torch.testing.assert_close(result["weights"], dict(whole.state_dict()))
        torchs = make(nn, name)
        torchs.load_state_dict(result["weights"], strict=True)
        input = torch.randn(7, len(LENGTHS), 4, dtype=torch.float64)
        torch.testing.assert_close(torchs(input, LENGTHS), whole(input, LENGTHS))


def test_example(tmp_path):
    """DDP, FSDP2 and one process print the same losses, and the saved weights are the same."""
    options = [
        "--steps",
        "4",
        "--words",
        "200",
        "--size",
        "16",
        "--batch",
        "6",
        "--length",
        "8",
        "--dropout",
        "0",
    ]
    runs = {}
    for strategy, processes in (("ddp", 1), ("ddp", 2), ("fsdp", 2)):
        file = tmp_path / f"{strategy}{processes}.pt"
        printed = run(
            "-m",
            "examples.train_distributed",
            f"--strategy={strategy}",
            f"--save={file}",
            *options,
            processes=processes,
        )
        loss, perplexity = re.search(
            r"step 4: loss ([\d.]+)\n.*by torch\.nn: ([\d.]+)\n", printed, re.DOTALL
        ).groups()
        runs[strategy, processes] = float(loss), float(perplexity), torch.load(file)
    loss, perplexity, weights = runs.pop(("ddp", 1))
    for other_loss, other_perplexity, other_weights in runs.values():
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert other_perplexity == pytest.approx(perplexity, rel=1e-3)
        assert other_weights.keys() == weights.keys()
    NextWord(nn, "LSTM", 200, 16, 2, 0.0).load_state_dict(weights, strict=True)


def test_example_names_a_batch_that_does_not_divide():
    result = subprocess.run(
        [sys.executable, "-m", "examples.train_distributed", "--batch", "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 2
    assert "--batch 5 is no multiple of the 2 processes" in result.stderr


# ---- Activation checkpointing ----


@pytest.mark.parametrize("reentrant", (True, False), ids=("reentrant", "not reentrant"))
@pytest.mark.parametrize(
    "kind, dropout",
    [(kind, dropout) for kind in ("LSTM", "GRU", "RNN") for dropout in (0.0, 0.5)]
    + [(kind, 0.0) for kind in ("LSTMCell", "GRUCell", "RNNCell")],
)
def test_activation_checkpointing(kind, dropout, reentrant):
    """The same results and gradients to the bit, the masks between the layers drawn again alike."""
    cell = "Cell" in kind
    options = {} if cell else {"num_layers": 3, "dropout": dropout, "bidirectional": True}
    module = getattr(seqkern, kind)(3, 4, **options)
    input = torch.randn(2, 3) if cell else torch.randn(5, 2, 3)
    calls = []

    def flat(x):  # the reentrant kind sees tensors only at the top of what a function returns
        return tuple(tree_leaves(module(x)))

    module.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    def train(forward):
        module.zero_grad()
        x = input.clone().requires_grad_()
        torch.manual_seed(5)
        results = forward(x)
        after = torch.rand(())  # later draws do not see that something was run twice
        sum(r.sin().sum() for r in results).backward()
        grads = [x.grad, *(p.grad.clone() for p in module.parameters())]
        return [r.detach() for r in results], grads, after

    plain = train(flat)
    assert len(calls) == 1
    checked = train(lambda x: checkpoint(flat, x, use_reentrant=reentrant))
    assert len(calls) == 3
    torch.testing.assert_close(checked, plain, rtol=0, atol=0)


def test_checkpointed_packed_sequence_and_autocast():
    """A PackedSequence through checkpoint, under autocast, which the second pass restores."""
    module = seqkern.LSTM(3, 4, num_layers=2, dropout=0.5)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    grads = []
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        module.zero_grad()
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, _ = wrap(module, packed)
        output.data.float().square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(*grads, rtol=0, atol=0)
