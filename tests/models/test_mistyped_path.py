"""A mistyped path is not taken for a name on the hub."""

from pathlib import Path

import pytest

from spanwise.models.loading import Model, ModelError


def test_a_name_in_a_folder_that_exists_never_goes_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert Model(path="outputs/mdoel").resolve() == "outputs/mdoel"
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ModelError, match="there is no model folder outputs/mdoel"):
        Model(path="outputs/mdoel").resolve()
