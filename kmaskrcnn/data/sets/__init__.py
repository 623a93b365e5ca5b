"""Data sets as they are read, checked and written."""
