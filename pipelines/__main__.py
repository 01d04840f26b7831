"""`python -m pipelines` is the `sparsepo` command."""

from pipelines.commands import main

if __name__ == "__main__":
    main()
