//! Runs the text encoder of a pipeline: from token ids to an embedding of each token.

use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};

use super::component::{fault, find, floats, open, output};
use super::interrupt::Interrupt;
use super::{Runtime, ScorerError};
use crate::config::InferenceSettings;
use crate::diffusion::components::TextEncoderFiles;

const IDS: &str = "input_ids";
const OUTPUT: &str = "last_hidden_state";

/// A text encoder on the CPU: it runs twice for all images.
pub struct TextEncoder {
    session: Session,
    file: String,
    takes_int32: bool,
    output: (String, TensorElementType),
    width: usize,
    interrupt: Interrupt,
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
        let hidden = find(session.outputs(), &[OUTPUT])
            .ok_or_else(|| fault(file, format!("has no output `{OUTPUT}`")))?;
        let (element, _) = floats(hidden).map_err(|problem| fault(file, problem))?;
        Ok(TextEncoder {
            output: (hidden.name().to_owned(), element),
            takes_int32,
            session,
            file: file.clone(),
            width: files.width,
            interrupt: runtime.interrupt.clone(),
        })
    }

    /// Returns the embeddings of one prompt's tokens, [L, D].
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails, or [`ScorerError::Graph`] when the output has another shape than declared.
    pub fn encode(&mut self, ids: &[u32]) -> Result<Vec<f32>, ScorerError> {
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
        let mut hidden = Vec::new();
        output(&outputs, &self.file, (name, element), &shape, &mut hidden)?;
        Ok(hidden)
    }
}
