"""What the tests of the client of language models share."""

KEY = "sk-CANARY7f3a0123456789"
QUICK = {"first_pause": 0.01, "longest_pause": 0.02, "tries": 3, "whole": 5.0, "read": 5.0, "grace": 0.3}


def chat(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]
