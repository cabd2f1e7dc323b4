//! The parts of a latent diffusion pipeline that draws images from text: tokenizer, text encoder and the VAE's decoder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Error;
use super::folder::{CONFIG, MOST_CHANNELS, failed, graph, object, text, whole};

/// The most bytes of a tokenizer's file. A vocabulary of a million tokens is smaller.
const MOST_VOCABULARY: u64 = 64 << 20;
/// The most tokens of a prompt, and of a vocabulary, and the most values of a token's embedding.
const MOST_TOKENS: u64 = 4096;
const MOST_IDS: u64 = 1 << 24;
const MOST_WIDTH: u64 = 1 << 16;
/// The most pixels for one value of a latent image, on a side.
const MOST_BLOCKS: usize = 8;

/// What a pipeline has beside a denoiser and a scheduler if it draws from text.
#[derive(Debug)]
pub struct TextToImageFiles {
    pub tokenizer: TokenizerFiles,
    pub encoder: TextEncoderFiles,
    pub decoder: DecoderFiles,
    /// The default guidance. `None` if only the class tells it.
    pub guidance: Option<f32>,
}

/// A graph's bytes, and where it stands.
#[derive(Debug)]
pub struct GraphFile {
    /// The graph's name in messages: `unet/model.onnx`.
    pub file: String,
    /// The folder of its external weights. `None` if the graph holds them.
    pub weights: Option<PathBuf>,
    pub model: Vec<u8>,
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
    /// Latent images are divided by it before they are decoded.
    pub scaling_factor: f32,
}

impl TextToImageFiles {
    pub(super) fn read(
        folder: &Path,
        guidance: Option<f32>,
        notes: &mut Vec<String>,
    ) -> Result<Self, Error> {
        Ok(TextToImageFiles {
            guidance,
            tokenizer: TokenizerFiles::read(&folder.join("tokenizer"))?,
            encoder: TextEncoderFiles::read(folder)?,
            decoder: DecoderFiles::read(folder, notes)?,
        })
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
    fn read(folder: &Path) -> Result<TextEncoderFiles, Error> {
        let path = folder.join("text_encoder").join(CONFIG);
        let config = object(&path)?;
        Ok(TextEncoderFiles {
            width: whole(&path, &config, "hidden_size", MOST_WIDTH)?,
            positions: whole(&path, &config, "max_position_embeddings", MOST_TOKENS)?,
            vocabulary: whole(&path, &config, "vocab_size", MOST_IDS)?,
            graph: graph(folder, "text_encoder")?,
        })
    }
}

impl DecoderFiles {
    /// Channels, height and width of the image that a latent image of these stands for.
    pub fn image(&self, [_, height, width]: [usize; 3]) -> [usize; 3] {
        [self.channels, height * self.scale, width * self.scale]
    }

    fn read(folder: &Path, notes: &mut Vec<String>) -> Result<DecoderFiles, Error> {
        let path = folder.join("vae_decoder").join(CONFIG);
        let config = object(&path)?;
        let blocks = config.get("block_out_channels").and_then(Value::as_array);
        let blocks = blocks.map(Vec::len);
        let blocks = blocks.filter(|blocks| (1..=MOST_BLOCKS).contains(blocks));
        let blocks = blocks.ok_or_else(|| {
            let problem = format!("`block_out_channels` must be a list of 1 to {MOST_BLOCKS}");
            failed(&path, &problem)
        })?;
        let scaling_factor = match config.get("scaling_factor") {
            // AutoencoderKL's default.
            None => 0.18215,
            Some(factor) => factor
                .as_f64()
                .map(|factor| factor as f32)
                .filter(|factor| factor.is_finite() && *factor > 0.0)
                .ok_or_else(|| failed(&path, "`scaling_factor` must be a number above 0"))?,
        };
        if config.get("shift_factor").is_some_and(|f| !f.is_null()) {
            notes.push(format!(
                "{}: shift_factor is ignored, as in diffusers' pipelines for text to image",
                path.display()
            ));
        }
        Ok(DecoderFiles {
            latent_channels: whole(&path, &config, "latent_channels", MOST_CHANNELS)?,
            channels: whole(&path, &config, "out_channels", MOST_CHANNELS)?,
            scale: 1 << (blocks - 1),
            scaling_factor,
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
