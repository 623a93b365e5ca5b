"""python -m kmaskrcnn: the same as the console command."""

from kmaskrcnn.programs.cli import main

if __name__ == "__main__":
    main()
