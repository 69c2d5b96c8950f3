"""MAGE for `transformers`: configuration, tokenizer and model in one flat folder.

These files are copied beside the weights when a model is saved, so they import one another and nothing else of this
package: a pushed checkpoint loads with `AutoModel.from_pretrained(..., trust_remote_code=True)` alone. In folders that are
saved already, `python -m hf_i2i_unlearn.models.mage.refresh FOLDER` replaces the code.

Importing this folder also tells `AutoConfig` and `AutoModel` of MAGE, after which they need no trust_remote_code. That takes
about 15 ms after `from transformers import Trainer`, but seconds of torch and transformers before it. So `import
hf_i2i_unlearn`, which loads nothing, does not; the first use of `MageModel`, `MageConfig` or `I2IMage`, or `load_model` of a
MAGE, does.
"""

from transformers import AutoConfig, AutoModel

from .configuration_mage import MageConfig
from .decoding_mage import feathered_paste, fill_hole, paste
from .modeling_mage import MageModel, MageModelOutput
from .tokenizer_mage import MageTokenizer

AutoConfig.register("mage", MageConfig)
AutoModel.register(MageConfig, MageModel)
MageConfig.register_for_auto_class()
MageModel.register_for_auto_class("AutoModel")

__all__ = ["MageConfig", "MageModel", "MageModelOutput", "MageTokenizer", "feathered_paste", "fill_hole", "paste"]
