"""From documents to the order of training: a tokenizer, token shards, the mixture, and the way back from a batch to its documents."""
