"""A backbone's own tokenizer."""

import pytest

from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.utils.errors import UserError


@pytest.mark.parametrize("text", ['{"tokenizer_class": []}', '{"unk_token": []}', '{"a":' * 5000, "[]"])
def test_unusable_tokenizer(folder, text):
    character_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match="has no usable tokenizer"):
        read_tokenizer(folder)
