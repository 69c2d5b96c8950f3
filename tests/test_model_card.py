import pytest
from huggingface_hub import EvalResult, ModelCard

from hf_i2i_unlearn.errors import InputError
from hf_i2i_unlearn.model_card import update_card

CARD = """---
license: mit
model-index:
- name: x
  results: []
---

# x

## Before and after

| a |

## Limits

- some
"""


def result(value, name="FID after"):
    return EvalResult("image-to-image", "d", "d", "fid", value, dataset_config="forget", metric_name=name)


def test_update_card_replaces_its_section_and_its_results(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    update_card(tmp_path, "Audit", "first", [result(1.0), result(7.0, "FID before")])
    update_card(tmp_path, "Audit", "second", [result(2.0)])
    text = (tmp_path / "README.md").read_text()
    assert text.count("## Audit") == 1 and "first" not in text
    assert text.index("| a |") < text.index("second") < text.index("## Limits") < text.index("- some")
    card = ModelCard.load(tmp_path / "README.md")
    assert sorted(r.metric_value for r in card.data.eval_results) == [2.0, 7.0]
    assert card.data.license == "mit"


def test_update_card_needs_a_card(tmp_path):
    with pytest.raises(InputError, match="no card"):
        update_card(tmp_path, "Audit", "text")
