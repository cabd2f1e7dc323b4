//! The folder for maps of images, `output.media_dir`.

use crate::config::{Media, Output};
use crate::failure::Failure;
use crate::pipeline;

/// The place for maps, a folder by its whole path and there.
///
/// # Errors
/// It is no folder.
pub fn checked(output: &Output) -> Result<Option<Media>, Failure> {
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

/// Takes away the drafts of maps that a predecessor left that was killed.
pub fn sweep(output: &Output) {
    let Some(Media::Folder(folder)) = &output.media else {
        return;
    };
    match pipeline::sweep_folder(folder) {
        Ok(0) => {}
        Ok(drafts) => tracing::info!(drafts, "unfinished maps in output.media_dir are removed"),
        Err(e) => tracing::warn!("output.media_dir: unfinished maps cannot be looked for: {e}"),
    }
}
