"""The benchmarks, a module each (see `eval.benchmark`), and modules that are parts of one."""
