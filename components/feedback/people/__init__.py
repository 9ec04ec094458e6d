"""Feedback by people: they rank answers blind on a page; what they say becomes preferences, chats and figures of how far they agree."""
