"""What arrives of a gradient: from the last of 100 steps back to the first, in each cell, and the cures.

With seqkern, `seqkern.diagnostics.gradient_flow` reads dLoss/dh_t of every step off the kernels' backward
pass; with torch.nn it takes autograd and a call for every step. The first figure has the cells as they are
initialised, the second the cures: orthogonal or identity weights, open gates, connections that skip ten
steps. Then cells with and without them are shown a bit, see noise for 80 steps, and have to say it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seqkern.diagnostics import gradient_flow
from seqkern.init import forget_bias_, identity_, orthogonal_

from . import program

STEPS, BATCH, INPUTS, UNITS = 100, 16, 8, 64
SKIP, WAIT = 10, 80


def scaled(rnn: nn.Module, scale: float) -> nn.Module:
    with torch.no_grad():
        rnn.weight_hh_l0 *= scale
    return rnn


def update_bias(gru: nn.Module, value: float) -> nn.Module:
    """A GRU whose update gates begin by keeping the state: what forget_bias_ is for an LSTM."""
    with torch.no_grad():
        gru.bias_ih_l0[UNITS : 2 * UNITS] = value
    return gru


def as_initialised(layers) -> dict[str, nn.Module]:
    return {
        "tanh RNN": layers.RNN(INPUTS, UNITS),
        "relu RNN, weights x 3": scaled(layers.RNN(INPUTS, UNITS, nonlinearity="relu"), 3),
        "GRU": layers.GRU(INPUTS, UNITS),
        "LSTM": layers.LSTM(INPUTS, UNITS),
    }


def cured(layers) -> dict[str, nn.Module]:
    return {
        "tanh RNN, orthogonal": orthogonal_(layers.RNN(INPUTS, UNITS)),
        "relu RNN, identity": identity_(layers.RNN(INPUTS, UNITS, nonlinearity="relu")),
        "GRU, update bias 4": update_bias(layers.GRU(INPUTS, UNITS), 4),
        "LSTM, forget bias 4": forget_bias_(layers.LSTM(INPUTS, UNITS), 4),
    }


def norms(module: nn.Module, input: Tensor, by_kernels: bool) -> Tensor:
    """The norm of dLoss/dh_t, [T]; the loss is a sum over the last step's output."""
    if by_kernels:
        return gradient_flow(module, input, lambda output, _: output[-1].sum()).h[0, 0]
    states, state = [], None
    for step in input.split(1):
        _, state = module(step, state)
        states.append(state if isinstance(state, Tensor) else state[0])
        states[-1].retain_grad()
    states[-1].sum().backward()
    return torch.stack([h.grad.norm() for h in states])


def draw(groups: dict[str, dict[str, tuple[range, Tensor]]], options) -> None:
    figure = program.new_figure(10, 4.8)
    axes = figure.subplots(1, len(groups), sharey=True)
    for one, (title, lines) in zip(axes, groups.items(), strict=True):
        for name, (times, values) in lines.items():
            one.plot(times, values, "." * (len(times) < STEPS) + "-", label=name)
        one.set(xlabel="step t", title=title, yscale="log", ylim=(1e-24, 1e24))
        one.legend(fontsize=8, loc="upper right")
        one.grid(alpha=0.3)
    axes[0].set_ylabel("norm of dLoss/dh at step t, loss at step 99")
    program.save(figure, options)


def clipping(exploding: nn.Module, input: Tensor) -> None:
    """Clipping cures the step, not the gradient: its direction stays, its length is bounded."""
    exploding(input)[0][-1].sum().backward()
    before = nn.utils.clip_grad_norm_(exploding.parameters(), 1.0).item()
    after = torch.stack([p.grad.norm() for p in exploding.parameters()]).norm().item()
    print(f"relu RNN, weights x 3: gradient of the weights {before:.1e}, clipped {after:.2f}")


def remember(layer: nn.Module, label: str, options) -> tuple[float, program.Training]:
    """Accuracy of saying a bit that was shown WAIT steps ago."""
    head = nn.Linear(UNITS, 2)
    generator = torch.Generator().manual_seed(options.seed)

    def logits(count: int) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (count,), generator=generator)
        input = 0.5 * torch.randn(WAIT + 1, count, INPUTS, generator=generator)
        input[0, :, 0] = 2.0 * bits - 1
        return head(layer(input)[0][-1]), bits

    def loss_of(_: int) -> tuple[Tensor, int]:
        return cross_entropy(*logits(64)), 64 * (WAIT + 1)

    parameters = [*layer.parameters(), *head.parameters()]
    training = program.train(loss_of, parameters, options.steps, 3e-3, label)
    with torch.no_grad():
        found, bits = logits(1000)
    return (found.argmax(1) == bits).float().mean().item(), training


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("vanishing_gradients", __doc__, 200, 120), arguments)
    layers, by_kernels = options.layers, options.impl == "seqkern"
    input = torch.randn(STEPS, BATCH, INPUTS)
    plain, cures = as_initialised(layers), cured(layers)
    groups = {"As initialised": {}, "Cured": {}}
    for group, modules in zip(groups.values(), (plain, cures), strict=True):
        for name, module in modules.items():
            group[name] = range(STEPS), norms(module, input, by_kernels)
    # The last state depends on the one ten steps before, and so on: a layer that runs on every tenth step.
    skipping = norms(layers.RNN(INPUTS, UNITS), input[SKIP - 1 :: SKIP], by_kernels)
    groups["Cured"][f"tanh RNN, skips {SKIP} steps"] = range(SKIP - 1, STEPS, SKIP), skipping
    lost = {}
    for name, (_, values) in (groups["As initialised"] | groups["Cured"]).items():
        lost[name] = (values[-1].log10() - values[0].log10()).item()
        per_step = 10 ** (-lost[name] / (STEPS - 1))
        verb = "loses" if lost[name] > 0 else "gains"
        print(f"{name:<24} {verb} {abs(lost[name]):>5.1f} powers of ten, x {per_step:.3f} a step")
    draw(groups, options)
    clipping(plain["relu RNN, weights x 3"], input)
    accuracy, training = {}, program.Training()
    for name in ("tanh RNN", "LSTM, forget bias 4", "GRU, update bias 4"):
        layer = (plain | cures)[name].requires_grad_()
        accuracy[name], one = remember(layer, name, options)
        training += one
        print(f"{name:<24} says {accuracy[name]:.0%} of the bits right")
    margins = [
        program.Margin(f"bits right, {name}", accuracy[name], "tanh RNN", accuracy["tanh RNN"], by)
        for name, by in (("LSTM, forget bias 4", 0.3), ("GRU, update bias 4", 0.15))
    ]
    margins += [
        program.Margin(
            f"powers of ten lost, {name}", lost[name], "tanh RNN", lost["tanh RNN"], 10, lower=True
        )
        for name in groups["Cured"]
    ]
    return program.close(options, training, "steps", *margins)


if __name__ == "__main__":
    program.run(main)
