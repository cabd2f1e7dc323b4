//! From a prompt to the token ids that a text encoder takes.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::diffusion::components::{PromptFiles, TokenizerFiles, Vocabulary};

/// How CLIP splits a text into words (Radford et al. 2021, arXiv 2103.00020, its released code), as `transformers` 5 writes it.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// The most characters of a cut text that are shown.
const MOST_SHOWN: usize = 200;

/// A tokenizer with the length and the padding of its text encoder.
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    length: usize,
    padding: u32,
}

/// A prompt's token ids, padded.
pub struct Tokens {
    pub ids: Vec<u32>,
    /// What did not fit.
    pub cut: Option<Cut>,
}

/// The end of a prompt that the model does not see.
pub struct Cut {
    pub tokens: usize,
    /// Its text, or the beginning of a long one.
    pub text: String,
}

impl PromptTokenizer {
    /// # Errors
    /// The files are not those of a tokenizer, or of one for another text encoder.
    pub fn new(files: &PromptFiles) -> Result<PromptTokenizer, String> {
        let (encoder, files) = (&files.encoder, &files.tokenizer);
        let failed = |problem: String| format!("{}: {problem}", files.folder.display());
        let padding = special(files, "pad_token", END).content;
        let json = match &files.vocabulary {
            Vocabulary::Whole(json) => json.clone(),
            Vocabulary::Parts { vocab, merges } => {
                clip(files, vocab, merges).map_err(failed)?.to_string()
            }
        };
        let tokenizer = Tokenizer::from_bytes(json)
            .map_err(|e| failed(format!("is not a tokenizer that can be read: {e}")))?;
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= encoder.vocabulary {
            return Err(failed(format!(
                "has the token id {largest}, and {} has `vocab_size` {}: the tokenizer is another model's",
                encoder.config, encoder.vocabulary
            )));
        }
        let id = tokenizer.token_to_id(&padding);
        let padding = id.ok_or_else(|| failed(format!("has no token `{padding}` to pad with")))?;
        let declared = files.config.get("model_max_length").and_then(Value::as_u64);
        let declared = declared.and_then(|length| usize::try_from(length).ok());
        let length = declared.filter(|length| (3..=encoder.positions).contains(length));
        let mut tokenizer = tokenizer;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| failed(e.to_string()))?;
        Ok(PromptTokenizer {
            tokenizer,
            length: length.unwrap_or(encoder.positions),
            padding,
        })
    }

    /// Returns the ids of a prompt: start, words, end, padding. If there are too many words, the last ones are cut.
    ///
    /// # Errors
    /// The tokenizer's model cannot encode the prompt.
    pub fn tokens(&self, prompt: &str) -> Result<Tokens, String> {
        let encoded = self.tokenizer.encode(prompt, true);
        let encoded = encoded.map_err(|e| format!("the prompt cannot be tokenized: {e}"))?;
        let mut ids = encoded.get_ids().to_vec();
        let Some(over) = ids.len().checked_sub(self.length).filter(|over| *over > 0) else {
            ids.resize(self.length, self.padding);
            return Ok(Tokens { ids, cut: None });
        };
        let end = ids[ids.len() - 1];
        let first_cut = encoded.get_offsets()[self.length - 1].0;
        ids.truncate(self.length - 1);
        ids.push(end);
        let rest = prompt.get(first_cut..).unwrap_or(prompt);
        let mut text: String = rest.chars().take(MOST_SHOWN).collect();
        if text.len() < rest.len() {
            text.push('…');
        }
        Ok(Tokens {
            ids,
            cut: Some(Cut { tokens: over, text }),
        })
    }

    /// The number of tokens of a prompt.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// A special token, and whether it is looked for in the normalized text.
struct Special {
    content: String,
    normalized: bool,
}

/// A special token of `tokenizer_config.json`, else of `special_tokens_map.json`, else the default.
fn special(files: &TokenizerFiles, name: &str, default: &str) -> Special {
    let read = |map: &Map<String, Value>| {
        let token = map.get(name)?;
        let content = token.as_str().or_else(|| token.get("content")?.as_str())?;
        let normalized = token.get("normalized").and_then(Value::as_bool);
        Some(Special {
            content: content.to_owned(),
            normalized: normalized.unwrap_or(false),
        })
    };
    let found = read(&files.config).or_else(|| read(&files.special_tokens));
    found.unwrap_or_else(|| Special {
        content: default.to_owned(),
        normalized: false,
    })
}

/// The `tokenizer.json` that CLIP's `vocab.json` and `merges.txt` stand for.
fn clip(files: &TokenizerFiles, vocab: &str, merges: &str) -> Result<Value, String> {
    let vocab: Map<String, Value> =
        serde_json::from_str(vocab).map_err(|e| format!("vocab.json: {e}"))?;
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .collect();
    let [start, end, unknown, padding] = [
        ("bos_token", START),
        ("eos_token", END),
        ("unk_token", END),
        ("pad_token", END),
    ]
    .map(|(name, default)| special(files, name, default));
    let id = |token: &Special| {
        let id = vocab.get(&token.content).and_then(Value::as_u64);
        id.ok_or_else(|| format!("vocab.json has no token `{}`", token.content))
    };
    let mut added: Vec<Value> = Vec::new();
    for token in [&start, &end, &unknown, &padding] {
        // A later token of the same text replaces an earlier one, as in transformers.
        added.retain(|before| before["content"] != token.content);
        added.push(json!({
            "id": id(token)?, "content": token.content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": token.normalized, "special": true,
        }));
    }
    added.sort_by_key(|token| token["id"].as_u64());
    let post_processor = json!({
        "type": "RobertaProcessing", "sep": [end.content, id(&end)?], "cls": [start.content, id(&start)?],
        "trim_offsets": false, "add_prefix_space": false,
    });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown.content, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    }))
}
