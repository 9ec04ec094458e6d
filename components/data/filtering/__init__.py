"""Which documents are worth training on: rules of published corpora, private data, safety, and a score of quality."""
