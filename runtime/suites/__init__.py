"""Public benchmarks on the device: the questions of the paper, answered and scored as it does."""
