"""The benchmarks: one module per benchmark, each with a function `run(bench)`."""
