"""`[tool.vlmdoctor]`: read from the nearest pyproject.toml, and never silently misread."""

import pytest

from vlmdoctor import settings
from vlmdoctor.errors import UserError


def write(folder, text):
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def test_nearest_file_counts(tmp_path):
    write(tmp_path, '[tool.vlmdoctor]\nfail-on = "warning"\nignore = ["GRAD"]\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert settings.load(inner) == settings.Settings(fail_on="warning", ignore=("GRAD",))
    write(inner, "")
    assert settings.load(inner) == settings.Settings()


def test_a_single_text_will_do_for_a_list(tmp_path):
    write(tmp_path, '[tool.vlmdoctor]\nselect = "ROPE"\n')
    assert settings.load(tmp_path).select == ("ROPE",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tool.vlmdoctor]\nfail_onn = "error"', "did you mean 'fail-on'"),
        ('[tool.vlmdoctor]\nzzz = "error"', "unknown setting 'zzz'"),
        ("[tool.vlmdoctor]\nignore = [1]", "must be a list of texts"),
        ("[tool.vlmdoctor]\nfail-on = 3", "must be a text"),
        ("[tool]\nvlmdoctor = 3", "must be a table"),
        ("[tool.vlmdoctor", "not valid TOML"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        settings.load(tmp_path)
