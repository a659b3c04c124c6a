"""How good a bundle is: the gate, its sources of error, and their pictures."""
