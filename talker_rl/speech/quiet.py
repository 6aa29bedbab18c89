"""Keep transformers from speaking where it has nothing to say to the user."""

from __future__ import annotations


class quiet_transformers:
    """Silences loading bars and the notes about text ids outside the codec vocabulary, which are right."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bar:
            logging.enable_progress_bar()
