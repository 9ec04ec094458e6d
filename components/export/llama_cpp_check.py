"""What llama.cpp makes of a GGUF file: ids of texts and logits of ids, as JSON. Run by gguf_file.py in a process of its own.

    echo '{"file": "model.gguf", "texts": ["a b"], "ids": [[5, 6]], "context": 160}' | python -m components.export.llama_cpp_check
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp
import numpy as np


def main() -> None:
    asked = json.load(sys.stdin)
    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    how = llama_cpp.llama_model_default_params()
    how.use_extra_bufts = False  # weights as they stand in the file: one of the ways in which llama.cpp lays them out anew ended the process on a processor with AMX
    model = llama_cpp.llama_model_load_from_file(asked["file"].encode(), how)
    if not model:
        sys.exit(f"llama.cpp does not load {asked['file']}")
    told = {"version": llama_cpp.__version__, "ids": [_ids(model, text) for text in asked["texts"]], "logits": [_logits(model, ids, asked["context"]) for ids in asked["ids"]]}
    print(json.dumps(told))


def _ids(model: Any, text: str) -> list[int]:
    """As the model was trained: special tokens in the text are tokens, and the first one is added where the file says so."""
    raw = text.encode()
    room = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), raw, len(raw), room, len(room), True, True)
    return list(room[:count])


def _logits(model: Any, ids: list[int], context: int) -> list[list[float]]:
    """(T, V) of one text, read at once."""
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_batch, how.n_ubatch, how.n_threads, how.n_threads_batch = context, context, context, 1, 1
    how.type_k = how.type_v = llama_cpp.GGML_TYPE_F32  # what is compared is the file, not llama.cpp's saving of memory
    how.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    reader = llama_cpp.llama_init_from_model(model, how)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, True
        batch.seq_id[place][0] = 0
    if code := llama_cpp.llama_decode(reader, batch):
        sys.exit(f"llama.cpp cannot compute {len(ids)} tokens: code {code}")
    rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(reader), shape=(len(ids) * rows,)).reshape(len(ids), rows).tolist()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(reader)
    return found


if __name__ == "__main__":
    main()
