"""What is timed: a `Case`, and named grids of them. No torch here: cases are plain data."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
MODES = {
    "infer": "forward without grad",
    "forward": "forward with grad",
    "train": "forward and backward, gradients of the input and of every parameter",
    "step": "one step without grad from the state that the last one left: seqkern.Stream",
}
SHORT = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}
DTYPES = tuple(SHORT)
DEVICES = ("cpu", "cuda")
SAVES = ("gates", "states")


@dataclass(frozen=True)
class Case:
    """One timing. The input size equals the hidden size H throughout, as in published figures."""

    cell: str
    mode: str
    T: int  # time steps; 1 for cells
    B: int  # batch
    H: int  # hidden and input size
    dtype: str = "float32"
    threads: int = 2
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False  # a PackedSequence in which half the rows of the padded batch are missing
    save: str = "gates"  # what seqkern's layer keeps for backward
    at_least: float | None = None  # the speed-up over torch.nn to reach, if one is promised
    device: str = "cpu"

    def __post_init__(self):
        for field, allowed in (
            ("cell", LAYERS + CELLS),
            ("mode", MODES),
            ("dtype", DTYPES),
            ("device", DEVICES),
            ("save", SAVES),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}"
                )
        if self.cell in CELLS and (self.T, self.layers, self.bidirectional, self.packed) != (
            1, 1, False, False,
        ):  # fmt: skip
            raise ValueError(f"{self.cell} takes one step of one layer, got {self}")
        if self.save != "gates" and (self.cell in CELLS or self.mode != "train"):
            raise ValueError(f"save {self.save} takes training of a layer, got {self}")
        if self.mode == "step" and (
            self.cell not in LAYERS or self.T != 1 or self.bidirectional or self.packed
        ):
            raise ValueError(f"mode step takes T 1 of a layer in one direction, got {self}")

    @property
    def name(self) -> str:
        words = [self.cell, self.mode, f"T{self.T}", f"B{self.B}", f"H{self.H}"]
        words.append(SHORT[self.dtype])
        words += [f"{self.layers}layers"] * (self.layers > 1)
        words += ["bidirectional"] * self.bidirectional + ["packed"] * self.packed
        words += [self.save] * (self.save != "gates")
        return " ".join([*words, f"{self.threads}thr" if self.device == "cpu" else self.device])

    @property
    def where(self) -> str:
        return f"{self.threads} threads" if self.device == "cpu" else self.device

    @property
    def lengths(self) -> list[int]:
        """Length of each sequence, longest first: all T, or evenly from T down to 1 if packed."""
        if not self.packed:
            return [self.T] * self.B
        return [max(1, round(self.T * (self.B - b) / self.B)) for b in range(self.B)]

    @property
    def rows(self) -> int:
        """Time steps of all sequences together."""
        return sum(self.lengths)

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Case":
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def _product(cells, modes, T, B, H, **options) -> Iterator[Case]:
    for cell in cells:
        for mode in modes:
            for h in H:
                for b in B:
                    for t in T:
                        yield Case(cell, mode, t, b, h, **options)


def first(threads: int) -> Iterator[Case]:
    """Training at T 100, f32: GRU at least twice as fast as torch.nn, LSTM never slower."""
    for b, h in ((32, 128), (8, 256), (1, 128)):
        yield Case("GRU", "train", 100, b, h, threads=threads, at_least=2.0)
    yield from _product(
        ["LSTM"], ["train"], [100], [1, 8, 32, 64], [128, 256, 512], threads=threads, at_least=1.0
    )


def quick(threads: int) -> Iterator[Case]:
    """One small and one large case of each layer and mode: a minute."""
    for cell in LAYERS:
        yield Case(cell, "infer", 1, 1, 128, threads=threads)
        yield Case(cell, "infer", 100, 8, 256, threads=threads)
        yield Case(cell, "train", 100, 1, 128, threads=threads)
        yield Case(cell, "train", 100, 32, 128, threads=threads)
    yield Case("GRU", "train", 100, 32, 128, packed=True, threads=threads)


def standard(threads: int) -> Iterator[Case]:
    """Sweeps over T, over B and over H around T 100, B 32, H 128, and one case of each feature."""
    yield from first(threads)
    for cell in LAYERS:
        for mode in ("infer", "train"):
            yield from _product([cell], [mode], [1, 10, 1000], [32], [128], threads=threads)
            yield from _product([cell], [mode], [100], [1, 128], [128], threads=threads)
            yield from _product([cell], [mode], [100], [32], [32, 128, 512], threads=threads)
            yield Case(cell, mode, 100, 1, 512, threads=threads)
            yield Case(cell, mode, 100, 32, 128, packed=True, threads=threads)
            yield Case(cell, mode, 100, 32, 128, dtype="float64", threads=threads)
            yield Case(cell, mode, 100, 8, 256, threads=threads)
        yield Case(cell, "forward", 100, 32, 128, threads=threads)
        yield Case(cell, "train", 50, 16, 1024, threads=threads)
        yield Case(cell, "train", 100, 32, 128, dtype="bfloat16", threads=threads)
        yield Case(cell, "train", 100, 32, 128, layers=3, bidirectional=True, threads=threads)
    for h in (128, 512):
        yield Case("LSTM", "train", 100, 32, h, save="states", threads=threads)
    yield from _product(CELLS, ["infer"], [1], [1, 32], [128], threads=threads)
    for cell in LAYERS:
        yield from _product([cell], ["step"], [1], [1], [128, 512], threads=threads)
        yield Case(cell, "step", 1, 16, 128, threads=threads)


def full(threads: int) -> Iterator[Case]:
    """`standard`, longer sequences, more batches and hidden sizes, every mode and dtype."""
    yield from standard(threads)
    for cell in LAYERS:
        for mode in ("infer", "forward", "train"):
            yield from _product([cell], [mode], [32, 256, 4096], [8], [128], threads=threads)
            yield from _product([cell], [mode], [100], [4, 64], [64, 256, 512], threads=threads)
            for dtype in ("float64", "bfloat16"):
                yield from _product(
                    [cell], [mode], [100], [1, 32], [128, 512], dtype=dtype, threads=threads
                )
            yield from _product(
                [cell], [mode], [100], [8, 32], [128, 512], packed=True, threads=threads
            )
            yield Case(cell, mode, 100, 32, 256, layers=2, threads=threads)
            yield Case(cell, mode, 100, 32, 256, bidirectional=True, threads=threads)
            yield Case(cell, mode, 50, 64, 1024, threads=threads)
    yield from _product(CELLS, ["infer", "train"], [1], [1, 32, 128], [128, 512], threads=threads)


GRIDS = {"first": first, "quick": quick, "standard": standard, "full": full}


def on_gpu(case: Case) -> Iterator[Case]:
    """A case of the CPU in each dtype of a GPU; what is promised is promised for CPUs."""
    dtypes = ("float16", "bfloat16", "float32") if case.dtype == "float32" else (case.dtype,)
    for dtype in dtypes:
        if case.mode != "step" or dtype in ("float32", "float64"):  # what seqkern.Stream takes
            yield replace(case, dtype=dtype, device="cuda", threads=1, at_least=None)


def grid(name: str, threads: list[int], device: str = "cpu") -> list[Case]:
    """The cases of a named grid, for each number of threads, each name once (a target wins); on a
    GPU in float16, bfloat16 and float32, and threads do not matter."""
    chosen: dict[str, Case] = {}
    for count in threads:
        for case in GRIDS[name](count):
            for each in [case] if device == "cpu" else on_gpu(case):
                chosen.setdefault(each.name, each)
    return list(chosen.values())
