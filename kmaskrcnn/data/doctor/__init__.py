"""The doctor: finds what is wrong with a data set, writes a repaired copy, and reports what the set holds."""
