"""The data line: bytes to bytes, one DVC stage per module, no torch.

documents -> tokenizer -> tokens, and beside them chats, preferences, benchmarks.
"""
