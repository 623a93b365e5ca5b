"""Data sets as records: what a set holds, its one checker, subsets of it, and the built-in shapes."""
