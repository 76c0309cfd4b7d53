"""The whole method: `python jobs/run.py data.path=… model.base=… domain=…`."""

from _command import run_command

if __name__ == "__main__":
    run_command("run")
