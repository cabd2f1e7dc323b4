//! The budget of memory for the daemon and for `check`.

use crate::bundle::{Bundle, ModelInput};
use crate::memory::{Base, Budget, Limit, TooLittle, resident};

use crate::failure::Failure;

/// The budget for a model that is loaded and warm; `before`: what was resident without it. `None` if nothing says how much memory there is.
///
/// # Errors
/// The limit leaves too little.
pub fn of(setting: Option<u64>, bundle: &Bundle, before: u64) -> Result<Option<Budget>, Failure> {
    let Some(limit) = Limit::find(setting) else {
        return Ok(None);
    };
    let resident = resident();
    let base = Base {
        resident,
        model: resident.saturating_sub(before),
    };
    let pictures = matches!(bundle.manifest.input, ModelInput::Image(_));
    let budget = Budget::divide(limit, base, pictures);
    budget
        .map(Some)
        .map_err(|e: TooLittle| Failure::config(e.to_string()))
}
