"""Benchmarks: what this provider costs beside what others cost, measured in one run. See docs/benchmarks.md."""
