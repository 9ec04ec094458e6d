"""The line as a whole: the steps that there are, the chat template as agreed, and the same bytes again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.data.steps import MODULES, run_step

ROOT = Path(__file__).parents[2]


def test_code_dvc_and_the_door_know_the_same_steps():
    from components.__main__ import DATA_STEPS

    assert tuple(MODULES) == DATA_STEPS == tuple(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def test_every_file_that_a_stage_depends_on_is_there_and_all_of_the_data_code_is_depended_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    named = {dep for stage in stages.values() for dep in stage["do"]["deps"] if dep.startswith("components/")}
    assert all((ROOT / dep).exists() for dep in named)
    for step, module in MODULES.items():  # what a step imports of our code is what its stage names
        code = f"import sys, components.data.{module}; print(*sorted(m for m in sys.modules if m.startswith('components.data.')))"
        loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        for name in loaded:
            path = name.replace(".", "/")
            files = [p for p in (f"{path}.py", path) if (ROOT / p).exists()]
            covered = any(p == dep or p.startswith(dep + "/") for p in files for dep in stages[step]["do"]["deps"])
            assert covered or name in SHARED or (ROOT / path / "__init__.py").exists(), f"{step} loads {name}, and dvc.yaml does not say so"


# What moves or counts texts and never changes them, or is loaded for its names alone.
SHARED = {"components.data.engine", "components.data.tally", "components.data.tokenizing.trace"}


@pytest.fixture(scope="module")
def loaded(dataset):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(dataset / "tokenizer")


def test_the_chat_template_renders_as_agreed_and_masks_answer_and_end_of_turn(loaded):
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " U\n"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "U2"},
        {"role": "assistant", "content": "A2"},
    ]
    golden = "<|system|>S<|end|><|user|> U\n<|end|><|assistant|>A1<|end|><|user|>U2<|end|><|assistant|>A2<|end|>"
    assert loaded.apply_chat_template(chat, tokenize=False) == golden
    assert loaded.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True) == "<|system|>S<|end|><|user|> U\n<|end|><|assistant|>"
    encoded = loaded.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    learnt = [id for id, counts in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if counts]
    assert loaded.decode(learnt) == "A1<|end|>A2<|end|>"


def test_a_role_outside_the_template_is_refused(loaded):
    with pytest.raises(Exception, match="role tool is none of system, user, assistant"):
        loaded.apply_chat_template([{"role": "tool", "content": "x"}])


def test_digits_are_split_and_the_special_tokens_stand_first(loaded):
    assert [t for t in loaded.tokenize("1234") if t.strip("Ġ")] == ["1", "2", "3", "4"]
    assert loaded.convert_ids_to_tokens(range(5)) == ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert (loaded.pad_token, loaded.eos_token, len(loaded)) == ("<|endoftext|>", "<|end|>", 700)


def test_every_step_gives_the_same_bytes_again(config, dataset, tmp_path):
    for step in MODULES:
        run_step(step, config, tmp_path / "small" / step)
        for file in (path for path in (dataset / step).rglob("*") if path.is_file()):
            assert file.read_bytes() == (tmp_path / "small" / step / file.relative_to(dataset / step)).read_bytes(), file
