"""GluonTS's DeepAR: a forecasting model that unrolls its LSTM step by step."""

import numpy as np
import pandas
import pytest
import torch
from gluonts.dataset.pandas import PandasDataset
from gluonts.torch.model.deepar import DeepAREstimator
from gluonts.torch.model.deepar.module import DeepARModel
from layers import count_kernels
from lightning import seed_everything

import seqkern

# The library's own, about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")


def inputs(model, B=4):
    """One batch: past and future of B series."""
    past, future = model._past_length, model.prediction_length
    return {
        "feat_static_cat": torch.zeros(B, 1, dtype=torch.long),
        "feat_static_real": torch.randn(B, 1),
        "past_time_feat": torch.randn(B, past, 1),
        "past_target": torch.rand(B, past),
        "past_observed_values": torch.ones(B, past),
        "future_time_feat": torch.randn(B, future, 1),
    }


def test_converted_model_forecasts_alike():
    model = DeepARModel("D", 12, 6, hidden_size=20, num_layers=3, num_parallel_samples=5).eval()
    batch = inputs(model)
    fast = seqkern.convert(model)
    assert type(fast.rnn) is seqkern.LSTM and type(model.rnn) is torch.nn.LSTM
    samples = []
    with torch.no_grad(), count_kernels() as calls:
        for m in (model, fast):
            torch.manual_seed(2)
            samples.append(m(**batch))
        future = torch.rand(4, model.prediction_length)
        parameters = [m.unroll_lagged_rnn(**batch, future_target=future)[0] for m in (model, fast)]
    assert calls["lstm_forward"] >= 3 * 6  # layers, steps of the forecast
    torch.testing.assert_close(*parameters)
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)


def trained(root):
    """The estimator's network after one epoch, and its forecasts."""
    seed_everything(3, verbose=False)
    days = pandas.period_range("2024-01-01", periods=120, freq="D")
    waves = {i: np.sin(np.arange(120) / (3 + i)) + 2 for i in range(3)}
    data = PandasDataset({i: pandas.DataFrame({"target": w}, days) for i, w in waves.items()})
    estimator = DeepAREstimator(
        freq="D",
        prediction_length=6,
        context_length=12,
        hidden_size=16,
        num_batches_per_epoch=10,
        batch_size=8,
        trainer_kwargs={
            "max_epochs": 1,
            "default_root_dir": root,
            "logger": False,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )
    predictor = estimator.train(data)
    torch.manual_seed(4)
    forecasts = np.stack([f.mean for f in predictor.predict(data, num_samples=50)])
    return predictor.prediction_net, forecasts


def test_training_under_the_patch(tmp_path):
    torchs, expected = trained(tmp_path / "torch")
    with seqkern.patch(), count_kernels() as calls:
        ours, forecasts = trained(tmp_path / "seqkern")
    assert type(ours.model.rnn) is seqkern.LSTM and type(torchs.model.rnn) is torch.nn.LSTM
    assert calls["lstm_backward"] >= 10 * 2  # batches, layers
    torch.testing.assert_close(
        dict(ours.state_dict()), dict(torchs.state_dict()), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(forecasts, expected, rtol=1e-2)
