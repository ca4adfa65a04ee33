"""A model that is ready to be asked."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from trainer.inference.asking import GREEDY, Answer, Request, Sampling
from trainer.inference.cache import KeyValueCache
from trainer.inference.drafts import Draft
from trainer.inference.generation import generate, new_cache
from trainer.inference.prompts import Prompt, PromptMaker
from trainer.model import LlavaConfig, LlavaModel


@dataclass(frozen=True, slots=True)
class Wording:
    """How prompts and pictures are made, as the shards' fingerprint has it."""

    template: str
    system_prompt: str
    image_fit: str
    image_start_idx: int
    """The first of the picture's slots."""
    num_patches: int
    image_size: int
    """In pixels."""
    tokenizer_fingerprint: str


@dataclass(slots=True)
class _Read:
    """A conversation whose keys and values are kept for its next turn."""

    prompt: Prompt
    ids: list[int]
    """Of the tokens that were read: the prompt's, and those of the answer."""
    cache: KeyValueCache


class Assistant:
    """A model, and what makes prompts for it; `open_assistant` opens one.

    Attributes:
        config: the model's sizes.
        layout: how its prompts are made.
        template: the name of the template.
    """

    def __init__(self, model: LlavaModel, prompts: PromptMaker, layout: Wording) -> None:
        self.model, self.prompts, self.layout = model.eval().requires_grad_(False), prompts, layout
        self.config: LlavaConfig = model.config
        self.template = layout.template
        self._read: _Read | None = None

    def answer(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[Answer]:
        """Answer one batch of requests; each gets the answer that it would get alone.

        Raises:
            ImageFault: a picture that cannot be used.
            Refusal: words that cannot be asked.
        """
        prompts = [self.prompts.make(request) for request in requests]
        drafts = [self._draft(prompt, sampling) for prompt in prompts]
        if prompts:
            for _ in generate(self.model, prompts, drafts, sampling, new_cache(self.model, len(prompts))):
                pass
        return [_answer(prompt, draft) for prompt, draft in zip(prompts, drafts, strict=True)]

    def stream(self, request: Request, sampling: Sampling = GREEDY) -> "AnswerStream":
        """Answer one request piece by piece; the pieces together are the answer's text.

        What of the conversation was read for the request before is not read again. Raises as `answer`.
        """
        prompt = self.prompts.make(request)
        return AnswerStream(self, prompt, self._draft(prompt, sampling), sampling)

    def _draft(self, prompt: Prompt, sampling: Sampling) -> Draft:
        # The last token of an answer is not read, so it needs no position.
        room = self.config.language.max_position_embeddings - len(prompt.ids) + 1
        return Draft(self.prompts.encoder, self.prompts.ending, min(sampling.max_new_tokens, room))

    def _take_cache(self, prompt: Prompt) -> KeyValueCache:
        """Return a cache with as much of the prompt as was read for the request before, but not all of it."""
        read, self._read = self._read, None
        if read is None:
            return new_cache(self.model, 1)
        pairs = zip(read.ids, prompt.ids[:-1], strict=False)
        same = next((place for place, (old, new) in enumerate(pairs) if old != new), None)
        same = min(len(read.ids), len(prompt.ids) - 1) if same is None else same
        slots = prompt.image_slots
        if (read.prompt.image_slots, read.prompt.picture_digest()) != (slots, prompt.picture_digest()):
            same = min(same, slots.start, read.prompt.image_slots.start)
        if slots.start < same < slots.stop:
            same = slots.start
        read.cache.lengths = [same]
        return read.cache

    def _keep_cache(self, prompt: Prompt, draft: Draft, cache: KeyValueCache) -> None:
        self._read = _Read(prompt, (prompt.ids + draft.ids)[: cache.lengths[0]], cache)


class AnswerStream(Iterator[str]):
    """The pieces of an answer. When they end, or `close` ends them, `answer` is the answer so far."""

    def __init__(self, assistant: Assistant, prompt: Prompt, draft: Draft, sampling: Sampling) -> None:
        self._prompt, self._draft = prompt, draft
        self._pieces = _pieces(assistant, prompt, draft, sampling)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End here."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        return _answer(self._prompt, self._draft)


def _pieces(assistant: Assistant, prompt: Prompt, draft: Draft, sampling: Sampling) -> Generator[str, None, None]:
    cache, shown = assistant._take_cache(prompt), 0
    for _ in generate(assistant.model, [prompt], [draft], sampling, cache):
        # Between two tokens the cache is whole, whoever stops asking for more.
        assistant._keep_cache(prompt, draft, cache)
        text = draft.so_far()
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)
    if rest := draft.text()[shown:]:
        yield rest


def _answer(prompt: Prompt, draft: Draft) -> Answer:
    return Answer(draft.text(), list(draft.ids), len(prompt.ids), draft.ended)
