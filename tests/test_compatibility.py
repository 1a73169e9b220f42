"""docs/compatibility.md: the tests that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = "".join(path.read_text() for path in (ROOT / "tests" / "programs").glob("*.py"))
PAGE = (ROOT / "docs" / "compatibility.md").read_text()


def test_every_proof_exists():
    proofs = re.findall(r"`([\w/]+\.py)::(\w+)(?:\[([^\]]*)\])?`", PAGE)
    assert len(proofs) == PAGE.count("::test_") > 40
    for file, test, rows in proofs:
        source = (ROOT / "tests" / file).read_text()
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file} has no {test}"
        table = PROGRAMS if "from programs import" in source else source
        for row in filter(None, rows.split(", ")):
            assert re.search(rf'"{row}"[:,)]', table), f"{file} has no row {row}"


def test_every_feature_has_its_proof():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
    for feature, *_, proof in rows:
        if proof.strip() != "proof":
            assert "::test_" in proof, feature
