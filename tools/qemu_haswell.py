"""Run under `qemu-x86_64 -cpu Haswell`: a machine with AVX2 and no AVX-512, whatever this one has.

Checks that seqkern chooses AVX2 by itself there and that an LSTM runs forward and backward: an
instruction that Haswell lacks ends the process with SIGILL.
"""

import sys

import torch

import seqkern


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("capabilities:", *seqkern.cpu_capabilities())
    if seqkern.cpu_capability() != "avx2":
        print(f"expected avx2 to be in use, got {seqkern.cpu_capability()}")
        return 1
    lstm = seqkern.LSTM(17, 33, bidirectional=True)
    # float64: oneDNN's float32 LSTM, which torch.nn takes, gives wrong results under qemu 7.2.
    expected = torch.nn.LSTM(17, 33, bidirectional=True).double()
    expected.load_state_dict(lstm.state_dict())
    gradients = []
    for module, dtype in ((lstm, torch.float32), (expected, torch.float64)):
        input = torch.linspace(-1, 1, 7 * 5 * 17).reshape(7, 5, 17).to(dtype).requires_grad_()
        module(input)[0].square().sum().backward()
        gradients.append(torch.cat([t.grad.flatten() for t in (input, *module.parameters())]))
    error = float((gradients[0].double() - gradients[1]).norm() / gradients[1].norm())
    print(f"LSTM gradients: relative error {error:.1e}")
    return 0 if error < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
