"""The one exception that users are meant to read."""


class UserError(ValueError):
    """Something the user can mend: one line saying what is wrong, where, and what to do.

    The command line prints its message alone, without a traceback.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: CUDA's error has a name of its own, the CPU's allocators merely say so."""
    said = ("can't allocate memory", "Cannot allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in said))
    )
