"""What can be imported before a model is chosen."""

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from core.errors import ModelError
from core.models.library import list_models
from core.models.load import load_config, load_tokenizer

_MOST_FAMILIES = 4  # each is some seconds of idle time at most


def import_families() -> None:
    """Import the code of the families of the models on this machine, the starter's first, and of a tokenizer.

    transformers imports a family when it is first asked for, which else the first run would wait for.
    """
    seen: set[str] = set()
    for entry in (entry for entry in list_models() if entry.path.is_dir()):  # the starter is listed unprepared, too
        if len(seen) == _MOST_FAMILIES:
            return
        try:
            config = load_config(entry.path)
            if config.model_type not in seen:
                _ = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
                load_tokenizer(entry.path)
                seen.add(config.model_type)
        except ModelError:
            continue  # a damaged model is told of when it is chosen
