"""Does a selection teach more than random samples, or than all of them?"""

from _command import run_command

if __name__ == "__main__":
    run_command("evaluate")
