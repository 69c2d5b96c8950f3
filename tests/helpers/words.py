"""Methods and distances by their words, as tests that go through all of them name them."""

from hf_i2i_unlearn.commands.words import find_distance, find_method


def objects(options: dict) -> dict:
    """Takes the words method, variant and distance out of the options; what `UnlearningTrainer` is given in their place."""
    method = find_method(options.pop("method", "ours"), options.pop("variant", "paper"))
    return {"method": method, "distance": find_distance(options.pop("distance", "mse"))}
