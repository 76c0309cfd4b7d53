"""Scores shared over the Hugging Face Hub, pushed and pulled."""

from _command import run_command

if __name__ == "__main__":
    run_command("scores")
