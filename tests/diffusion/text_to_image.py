"""Pipelines for text with random weights, of diffusers and transformers, exported in the layout of optimum."""

import gzip
import importlib.util
import json
import warnings
from pathlib import Path

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
# The widths of the second text encoder of Stable Diffusion XL, and of its embedding of the whole prompt.
WIDTH_2 = 48
PROJECTED = 40
LATENT = 8
SCALE = 8


def clip_vocabulary(folder):
    """CLIP's 49,408 tokens as vocab.json and merges.txt, from the package open_clip."""
    package = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    lines = gzip.decompress((package / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [chr(byte) for byte in shown] + [chr(256 + n) for n in range(len(hidden))]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert len(tokens) == 49408


def older_tokenizer(folder, pad_token="<|endoftext|>"):
    """The files of a tokenizer as transformers 4 wrote them for Stable Diffusion 1; `!` pads in Stable Diffusion 2."""
    clip_vocabulary(folder)
    flags = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    config = {name: {"__type": "AddedToken", "content": content} | flags for name, content in tokens.items()}
    config |= {"unk_token": config["eos_token"], "pad_token": pad_token, "model_max_length": 77}
    config |= {"tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(width=WIDTH, projected=WIDTH, layers=2, model=CLIPTextModel, gain=4):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=projected,
        attn_implementation="eager",
    )
    encoder = model(config).eval()
    # Weights of the initial size would hardly tell prompts apart.
    for weights in encoder.parameters():
        weights.data.mul_(gain)
    return encoder


def denoiser(guidance_width=None, channels=4, xl=False, blocks=(16, 32)):
    torch.manual_seed(2)
    of_xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    of_xl |= {"projection_class_embeddings_input_dim": 6 * 8 + PROJECTED}
    return diffusers.UNet2DConditionModel(
        out_channels=4,
        sample_size=LATENT,
        in_channels=channels,
        layers_per_block=1,
        block_out_channels=blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH + WIDTH_2 if xl else WIDTH,
        norm_num_groups=4,
        attention_head_dim=8,
        time_cond_proj_dim=guidance_width,
        **(of_xl if xl else {}),
    ).eval()


def vae(blocks=(8, 8, 8, 8), **options):
    torch.manual_seed(3)
    return diffusers.AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=LATENT * SCALE,
        **options,
    ).eval()


class Encode(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids):
        found = self.encoder(input_ids=input_ids)
        return found.last_hidden_state, found.pooler_output


class EncodeLayers(torch.nn.Module):
    """With the embeddings after each layer, as optimum exports the text encoders of Stable Diffusion XL."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids):
        found = self.encoder(input_ids=input_ids, output_hidden_states=True)
        pooled = found.text_embeds if "text_embeds" in found else found.pooler_output
        return pooled, found.last_hidden_state, *found.hidden_states


class Denoise(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, encoder_hidden_states, timestep_cond=None):
        return self.unet(sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond).sample


class DenoiseXl(Denoise):
    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added).sample


class Decode(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample):
        return self.vae.decode(latent_sample).sample


class EncodeImage(torch.nn.Module):
    """As optimum exports it: mean and logarithm of the variance."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, sample):
        return self.vae.encode(sample).latent_dist.parameters


class MeanOfImage(EncodeImage):
    """As older versions of optimum, without their noise."""

    def forward(self, sample):
        return self.vae.encode(sample).latent_dist.mode()


def export(module, arguments, outputs, path, external):
    """`arguments`: example inputs by name, all with free sides. `external`: weights in a file of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = {"input_ids": [0, 1], "encoder_hidden_states": [0, 1], "timestep_cond": [0], "last_hidden_state": [0, 1]}
    free |= {name: [0, 2, 3] for name in ("sample", "latent_sample", "latent_parameters", "out_sample")}
    free |= {name: [0] for name in ("pooler_output", "text_embeds", "time_ids")}
    free |= {name: [0, 1] for name in outputs if name.startswith("hidden_states.")}
    axes = {name: {i: f"{name}_{i}" for i in free[name]} for name in [*arguments, *outputs] if name in free}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(arguments.values()),
            path,
            input_names=list(arguments),
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=20,
            dynamo=False,
        )
    if external:
        import onnx

        model = onnx.load(path)
        options = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 0}
        onnx.save_model(model, path, **options)


def write_image_encoder(folder, vae, older=False):
    """Adds vae_encoder, whose output has another name if `older`."""
    image = {"sample": torch.zeros(2, 3, LATENT * SCALE, LATENT * SCALE)}
    encoder = MeanOfImage(vae) if older else EncodeImage(vae)
    name = "latent_sample" if older else "latent_parameters"
    export(encoder, image, [name], folder / "vae_encoder/model.onnx", external=False)
    vae.save_config(folder / "vae_encoder")


def write_folder(folder, pipeline, half=False, external=False):
    """Writes the pipeline as optimum does, in float16 if `half`, which rounds the pipeline's own weights."""
    kind = torch.float16 if half else torch.float32
    is_xl = hasattr(pipeline, "text_encoder_2")
    parts = [pipeline.text_encoder, pipeline.unet, pipeline.vae, *([pipeline.text_encoder_2] if is_xl else [])]
    text_encoder, unet, vae, *second = [part.to(kind) for part in parts]
    width = unet.config.time_cond_proj_dim
    inputs = {
        "sample": torch.zeros(2, unet.config.in_channels, LATENT, LATENT, dtype=kind),
        "timestep": torch.tensor(1.0, dtype=kind),
        "encoder_hidden_states": torch.zeros(2, 77, unet.config.cross_attention_dim, dtype=kind),
    }
    if is_xl:
        inputs |= {"text_embeds": torch.zeros(2, PROJECTED, dtype=kind), "time_ids": torch.zeros(2, 6, dtype=kind)}
    if width:
        inputs["timestep_cond"] = torch.zeros(2, width, dtype=kind)
    latent = {"latent_sample": torch.zeros(2, 4, LATENT, LATENT, dtype=kind)}
    ids = {"input_ids": torch.zeros(2, 77, dtype=torch.int64)}
    graphs = [
        (DenoiseXl(unet) if is_xl else Denoise(unet), inputs, ["out_sample"], "unet", unet),
        (Decode(vae), latent, ["sample"], "vae_decoder", vae),
    ]
    if is_xl:
        for encoder, name, pooled in [(text_encoder, "", "pooler_output"), (second[0], "_2", "text_embeds")]:
            layers = [f"hidden_states.{i}" for i in range(encoder.config.num_hidden_layers + 1)]
            outputs = [pooled, "last_hidden_state", *layers]
            graphs.append((EncodeLayers(encoder), ids, outputs, f"text_encoder{name}", encoder.config))
        pipeline.tokenizer_2.save_pretrained(folder / "tokenizer_2")
    else:
        outputs = ["last_hidden_state", "pooler_output"]
        graphs.append((Encode(text_encoder), ids, outputs, "text_encoder", text_encoder.config))
    for module, arguments, outputs, name, config in graphs:
        export(module, arguments, outputs, folder / name / "model.onnx", external)
        getattr(config, "save_config", config.save_pretrained)(folder / name)
    for part in parts:
        part.float()
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.save_config(folder)
    return folder


def stable_diffusion(tokenizer, scheduler):
    pipeline = diffusers.StableDiffusionPipeline(
        vae(), text_encoder(), tokenizer, denoiser(), scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_xl(tokenizers, scheduler, **of_vae):
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae(**of_vae),
        # The embeddings are those before the last layer, which no norm follows.
        text_encoder(gain=2),
        text_encoder(WIDTH_2, PROJECTED, 3, CLIPTextModelWithProjection, gain=2),
        *tokenizers,
        denoiser(xl=True),
        scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latent_consistency(tokenizer, scheduler):
    pipeline = diffusers.LatentConsistencyModelPipeline(
        vae(),
        text_encoder(),
        tokenizer,
        denoiser(guidance_width=17),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
