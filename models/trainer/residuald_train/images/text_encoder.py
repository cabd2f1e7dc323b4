"""A text encoder that is not trained: a folder with `tokenizer/` and `text_encoder/`, as a pipeline has them."""

import json
from pathlib import Path

import numpy as np
import onnx

from .. import TrainerError
from ..bundle.served import session

MOST_TOKENS = 4096
IDS, STATES = "input_ids", "last_hidden_state"


class TextEncoder:
    """Reads the folder. `files`: {path in the folder: bytes}, which the pipeline repeats. Raises TrainerError."""

    def __init__(self, folder):
        from tokenizers import Tokenizer  # slow to import

        folder = Path(folder)
        names = "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"
        names += "text_encoder/model.onnx", "text_encoder/config.json"
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise TrainerError(f"{folder} is not a text encoder: it lacks {', '.join(missing)}")
        self.files = {name: (folder / name).read_bytes() for name in names}
        about = json.loads(self.files[names[1]])
        try:
            self.tokenizer = Tokenizer.from_str(self.files[names[0]].decode())
            self.length, pad = int(about["model_max_length"]), self.tokenizer.token_to_id(about["pad_token"])
        except Exception as error:
            raise TrainerError(f"{folder / names[0]} or {names[1]} cannot be read ({error})") from None
        if not 3 <= self.length <= MOST_TOKENS or pad is None:
            raise TrainerError(
                f"{folder / names[1]}: model_max_length must be 3 to {MOST_TOKENS}, and pad_token a token"
            )
        self.pad = pad
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.run = session(self.files[names[2]])
        if [i.name for i in self.run.get_inputs()] != [IDS]:
            raise TrainerError(f"{folder / names[2]} must have the one input {IDS}")
        self.kind = np.int32 if "int32" in self.run.get_inputs()[0].type else np.int64  # older exports take int32

    def ids(self, text):
        """-> int64 [tokens]: start, words, end, padding. Words that do not fit are left out."""
        ids = self.tokenizer.encode(text).ids
        ids = ids if len(ids) <= self.length else [*ids[: self.length - 1], ids[-1]]
        return np.array(ids + [self.pad] * (self.length - len(ids)), np.int64)

    def states(self, texts):
        """Texts -> float32 [n, tokens, width]. One at a time, as the daemon does, so that rounding is the same."""

        def read(text):
            return self.run.run([STATES], {IDS: self.ids(text)[None].astype(self.kind)})[0][0]

        known = {text: read(text) for text in dict.fromkeys(texts)}
        return np.stack([known[text] for text in texts])


def only_ids(model, padding):
    """A BERT graph with the inputs input_ids, attention_mask and token_type_ids -> one with input_ids alone.

    Tokens of the id `padding` are not attended to, and all tokens have the type 0.
    """
    graph, helper = model.graph, onnx.helper
    zero = helper.make_tensor("ids_zero", onnx.TensorProto.INT64, [], [0])
    pad = helper.make_tensor("ids_padding", onnx.TensorProto.INT64, [], [padding])
    graph.initializer.extend([zero, pad])
    made = [
        helper.make_node("Equal", [IDS, "ids_padding"], ["ids_is_padding"]),
        helper.make_node("Not", ["ids_is_padding"], ["ids_is_word"]),
        helper.make_node("Cast", ["ids_is_word"], ["attention_mask"], to=onnx.TensorProto.INT64),
        helper.make_node("Mul", [IDS, "ids_zero"], ["token_type_ids"]),
    ]
    for i, node in enumerate(made):
        graph.node.insert(i, node)
    for taken in [i for i in graph.input if i.name in ("attention_mask", "token_type_ids")]:
        graph.input.remove(taken)
    onnx.checker.check_model(model)
    return model
