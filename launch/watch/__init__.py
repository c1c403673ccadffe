"""`omr watch`: a live page of runs as they go, on loopback."""
