"""Which kernel runs: candidates, what the user forces, what was decided here before."""
