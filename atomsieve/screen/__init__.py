"""The screening engine: candidates in, ranked rows with uncertainty out, over MPI, resumable."""
