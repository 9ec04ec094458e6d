"""The special tokens of every tokenizer that we make or adopt: no text may hold them, so that none can end a turn or a document."""

END_OF_TEXT, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
