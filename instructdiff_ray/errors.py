"""The one error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a value, a model, a pool.

    Its message is one plain line that says what is wrong and what to do; `jobs/` prints it without
    a traceback and exits with status 1. Everything else that is raised is a bug and stays one.
    """


class DamagedFile(UserError):
    """A file of storage that is not what was written; it has been deleted."""
