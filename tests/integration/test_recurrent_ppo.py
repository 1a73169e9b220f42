"""Stable-Baselines3's recurrent PPO: its policy on seqkern's LSTMs."""

import numpy as np
import pytest
import torch
from layers import count_kernels
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates

import seqkern


def make():
    policy = {"lstm_hidden_size": 24, "n_lstm_layers": 2, "net_arch": [16]}
    return RecurrentPPO(
        "MlpLstmPolicy",
        "CartPole-v1",
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        policy_kwargs=policy,
        seed=0,
        device="cpu",
    )


def has_seqkern(model):
    lstms = model.policy.lstm_actor, model.policy.lstm_critic
    return all(type(lstm) is seqkern.LSTM for lstm in lstms)


def decide(model):
    """Actions, values and log-probabilities over a rollout of given observations."""
    generator = torch.Generator().manual_seed(1)
    state = torch.zeros(2, 3, 24)
    states = RNNStates((state, state), (state, state))
    decisions = []
    for step in range(10):
        observations = torch.randn(3, 4, generator=generator)
        starts = torch.tensor([0.0, float(step == 4), float(step % 3 == 0)])
        *decision, states = model.policy(observations, states, starts, deterministic=True)
        decisions.append(decision)
    return decisions


def play(model):
    """The actions of predict() in the environment, from a fixed start."""
    env = model.get_env()
    env.seed(5)
    observation, state, start, actions = env.reset(), None, np.ones(1, dtype=bool), []
    for _ in range(40):
        action, state = model.predict(observation, state, start, deterministic=True)
        observation, _, start, _ = env.step(action)
        actions.append(int(action[0]))
    return actions


def test_converted_policy_decides_alike():
    model = make()
    expected, played = decide(model), play(model)
    seqkern.convert(model.policy, inplace=True)
    assert has_seqkern(model)
    with count_kernels() as calls:
        torch.testing.assert_close(decide(model), expected)
    assert calls["lstm_forward"] >= 10 * 2 * 2  # steps, layers, actor and critic
    assert play(model) == played


def test_training_under_the_patch():
    """A few hundred steps of experience end in torch.nn's weights."""
    torchs = make().learn(256)
    with seqkern.patch():
        ours = make()
        with count_kernels() as calls:
            ours.learn(256)
    assert has_seqkern(ours) and not has_seqkern(torchs)
    assert calls["lstm_forward"] > 256 and calls["lstm_backward"] > 0
    assert ours.num_timesteps == torchs.num_timesteps
    torch.testing.assert_close(
        dict(ours.policy.state_dict()), dict(torchs.policy.state_dict()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("saved_by", ("torch.nn", "seqkern"))
def test_saved_models_load_both_ways(tmp_path, saved_by):
    model = make()
    if saved_by == "seqkern":
        seqkern.convert(model.policy, inplace=True)
    model.save(tmp_path / "model")
    plain = RecurrentPPO.load(tmp_path / "model", device="cpu")
    with seqkern.patch():
        patched = RecurrentPPO.load(tmp_path / "model", device="cpu")
    assert has_seqkern(patched) and not has_seqkern(plain)
    for loaded in (plain, patched):
        torch.testing.assert_close(decide(loaded), decide(model))
