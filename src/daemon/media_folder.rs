//! Checks and cleans the folder for image maps, `output.media_dir`.

use crate::config::{Media, OutputSettings};
use crate::failure::Failure;
use crate::pipeline;

/// Returns the folder for maps as an absolute path, or `None` if it is not configured.
///
/// # Errors
/// When the folder does not exist or is not a folder.
pub fn checked(output: &OutputSettings) -> Result<Option<Media>, Failure> {
    let Some(Media::Folder(folder)) = &output.media else {
        return Ok(output.media.clone());
    };
    let problem = |what: String| Failure::config(format!("output.media_dir = {folder:?}: {what}"));
    let whole = folder.canonicalize().map_err(|e| problem(e.to_string()))?;
    if !whole.is_dir() {
        return Err(problem("it is not a folder".to_owned()));
    }
    pipeline::probe_folder(&whole).map_err(|e| problem(e.to_string()))?;
    Ok(Some(Media::Folder(whole)))
}

/// Removes unfinished maps that a killed process left behind.
pub fn sweep(output: &OutputSettings) {
    let Some(Media::Folder(folder)) = &output.media else {
        return;
    };
    match pipeline::sweep_folder(folder) {
        Ok(0) => {}
        Ok(drafts) => tracing::info!(
            drafts,
            "removed unfinished maps of an earlier process from output.media_dir"
        ),
        Err(e) => tracing::warn!("output.media_dir: cannot remove unfinished maps: {e}"),
    }
}
