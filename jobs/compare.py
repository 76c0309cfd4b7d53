"""How alike the selections of finished runs are."""

from _command import run_command

if __name__ == "__main__":
    run_command("compare")
