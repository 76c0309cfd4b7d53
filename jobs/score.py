"""The scores, alone, from a finished pool and a finished calibrated model."""

from _command import run_command

if __name__ == "__main__":
    run_command("score")
