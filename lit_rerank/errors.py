"""The one exception that users are meant to read."""


class UserError(ValueError):
    """Something the user can mend: one line saying what is wrong, where, and what to do.

    The command line prints its message alone, without a traceback.
    """
