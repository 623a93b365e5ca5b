"""Reading, writing and fetching files of weights."""
