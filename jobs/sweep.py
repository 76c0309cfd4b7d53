"""A sweep on a Ray cluster, a job for each point."""

from _command import run_command

if __name__ == "__main__":
    run_command("sweep")
