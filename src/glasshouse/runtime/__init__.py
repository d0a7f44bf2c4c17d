"""The ground under everything: errors, seeds, devices, cache, runs, progress, executors. Loads no torch."""
