"""What solvers are fitted with: teachers, fits, baselines."""
