"""``python -m seqkern doctor``: does seqkern work here, and if not, why?"""

import argparse
import sys

from seqkern import doctor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m seqkern", description=__doc__)
    parser.add_argument("command", choices=["doctor"], help="doctor: check this installation")
    parser.parse_args()
    return doctor.run()


if __name__ == "__main__":
    sys.exit(main())
