"""Remove what killed runs have left in a storage."""

from _command import run_command

if __name__ == "__main__":
    run_command("clean")
