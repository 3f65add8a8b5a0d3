"""`rlad compare`: a grid of methods and seeds over one recipe, run cell by cell, and what it shows."""
