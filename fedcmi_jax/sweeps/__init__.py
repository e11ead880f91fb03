"""Sweeps: a plan of cells, each a run, trained one after the other and resumable."""
