"""The tests of `dul` and `proxy`, the real programs they run against, and the benchmarks."""
