"""Small tokenizers in the true shape of each family, with the chat templates that the families are published with.

Shapes (kind of BPE, text rules, pattern, control tokens, flags, config) are those of the published files; vocabularies
are learned from a few lines, so that many merges can happen around the places where our encoding is cut.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

#: Lines with the words, signs and blanks that meet at the borders of turns.
LINES = (
    "A chat between a curious user and an assistant. user: What colour is the tallest bar? assistant: red",
    "You are a helpful assistant. You are Qwen, created by Alibaba Cloud. You are able to understand the content.",
    "<|user|>\nHow many bars?\n\n<|assistant|>\n\nSeven.\n\n\n[INST] a [/INST] b [INST] <<SYS>>\nx\n<</SYS>>\n\n",
    "user\nassistant\nsystem\nuser\n\nassistant\n\n  \n\t\n (a) ((b)) \"c\" 'd' -1 3.14 1,000 ... ?! => {x} [y] <z>",
    "café naïve 中文字符 日本語 🍜🚌 é ñ ß Привет мир  two  blanks   three\r\nlines\r\n\r\nhere\u3000wide\u00a0hard",
    "</s> <s> <unk> <|im_end|> <|im_start|> <|eot_id|> <think> </think> <tool_call>",
) * 3

LLAMA3_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

#: The part of Llama-3.1's and 3.2's that conversations without tools reach; 3.2 asks for today's date.
LLAMA31_CHAT = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN2_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN25_CHAT = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

#: Qwen3 writes an empty block of thoughts before the last answer, and looks for `</think>` in what is said.
QWEN3_CHAT = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{%- set ns.last_query_index = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def _mistral_chat(before: str, after: str, answer: str) -> str:
    return (
        "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
        "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
        "{{- bos_token }}{%- for message in loop_messages %}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('roles must alternate') }}{%- endif %}{%- if message['role'] == 'user' %}"
        "{%- if loop.first and system_message is defined %}"
        f"{{{{- '{before}' + system_message + '\\n\\n' + message['content'] + '{after}' }}}}"
        f"{{%- else %}}{{{{- '{before}' + message['content'] + '{after}' }}}}{{%- endif %}}"
        f"{{%- elif message['role'] == 'assistant' %}}{{{{- '{answer}' + message['content'] + eos_token }}}}"
        "{%- endif %}{%- endfor %}"
    )


MISTRAL_V1_CHAT = _mistral_chat(" [INST] ", " [/INST]", " ")
MISTRAL_V3_CHAT = _mistral_chat("[INST] ", "[/INST]", " ")
TEKKEN_CHAT = _mistral_chat("[INST]", "[/INST]", "")

ZEPHYR_CHAT = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)

#: Control tokens that eat the blanks behind them, and a template told of pictures by lists of parts.
PHI3_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LISTS_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

LLAMA3_CONTROLS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|reserved_special_token_0|>",
)
QWEN_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
MISTRAL_CONTROLS = ("[INST]", "[/INST]", "[TOOL_CALLS]")


def _byte_level(pattern: str, controls: tuple[str, ...], plain: tuple[str, ...] = (), nfc: bool = False) -> dict:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)]
    )
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    saved = json.loads(tokenizer.to_str())
    first = len(saved["model"]["vocab"])
    saved["added_tokens"] = [_added(first + i, t, t in controls) for i, t in enumerate((*controls, *plain))]
    return saved


def _added(index: int, token: str, special: bool = True, **flags: bool) -> dict:
    off = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **off, "special": special, **flags}


def _llama_type(controls: tuple[str, ...] = (), **flags: bool) -> dict:
    """A SentencePiece BPE as Llama-2's and Mistral's files hold it, further control tokens behind `</s>`."""
    base = ("<unk>", "<s>", "</s>", *controls)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*base, *alphabet], show_progress=False)
    # Word by word, so that no piece crosses a blank; newlines are bytes, as in Llama-2.
    words = [word for line in LINES for part in line.split("\n") for word in part.split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [
        _added(index, token, **(flags if token in controls else {})) for index, token in enumerate(base)
    ]
    return saved


def _write(folder: Path, files: dict, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(files, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def _llama(folder: Path, chat: str, legacy: bool, controls: tuple[str, ...] = (), **flags: bool) -> Path:
    return _write(
        folder,
        _llama_type(controls, **flags),
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        legacy=legacy,
        chat_template=chat,
    )


def _qwen(folder: Path, chat: str | None) -> Path:
    return _write(
        folder,
        _byte_level(QWEN_PATTERN, QWEN_CONTROLS, QWEN_PLAIN, nfc=True),
        tokenizer_class="Qwen2Tokenizer",
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat,
    )


def _llama3(folder: Path, chat: str) -> Path:
    files = _byte_level(LLAMA3_PATTERN, LLAMA3_CONTROLS)
    files["model"]["ignore_merges"] = True
    bos = files["added_tokens"][0]
    files["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos["content"]: {"id": bos["content"], "ids": [bos["id"]], "tokens": [bos["content"]]}},
    }
    return _write(
        folder,
        files,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=chat,
    )


def _tekken(folder: Path) -> Path:
    return _write(
        folder,
        _byte_level(TEKKEN_PATTERN, ("<unk>", "<s>", "</s>", *MISTRAL_CONTROLS)),
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEKKEN_CHAT,
    )


#: Family to what writes its folder; of Llama-type ones the ending says what `legacy` is.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llama2-legacy": lambda folder: _llama(folder, LLAMA2_CHAT, True),
    "llama2": lambda folder: _llama(folder, LLAMA2_CHAT, False),
    "llama3": lambda folder: _llama3(folder, LLAMA3_CHAT),
    "llama3.1": lambda folder: _llama3(folder, LLAMA31_CHAT),
    "qwen2": lambda folder: _qwen(folder, QWEN2_CHAT),
    "qwen2.5": lambda folder: _qwen(folder, QWEN25_CHAT),
    "qwen3": lambda folder: _qwen(folder, QWEN3_CHAT),
    "mistral-v1-legacy": lambda folder: _llama(folder, MISTRAL_V1_CHAT, True),
    "mistral-v1": lambda folder: _llama(folder, MISTRAL_V1_CHAT, False),
    "mistral-v3": lambda folder: _llama(folder, MISTRAL_V3_CHAT, False, MISTRAL_CONTROLS),
    "mistral-v3-legacy": lambda folder: _llama(folder, MISTRAL_V3_CHAT, True, MISTRAL_CONTROLS),
    "mistral-tekken": _tekken,
    "zephyr-legacy": lambda folder: _llama(folder, ZEPHYR_CHAT, True),
    "zephyr": lambda folder: _llama(folder, ZEPHYR_CHAT, False),
    "chatml-llama": lambda folder: _llama(folder, QWEN2_CHAT, True, ("<|im_start|>", "<|im_end|>")),
    "phi3": lambda folder: _llama(folder, PHI3_CHAT, False, ("<|user|>", "<|assistant|>", "<|end|>"), rstrip=True),
    "lists": lambda folder: _llama(folder, LISTS_CHAT, True),
}
