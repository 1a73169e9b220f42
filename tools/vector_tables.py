"""Writes csrc/cpu/vec_tables.h: what the vector functions for AVX-512 look up in registers. Needs
mpmath, which comes with torch. With --check compares it with the file instead.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from pathlib import Path

from mpmath import chop, cos, log, lu_solve, matrix, mp, mpf, pi, sqrt, tanh

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "cpu" / "vec_tables.h"
NUMBER = re.compile(r"(-?\d[\d.e+-]*)f\b")

mp.prec = 160

TEXT = """// Tables for the vector functions of vec.h, of as many lanes as a permutation of one or two registers
// picks from. Written by tools/vector_tables.py.
#pragma once

#include "cpu/capability.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {{

// 2^(j / 16), and the logarithm of what rounding has left of it.
alignas(64) inline constexpr float kRoot[16] = {{{root}}};
alignas(64) inline constexpr float kRootRest[16] = {{{root_rest}}};

// Four intervals to a power of two from 1/16 to 16, by the last five of the bits that are the exponent
// and two of the mantissa. Each has a centre whose tanh is nearly a float, and
// a polynomial: tanh(centre + d) = value + d (slope[0] + d (slope[1] + ...)), interpolated at
// Chebyshev nodes. The first begins at 0, which is its centre.
inline constexpr float kTanhLeast = 0.0625f;
alignas(64) inline constexpr float kTanhCentre[32] = {{{centre}}};
alignas(64) inline constexpr float kTanhValue[32] = {{{value}}};
inline constexpr int kTanhSlopes = {slopes};
alignas(64) inline constexpr float kTanhSlope[kTanhSlopes][32] = {{{slope}}};

}}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
"""

SLOPES = 6
LEAST = 0.0625


def single(x) -> float:
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def bits(x: float) -> int:
    return struct.unpack("I", struct.pack("f", x))[0]


def of_bits(n: int) -> float:
    return struct.unpack("f", struct.pack("I", n))[0]


def interpolate(f, begin, end, count: int) -> list:
    """Coefficients, from the constant one on, of the polynomial that equals f at Chebyshev nodes."""
    nodes = [
        (begin + end) / 2 + (end - begin) / 2 * cos(pi * (2 * k + 1) / (2 * count))
        for k in range(count)
    ]
    powers = matrix([[x**j for j in range(count)] for x in nodes])
    return list(lu_solve(powers, matrix([f(x) for x in nodes])))


def centre_near(x) -> float:
    """Of a thousand floats in the middle half of an interval the first from its middle on whose tanh
    is nearly a float."""

    def rounding(c: float):
        value = tanh(mpf(c))
        return abs(value - single(value)) * 2**24

    around = sorted(range(-512, 513), key=abs)
    floats = [of_bits(bits(single(x)) + i * 1024) for i in around]
    return next((c for c in floats if rounding(c) < 0.005), None) or min(floats, key=rounding)


def tanh_interval(begin, end) -> tuple[float, float, list]:
    if begin == LEAST:
        # Even: 1 + z (a + b z), z = d^2.
        a, b = interpolate(lambda z: (tanh(sqrt(z)) / sqrt(z) - 1) / z, mpf(0), end * end, 2)
        return 0.0, 0.0, [1, 0, a, 0, b, 0]
    centre = centre_near((begin + end) / 2)
    # From its own value, not from that of the float: their difference over d is no polynomial.
    value = tanh(mpf(centre))
    slope = interpolate(
        lambda d: (tanh(centre + d) - value) / d, begin - centre, end - centre, SLOPES
    )
    return centre, single(value), slope


def tables() -> dict[str, list]:
    root = [mpf(2) ** (mpf(j) / 16) for j in range(16)]
    intervals = []
    first = bits(LEAST) >> 21
    for lane in range(32):
        key = first + (lane - first) % 32
        intervals.append(tanh_interval(mpf(of_bits(key << 21)), mpf(of_bits((key + 1) << 21))))
    return {
        "root": root,
        "root_rest": [chop(log(x / single(x))) for x in root],
        "centre": [centre for centre, _, _ in intervals],
        "value": [value for _, value, _ in intervals],
        "slope": [[slope[j] for _, _, slope in intervals] for j in range(SLOPES)],
    }


def text(values: list) -> str:
    if isinstance(values[0], list):
        return ", ".join("{" + text(inner) + "}" for inner in values)
    digits = [f"{single(v):.9g}" for v in values]
    return ", ".join(d + ("f" if "." in d or "e" in d else ".f") for d in digits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    header = TEXT.format(slopes=SLOPES, **{name: text(t) for name, t in tables().items()})
    if not check:
        HEADER.write_text(header)
        return 0
    if NUMBER.findall(header) == NUMBER.findall(HEADER.read_text()):
        return 0
    print(f"{HEADER}: not what this program writes")
    return 1


if __name__ == "__main__":
    sys.exit(main())
