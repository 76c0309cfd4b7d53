"""What jobs/run.py with the same settings would cost."""

from _command import run_command

if __name__ == "__main__":
    run_command("plan")
