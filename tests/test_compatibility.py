"""docs/compatibility.md: the tests that it names are there."""

import re
from pathlib import Path

from programs import ROWS

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {part for row in ROWS for part in row.id.split("-")}
PAGE = (ROOT / "docs" / "compatibility.md").read_text()


def test_every_proof_exists():
    proofs = re.findall(r"`([\w/]+\.py)::(\w+)(?:\[([^\]]*)\])?`", PAGE)
    assert len(proofs) == PAGE.count("::test_") > 40
    for file, test, rows in proofs:
        source = (ROOT / "tests" / file).read_text()
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file} has no {test}"
        for row in filter(None, rows.split(", ")):
            in_table = test == "test_same_as_torch" and row in PROGRAMS
            assert in_table or re.search(rf'"{row}"[:,)]', source), f"{file} has no row {row}"


def test_every_feature_has_its_proof():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
    for feature, *_, proof in rows:
        if proof.strip() != "proof":
            assert "::test_" in proof, feature
