"""The fault catalogue: what can go wrong with a run, each case with the outcome that a user should see."""
