//! The parts of a latent diffusion pipeline that draws images from text: tokenizers, text encoders and the VAE's decoder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Error;
use super::folder::{
    CONFIG, HIDDEN_STATES, MOST_CHANNELS, TEXT_EMBEDS, TIME_IDS, failed, graph, object, text, whole,
};
use super::latent_scale::LatentScale;

/// The most bytes of a tokenizer's file. A vocabulary of a million tokens is smaller.
const MOST_VOCABULARY: u64 = 64 << 20;
/// The most tokens of a prompt, and of a vocabulary, and the most values of a token's embedding.
const MOST_TOKENS: u64 = 4096;
const MOST_IDS: u64 = 1 << 24;
const MOST_WIDTH: u64 = 1 << 16;
/// The most layers of a text encoder.
const MOST_LAYERS: u64 = 1000;
/// The number of values that tell a denoiser of Stable Diffusion XL the image's size: original size, crop, target size.
const SIZES: usize = 6;
/// The most pixels for one value of a latent image, on a side.
const MOST_BLOCKS: usize = 8;

/// What a pipeline has beside a denoiser and a scheduler if it draws from text.
#[derive(Debug)]
pub struct TextToImageFiles {
    /// One, or the two of Stable Diffusion XL, whose embeddings of a token are joined.
    pub encoders: Vec<PromptFiles>,
    pub decoder: DecoderFiles,
    /// The default guidance. `None` if only the class tells it.
    pub guidance: Option<f32>,
    /// Whether guidance moves away from zeros, in place of the embeddings of an empty prompt, if no negative prompt is given.
    pub zeros_for_no_negative: bool,
}

/// What becomes of a prompt: token ids, then embeddings.
#[derive(Debug)]
pub struct PromptFiles {
    pub tokenizer: TokenizerFiles,
    pub encoder: TextEncoderFiles,
}

/// A graph that was checked.
#[derive(Debug)]
pub struct GraphFile {
    /// The graph's name in messages: `unet/model.onnx`.
    pub file: String,
    pub source: GraphSource,
}

/// Where ONNX Runtime reads a graph.
#[derive(Debug)]
pub enum GraphSource {
    /// A file. Its weights may be in other files of the same folder.
    File(PathBuf),
    /// The graph with its weights.
    Bytes(Vec<u8>),
}

/// What `tokenizer/` holds.
#[derive(Debug)]
pub struct TokenizerFiles {
    pub folder: PathBuf,
    pub vocabulary: Vocabulary,
    /// `tokenizer_config.json`.
    pub config: Map<String, Value>,
    /// `special_tokens_map.json`. Empty if the file is absent.
    pub special_tokens: Map<String, Value>,
}

/// The text of the files that define the tokens.
#[derive(Debug)]
pub enum Vocabulary {
    /// `tokenizer.json`.
    Whole(String),
    /// `vocab.json` and `merges.txt`.
    Parts { vocab: String, merges: String },
}

#[derive(Debug)]
pub struct TextEncoderFiles {
    pub graph: GraphFile,
    /// Its configuration's name in messages: `text_encoder/config.json`.
    pub config: String,
    /// The output with the tokens' embeddings.
    pub output: String,
    /// The number of values of the whole prompt's embedding (`text_embeds`), if it is used.
    pub pooled: Option<usize>,
    /// The number of values of a token's embedding.
    pub width: usize,
    /// The number of tokens that it takes, 77 for CLIP.
    pub positions: usize,
    /// The number of token ids.
    pub vocabulary: usize,
}

#[derive(Debug)]
pub struct DecoderFiles {
    pub graph: GraphFile,
    pub latent_channels: usize,
    /// Channels of an image.
    pub channels: usize,
    /// The pixels of an image for one value of its latent image, on a side.
    pub scale: usize,
    pub latents: LatentScale,
}

impl TextToImageFiles {
    /// `is_xl`: of Stable Diffusion XL, with two text encoders.
    pub(super) fn read(
        folder: &Path,
        is_xl: bool,
        guidance: Option<f32>,
        zeros_for_no_negative: bool,
        notes: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let mut encoders = vec![PromptFiles {
            tokenizer: TokenizerFiles::read(&folder.join("tokenizer"))?,
            encoder: TextEncoderFiles::read(folder, "text_encoder", is_xl, false)?,
        }];
        if is_xl {
            encoders.push(PromptFiles {
                tokenizer: TokenizerFiles::read(&folder.join("tokenizer_2"))?,
                encoder: TextEncoderFiles::read(folder, "text_encoder_2", is_xl, true)?,
            });
        }
        Ok(TextToImageFiles {
            encoders,
            decoder: DecoderFiles::read(folder, is_xl, notes)?,
            guidance,
            zeros_for_no_negative,
        })
    }

