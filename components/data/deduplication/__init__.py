"""Copies found and dropped: exact ones of documents and paragraphs, near ones by MinHash."""
