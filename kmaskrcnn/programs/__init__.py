"""The commands, as `kmaskrcnn COMMAND` or train.py and the others start them."""
