"""Publish a finished run as a data set on the Hugging Face Hub."""

from _command import run_command

if __name__ == "__main__":
    run_command("push")
