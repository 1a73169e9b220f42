"""Speed of seqkern beside its peers: `python -m benchmarks --help`."""
