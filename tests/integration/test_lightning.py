"""Lightning trains models with seqkern's layers: checkpoints, resuming, mixed precision."""

import lightning
import pytest
import torch
from layers import count_kernels
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

import seqkern

# Lightning's own: about folders that it finds, and about torch's pytree.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]


class Classifier(lightning.LightningModule):
    """Which half of a sequence has the larger sum: a bidirectional GRU on packed sequences."""

    def __init__(self):
        super().__init__()
        self.layers = nn.GRU(4, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 2)
        self.losses, self.dtypes = [], set()

    def forward(self, input, lengths):
        packed = pack_padded_sequence(input, lengths, batch_first=True, enforce_sorted=False)
        output, h_n = self.layers(packed)
        self.dtypes.add(output.data.dtype)
        return self.head(torch.cat([h_n[-2], h_n[-1]], 1))

    def training_step(self, batch, _):
        *inputs, labels = batch
        loss = cross_entropy(self(*inputs), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def data():
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(96, 10, 4, generator=generator)
    lengths = torch.randint(6, 11, (96,), generator=generator)
    labels = (input[:, :3].sum((1, 2)) > input[:, 3:6].sum((1, 2))).long()
    return DataLoader(TensorDataset(input, lengths, labels), batch_size=16)


def make(namespace):
    torch.manual_seed(1)
    model = Classifier()
    if namespace is seqkern:
        seqkern.convert(model, inplace=True)
        assert type(model.layers) is seqkern.GRU
    return model


def fit(model, root, epochs, precision="32-true", resume=None):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with count_kernels() as calls:
        trainer.fit(model, data(), ckpt_path=resume)
    ran = type(model.layers) is seqkern.GRU
    assert (calls["gru_forward"] > 0) == ran and (calls["gru_backward"] > 0) == ran
    return trainer


def test_losses_are_torchs(tmp_path):
    torchs, ours = make(nn), make(seqkern)
    for model in (torchs, ours):
        fit(model, tmp_path, epochs=4)
    torch.testing.assert_close(ours.losses, torchs.losses, rtol=1e-3, atol=1e-3)
    assert ours.losses[-1] < 0.7 * ours.losses[0]


def test_bfloat16_plugin(tmp_path):
    torchs, ours = make(nn), make(seqkern)
    for model in (torchs, ours):
        fit(model, tmp_path, epochs=4, precision="bf16-mixed")
    assert ours.dtypes == torchs.dtypes
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    torch.testing.assert_close(ours.losses[:6], torchs.losses[:6], rtol=0.02, atol=0.02)
    assert ours.losses[-1] < 0.8 * ours.losses[0]


def test_checkpoint_and_resume(tmp_path):
    """Stopping and resuming changes nothing, and torch.nn's model resumes from seqkern's file."""
    whole = make(seqkern)
    fit(whole, tmp_path / "whole", epochs=4)
    first = make(seqkern)
    file = tmp_path / "half.ckpt"
    fit(first, tmp_path / "half", epochs=2).save_checkpoint(file)
    for namespace in (seqkern, nn):
        resumed = make(namespace)
        fit(resumed, tmp_path / "rest", epochs=4, resume=file)
        assert len(resumed.losses) == len(whole.losses) // 2
        close = {"rtol": 0, "atol": 0} if namespace is seqkern else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), **close)
    loaded = Classifier.load_from_checkpoint(file)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(first.state_dict()))
