//! Reads prompts from standard input, each a line of JSON, and writes the token ids of each as a line of JSON: what the tests
//! compare with transformers. The arguments are the folder of a pipeline, and the number of its tokenizer: 0 unless given.

use std::io::{Write, stdin, stdout};
use std::path::PathBuf;

use residuald::diffusion::folder::ImagePipeline;
use residuald::prompt::PromptTokenizer;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let folder = std::env::args_os().nth(1).ok_or("name a folder")?;
    let text = ImagePipeline::read(&PathBuf::from(folder), None)?.text;
    let files = text.ok_or("the pipeline has no text encoder")?;
    let number = std::env::args().nth(2).unwrap_or_default();
    let encoder = files.encoders.get(number.parse().unwrap_or(0));
    let tokenizer = PromptTokenizer::new(encoder.ok_or("the pipeline has no such tokenizer")?)?;
    let mut out = stdout().lock();
    for line in stdin().lines() {
        let prompt: String = serde_json::from_str(&line?)?;
        writeln!(
            out,
            "{}",
            serde_json::to_string(&tokenizer.tokens(&prompt)?.ids)?
        )?;
    }
    Ok(())
}
