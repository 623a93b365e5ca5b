"""Load and faults on `kmaskrcnn serve`: `make load-test` writes runs/load_test.md."""
