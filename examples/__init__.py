"""Programs that show seqkern at work: `python -m examples.next_word --help`."""
