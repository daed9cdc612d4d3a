"""What is tested on is not trained on."""

import json
from pathlib import Path

import pytest

from spanwise.envs.search.retrieval_qa import RetrievalQA
from spanwise.errors import SpanwiseError


def written(file: Path, *questions: str) -> Path:
    rows = [json.dumps({"question": question, "answer": "Paris"}) for question in questions]
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


def test_questions_of_the_dev_and_test_files_are_not_trained_on(tmp_path: Path):
    train = written(tmp_path / "train.jsonl", "Where is a?", "Where  is b?", "Where is c?")
    dev, test = tmp_path / "dev.jsonl", tmp_path / "test.jsonl"
    env = RetrievalQA(
        train_file=train, dev_file=written(dev, "Where is a?"),
        test_file=written(test, "Where is b?"),
    )  # fmt: skip
    assert [task.question for task in env.tasks("train")] == ["Where is c?"]
    with pytest.raises(SpanwiseError, match="every question is also in the dev or test file"):
        RetrievalQA(train_file=train, test_file=train).tasks("train")
