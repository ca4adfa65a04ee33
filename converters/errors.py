"""What a conversion can end with, apart from success."""


class ConversionError(ValueError):
    """A folder that is damaged or not what it says: missing, unknown or wrong parts; one sentence. Exit code 5."""


class UnsupportedError(ValueError):
    """A sound model that the other format, or this program, has no way to hold; one sentence. Exit code 2."""
