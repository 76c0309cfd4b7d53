"""The calibrated model, alone, from a finished pool."""

from _command import run_command

if __name__ == "__main__":
    run_command("calibrate")
