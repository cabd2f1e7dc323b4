"""Tests of the network that finds the caption nearest to a prompt, and of its place before the denoiser."""

import numpy as np
import pytest
import torch

from residuald_train import TrainerError
from residuald_train.bundle.served import session
from residuald_train.cli import main
from residuald_train.images import paraphrases
from residuald_train.images.text_encoder import TextEncoder

RED, BLUE = "a red square", "a blue square"
PAIRS = [(RED, "red"), (RED, "red red"), (RED, "square red"), (RED, "red a"), (RED, RED)]
PAIRS += [(BLUE, "blue"), (BLUE, "blue blue"), (BLUE, "square blue"), (BLUE, "blue a"), (BLUE, BLUE)]


def write_pairs(path, pairs, header="caption,paraphrase"):
    path.write_text("\n".join([header, *(",".join(pair) for pair in pairs)]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(pipeline_files, tmp_path_factory):
    """An untrained pipeline with its text encoder."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name, content in pipeline_files[0].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def taught(folder, tmp_path_factory):
    """The same pipeline after the verb, and what it was measured on."""
    where = tmp_path_factory.mktemp("taught")
    pairs = write_pairs(where / "pairs.csv", PAIRS)
    held_out = write_pairs(where / "others.csv", [(RED, "square a red red"), (BLUE, "a a blue")])
    arguments = ["paraphrases", str(folder), "--pairs", str(pairs), "--held-out", str(held_out)]
    assert main([*arguments, "--out", str(where / "out"), "--steps", "60", "--threads", "1"]) == 0
    return where / "out"


def drawn(folder, states):
    """What the folder's denoiser makes of the states [n, tokens, width] and one noise -> [n, C, 8, 8]."""
    sample = np.random.default_rng(0).normal(size=(1, 48, 8, 8)).astype(np.float32).repeat(len(states), 0)
    inputs = {"sample": sample, "timestep": np.array(400), "encoder_hidden_states": states}
    return session((folder / "unet/model.onnx").read_bytes()).run(None, inputs)[0]


def test_paraphrases_are_drawn_as_their_captions_and_captions_come_through(folder, taught, encoder):
    read = TextEncoder(encoder)
    captions = drawn(folder, read.states([RED, BLUE, ""]))
    apart = min(np.abs(captions[i] - captions[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2)))
    for texts in ([RED, BLUE, ""], ["red red a", "a blue", ""]):
        assert (np.abs(drawn(taught, read.states(texts)) - captions).mean((1, 2, 3)) < 0.1 * apart).all()
    assert np.abs(drawn(folder, read.states(["red red a"])) - captions[:1]).mean() > 0.1 * apart


def test_other_files_stay_as_they_are(folder, taught):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(taught)) for path in taught.rglob("*") if path.is_file()}
    changed = {name for name in names if (folder / name).read_bytes() != (taught / name).read_bytes()}
    assert changed == {"unet/model.onnx"}


def test_the_merged_graph_equals_torch(folder, encoder):
    read = TextEncoder(encoder)
    keys = torch.as_tensor(read.states([RED, BLUE, ""]))
    torch.manual_seed(0)
    options = paraphrases.Options()
    retrieval = paraphrases.Retrieval(paraphrases.Embedding(16, options).eval(), keys)
    paraphrases.round_weights(retrieval)
    assert retrieval.nearest(keys).tolist() == [0, 1, 2]
    lost = (retrieval(keys) - keys).square().mean().sqrt() / keys.square().mean().sqrt()
    assert lost < 1.1 * paraphrases.LOST
    front = paraphrases.to_onnx(retrieval, (keys,), ("encoder_hidden_states",), ("states",))
    unet = (folder / "unet/model.onnx").read_bytes()
    merged = paraphrases.merged(unet, paraphrases.halved(front))
    words = torch.as_tensor(read.states(["red", "a square", "", "blue blue a"]))
    assert paraphrases.check_graph(merged, unet, retrieval, words, options) < 1e-4
    with torch.no_grad():
        retrieval.codes += 1
    with pytest.raises(TrainerError, match=r"disagree by .* on the paraphrases; nothing was written"):
        paraphrases.check_graph(merged, unet, retrieval, words, options)


def test_it_says_what_it_measured(folder, tmp_path, capsys):
    arguments = ["paraphrases", str(folder), "--pairs", str(write_pairs(tmp_path / "p.csv", PAIRS)), "--steps", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "pairs: 9 to train on, 1 to measure on, 2 captions" in said
    assert "of 1 paraphrases held out, whose words others of the pairs share," in said


@pytest.mark.parametrize(
    ("header", "pairs", "said"),
    [
        ("caption,text", PAIRS, "needs the columns caption and paraphrase"),
        ("caption,paraphrase", [(RED, "red"), (BLUE, "")], "line 3: lacks the paraphrase"),
        ("caption,paraphrase", [("", "red")], "line 2: lacks the caption"),
        ("caption,paraphrase", [], "has 0 pairs of 0 captions; training needs at least 2 of each"),
        ("caption,paraphrase", PAIRS[:1], "has 1 pairs of 1 captions"),
        ("caption,paraphrase", PAIRS[:5], "has 5 pairs of 1 captions"),
        ("caption,paraphrase", [(RED, "red" * 400), *PAIRS], "line 2: has 1200 characters, more than 1000"),
        ("caption,paraphrase", [(RED, "red" * 50000), *PAIRS], "is not CSV in UTF-8: field larger than field limit"),
        ("caption,paraphrase", [*PAIRS, ("a red red red red square", "red")], "has 8 tokens, and the text encoder"),
        (
            "caption,paraphrase",
            [("a green", "red"), ("a pink", "red")],
            "cannot tell the caption 'a pink' from another",
        ),
    ],
)
def test_bad_pairs_are_refused(folder, tmp_path, capsys, header, pairs, said):
    path = write_pairs(tmp_path / "pairs.csv", pairs, header)
    arguments = ["paraphrases", str(folder), "--pairs", str(path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--steps", "1", "--threads", "1"]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_too_many_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paraphrases, "MOST", 5)
    with pytest.raises(TrainerError, match="has more than 5 pairs; leave some out"):
        paraphrases.read_pairs(write_pairs(tmp_path / "pairs.csv", PAIRS))


def test_a_held_out_pair_needs_a_caption_of_the_pairs(folder, tmp_path, capsys):
    pairs, others = write_pairs(tmp_path / "p.csv", PAIRS), write_pairs(tmp_path / "o.csv", [("a square", "square")])
    arguments = ["paraphrases", str(folder), "--pairs", str(pairs), "--held-out", str(others)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 65
    assert "o.csv: no pair of" in capsys.readouterr().err


def test_only_a_pipeline_without_paraphrases_is_taken(taught, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.csv", PAIRS)
    arguments = ["--pairs", str(pairs), "--out", str(tmp_path / "out")]
    assert main(["paraphrases", str(taught), *arguments]) == 65
    assert "has paraphrases already; pass the folder that text-to-image wrote" in capsys.readouterr().err
    assert main(["paraphrases", str(tmp_path), *arguments]) == 65
    assert "is not a pipeline of `residuald-train text-to-image`" in capsys.readouterr().err
