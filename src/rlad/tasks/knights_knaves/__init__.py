"""Knights & Knaves: puzzles, their identity, a generator, a solver, a scorer, and the task made of them."""
