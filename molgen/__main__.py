"""`python -m molgen`, for where the script is not on the path."""

from molgen.cli.main import main

if __name__ == "__main__":
    main()
