"""Train a model on a selection."""

from _command import run_command

if __name__ == "__main__":
    run_command("finetune")
