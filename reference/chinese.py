"""..."""

TABLE: dict[str, str] = {}
