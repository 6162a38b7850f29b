"""Where candidates are scored: in this process, in worker processes or on a Ray cluster."""
