"""What a process, a disk or a node can do to a store, done on purpose. `python -m tests.faults.long` does it all."""
