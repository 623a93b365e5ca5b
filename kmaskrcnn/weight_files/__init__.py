"""Readers of weight files that run no code from them."""
