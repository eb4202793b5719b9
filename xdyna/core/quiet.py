"""Silences what libraries print on loading; our own messages say what a user needs."""

import os
import sys
import warnings

from xdyna.core.errors import XDynaWarning


def quiet_libraries() -> None:
    """Errors only from diffusers and transformers, none of their loading bars. Our own warnings become one line."""
    import diffusers
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=XDynaWarning)
    warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: print(
        f"warning: {message}", file=sys.stderr
    )
