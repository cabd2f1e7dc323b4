//! Computes the memory budget, for the daemon and for `check`.

use crate::bundle::{Bundle, ModelInput};
use crate::memory::{Base, Budget, Limit, TooLittle, resident};

use crate::failure::Failure;

/// Returns the memory budget next to a loaded and warmed-up model, or `None` if the amount of memory is unknown.
/// `before` is the resident memory before the model was loaded.
///
/// # Errors
/// When the limit leaves too little memory next to the model.
pub fn of(setting: Option<u64>, bundle: &Bundle, before: u64) -> Result<Option<Budget>, Failure> {
    let Some(limit) = Limit::find(setting) else {
        return Ok(None);
    };
    let resident = resident();
    let base = Base {
        resident,
        model: resident.saturating_sub(before),
    };
    let images = matches!(bundle.manifest.input, ModelInput::Image(_));
    let budget = Budget::divide(limit, base, images);
    budget
        .map(Some)
        .map_err(|e: TooLittle| Failure::config(e.to_string()))
}
