"""Chats and preference pairs: recognised by shape, converted, checked."""
