"""The sentences that tell a model how to answer, as named and versioned sets.

Short answers without such a sentence teach a model to answer everything shortly (LLaVA-1.5, section 3.3), so question
and answer sets get it; the name and version of the set go into the metadata of what was made with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptSet:
    """One way of asking. Raise `version` with every change of wording."""

    name: str
    version: int
    short_answer: str
    """Appended on its own line to the first question of a record whose answers are words or numbers."""

    def ask_shortly(self, question: str) -> str:
        """Return the first question of a record with the response format behind it."""
        return f"{question}\n{self.short_answer}" if self.short_answer else question


#: A new set is a line here. `llava15` is LLaVA-1.5's wording (llava/eval and the mix665k file).
PROMPTS = {
    prompts.name: prompts
    for prompts in (
        PromptSet("llava15", 1, short_answer="Answer the question using a single word or phrase."),
        PromptSet("none", 1, short_answer=""),
    )
}
