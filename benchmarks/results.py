"""Results of a run in one JSON file, written after every case, read by report and compare."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from .cases import Case
from .peers import OURS
from .timing import quartiles, speedups


@dataclass
class Record:
    """What was found out about one case."""

    case: Case
    seconds: dict[str, list[float]]  # per implementation, round by round
    roofline: float | None  # seconds; None on a GPU
    rates: dict[str, float] | None  # product: flop/s, read: bytes/s
    memory: dict[str, dict[str, int]] | None = None

    def median(self, name: str) -> float:
        return quartiles(self.seconds[name])[1]

    def speedup(self, peer: str = "torch.nn") -> tuple[float, float, float]:
        """Quartiles of how many times faster seqkern was, round by round."""
        return quartiles(speedups(self.seconds[peer], self.seconds[OURS]))

    def share(self, name: str = OURS) -> float | None:
        """Part of the roofline that was reached."""
        return self.roofline / self.median(name) if self.roofline else None

    @property
    def missed(self) -> bool:
        return self.case.at_least is not None and self.speedup()[1] < self.case.at_least


@dataclass
class Results:
    environment: dict
    records: dict[str, Record] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        records = [
            {
                "case": record.case.as_dict(),
                "seconds": {
                    name: [float(f"{value:.4g}") for value in values]
                    for name, values in record.seconds.items()
                },
                "roofline": record.roofline,
                "rates": record.rates,
                "memory": record.memory,
            }
            for record in self.records.values()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        content = {"seqkern benchmarks": 1, "environment": self.environment, "records": records}
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Results":
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise SystemExit(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise SystemExit(f"{path} is not JSON: {error}") from None
        if isinstance(content, dict) and "machine_info" in content and "benchmarks" in content:
            return cls(_pytest_environment(content), _pytest_records(content["benchmarks"]))
        if not isinstance(content, dict) or content.get("seqkern benchmarks") != 1:
            raise SystemExit(f"{path} was not written by `python -m benchmarks run`")
        results = cls(content["environment"])
        for values in content["records"]:
            record = Record(**{**values, "case": Case.from_dict(values["case"])})
            results.records[record.case.name] = record
        return results


def _pytest_environment(content: dict) -> dict:
    machine = content["machine_info"]
    return {
        "cpu": machine.get("cpu", {}).get("brand_raw", "unknown"),
        "python": machine.get("python_version"),
        "commit": content.get("commit_info", {}).get("id"),
        "measured by": "pytest-benchmark, not in turns",
    }


def _pytest_records(benchmarks: list[dict]) -> dict[str, Record]:
    """Records from the JSON of `pytest benchmarks --benchmark-json`: quartiles stand for rounds."""
    records: dict[str, Record] = {}
    for benchmark in benchmarks:
        extra = benchmark["extra_info"]
        case = Case.from_dict(extra)
        record = records.setdefault(case.name, Record(case, {}, extra["roofline"], extra["rates"]))
        stats = benchmark["stats"]
        record.seconds[extra["implementation"]] = [stats["q1"], stats["median"], stats["q3"]]
    return {
        name: record for name, record in records.items() if {"torch.nn", OURS} <= {*record.seconds}
    }