    /// What the denoiser gets of the prompt and the size, and the number of values of each input's last dimension.
    pub(super) fn conditions(&self) -> Vec<(&'static str, usize)> {
        let width = self.encoders.iter().map(|files| files.encoder.width).sum();
        let pooled = self.encoders.iter().find_map(|files| files.encoder.pooled);
        let of_xl = pooled.map(|pooled| [(TEXT_EMBEDS, pooled), (TIME_IDS, SIZES)]);
        let of_xl = of_xl.into_iter().flatten();
        [(HIDDEN_STATES, width)].into_iter().chain(of_xl).collect()
    }
}

impl TokenizerFiles {
    fn read(folder: &Path) -> Result<TokenizerFiles, Error> {
        let config = object(&folder.join("tokenizer_config.json"))?;
        let special_tokens = folder.join("special_tokens_map.json");
        let special_tokens = match special_tokens.exists() {
            true => object(&special_tokens)?,
            false => Map::new(),
        };
        let (whole, vocab) = (folder.join("tokenizer.json"), folder.join("vocab.json"));
        let vocabulary = if whole.exists() {
            Vocabulary::Whole(text(&whole, MOST_VOCABULARY)?)
        } else if vocab.exists() {
            Vocabulary::Parts {
                vocab: text(&vocab, MOST_VOCABULARY)?,
                merges: text(&folder.join("merges.txt"), MOST_VOCABULARY)?,
            }
        } else {
            let problem = "has no tokenizer.json, and no vocab.json with merges.txt: copy the tokenizer's files there";
            return Err(failed(folder, problem));
        };
        Ok(TokenizerFiles {
            folder: folder.to_owned(),
            vocabulary,
            config,
            special_tokens,
        })
    }
}

impl TextEncoderFiles {
    /// `is_penultimate`: the embeddings are those before the last layer, as in Stable Diffusion XL. `is_pooled`: the whole prompt's is
    /// used, too.
    fn read(
        folder: &Path,
        name: &str,
        is_penultimate: bool,
        is_pooled: bool,
    ) -> Result<TextEncoderFiles, Error> {
        let path = folder.join(name).join(CONFIG);
        let config = object(&path)?;
        let output = match is_penultimate {
            true => {
                let layers = whole(&path, &config, "num_hidden_layers", MOST_LAYERS)?;
                format!("hidden_states.{}", layers - 1)
            }
            false => "last_hidden_state".to_owned(),
        };
        let pooled = is_pooled.then(|| whole(&path, &config, "projection_dim", MOST_WIDTH));
        Ok(TextEncoderFiles {
            config: format!("{name}/{CONFIG}"),
            output,
            pooled: pooled.transpose()?,
            width: whole(&path, &config, "hidden_size", MOST_WIDTH)?,
            positions: whole(&path, &config, "max_position_embeddings", MOST_TOKENS)?,
            vocabulary: whole(&path, &config, "vocab_size", MOST_IDS)?,
            graph: graph(folder, name)?,
        })
    }
}

impl DecoderFiles {
    /// Channels, height and width of the image that a latent image of these stands for.
    pub fn image(&self, [_, height, width]: [usize; 3]) -> [usize; 3] {
        [self.channels, height * self.scale, width * self.scale]
    }

    fn read(folder: &Path, is_xl: bool, notes: &mut Vec<String>) -> Result<DecoderFiles, Error> {
        let path = folder.join("vae_decoder").join(CONFIG);
        let config = object(&path)?;
        let blocks = config.get("block_out_channels").and_then(Value::as_array);
        let blocks = blocks.map(Vec::len);
        let blocks = blocks.filter(|blocks| (1..=MOST_BLOCKS).contains(blocks));
        let blocks = blocks.ok_or_else(|| {
            let problem = format!("`block_out_channels` must be a list of 1 to {MOST_BLOCKS}");
            failed(&path, &problem)
        })?;
        let latent_channels = whole(&path, &config, "latent_channels", MOST_CHANNELS)?;
        Ok(DecoderFiles {
            latents: LatentScale::read(&path, &config, latent_channels, is_xl, notes)?,
            latent_channels,
            channels: whole(&path, &config, "out_channels", MOST_CHANNELS)?,
            scale: 1 << (blocks - 1),
            graph: graph(folder, "vae_decoder")?,
        })
    }
}

/// The VAE's encoder.
#[derive(Debug)]
pub struct EncoderFiles {
    pub graph: GraphFile,
}

impl EncoderFiles {
    /// # Errors
    /// The pipeline in `folder` has no such graph.
    pub fn read(folder: &Path) -> Result<EncoderFiles, Error> {
        let graph = graph(folder, "vae_encoder")?;
        Ok(EncoderFiles { graph })
    }
}
