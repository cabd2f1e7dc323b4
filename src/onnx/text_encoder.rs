//! Runs the text encoder of a pipeline: from token ids to an embedding of each token.

use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};

use super::component::{fault, find, floats, open, output};
use super::interrupt::Interrupt;
use super::{Runtime, ScorerError};
use crate::config::InferenceSettings;
use crate::diffusion::components::TextEncoderFiles;
use crate::diffusion::folder::TEXT_EMBEDS;

const IDS: &str = "input_ids";

/// A text encoder on the CPU: it runs twice for all images.
pub struct TextEncoder {
    session: Session,
    file: String,
    takes_int32: bool,
    output: (String, TensorElementType),
    width: usize,
    /// The type and the number of values of the whole prompt's embedding, if it is used.
    pooled: Option<(TensorElementType, usize)>,
    interrupt: Interrupt,
}

/// The embeddings of a prompt.
#[derive(Default)]
pub struct Encoded {
    /// The embeddings of the tokens, [L, D].
    pub hidden: Vec<f32>,
    /// The embedding of the whole prompt. Empty if it is not used.
    pub pooled: Vec<f32>,
}

impl Encoded {
    /// Appends another encoder's values, `width` for each token, to each token's.
    pub fn join(&mut self, other: Encoded, width: usize) {
        let tokens = other.hidden.len() / width;
        let own = self.hidden.len() / tokens;
        let (mut mine, theirs) = (self.hidden.iter(), other.hidden.chunks_exact(width));
        let mut both = Vec::with_capacity(self.hidden.len() + other.hidden.len());
        for token in theirs {
            both.extend(mine.by_ref().take(own));
            both.extend_from_slice(token);
        }
        self.hidden = both;
        self.pooled.extend(other.pooled);
    }

    /// Zeros of the same shapes.
    pub fn zeros(&self) -> Encoded {
        Encoded {
            hidden: vec![0.0; self.hidden.len()],
            pooled: vec![0.0; self.pooled.len()],
        }
    }

    /// A value that is not finite, if there is one.
    pub fn infinite(&self) -> Option<f32> {
        let mut all = self.hidden.iter().chain(&self.pooled);
        all.find(|value| !value.is_finite()).copied()
    }
}

impl TextEncoder {
    /// # Errors
    /// [`ScorerError::Graph`] if the tensors are not those of a text encoder.
    pub fn new(runtime: &Runtime, files: &TextEncoderFiles) -> Result<TextEncoder, ScorerError> {
        let file = &files.graph.file;
        let inference = InferenceSettings::on_cpu(1);
        let (session, _) = open(runtime, &files.graph, &inference, 0, &[files.positions])?;
        let ids = find(session.inputs(), &[IDS])
            .ok_or_else(|| fault(file, format!("has no input `{IDS}`")))?;
        let takes_int32 = match ids.dtype() {
            ValueType::Tensor { ty, .. } if *ty == TensorElementType::Int64 => false,
            ValueType::Tensor { ty, .. } if *ty == TensorElementType::Int32 => true,
            _ => return Err(fault(file, format!("has `{IDS}` of no int32 or int64"))),
        };
        if let Some(more) = session.inputs().iter().find(|input| input.name() != IDS) {
            return Err(fault(
                file,
                format!(
                    "also needs the input `{}`: only text encoders of {IDS} can be run",
                    more.name()
                ),
            ));
        }
        let pooled = files.pooled.map(|width| {
            let element = element(&session, file, TEXT_EMBEDS)?;
            Ok::<_, ScorerError>((element, width))
        });
        Ok(TextEncoder {
            output: (
                files.output.clone(),
                element(&session, file, &files.output)?,
            ),
            pooled: pooled.transpose()?,
            takes_int32,
            session,
            file: file.clone(),
            width: files.width,
            interrupt: runtime.interrupt.clone(),
        })
    }

    /// Returns the embeddings of one prompt.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails, or [`ScorerError::Graph`] when the output has another shape than declared.
    pub fn encode(&mut self, ids: &[u32]) -> Result<Encoded, ScorerError> {
        let shape = [1, ids.len()];
        let input: SessionInputValue<'_> = match self.takes_int32 {
            true => {
                let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                Tensor::from_array((shape, ids))?.into()
            }
            false => {
                let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                Tensor::from_array((shape, ids))?.into()
            }
        };
        let runs = self.interrupt.runs()?;
        let outputs = self
            .session
            .run_with_options(ort::inputs![IDS => input], runs)
            .map_err(|e| self.interrupt.failure(e))?;
        let shape = [1, ids.len(), self.width];
        let (name, element) = (self.output.0.as_str(), self.output.1);
        let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
        output(&outputs, &self.file, (name, element), &shape, &mut hidden)?;
        if let Some((element, width)) = self.pooled {
            let tensor = (TEXT_EMBEDS, element);
            output(&outputs, &self.file, tensor, &[1, width], &mut pooled)?;
        }
        Ok(Encoded { hidden, pooled })
    }
}

/// The type of an output of floats.
fn element(session: &Session, file: &str, name: &str) -> Result<TensorElementType, ScorerError> {
    let output = find(session.outputs(), &[name]);
    let missing = || format!("has no output `{name}`: export it as optimum does");
    let output = output.ok_or_else(|| fault(file, missing()))?;
    let (element, _) = floats(output).map_err(|problem| fault(file, problem))?;
    Ok(element)
}
