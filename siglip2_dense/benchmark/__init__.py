"""What ``tools/benchmark.py`` measures: one module a name, each with ``run(quick) -> figures``."""
