"""The benchmarks, one module each with `run(bench)`."""
